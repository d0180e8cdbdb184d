"""`packager quantize` and `packager compare`: thin shells over packager.quantize."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from bundle.console import print_result
from packager.commands.options import check_output

if TYPE_CHECKING:
    from packager.models.samples import Samples
    from packager.quantize.gate import Thresholds
    from packager.quantize.prune import Pattern
    from packager.quantize.schemes import QuantizeOptions

PATH = click.Path(path_type=Path)
INCONCLUSIVE_REMEDY = "give real inputs of several kinds with --inputs FILE.npz"


@click.command("quantize")
@click.argument("model", type=PATH)
@click.option("-o", "--output", "out", type=PATH, required=True, help="The file to write.")
@click.option("--scheme", type=click.Choice(["fp32", "fp16", "int8", "int4"]), default="int8", show_default=True)
@click.option(
    "--inputs", type=PATH, help="An .npz (one array per model input, first axis = sample) or a folder of them."
)
@click.option(
    "--random",
    "random_count",
    type=click.IntRange(2, 100_000),
    default=32,
    show_default=True,
    help="Random samples without --inputs.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Of the random samples.")
@click.option("--per-tensor", is_flag=True, help="One scale a weight instead of one a channel.")
@click.option("--signed-weights", is_flag=True, help="7-bit signed weights (U8S7): faster on CPUs without VNNI.")
@click.option(
    "--target",
    type=click.Choice(["any", "arm"]),
    default="any",
    show_default=True,
    help="any: the same numbers on every CPU. arm: signed 8 bits (S8S8), exact on ARM alone.",
)
@click.option("--no-optimize", is_flag=True, help="Leave the graph as it is before quantizing.")
@click.option("--max-relative-rms", type=float, help="Gate: RMS error over spread.  [default: 0.15]")
@click.option("--min-top1", type=float, help="Gate: top-1 agreement; 0 for embeddings.  [default: 0.95]")
@click.option("--metric", "metric_text", help="Your own measure: python:MODULE:FUNCTION, or a command.")
@click.option("--max-metric-loss", type=float, help="Gate: share of the float model's metric.  [default: 0.01]")
@click.option("--update-of", "base", type=PATH, help="Quantized model that devices hold: make the difference small.")
@click.option("--report", type=PATH, help="Write the whole report as JSON, also where the gate fails.")
@click.option("--html", type=PATH, help="Write the report as one HTML page, also where the gate fails.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
def quantize_command(
    model: Path,
    out: Path,
    scheme: str,
    inputs: Path | None,
    random_count: int,
    seed: int,
    per_tensor: bool,
    signed_weights: bool,
    target: str,
    no_optimize: bool,
    max_relative_rms: float | None,
    min_top1: float | None,
    metric_text: str | None,
    max_metric_loss: float | None,
    base: Path | None,
    report: Path | None,
    html: Path | None,
    as_json: bool,
) -> None:
    """Quantize MODEL and check its answers against the float model's.

    Exit status: 0 quantized, 2 wrong input, 5 refused, gate failed or inconclusive (nothing is written then).
    """
    import json
    from dataclasses import replace

    from packager.errors import GateFailed, GateInconclusive, InvalidUsage, QuantizationRefused
    from packager.quantize.schemes import DEFAULT_OPTIONS, quantize_model
    from packager.quantize.user_metric import Metric

    _check_paths((model, inputs, base), out, report, html)
    if base is not None and (html is not None or metric_text is not None):
        raise InvalidUsage("--update-of: found --html or --metric beside it, expected neither")
    options = replace(
        DEFAULT_OPTIONS,
        per_channel=not per_tensor,
        signed_weights=signed_weights,
        signed_activations=target == "arm",
        optimize=not no_optimize,
        thresholds=_make_thresholds(max_relative_rms, min_top1, max_metric_loss),
        metric=None if metric_text is None else Metric.parse(metric_text),
    )
    samples = _load_samples(model, inputs, random_count, seed)
    if base is not None:
        _quantize_update(model, base, out, samples, options, report, as_json=as_json)
        return
    found = quantize_model(model, out, scheme, samples, options)
    if report is not None:
        report.write_text(json.dumps(found.as_json(), indent=2) + "\n")
    if html is not None:
        from packager.quantize.html_report import write_page

        write_page(found, model, out if found.outcome == "quantized" else Path(), samples, html)
    if found.outcome == "inconclusive":
        raise GateInconclusive(f"{model}: {found.reason}", hint=INCONCLUSIVE_REMEDY)
    if found.outcome == "refused":
        if not as_json and found.trials:
            click.echo(found.trials_as_text(), err=True)
        failed_gate = found.gate is not None
        raise (GateFailed if failed_gate else QuantizationRefused)(
            f"{model}: {found.reason}",
            hint="--report FILE lists every trial; ship the float variant meanwhile",
        )
    print_result(found.as_json(), as_json=as_json, text=found.as_text())


def _quantize_update(
    model: Path,
    base: Path,
    out: Path,
    samples: "Samples",
    options: "QuantizeOptions",
    report: Path | None,
    *,
    as_json: bool,
) -> None:
    import json
    import tempfile

    from packager.errors import GateFailed, GateInconclusive
    from packager.quantize.update_aware.quantize_update import quantize_update

    calibration, held_back = samples.split_halves()
    # what stands at `out` stays until the update has passed
    with tempfile.TemporaryDirectory(prefix=".airweights-", dir=out.parent) as folder:
        made = Path(folder) / out.name
        found = quantize_update(model, base, made, calibration, held_back, thresholds=options.thresholds)
        if report is not None:
            report.write_text(json.dumps(found.as_json(), indent=2) + "\n")
        if found.gate.verdict == "fail":
            raise GateFailed(
                f"{model}: {found.gate.explanation}", hint="leave --update-of out: the update would not pass"
            )
        if found.gate.verdict == "inconclusive":
            raise GateInconclusive(f"{model}: {found.gate.explanation}", hint=INCONCLUSIVE_REMEDY)
        for part in sorted(Path(folder).iterdir(), reverse=True):
            part.replace(out.parent / part.name)
    print_result(found.as_json(), as_json=as_json, text=found.as_text())


@click.command("compare")
@click.argument("model", type=PATH)
@click.option("--reference", type=PATH, required=True, help="The model whose answers are right.")
@click.option(
    "--inputs", type=PATH, help="An .npz (one array per model input, first axis = sample) or a folder of them."
)
@click.option(
    "--random",
    "random_count",
    type=click.IntRange(2, 100_000),
    default=32,
    show_default=True,
    help="Random samples without --inputs.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Of the random samples.")
@click.option("--max-relative-rms", type=float, help="Gate: RMS error over spread.  [default: 0.15]")
@click.option("--min-top1", type=float, help="Gate: top-1 agreement; 0 for embeddings.  [default: 0.95]")
@click.option("--metric", "metric_text", help="Your own measure: python:MODULE:FUNCTION, or a command.")
@click.option("--max-metric-loss", type=float, help="Gate: share of the float model's metric.  [default: 0.01]")
@click.option("--no-baseline", is_flag=True, help="Do not hold an int8 model to ordinary quantization of its teacher.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
def compare_command(
    model: Path,
    reference: Path,
    inputs: Path | None,
    random_count: int,
    seed: int,
    max_relative_rms: float | None,
    min_top1: float | None,
    metric_text: str | None,
    max_metric_loss: float | None,
    no_baseline: bool,
    as_json: bool,
) -> None:
    """Compare MODEL (quantized, pruned or a distilled student) with its teacher on the same inputs.

    Exit status: 0 pass, 2 wrong input, 5 gate failed or inconclusive.
    """
    from packager.errors import GateFailed, GateInconclusive
    from packager.quantize.baseline import baseline_error
    from packager.quantize.candidate_search import MetricReference
    from packager.quantize.gate import run_gate
    from packager.quantize.user_metric import Metric

    metric = None if metric_text is None else Metric.parse(metric_text)
    thresholds = _make_thresholds(max_relative_rms, min_top1, max_metric_loss)
    samples = _load_samples(reference, inputs, random_count, seed)
    measure = MetricReference.from_float_model(metric, reference, samples)
    ordinary = (
        baseline_error(reference, samples, thresholds) if _is_int8_of(model, reference) and not no_baseline else None
    )
    found = run_gate(reference, model, samples, thresholds, baseline_rms=ordinary, shapes_vary=measure is not None)
    if measure is not None:
        found = measure.add_to_report(found, model, samples, thresholds.max_metric_loss)
    if found.verdict == "fail":
        raise GateFailed(f"{model}: {found.explanation}")
    if found.verdict == "inconclusive":
        raise GateInconclusive(f"{model}: {found.explanation}", hint=INCONCLUSIVE_REMEDY)
    rows = [f"{found.verdict}: {found.explanation}", *(f"  {output.as_line()}" for output in found.outputs)]
    print_result(found.as_json(), as_json=as_json, text="\n".join(rows))


def _is_int8_of(candidate: Path, reference: Path) -> bool:
    """An int8 model beside a float one; 4-bit weights are another yardstick."""
    from packager.models.graphs import all_nodes, is_quantized
    from packager.models.inputs import load_proto

    small, large = (load_proto(path, external_data=False) for path in (candidate, reference))
    has_four_bits = any(node.op_type == "MatMulNBits" for node in all_nodes(small))
    return is_quantized(small) and not has_four_bits and not is_quantized(large)


@click.command("prune")
@click.argument("model", type=PATH)
@click.option("-o", "--output", "out", type=PATH, required=True, help="The file to write.")
@click.option("--sparsity", type=float, default=0.5, show_default=True, help="Share of weights that become zero.")
@click.option("--pattern", type=click.Choice(["unstructured", "2:4"]), default="unstructured", show_default=True)
@click.option(
    "--inputs", type=PATH, help="An .npz (one array per model input, first axis = sample) or a folder of them."
)
@click.option(
    "--random",
    "random_count",
    type=click.IntRange(2, 100_000),
    default=32,
    show_default=True,
    help="Random samples without --inputs.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Of the random samples.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
def prune_command(
    model: Path,
    out: Path,
    sparsity: float,
    pattern: "Pattern",
    inputs: Path | None,
    random_count: int,
    seed: int,
    as_json: bool,
) -> None:
    """Set the smallest weights of MODEL to zero, under the same gate as quantization.

    Exit status: 0 written, 2 wrong input, 5 gate failed or inconclusive (nothing is written then).
    """
    from packager.quantize.prune import prune_model

    _check_paths((model, inputs), out)
    samples = _load_samples(model, inputs, random_count, seed)
    found = prune_model(model, out, samples, sparsity=sparsity, pattern=pattern)
    error = found.gate.relative_rms or 0.0
    text = f"{found.sparsity:.1%} of {found.weights:,} weights are zero, relative RMS {error:.4f}"
    print_result(found.as_json(), as_json=as_json, text=text)


@click.command("lint")
@click.argument("model", type=PATH)
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
def lint_command(model: Path, as_json: bool) -> None:
    """Say what about MODEL will bring trouble: numbers that differ between CPUs, operators that runtimes lack.

    Exit status: 0 also where there are findings, 2 not a model.
    """
    from packager.quantize.lint import lint

    found = lint(model)
    text = "\n".join(f"{finding.severity}: {finding.code}: {finding.message}" for finding in found) or "nothing found"
    print_result({"findings": [finding.as_json() for finding in found]}, as_json=as_json, text=text)


def _check_paths(inputs: tuple[Path | None, ...], *outputs: Path | None) -> None:
    """Before any work: what is written has a folder, is none, and is nothing that is read. Raises Invalid kinds."""
    from packager.errors import FileNotFound, OutputExists

    for path in outputs:
        if path is None:
            continue
        if not path.parent.is_dir():
            raise FileNotFound(f"{path}: found no folder {path.parent}", hint="make it first")
        if path.is_dir():
            raise OutputExists(f"{path}: found a folder, expected the name of a file to write")
        check_output(path, *inputs)


def _make_thresholds(
    max_relative_rms: float | None, min_top1: float | None, max_metric_loss: float | None
) -> "Thresholds":
    from dataclasses import replace

    from packager.quantize.gate import DEFAULT_THRESHOLDS

    given = {
        "max_relative_rms": max_relative_rms,
        "min_top1_agreement": min_top1,
        "max_metric_loss": max_metric_loss,
    }
    return replace(DEFAULT_THRESHOLDS, **{name: value for name, value in given.items() if value is not None})


def _load_samples(model: Path, inputs: Path | None, count: int, seed: int) -> "Samples":
    from packager.models.inputs import ModelInterface
    from packager.models.random_inputs import random_samples
    from packager.models.samples import folder_samples, load_samples

    if inputs is None:
        return random_samples(model, count, seed)
    interface = ModelInterface.from_file(model)
    return folder_samples(inputs, interface) if inputs.is_dir() else load_samples(inputs, interface)
