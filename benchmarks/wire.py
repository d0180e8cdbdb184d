"""Measure every byte between a device and a server: first install, update, and idle polls.

    python -m benchmarks.wire [--only PAIR]... [--polls N] [--json OUT] [--docs DIR] [--readme README.md]

A pair is a model and its next version. The ways are airweights with hybrid and with classical signatures, tufup,
`zstd --patch-from` with one signature, and plain HTTP with gzip (benchmarks/wire_peers.py). All of them bring the same
model files to the device from one server (benchmarks/wire_server.py), which counts both directions, heads included.
airweights also brings golden vectors and the manifest, and encrypts. A way that cannot be installed is left out with a
message. Where a pair is quantized, the others ship the model that airweights quantized. The pairs of MiniLM need
PyTorch (the extra `train`), unless benchmarks/fine_tunes.py has trained their models before.

Pairs in OUT that are not measured again are kept. `--docs` writes the table into DIR/benchmarks.md, and the plot if
matplotlib is installed; `--readme` writes the short table into a page.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx

from benchmarks import fine_tunes, minilm, published_models, published_pairs
from benchmarks.golden_power import tune
from benchmarks.patch_tables import replace_between_markers
from benchmarks.wire_device import Airweights
from benchmarks.wire_peers import Peer, PlainHttp, SignedZstd, Tufup
from benchmarks.wire_server import CountingServer, Traffic

VERSIONS: Final = ("1.0.0", "1.1.0")
POLLS: Final = 30
PHASES: Final = ("install", "update", "polls")
PEERS: Final[dict[str, Callable[[Path], Peer]]] = {
    "tufup": Tufup,
    "zstd, one signature": SignedZstd,
    "HTTP, gzip -9": PlainHttp,
}
Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Pair:
    """A model and its next version.

    Attributes:
        old: the first model file.
        new: the second one.
        inputs: `.npz` file of inputs; None for random ones.
    """

    old: Path
    new: Path
    inputs: Path | None


def prepare_tutorial(folder: Path) -> Pair:
    """Return the two models of docs/getting-started."""
    import subprocess

    script = Path(__file__).parents[1] / "examples" / "make_models.py"
    subprocess.run([sys.executable, str(script), str(folder)], check=True, stdout=subprocess.DEVNULL)
    return Pair(folder / "model-1.onnx", folder / "model-2.onnx", folder / "inputs.npz")


def prepare_tuned(folder: Path, name: str) -> Pair:
    """Return a published model, and a copy with small changes in all weights, as a fine-tune makes them."""
    content, inputs = published_models.MODELS[name]
    old, new, samples = folder / "old.onnx", folder / "new.onnx", folder / "inputs.npz"
    old.write_bytes(content())
    onnx.save(tune(onnx.load(str(old)), 1), str(new))
    np.savez_compressed(samples, allow_pickle=False, **inputs(old))
    return Pair(old, new, samples)


def prepare_silero(folder: Path) -> Pair:
    """Return the voice models 6.0 and 6.2, trained from scratch."""
    paths = []
    for wheel, member in published_pairs.PUBLISHED["silero-6.0-6.2"]:
        path = folder / f"{wheel}.onnx"
        path.write_bytes(published_pairs.read_member(wheel, member))
        paths.append(path)
    samples = folder / "inputs.npz"
    np.savez_compressed(samples, allow_pickle=False, **published_models.make_voice_frames(paths[0]))
    return Pair(paths[0], paths[1], samples)


def prepare_fine_tune(folder: Path) -> Pair:
    """Return a classifier on MiniLM, and the same after 75 further steps of training."""
    paths = []
    for name in ("base", "light"):
        paths.append(folder / f"{name}.onnx")
        onnx.save(minilm.build_onnx_model(fine_tunes.load_or_train(name)), str(paths[-1]))
    samples = folder / "inputs.npz"
    np.savez_compressed(samples, allow_pickle=False, **fine_tunes.load_splits().calibration.tokens)
    return Pair(paths[0], paths[1], samples)


# pair → (function that creates it in a folder, quantization scheme or None)
PAIRS: Final[dict[str, tuple[Callable[[Path], Pair], str | None]]] = {
    "tutorial-int8": (prepare_tutorial, "int8"),
    "basic-pitch-int8": (partial(prepare_tuned, name="basic-pitch"), "int8"),
    "basic-pitch-fp32": (partial(prepare_tuned, name="basic-pitch"), None),
    "silero-6.0-6.2-fp32": (prepare_silero, None),
    "minilm-fine-tune-fp32": (prepare_fine_tune, None),
    "minilm-update-aware-int8": (prepare_fine_tune, "int8"),
}


def main() -> int:
    """Measure the pairs and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", choices=tuple(PAIRS), help="may be repeated; default: all")
    parser.add_argument("--polls", type=int, default=POLLS, help="idle polls of each way")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--docs", type=Path, help="folder of benchmarks.md and plots")
    parser.add_argument("--readme", type=Path, help="write the updates of all pairs into this page")
    options = parser.parse_args()
    rows: dict[str, Row] = json.loads(options.json.read_text()) if options.json and options.json.exists() else {}
    for name in options.only or PAIRS:
        with tempfile.TemporaryDirectory(prefix="airweights-wire-") as folder:
            try:
                rows[name] = measure_pair(Path(folder), *PAIRS[name], options.polls)
            except ImportError as error:
                print(f"{name}: left out, {error}", file=sys.stderr)
                continue
        print(name, json.dumps(rows[name]), flush=True)
        if options.json:
            options.json.write_text(json.dumps(rows, indent=2) + "\n")
    rows = {name: rows[name] for name in PAIRS if name in rows}
    print(table := format_table(rows))
    if options.docs:
        page = options.docs / "benchmarks.md"
        page.write_text(replace_between_markers(page.read_text(), "wire", f"{table}\n"))
        try:
            from benchmarks.wire_plot import draw_updates
        except ImportError as error:
            print(f"no plot: {error}; pip install -e '.[bench]'", file=sys.stderr)
        else:
            draw_updates(options.docs / "plots" / "wire.png", {name: count_updates(row) for name, row in rows.items()})
    if options.readme:
        text = options.readme.read_text()
        options.readme.write_text(replace_between_markers(text, "updates", f"{format_updates(rows)}\n"))
    return 0


