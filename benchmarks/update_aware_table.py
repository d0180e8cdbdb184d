"""Updates a quantized model in ordinary ways and update-aware, and tells bytes and fidelity of each.

    python -m benchmarks.update_aware_table --base OLD.onnx --new NEW.onnx --calibration C.npz --held H.npz --json OUT
        [--plot CURVE.png]

OLD and NEW are float models of one family (OLD may be a quantized one: then it is what devices hold). Both `.npz`
hold one array per model input, first axis = sample. Ranges, moments and levels come from C only; every error in the
output is of H, which also chooses the price of a bit, as an update's held-back samples do. `curve` holds every solution
of the search and those at AROUND times the chosen price, with `--no-curve` nothing; `cpu_s` and `peak_bytes` are those
of the update itself, its search included, without the curve and the patches that are made to be measured.
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

AROUND: Final = (0.5, 0.25, 0.125, 0.0625, 2.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("base", "new", "calibration", "held", "json"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--scheme", default="int8", choices=("int8", "int4"), help="of the base, where OLD is float")
    parser.add_argument("--max-over-baseline", type=float, help="error allowed over ordinary quantization's")
    parser.add_argument("--no-curve", action="store_true", help="measure the chosen solution alone")
    parser.add_argument("--keep", type=Path, help="write the chosen model there, as the next base")
    parser.add_argument("--plot", type=Path, help="draw the curve as PNG; needs matplotlib (extra `bench`)")
    arguments = parser.parse_args()
    interface = ModelInterface.from_file(arguments.new)
    calibration = load_samples(arguments.calibration, interface)
    held = load_samples(arguments.held, interface)
    with tempfile.TemporaryDirectory() as folder:
        found = measured(arguments, calibration, held, Path(folder))
    arguments.json.write_text(json.dumps(found, indent=2) + "\n")
    if arguments.plot is not None:
        draw(found, arguments.plot)
    print(json.dumps({name: found[name] for name in ("baseline", "unchanged_base", "chosen", "cpu_s", "wall_s")}))


@dataclass(slots=True)
class Watch:
    """Takes down every solution, and what the update had cost when its search had found the last one."""

    usage: float = field(default_factory=lambda: cpu_s())
    started: float = field(default_factory=time.monotonic)
    solutions: list[RatePoint] = field(default_factory=list)
    spent: dict[str, float] = field(default_factory=dict)

    def solution(self, point: RatePoint) -> None:
        self.solutions.append(point)
        if not point.is_extra_point:
            self.take_down()

    def take_down(self) -> None:
        wall = time.monotonic() - self.started
        self.spent = {"cpu_s": round(cpu_s() - self.usage, 1), "wall_s": round(wall, 1), "peak_bytes": peak_bytes()}


def measured(arguments: argparse.Namespace, calibration: Samples, held: Samples, folder: Path) -> dict[str, object]:
    """Everything that the JSON holds."""
    base = quantized_base(arguments, calibration, folder)
    reference = CachedSession(open_session(arguments.new))
    template = load_proto(base)
    prepared = prepare_model(arguments.new, next(iter(calibration.take(1)))).model

    def error(model: onnx.ModelProto) -> GateReport:
        return judge(reference, open_session_of(model, settings_for(model)), held)

    ordinary = quantize_like_template(template, prepared, calibration)
    save_model(ordinary, folder / "ordinary.onnx")
    ordinary_error, stale_error = error(ordinary), error(template)
    watch, target = Watch(), folder / "update.onnx"
    report: UpdateReport | None = None
    try:
        report = quantize_update(
            arguments.new,
            base,
            target,
            calibration,
            held,
            max_over_baseline=arguments.max_over_baseline,
            on_solution=watch.solution,
            extra_rate_factors=() if arguments.no_curve else AROUND,
        )
        reason = report.reason
    except (BaseIncompatible, QuantizationRefused) as error_:
        # another graph: it is no update, and goes out like any other model
        reason = error_.message
        save_model(ordinary, target)
    if not watch.spent:
        watch.take_down()
    typed = typed_bytes(base, folder / "ordinary.onnx", folder)
    curve = []
    for number, point in enumerate([] if arguments.no_curve else watch.solutions):
        path = folder / f"point-{number}.onnx"
        save_model(point.model, path)
        verdict = error(point.model)
        figures = {"relative_rms": verdict.relative_rms, "top1_agreement": verdict.top1_agreement}
        curve.append({**point.as_json(), "patch_bytes": typed_bytes(base, path, folder), **figures})
    is_joint = report is not None and report.method == "joint"
    verdict = report.gate if report is not None else ordinary_error
    chosen: dict[str, object] = {
        "method": "joint" if is_joint else "baseline",
        "reason": reason,
        "verdict": verdict.verdict,
        "rate_weight": report.rate_weight if report else None,
        "patch_bytes": typed_bytes(base, target, folder) if is_joint else typed,
        "bits_per_weight": report.bits_per_weight if report else None,
        "relative_rms": verdict.relative_rms,
        "top1_agreement": verdict.top1_agreement,
    }
    if arguments.keep is not None:
        arguments.keep.write_bytes(target.read_bytes())
    return {
        "baseline": {
            "bsdiff4_bytes": len(bsdiff4.diff(base.read_bytes(), (folder / "ordinary.onnx").read_bytes())),
            "typed_bytes": typed,
            "relative_rms": ordinary_error.relative_rms,
            "top1_agreement": ordinary_error.top1_agreement,
        },
        "unchanged_base": {"relative_rms": stale_error.relative_rms, "top1_agreement": stale_error.top1_agreement},
        "curve": sorted(curve, key=lambda point: float(str(point["rate_weight"]))),
        "chosen": chosen,
        "weights": report.weights if report else None,
        "requantized": list(report.requantized) if report else [],
        "refitted_scales": list(report.refitted_scales) if report else [],
        "quantized_bytes": base.stat().st_size,
        "float_bytes": arguments.new.stat().st_size,
        **watch.spent,
    }


def draw(found: dict[str, object], path: Path) -> None:
    """Bits a weight against error, in units of ordinary quantization's, with bytes beside them."""
    try:
        import matplotlib as mpl
    except ImportError:
        print("no plot: matplotlib is not installed (pip install matplotlib)")
        return
    mpl.use("Agg")
    from matplotlib import pyplot

    ordinary, curve = found["baseline"], found["curve"]
    assert isinstance(ordinary, dict)
    assert isinstance(curve, list)
    points = sorted((p["bits_per_weight"], p["relative_rms"] / ordinary["relative_rms"], p) for p in curve)
    figure, axes = pyplot.subplots(figsize=(7.5, 4.5), dpi=120)
    axes.plot([p[0] for p in points], [p[1] for p in points], "o-", color="#1c4e80", label="update-aware")
    told_at = 0.0
    for bits, ratio, point in points:
        if bits < 1.15 * told_at:
            continue  # its label would lie on the one before
        told_at = bits
        label = f"{point['patch_bytes'] / 1e3:.0f} kB"
        axes.annotate(label, (bits, ratio), xytext=(4, 6), textcoords="offset points", fontsize=8)
    axes.axhline(1.0, color="#888888", linestyle="--", linewidth=1)
    told = f"ordinary quantization, bsdiff4 {ordinary['bsdiff4_bytes'] / 1e3:.0f} kB"
    axes.annotate(told, (1, 1.0), xycoords=("axes fraction", "data"), ha="right", va="bottom", fontsize=8)
    axes.set_xscale("log")
    axes.set_xlabel("bits a weight (entropy of the changed levels)")
    axes.set_ylabel("error / error of ordinary quantization")
    axes.grid(visible=True, which="major", alpha=0.3)
    axes.legend(loc="upper right", bbox_to_anchor=(1.0, 1.12), frameon=False)
    figure.tight_layout()
    figure.savefig(path)


def quantized_base(arguments: argparse.Namespace, calibration: Samples, folder: Path) -> Path:
    """What devices hold: OLD itself where it is quantized, else OLD quantized in the ordinary way."""
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
        # the size of an update does not hang on the gate: take the best that there is
        prepared = prepare_model(arguments.base, next(iter(calibration.take(1)))).model
        workshop = CandidateBuilder(prepared, calibration, float_bytes(prepared))
        save_model(workshop.build(workshop.applicable_methods()[0], is_partial=True), out)
    return out


def typed_bytes(base: Path, target: Path, folder: Path) -> int:
    """Bytes of the product's own patch between two model files."""
    buffer = io.BytesIO()
    make_patch(open_bundle(_alone(base, folder / "a")), open_bundle(_alone(target, folder / "b")), buffer)
    return len(buffer.getvalue())


def _alone(path: Path, place: Path) -> Path:
    place.mkdir(exist_ok=True)
    twin = place / "model.onnx"
    twin.write_bytes(path.read_bytes())
    return place


def cpu_s() -> float:
    """CPU seconds of this process and its finished children."""
    own, children = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime


if __name__ == "__main__":
    main()
