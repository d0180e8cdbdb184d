"""Measure the memory that applying a patch needs, by model size.

    python -m benchmarks.patch_memory [--gib 0.25 --gib 1 --gib 5] [--json OUT]

The model is an ONNX file whose weights are in a sparse external-data file of the requested size; every eighth tensor is
fine-tuned. A separate process applies the patch to a target that discards all bytes. The figure is VmHWM minus the
memory of the process after its imports. Both digests are checked, so the whole base is read and the whole target is
computed.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

ROWS, COLUMNS = 4096, 4096
TENSOR_BYTES = 4 * ROWS * COLUMNS
REAL_ROWS = 64  # rows of each tensor with values; the rest is a hole in the sparse file


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gib", type=float, action="append")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--apply", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.apply:
        apply(Path(arguments.apply[0]), Path(arguments.apply[1]))
        return
    rows = [measure_size(gib) for gib in arguments.gib or [0.25, 1.0, 5.0]]
    if arguments.json:
        arguments.json.write_text(json.dumps({"memory": rows}, indent=1) + "\n")


def measure_size(gib: float) -> dict[str, float]:
    """Create a model of `gib` GiB and a fine-tune of it, create a patch between them, and measure applying it."""
    from packager.diff.bundle_folder import open_bundle
    from packager.diff.write.make_patch import make_patch

    count = max(1, round(gib * 2**30 / TENSOR_BYTES))
    with tempfile.TemporaryDirectory() as folder:
        base, target, patch = Path(folder) / "base", Path(folder) / "target", Path(folder) / "patch"
        make_model(base, count, tuned=False)
        make_model(target, count, tuned=True)
        with patch.open("wb") as out:
            report = make_patch(open_bundle(base), open_bundle(target), out, codec="typed")
        child = [sys.executable, "-m", "benchmarks.patch_memory", "--apply", str(base), str(patch)]
        found = json.loads(subprocess.run(child, check=True, capture_output=True, text=True).stdout)
    row = {
        "target_bytes": count * TENSOR_BYTES,
        "patch_bytes": report.plain_size,
        "announced_bytes": report.peak_memory_bytes,
        **found,
    }
    print(f"{gib:g} GiB: patch {report.plain_size:,} bytes, peak {found['peak_bytes'] / 2**20:.1f} MiB", flush=True)
    return row


def make_model(root: Path, count: int, *, tuned: bool) -> None:
    """Write an ONNX model of `count` tensors of 64 MiB in a sparse file."""
    from onnx import TensorProto, helper
    from onnx.external_data_helper import set_external_data

    root.mkdir()
    tensors = []
    with (root / "weights.bin").open("wb") as stream:
        os.truncate(stream.fileno(), count * TENSOR_BYTES)
        for i in range(count):
            rng = np.random.default_rng(i)
            real = rng.normal(0, 0.02, (REAL_ROWS, COLUMNS)).astype(np.float32)
            if tuned and i % 8 == 0:
                real += rng.normal(0, 1e-5, real.shape).astype(np.float32)
            stream.seek(i * TENSOR_BYTES)
            stream.write(real.tobytes())
            tensor = TensorProto(name=f"w{i}", data_type=TensorProto.FLOAT, dims=[ROWS, COLUMNS], raw_data=b"x")
            set_external_data(tensor, "weights.bin", offset=i * TENSOR_BYTES, length=TENSOR_BYTES)
            tensor.ClearField("raw_data")
            tensors.append(tensor)
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])
    model = helper.make_model(helper.make_graph([], "g", [value], [value], tensors))
    (root / "model.onnx").write_bytes(model.SerializeToString())


class DiscardingTarget:
    """A target that discards all bytes."""

    def begin_file(self, file: object) -> None:
        pass

    def write(self, data: bytes | memoryview) -> None:
        pass

    def pread(self, _index: int, _offset: int, length: int) -> bytes:
        return bytes(length)

    def end_file(self) -> None:
        pass


def apply(base: Path, patch: Path) -> None:
    """Apply the patch and print the peak memory above that after the imports; must run in its own process."""
    import pcodec  # noqa: F401 - imported first, so that it does not count as memory of the decoder

    from benchmarks.patch_codecs import cpu_seconds, status_bytes
    from bundle.patch.apply import apply_patch
    from packager.diff.bundle_folder import DirectoryBase, open_bundle

    resident_before, before = status_bytes("VmRSS"), cpu_seconds()
    with DirectoryBase(open_bundle(base)) as source, patch.open("rb") as stream:
        apply_patch(stream, source, DiscardingTarget())
    print(
        json.dumps({"peak_bytes": status_bytes("VmHWM") - resident_before, "cpu_s": round(cpu_seconds() - before, 2)})
    )


if __name__ == "__main__":
    main()
