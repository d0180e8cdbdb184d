"""Update a quantized model by the baseline and update-aware, and write the bytes and errors of both.

    python -m benchmarks.update_aware_table --base OLD.onnx --new NEW.onnx --calibration C.npz --held-out H.npz
        --json OUT [--plot CURVE.png]

OLD and NEW are float models of one family. OLD may also be quantized; then it is the base itself. Both `.npz` files
have one array per model input, first axis = sample. Ranges, moments and levels are computed from C only. Every error in
OUT is measured on H, the held-out samples, which also decide the rate weight. `curve` contains every solution of the
search and those at EXTRA_RATE_FACTORS times the chosen rate weight; it is empty with `--no-curve`. `cpu_s` and
`peak_bytes` are the costs of the update with its search, without the curve and without creating the measured patches.
"""

import argparse
import io
import json
import resource
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import bsdiff4
import onnx

from benchmarks.quantization_table import peak_bytes
from packager.diff.bundle_folder import open_bundle
from packager.diff.write.make_patch import make_patch
from packager.errors import BaseIncompatible, QuantizationRefused
from packager.models.graphs import float_bytes, is_quantized
from packager.models.inputs import ModelInterface, load_proto
from packager.models.samples import Samples, load_samples
from packager.models.sessions import CachedSession, open_session, open_session_of, settings_for
from packager.quantize.candidates import CandidateBuilder
from packager.quantize.gate import GateReport, judge
from packager.quantize.int4 import quantize_int4
from packager.quantize.prepare import prepare_model
from packager.quantize.schemes import quantize_model, save_model
from packager.quantize.update_aware.matching_baseline import quantize_like_template
from packager.quantize.update_aware.quantize_update import UpdateReport, quantize_update
from packager.quantize.update_aware.rate_search import RatePoint

