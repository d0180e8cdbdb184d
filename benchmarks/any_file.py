"""Compare patches between files of any kind with the best generic tool; the limit is 1 KiB above it.

    python -m benchmarks.any_file [--json OUT] [--seed N] [--only WORD]... [--worst N]

Every kind of file (text, tables, code, archives, images, databases, tensors of every type) is changed in several ways.
Published wheels provide real successive releases. Every patch is applied. The command prints the rows where our patch
is largest compared with the best of zstd, zstd with the base as prefix, bsdiff4, hdiffpatch, detools and xdelta3.
"""

import argparse
import json
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

from benchmarks import published_pairs
from benchmarks.file_changes import CHANGES
from benchmarks.file_kinds import generate_file_pairs
from benchmarks.patch_codecs import BUILDERS, GENERIC
from benchmarks.patch_rows import SLACK_BYTES

Case = tuple[str, bytes, bytes]

_REPORTED_ABSENT: set[str] = set()  # codecs whose absence was logged already


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--seed", type=int, default=0, help="of the changes")
    parser.add_argument("--only", action="append", default=[], help="part of a case's name; may be repeated")
    parser.add_argument("--worst", type=int, default=20, help="number of rows to print")
    arguments = parser.parse_args()
    rows = []
    for name, base, target in generate_cases(arguments.seed, tuple(arguments.only)):
        rows.append(row := measure_case(name, base, target))
        if row["excess"] > SLACK_BYTES or not row["identical"]:
            print(format_row(row), file=sys.stderr, flush=True)
        if arguments.json:
            arguments.json.write_text(json.dumps({"files": rows}, indent=1) + "\n")
    for row in sorted(rows, key=lambda row: -row["excess"])[: arguments.worst]:
        print(format_row(row))
    missed = sum(row["excess"] > SLACK_BYTES or not row["identical"] for row in rows)
    print(f"{len(rows)} pairs of files, {missed} more than {SLACK_BYTES:,} bytes above the best generic tool")


def format_row(row: dict[str, Any]) -> str:
    """Return one row as a line of text."""
    best = f"{row['best']} {row['sizes'][row['best']]:,}"
    wrong = "" if row["identical"] else " NOT IDENTICAL"
    sizes = f"{row['base_bytes']:,} to {row['target_bytes']:,}"
    return f"{row['name']}: {sizes}, patch {row['sizes']['airweights']:,}, {best}, excess {row['excess']:,}{wrong}"


def generate_cases(seed: int, only: tuple[str, ...] = ()) -> Iterator[Case]:
    """Yield name, base and target of each case whose name contains a string of `only`; of all cases if it is empty."""
    for kind, data, other in generate_file_pairs(seed):
        for change, apply in CHANGES.items():
            if _is_wanted(f"{kind}, {change}", only):
                yield f"{kind}, {change}", data, apply(data, seed)
        for name, base, target in ((f"{kind}, another", data, other), (f"{kind}, without a base", b"", data)):
            if _is_wanted(name, only):
                yield name, base, target
    yield from generate_release_cases(only)


def _is_wanted(name: str, only: tuple[str, ...]) -> bool:
    return not only or any(word in name for word in only)


def generate_release_cases(only: tuple[str, ...] = ()) -> Iterator[Case]:
    """Yield the wheels of two successive releases and their changed members, if the package registry can be reached."""
    wheels = [*published_pairs.WHEELS]
    for old, new in pairwise(wheels):
        if old.partition("==")[0] != new.partition("==")[0] or not _is_wanted(f"{old} to {new}", only):
            continue
        try:
            paths = [published_pairs.fetch_wheel(requirement) for requirement in (old, new)]
        except RuntimeError as error:
            print(f"{old}: skipped, {error}", file=sys.stderr)
            continue
        contents = [_read_members(path) for path in paths]
        for member in sorted(contents[0].keys() & contents[1].keys()):
            if contents[0][member] != contents[1][member]:
                yield f"{old} to {new}: {member}", contents[0][member], contents[1][member]
        yield f"{old} to {new}: whole", paths[0].read_bytes(), paths[1].read_bytes()


def _read_members(path: Path) -> dict[str, bytes]:
    """Return the content of each member by its name, without the version in the name."""
    with zipfile.ZipFile(path) as archive:
        return {
            "/".join(part for part in name.split("/") if ".dist-info" not in part): archive.read(name)
            for name in archive.namelist()
        }


def measure_case(name: str, base: bytes, target: bytes) -> dict[str, Any]:
    """Measure the patch size of every codec, apply our patch, and return the row."""
    sizes: dict[str, int | None] = {}
    is_identical = True
    with tempfile.TemporaryDirectory() as folder:
        old, new, patch, out = (Path(folder) / name for name in ("base", "target", "patch", "out"))
        old.write_bytes(base)
        new.write_bytes(target)
        for codec in (*GENERIC, "airweights"):
            try:
                encode, apply = BUILDERS[codec](old, new, patch, out)
                encode()
            except Exception as error:  # other tools fail on some files, for example empty ones; our errors are raised
                if codec == "airweights":
                    raise
                sizes[codec] = None
                if not isinstance(error, ImportError):
                    print(f"{name}: {codec} left out, {error}", file=sys.stderr)
                elif codec not in _REPORTED_ABSENT:
                    print(f"{codec}: skipped, {error}", file=sys.stderr)
                    _REPORTED_ABSENT.add(codec)
                continue
            sizes[codec] = patch.stat().st_size
            if codec == "airweights":
                apply()
                is_identical = out.read_bytes() == target
    best = min((size, codec) for codec in GENERIC if (size := sizes[codec]) is not None)
    return {
        "name": name,
        "base_bytes": len(base),
        "target_bytes": len(target),
        "sizes": sizes,
        "best": best[1],
        "excess": (sizes["airweights"] or 0) - best[0],
        "identical": is_identical,
    }


if __name__ == "__main__":
    main()