def measure_pair(folder: Path, prepare: Callable[[Path], Pair], scheme: str | None, polls: int) -> Row:
    """Measure all ways with one pair.

    Args:
        folder: an empty directory.
        prepare: creates the pair in a directory.
        scheme: quantization scheme of the release; None for the float model.
        polls: number of idle polls.

    Returns:
        `models`: bytes of the two files; `golden`: bytes of golden vectors; `ways`: traffic by way and phase.
    """
    (source := folder / "pair").mkdir()
    pair = prepare(source)
    ways: dict[str, dict[str, Any]] = {}
    shipped: list[Path] = []
    row: Row = {"polls": polls, "ways": ways}
    for way in ("airweights", "airweights, classical"):
        ours = Airweights(folder / way, scheme, pair.inputs, is_classical=way != "airweights")
        ways[way], models = measure_airweights(ours, pair, polls)
        if not shipped:
            row["golden"] = describe_golden(ours.releases)
            shipped = [source / f"shipped-{version}.onnx" for version in VERSIONS]
            for path, model in zip(shipped, models, strict=True):
                path.write_bytes(model)
    row["models"] = [path.stat().st_size for path in shipped]
    for way, create in PEERS.items():
        try:
            ways[way] = measure_peer(create(folder / way), shipped, polls)
        except (RuntimeError, ImportError) as error:
            print(f"{way}: left out, {error}", file=sys.stderr)
    return row


def measure_airweights(ours: Airweights, pair: Pair, polls: int) -> tuple[dict[str, Any], list[bytes]]:
    """Return the traffic by phase, and the two model files that the device had."""
    found: dict[str, Any] = {}
    models: list[bytes] = []
    with CountingServer(ours.site) as server:
        ours.enroll(server.url)
        for phase, version, model in zip(PHASES, VERSIONS, (pair.old, pair.new), strict=False):
            ours.publish(model, version)
            before = server.copy_traffic()
            result = ours.install(version)
            found[phase] = describe_traffic(server, before)
            found[f"{phase}_downloaded"] = result["downloaded"]
            models.append(ours.read_model())
        before = server.copy_traffic()
        ours.poll(polls)
        found[PHASES[2]] = describe_traffic(server, before)
    return found, models


def measure_peer(peer: Peer, models: list[Path], polls: int) -> dict[str, Any]:
    """Return the traffic by phase."""
    found: dict[str, Any] = {}
    peer.publish(models[0], VERSIONS[0])
    with CountingServer(peer.site) as server:
        for number, phase in enumerate(PHASES):
            if number == 1:
                peer.publish(models[1], VERSIONS[1])
            before = server.copy_traffic()
            peer.poll(server.url, polls if phase == "polls" else 1)
            found[phase] = describe_traffic(server, before)
    return found


def describe_traffic(server: CountingServer, before: Traffic) -> dict[str, int]:
    """Return requests, and bytes in each direction, since an earlier state."""
    return asdict(server.copy_traffic().since(before))


def describe_golden(releases: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the bytes of the golden file of the first release, and the shares of the update's patch."""
    first, second = (next(iter(release["variants"].values())) for release in releases)
    update = next(patch for patch in second["patches"] if patch["from"] is not None)
    return {"install": first["golden"]["bytes"], "update": update["shares"]}


def format_table(rows: dict[str, Row]) -> str:
    """Return the table: one row for each pair and way, bytes in both directions."""
    lines = [
        "| pair | way | first install | update | its requests | idle poll |",
        "| --- | --- | --: | --: | --: | --: |",
    ]
    for name, row in rows.items():
        for way, found in row["ways"].items():
            install, update, polls = (found[phase]["sent"] + found[phase]["received"] for phase in PHASES)
            poll = round(polls / row["polls"])
            lines.append(f"| {name} | {way} | {install:,} | {update:,} | {found['update']['requests']} | {poll:,} |")
    return "\n".join(lines)


def count_updates(row: Row) -> dict[str, int]:
    """Return the bytes of the update in both directions, by way."""
    return {way: found["update"]["sent"] + found["update"]["received"] for way, found in row["ways"].items()}


def format_updates(rows: dict[str, Row]) -> str:
    """Return the short table: a row for each pair, a column for each way, bytes of the whole update."""
    names = (*reversed(PEERS), "airweights, classical", "airweights")
    lines = [f"| update | {' | '.join(names)} |", f"| --- |{' --: |' * len(names)}"]
    for name, row in rows.items():
        found = count_updates(row)
        cells = (f"{found[way]:,}" if way in found else "" for way in names)
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
