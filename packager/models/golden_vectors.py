"""Make golden vectors of a shipped model file, with the tolerance that other runs of it need.

1. Outputs come from the shipped file, run as it is judged (`settings_for`).
2. A second process runs the same file with the thread counts and optimization levels of RUN_SETTINGS. With d = the
   largest relative RMS deviation, in parts per million, tolerance = min(TOLERANCE_CEILING_PPM, max(floor,
   TOLERANCE_HEADROOM * d)). The floor of a quantized model is higher: on another CPU a float sum may round to another
   level.
3. The samples with the smallest and the largest inputs are always among them.
4. A sample whose outputs are not finite, or differ in shape from run to run, cannot be a golden vector.
"""

import hashlib
import json
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np

from bundle.errors import AirweightsError
from bundle.golden import MAX_GOLDEN_BYTES, GoldenSample, read_golden, relative_rms, write_golden
from packager.errors import GoldenUnstable, ModelCrashes
from packager.models.graphs import has_quantized_operators
from packager.models.inputs import Sample, load_proto
from packager.models.samples import Samples
from packager.models.sessions import RunSettings, open_session, run_session, settings_for

RUN_SETTINGS: Final = (
    RunSettings(1, True),
    RunSettings(2, True),
    RunSettings(4, True),
    RunSettings(1, False),
    RunSettings(2, False),
)
TOLERANCE_HEADROOM: Final = 4.0  # other CPUs order float sums in more ways than RUN_SETTINGS shows
FLOAT_FLOOR_PPM: Final = 1_000  # least tolerance of a float model
QUANTIZED_FLOOR_PPM: Final = 10_000  # least tolerance of a quantized model: one level of 255 on a few activations
TOLERANCE_CEILING_PPM: Final = 50_000  # above it the outputs are not reproducible
CHILD_TIMEOUT_S: Final = 600.0
GOLDEN_BYTE_BUDGET: Final = MAX_GOLDEN_BYTES // 4  # a device downloads and stores them
MAX_CONSIDERED_SAMPLES: Final = 256  # samples whose sizes are compared


@dataclass(frozen=True, slots=True)
class GoldenReport:
    """The golden vectors that were written.

    Attributes:
        samples: number of samples.
        tolerance_ppm: relative RMS that the manifest allows, in parts per million.
        spread_ppm: largest deviation that was observed, in parts per million.
        bytes: size of the file.
        sha256: hexadecimal SHA-256 of the file.
    """

    samples: int
    tolerance_ppm: int
    spread_ppm: int
    bytes: int
    sha256: str

    def as_json(self) -> dict[str, int | str]:
        """Return plain values for `--json` and the release's record."""
        return {
            "samples": self.samples,
            "tolerance_ppm": self.tolerance_ppm,
            "spread_ppm": self.spread_ppm,
            "bytes": self.bytes,
            "sha256": self.sha256,
        }


def record_golden(model: Path, samples: Samples, path: Path, count: int = 8) -> GoldenReport:
    """Write golden vectors of a model.

    Args:
        model: the shipped model file.
        samples: inputs, real ones if there are any.
        path: the file to write (safetensors, docs/format.md).
        count: maximum number of samples.

    Raises:
        GoldenUnstable: no sample has the same finite outputs from run to run.
        ModelDoesNotRun: the model does not load, or does not run on a sample.
        ModelCrashes: the second process ended without a result.
    """
    proto = load_proto(model, external_data=False)
    running = open_session(model, settings_for(proto))
    names = [output.name for output in running.get_outputs()]
    kept: list[GoldenSample] = []
    total = 0
    for sample in _choose_samples(samples, count):
        outputs = dict(zip(names, run_session(running, sample, where=str(model)), strict=True))
        size = sum(array.nbytes for array in (*sample.values(), *outputs.values()))
        if _is_usable(outputs) and total + size <= GOLDEN_BYTE_BUDGET:
            kept.append(GoldenSample(dict(sample), outputs))
            total += size
    if not kept:
        raise GoldenUnstable(
            f"{model}: no sample out of {count} has finite outputs within {GOLDEN_BYTE_BUDGET} bytes",
            hint="give smaller or more typical inputs with --inputs FILE.npz",
        )
    spread = _spreads_in_child(model, write_golden(tuple(kept)))
    steady = [sample for sample, worst in zip(kept, spread, strict=True) if worst is not None]
    worst_ppm = round(1e6 * max((worst for worst in spread if worst is not None), default=0.0))
    if not steady or worst_ppm > TOLERANCE_CEILING_PPM:
        raise GoldenUnstable(
            f"{model}: outputs differ by {worst_ppm} ppm between thread counts and optimization levels, "
            f"at most {TOLERANCE_CEILING_PPM} ppm allowed",
            hint="remove random or uninitialized operators from the model",
        )
    data = write_golden(tuple(steady))
    part = path.with_name(path.name + ".part")
    part.write_bytes(data)
    part.replace(path)
    floor = QUANTIZED_FLOOR_PPM if has_quantized_operators(proto) else FLOAT_FLOOR_PPM
    tolerance = min(TOLERANCE_CEILING_PPM, max(floor, round(TOLERANCE_HEADROOM * worst_ppm)))
    return GoldenReport(len(steady), tolerance, worst_ppm, len(data), hashlib.sha256(data).hexdigest())