EXTRA_RATE_FACTORS: Final = (0.5, 0.25, 0.125, 0.0625, 2.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("base", "new", "calibration", "held-out", "json"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--scheme", default="int8", choices=("int8", "int4"), help="of the base, if OLD is float")
    parser.add_argument("--max-over-baseline", type=float, help="allowed error over the baseline's")
    parser.add_argument("--no-curve", action="store_true", help="measure only the chosen solution")
    parser.add_argument("--keep", type=Path, help="write the chosen model to this file, as the next base")
    parser.add_argument("--plot", type=Path, help="draw the curve as PNG; needs matplotlib (extra `bench`)")
    arguments = parser.parse_args()
    interface = ModelInterface.from_file(arguments.new)
    calibration = load_samples(arguments.calibration, interface)
    held_out = load_samples(arguments.held_out, interface)
    with tempfile.TemporaryDirectory() as folder:
        found = measure_update(arguments, calibration, held_out, Path(folder))
    arguments.json.write_text(json.dumps(found, indent=2) + "\n")
    if arguments.plot is not None:
        draw_curve(found, arguments.plot)
    print(json.dumps({name: found[name] for name in ("baseline", "unchanged_base", "chosen", "cpu_s", "wall_s")}))


@dataclass(slots=True)
class SolutionRecorder:
    """Records every solution, and the costs of the update until the last solution of its search."""

    usage: float = field(default_factory=lambda: cpu_s())
    started: float = field(default_factory=time.monotonic)
    solutions: list[RatePoint] = field(default_factory=list)
    spent: dict[str, float] = field(default_factory=dict)

    def solution(self, point: RatePoint) -> None:
        """Record a solution; extra points of the curve do not change the costs."""
        self.solutions.append(point)
        if not point.is_extra_point:
            self.record_cost()

    def record_cost(self) -> None:
        wall = time.monotonic() - self.started
        self.spent = {"cpu_s": round(cpu_s() - self.usage, 1), "wall_s": round(wall, 1), "peak_bytes": peak_bytes()}


def measure_update(
    arguments: argparse.Namespace, calibration: Samples, held_out: Samples, folder: Path
) -> dict[str, object]:
    """Measure the update and return the content of OUT.

    Args:
        arguments: the command's arguments.
        calibration: the samples of `--calibration`.
        held_out: the samples of `--held-out`.
        folder: directory for temporary files.
    """
    base = prepare_base(arguments, calibration, folder)
    reference = CachedSession(open_session(arguments.new))
    template = load_proto(base)
    prepared = prepare_model(arguments.new, next(iter(calibration.take(1)))).model

    def error(model: onnx.ModelProto) -> GateReport:
        return judge(reference, open_session_of(model, settings_for(model)), held_out)

    baseline = quantize_like_template(template, prepared, calibration)
    save_model(baseline, folder / "baseline.onnx")
    baseline_gate, unchanged_base_gate = error(baseline), error(template)
    recorder, target = SolutionRecorder(), folder / "update.onnx"
    report: UpdateReport | None = None
    try:
        report = quantize_update(
            arguments.new,
            base,
            target,
            calibration,
            held_out,
            max_over_baseline=arguments.max_over_baseline,
            on_solution=recorder.solution,
            extra_rate_factors=() if arguments.no_curve else EXTRA_RATE_FACTORS,
        )
        reason = report.reason
    except (BaseIncompatible, QuantizationRefused) as error_:
        # the graph differs: the model is not an update of the base and is shipped like a first release
        reason = error_.message
        save_model(baseline, target)
    if not recorder.spent:
        recorder.record_cost()
    typed = measure_typed_patch(base, folder / "baseline.onnx", folder)
    curve = []
    for number, point in enumerate([] if arguments.no_curve else recorder.solutions):
        path = folder / f"point-{number}.onnx"
        save_model(point.model, path)
        gate = error(point.model)
        figures = {"relative_rms": gate.relative_rms, "top1_agreement": gate.top1_agreement}
        curve.append({**point.as_json(), "patch_bytes": measure_typed_patch(base, path, folder), **figures})
    is_joint = report is not None and report.method == "joint"
    gate = report.gate if report is not None else baseline_gate
    chosen: dict[str, object] = {
        "method": "joint" if is_joint else "baseline",
        "reason": reason,
        "verdict": gate.verdict,
        "rate_weight": report.rate_weight if report else None,
        "patch_bytes": measure_typed_patch(base, target, folder) if is_joint else typed,
        "bits_per_weight": report.bits_per_weight if report else None,
        "relative_rms": gate.relative_rms,
        "top1_agreement": gate.top1_agreement,
    }
    if arguments.keep is not None:
        arguments.keep.write_bytes(target.read_bytes())
    return {
        "baseline": {
            "bsdiff4_bytes": len(bsdiff4.diff(base.read_bytes(), (folder / "baseline.onnx").read_bytes())),
            "typed_bytes": typed,
            "relative_rms": baseline_gate.relative_rms,
            "top1_agreement": baseline_gate.top1_agreement,
        },
        "unchanged_base": {
            "relative_rms": unchanged_base_gate.relative_rms,
            "top1_agreement": unchanged_base_gate.top1_agreement,
        },
        "curve": sorted(curve, key=lambda point: float(str(point["rate_weight"]))),
        "chosen": chosen,
        "weights": report.weights if report else None,
        "requantized": list(report.requantized) if report else [],
        "refitted_scales": list(report.refitted_scales) if report else [],
        "quantized_bytes": base.stat().st_size,
        "float_bytes": arguments.new.stat().st_size,
        **recorder.spent,
    }


def draw_curve(found: dict[str, object], path: Path) -> None:
    """Draw bits per weight against the error divided by the baseline's, with patch bytes as labels."""
    try:
        import matplotlib as mpl
    except ImportError:
        print("no plot: matplotlib is not installed (pip install matplotlib)")
        return
    mpl.use("Agg")
    from matplotlib import pyplot

    baseline, curve = found["baseline"], found["curve"]
    assert isinstance(baseline, dict)
    assert isinstance(curve, list)
    points = sorted((p["bits_per_weight"], p["relative_rms"] / baseline["relative_rms"], p) for p in curve)
    figure, axes = pyplot.subplots(figsize=(7.5, 4.5), dpi=120)
    axes.plot([p[0] for p in points], [p[1] for p in points], "o-", color="#1c4e80", label="update-aware")
    labeled_at = 0.0
    for bits, ratio, point in points:
        if bits < 1.15 * labeled_at:
            continue  # its label would overlap the previous one
        labeled_at = bits
        label = f"{point['patch_bytes'] / 1e3:.0f} kB"
        axes.annotate(label, (bits, ratio), xytext=(4, 6), textcoords="offset points", fontsize=8)
    axes.axhline(1.0, color="#888888", linestyle="--", linewidth=1)
    baseline_label = f"baseline, bsdiff4 {baseline['bsdiff4_bytes'] / 1e3:.0f} kB"
    axes.annotate(baseline_label, (1, 1.0), xycoords=("axes fraction", "data"), ha="right", va="bottom", fontsize=8)
    axes.set_xscale("log")
    axes.set_xlabel("bits per weight (entropy of the changed levels)")
    axes.set_ylabel("error / error of the baseline")
    axes.grid(visible=True, which="major", alpha=0.3)
    axes.legend(loc="upper right", bbox_to_anchor=(1.0, 1.12), frameon=False)
    figure.tight_layout()
    figure.savefig(path)


def prepare_base(arguments: argparse.Namespace, calibration: Samples, folder: Path) -> Path:
    """Return the path of the base: OLD itself if it is quantized, else OLD after quantization."""
    old = load_proto(arguments.base)
    if is_quantized(old):
        path: Path = arguments.base
        return path
    out = folder / "base.onnx"
    if arguments.scheme == "int4":
        save_model(quantize_int4(prepare_model(arguments.base, next(iter(calibration.take(1)))).model), out)
        return out
    report = quantize_model(arguments.base, out, arguments.scheme, calibration)
    if report.outcome != "quantized":
        # the size of an update does not depend on the gate: take the first method that applies
        prepared = prepare_model(arguments.base, next(iter(calibration.take(1)))).model
        builder = CandidateBuilder(prepared, calibration, float_bytes(prepared))
        save_model(builder.build(builder.applicable_methods()[0], is_partial=True), out)
    return out


def measure_typed_patch(base: Path, target: Path, folder: Path) -> int:
    """Return the size of our patch between two model files, in bytes; `folder` gets temporary files."""
    buffer = io.BytesIO()
    make_patch(
        open_bundle(_copy_as_bundle(base, folder / "a")), open_bundle(_copy_as_bundle(target, folder / "b")), buffer
    )
    return len(buffer.getvalue())


def _copy_as_bundle(path: Path, folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "model.onnx").write_bytes(path.read_bytes())
    return folder


def cpu_s() -> float:
    """Return the CPU seconds of this process and its finished children."""
    own, children = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime


if __name__ == "__main__":
    main()
