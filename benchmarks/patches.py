"""Compare our patches with generic tools: size, time and memory.

    python -m benchmarks.patches [--pairs DIR] --json OUT [--peer-timeout S] [--markdown OUT.md]
        [--keep DIR] [--jobs N] [--only PAIR]...

A pair is a folder of `DIR` with one `base.*` and one `target.*` file. Without `--pairs`, published successive releases
are fetched by pip with pinned digests into a cache (benchmarks/published_pairs.py), and models are trained if PyTorch
is installed (benchmarks/trained_pairs.py). Every codec runs in its own process; its patch is applied, and the result is
compared byte by byte. With `--keep`, the measurements of generic tools are stored in this folder and used again.
"""

import argparse
import hashlib
import importlib.util
import json
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

from benchmarks.patch_codecs import CODECS, OURS
from benchmarks.patch_rows import compute_apply_mb_s, find_best_generic
from benchmarks.patch_tables import format_sizes

LINK_BYTES = 256  # a smaller base may contain the name of the real base file beside it


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=Path)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument(
        "--peer-timeout", type=float, default=900.0, help="maximum seconds for each run of a generic tool"
    )
    parser.add_argument("--markdown", type=Path, help="also write the table to this file")
    parser.add_argument("--keep", type=Path, help="folder for measurements of generic tools, which are used again")
    parser.add_argument(
        "--jobs",
        type=int,
        default=1,
        help="generic tools that run at the same time; does not change sizes and CPU seconds",
    )
    parser.add_argument("--only", action="append", help="a pair's name; may be repeated")
    arguments = parser.parse_args()
    folder = arguments.pairs
    if folder is None:
        folder = prepare_public_pairs()
    elif not folder.is_dir():
        parser.error(f"--pairs: {folder} is not a folder")
    arguments.json.write_text(json.dumps({"pairs": []}) + "\n")
    rows: list[dict[str, Any]] = []
    limit = arguments.peer_timeout
    for pair in sorted(place for place in folder.iterdir() if place.is_dir()):
        if arguments.only and pair.name not in arguments.only:
            continue
        found = find_pair_files(pair)
        if found is None:
            print(f"{pair.name}: skipped, expected one base.* and one target.*", file=sys.stderr)
            continue
        rows.append(measure_pair(pair.name, *found, limit, keep=arguments.keep, jobs=arguments.jobs))
        print(format_row(rows[-1]), flush=True)
        arguments.json.write_text(json.dumps({"pairs": rows}, indent=1) + "\n")
    if arguments.markdown:
        arguments.markdown.write_text(format_sizes(rows))


def prepare_public_pairs() -> Path:
    """Create the public pairs, published ones and, if PyTorch is installed, trained ones; return their folder."""
    from benchmarks import published_pairs

    folder = published_pairs.fetch_pairs()
    if importlib.util.find_spec("torch") is None:
        print("trained pairs: skipped, PyTorch is absent (pip install -e '.[train]')", file=sys.stderr)
    else:
        from benchmarks import trained_pairs

        trained_pairs.make_pairs(folder)
    return folder


def find_pair_files(pair: Path) -> tuple[Path, Path] | None:
    """Return the paths of a pair's base and target, or None if the folder does not have exactly one of each."""
    bases, targets = sorted(pair.glob("base.*")), sorted(pair.glob("target.*"))
    if len(bases) != 1 or len(targets) != 1:
        return None
    base = bases[0]
    if base.stat().st_size < LINK_BYTES:
        try:
            linked = pair / base.read_text().strip()
        except UnicodeDecodeError:
            linked = base
        base = linked if linked.is_file() else base
    return base, targets[0]