def run_to_run_spreads(model: Path, golden: tuple[GoldenSample, ...]) -> list[float | None]:
    """Return the largest relative RMS deviation of each sample over RUN_SETTINGS.

    Args:
        model: the shipped model file.
        golden: samples with the outputs to compare with.

    Returns:
        None for a sample if shape, dtype or an integer differs.

    Raises:
        ModelDoesNotRun: the model does not load, or does not run on a sample.
    """
    worst: list[float | None] = [0.0] * len(golden)
    integer_kernels = settings_for(load_proto(model, external_data=False)).integer_kernels
    for settings in RUN_SETTINGS:
        running = open_session(model, replace(settings, integer_kernels=integer_kernels))
        names = [output.name for output in running.get_outputs()]
        for i, sample in enumerate(golden):
            inputs = {name: np.asarray(array) for name, array in sample.inputs.items()}
            outputs = dict(zip(names, run_session(running, inputs, where=str(model)), strict=True))
            found = _relative_rms(outputs, sample)
            known = worst[i]
            worst[i] = None if found is None or known is None else max(found, known)
    return worst


def _relative_rms(outputs: Sample, sample: GoldenSample) -> float | None:
    worst = 0.0
    for name, golden in sample.outputs.items():
        output = outputs[name]
        if output.shape != golden.shape or output.dtype != golden.dtype:
            return None
        if golden.dtype.kind == "f":
            worst = max(worst, relative_rms(output, golden))
        elif not np.array_equal(output, golden):
            return None
    return worst


def _choose_samples(samples: Samples, count: int) -> list[Sample]:
    considered = samples.take(MAX_CONSIDERED_SAMPLES)
    sizes = [sum(array.size for array in sample.values()) for sample in considered]
    extremes = {int(np.argmin(sizes)), int(np.argmax(sizes))}
    even = [round(i * (len(sizes) - 1) / max(1, count - 1)) for i in range(count)]
    order = list(dict.fromkeys((*sorted(extremes), *even)))[:count]
    wanted = set(order)
    return [sample for i, sample in enumerate(considered) if i in wanted]


def _is_usable(outputs: Sample) -> bool:
    return all(array.dtype.kind in "biuf" for array in outputs.values()) and all(
        bool(np.isfinite(array).all()) for array in outputs.values() if array.dtype.kind == "f"
    )


def _spreads_in_child(model: Path, golden: bytes) -> list[float | None]:
    command = [sys.executable, "-m", "packager.models.golden_vectors", str(model)]
    try:
        done = subprocess.run(command, input=golden, capture_output=True, timeout=CHILD_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired as error:
        raise ModelCrashes(f"{model}: verifying golden vectors took longer than {CHILD_TIMEOUT_S:.0f} s") from error
    if done.returncode:
        lines = done.stderr.decode(errors="replace").strip().splitlines() or [f"exit {done.returncode}"]
        raise ModelCrashes(f"{model}: the second run of the golden vectors failed: {lines[-1][:300]}")
    found: list[float | None] = json.loads(done.stdout)
    return found


if __name__ == "__main__":
    try:
        print(json.dumps(run_to_run_spreads(Path(sys.argv[1]), read_golden(sys.stdin.buffer.read()))))
    except AirweightsError as error:
        sys.exit(error.message)
