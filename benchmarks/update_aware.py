"""Updates a quantized model in ordinary ways and update-aware, and tells bytes and fidelity of each.

    python -m benchmarks.update_aware --base OLD.onnx --new NEW.onnx --calibration C.npz --held H.npz --json OUT

OLD and NEW are float models of one family (OLD may be a quantized one: then it is what devices hold). Both `.npz` hold
one array per model input, first axis = sample. Moments, ranges and the search use C only; every error in the output is
of H.
"""

import argparse
import io
import json
import resource
import tempfile
import time
from pathlib import Path

import bsdiff4
import onnx

from benchmarks.quantization import peak_bytes
from packager.diff.directory import open_bundle
from packager.diff.encode import make_patch
from packager.inputs import ModelInterface, Samples, load_proto, load_samples
from packager.quantize.candidates import Workshop
from packager.quantize.fidelity import GateReport, judge
from packager.quantize.graphs import float_bytes, is_quantized
from packager.quantize.int4 import quantize_int4
from packager.quantize.prepare import prepare
from packager.quantize.runs import session, session_of
from packager.quantize.schemes import quantize, save
from packager.quantize.update.update import Point, ordinary_of, update


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("base", "new", "calibration", "held", "json"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--scheme", default="int8", choices=("int8", "int4"), help="of the base, where OLD is float")
    parser.add_argument("--max-over-ordinary", type=float, help="error allowed over ordinary quantization's")
    parser.add_argument("--lambda", dest="prices", type=float, action="append", default=[], help="solve at this price")
    arguments = parser.parse_args()
    interface = ModelInterface.from_file(arguments.new)
    calibration = load_samples(arguments.calibration, interface)
    held = load_samples(arguments.held, interface)
    with tempfile.TemporaryDirectory() as folder:
        found = measured(arguments, calibration, held, Path(folder))
    arguments.json.write_text(json.dumps(found, indent=2) + "\n")
    print(json.dumps({name: found[name] for name in ("ordinary", "stale", "chosen", "wall_s")}))


def measured(arguments: argparse.Namespace, calibration: Samples, held: Samples, folder: Path) -> dict[str, object]:
    """Everything that the JSON holds."""
    base = quantized_base(arguments, calibration, folder)
    reference = session(arguments.new)
    usage, started = cpu_s(), time.monotonic()

    def error(model: onnx.ModelProto | Path) -> GateReport:
        return judge(reference, session(model) if isinstance(model, Path) else session_of(model), held)

    solutions: list[Point] = []
    report = update(
        arguments.new,
        base,
        folder / "update.onnx",
        calibration,
        held,
        max_over_ordinary=arguments.max_over_ordinary,
        on_solution=solutions.append,
        tried=tuple(arguments.prices),
    )
    spent = {"cpu_s": round(cpu_s() - usage, 1), "wall_s": round(time.monotonic() - started, 1)}
    template = load_proto(base)
    prepared = prepare(arguments.new, next(iter(calibration.take(1)))).model
    save(ordinary_of(template, prepared, calibration), folder / "ordinary.onnx")
    curve = []
    for number, point in enumerate(solutions):
        path = folder / f"point-{number}.onnx"
        save(point.model, path)
        verdict = error(point.model)
        figures = {"relative_rms": verdict.relative_rms, "top1_agreement": verdict.top1_agreement}
        curve.append({**point.as_json(), "patch_bytes": typed_bytes(base, path, folder), **figures})
    chosen: dict[str, object] = {
        "means": report.means,
        "reason": report.reason,
        "verdict": report.gate.verdict,
        "lambda": report.price,
        "patch_bytes": typed_bytes(base, folder / "update.onnx", folder),
        "bits_per_weight": report.bits_per_weight,
        "relative_rms": report.gate.relative_rms,
        "top1_agreement": report.gate.top1_agreement,
    }
    return {
        "ordinary": {
            "bsdiff4_bytes": len(bsdiff4.diff(base.read_bytes(), (folder / "ordinary.onnx").read_bytes())),
            "typed_bytes": typed_bytes(base, folder / "ordinary.onnx", folder),
            "relative_rms": report.ordinary.relative_rms,
            "top1_agreement": report.ordinary.top1_agreement,
        },
        "stale": {"relative_rms": report.stale.relative_rms, "top1_agreement": report.stale.top1_agreement},
        "curve": sorted(curve, key=lambda point: float(str(point["lambda"]))),
        "chosen": chosen,
        "weights": report.weights,
        "fresh": list(report.fresh),
        "refitted": list(report.refitted),
        "quantized_bytes": base.stat().st_size,
        "float_bytes": arguments.new.stat().st_size,
        "peak_bytes": peak_bytes(),
        **spent,
    }


def quantized_base(arguments: argparse.Namespace, calibration: Samples, folder: Path) -> Path:
    """What devices hold: OLD itself where it is quantized, else OLD quantized in the ordinary way."""
    old = load_proto(arguments.base)
    if is_quantized(old):
        path: Path = arguments.base
        return path
    out = folder / "base.onnx"
    if arguments.scheme == "int4":
        save(quantize_int4(prepare(arguments.base, next(iter(calibration.take(1)))).model), out)
        return out
    report = quantize(arguments.base, out, arguments.scheme, calibration)
    if report.outcome != "quantized":
        # the size of an update does not hang on the gate: take the best that there is
        prepared = prepare(arguments.base, next(iter(calibration.take(1)))).model
        workshop = Workshop(prepared, calibration, float_bytes(prepared))
        save(workshop.build(workshop.methods()[0], is_partial=True), out)
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