def measure_pair(
    name: str,
    base: Path,
    target: Path,
    peer_timeout_s: float | None,
    *,
    keep: Path | None = None,
    codecs: tuple[str, ...] = CODECS,
    jobs: int = 1,
) -> dict[str, Any]:
    """Measure all codecs on one pair and return the row.

    Args:
        name: of the pair.
        base: the old file.
        target: the new file.
        peer_timeout_s: limit for each run of a generic tool; None for no limit.
        keep: folder of stored measurements of generic tools, or None.
        codecs: names of the codecs to measure.
        jobs: generic tools that run at the same time; our codecs always run alone.
    """
    row: dict[str, Any] = {
        "pair": name,
        "base_bytes": base.stat().st_size,
        "target_bytes": target.stat().st_size,
        "sizes": dict.fromkeys(CODECS),
        "encode": dict.fromkeys(CODECS),
        "apply": dict.fromkeys(CODECS),
        "identical": True,
    }

    def peer(codec: str) -> Measurement:
        place = None if keep is None else keep / f"{codec}-{hash_pair(base, target)}.json"
        if place is not None and place.exists():
            return Measurement(*json.loads(place.read_text()))
        found = measure_codec(codec, base, target, peer_timeout_s)
        if place is not None and found.is_same:
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text(json.dumps(astuple(found)) + "\n")
        return found

    peers = [codec for codec in codecs if codec not in OURS]
    with ThreadPoolExecutor(jobs) as executor:
        results = dict(zip(peers, executor.map(peer, peers), strict=True))
    results |= {codec: measure_codec(codec, base, target, None) for codec in codecs if codec in OURS}
    for codec, found in results.items():
        row["sizes"][codec], row["encode"][codec], row["apply"][codec] = found.size, found.encode, found.apply
        if not found.is_same and (codec in OURS or found.apply is not None):
            print(f"{name}: {codec} does not restore the target", file=sys.stderr)
    row["identical"] = all(results[codec].is_same for codec in codecs if codec in OURS)
    return row


@dataclass(frozen=True, slots=True)
class Measurement:
    """Result of one codec on one pair: patch bytes, costs of encoding and applying, whether the target is restored."""

    size: int | None
    encode: dict[str, Any] | None
    apply: dict[str, Any] | None
    is_same: bool


def measure_codec(codec: str, base: Path, target: Path, limit_s: float | None) -> Measurement:
    """Encode and apply a patch, each in its own process."""
    with tempfile.TemporaryDirectory() as folder:
        patch, out = Path(folder) / f"{codec}.patch", Path(folder) / f"{codec}.out"
        encoded = run_codec("encode", codec, base, target, patch, out, limit_s)
        if encoded is None:
            return Measurement(None, None, None, is_same=False)
        applied = run_codec("apply", codec, base, target, patch, out, limit_s)
        return Measurement(
            patch.stat().st_size, encoded, applied, is_same=out.is_file() and have_equal_content(out, target)
        )


def hash_pair(base: Path, target: Path) -> str:
    """Return a digest of the contents of both files, 32 hexadecimal digits."""
    both = hashlib.sha256()
    for path in (base, target):
        with path.open("rb") as stream:
            both.update(hashlib.file_digest(stream, "sha256").digest())
    return both.hexdigest()[:32]


def run_codec(
    operation: str, codec: str, base: Path, target: Path, patch: Path, out: Path, limit_s: float | None
) -> dict[str, Any] | None:
    """Run a codec in its own process; print a line and return None if it is absent, fails or exceeds the limit."""
    child = [sys.executable, "-m", "benchmarks.patch_codecs", operation, codec, *map(str, (base, target, patch, out))]
    try:
        done = subprocess.run(child, capture_output=True, text=True, timeout=limit_s, check=False)
    except subprocess.TimeoutExpired:
        print(f"{codec} {operation}: more than {limit_s:g} s, left out", file=sys.stderr)
        return None
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        print(f"{codec} {operation}: {last}", file=sys.stderr)
        return None
    result: dict[str, Any] = json.loads(done.stdout)
    if "absent" in result:
        print(f"{codec}: skipped, {result['absent']}", file=sys.stderr)
        return None
    return result


def have_equal_content(one: Path, other: Path) -> bool:
    """Return whether two files have the same content."""
    with one.open("rb") as a, other.open("rb") as b:
        while True:
            x, y = a.read(1 << 20), b.read(1 << 20)
            if x != y:
                return False
            if not x:
                return True


def format_row(row: dict[str, Any]) -> str:
    """Return one row as a line of text."""
    ours, best = row["sizes"]["airweights"], find_best_generic(row)
    if ours is None:
        return f"{row['pair']}: target {row['target_bytes']:,}, no patch"
    ratio = f"{ours / best[1]:.3f} of {best[0]} {best[1]:,}" if best else "no peer"
    spent = f"encode {row['encode']['airweights']['cpu_s']:.2f} CPU s"
    rate = f"apply {compute_apply_mb_s(row):.0f} MB/s" if row["apply"]["airweights"] else "not applied"
    return f"{row['pair']}: target {row['target_bytes']:,}, patch {ours:,}, {ratio}; {spent}, {rate}"


if __name__ == "__main__":
    main()
