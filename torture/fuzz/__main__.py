"""`python -m torture.fuzz`: fuzz every target for a fixed count.

--runs N          Cases per target (default: 20,000).
--seed S          Seed of the changes (default: 0).
--only WORD       Only targets whose name contains the word.
--write-corpus    Write the corpora again.
--coverage NAME   Fuzz one target without end; atheris chooses the changes by coverage (pip install atheris).
"""

import argparse
import sys
import time

from torture.fuzz import patch, targets
from torture.fuzz.run import ALL_TARGETS, FAILURES, fuzz

DEFAULT_RUNS = 20_000


def main() -> int:
    """Fuzz the targets; return 1 if a case failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=DEFAULT_RUNS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="")
    parser.add_argument("--write-corpus", action="store_true")
    parser.add_argument("--coverage", choices=sorted(ALL_TARGETS))
    arguments = parser.parse_args()
    if arguments.write_corpus:
        targets.write_corpus()
        patch.write_corpus()
        return 0
    if arguments.coverage:
        fuzz_by_coverage(arguments.coverage)
    failed = False
    for name in ALL_TARGETS:
        if arguments.only not in name:
            continue
        started = time.monotonic()
        try:
            outcome = fuzz(name, arguments.runs, arguments.seed)
        except AssertionError as error:
            failed = True
            print(f"{name:18} FAILED {error}", flush=True)
            continue
        counts = ", ".join(f"{reason} {count}" for reason, count in sorted(outcome.items()))
        print(f"{name:18} {time.monotonic() - started:6.1f} s  {counts}", flush=True)
    return 1 if failed else 0


def fuzz_by_coverage(name: str) -> None:
    """Run libFuzzer on one target; a changed case reaches the parser through the target's own changes, too."""
    import random

    import atheris  # type: ignore[import-untyped]  # not a dependency

    target = ALL_TARGETS[name]
    folder = FAILURES / f"{name}-corpus"
    folder.mkdir(parents=True, exist_ok=True)
    for number, data in enumerate(target.seeds()):
        (folder / f"seed-{number}").write_bytes(data)

    def mutate(data: bytes, max_size: int, seed: int) -> bytes:
        return (
            bytes(target.change(data, random.Random(seed))[:max_size]) if seed % 2 else atheris.Mutate(data, max_size)
        )

    def run_case(data: bytes) -> None:
        target.read(data)

    atheris.instrument_all()
    atheris.Setup([sys.argv[0], str(folder), "-max_len=65536"], run_case, custom_mutator=mutate)
    atheris.Fuzz()


if __name__ == "__main__":
    sys.exit(main())
