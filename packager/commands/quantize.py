"""`packager quantize`, `compare`, `prune` and `lint`: commands on a model file."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from bundle.console import print_lines, print_result, progress_bar
from packager.commands.options import JSON_OPTION, PATH, check_output

if TYPE_CHECKING:
    from packager.models.samples import Samples
    from packager.quantize.gate import Thresholds
    from packager.quantize.prune import Pattern
    from packager.quantize.schemes import QuantizeOptions

INCONCLUSIVE_HINT = "add --inputs FILE.npz with real inputs of several kinds"

INPUTS_OPTION = click.option(
    "--inputs",
    type=PATH,
    help="Samples to run: an .npz (one array per model input, first axis = sample) or a folder of them.",
)
RANDOM_OPTION = click.option(
    "--random",
    "random_count",
    type=click.IntRange(2, 100_000),
    default=32,
    show_default=True,
    help="Number of random samples used without --inputs.",
)
SEED_OPTION = click.option("--seed", type=int, default=0, show_default=True, help="Seed of the random samples.")
MAX_RMS_OPTION = click.option(
    "--max-relative-rms",
    type=float,
    help="Gate: largest RMS error, relative to the output's spread.  [default: 0.15]",
)
MIN_TOP1_OPTION = click.option(
    "--min-top1",
    type=float,
    help="Gate: smallest share of samples with the same top-1 class; 0 for embeddings.  [default: 0.95]",
)
METRIC_OPTION = click.option(
    "--metric", "metric_text", help="Also compare your own metric: python:MODULE:FUNCTION, or a command."
)
METRIC_LOSS_OPTION = click.option(
    "--max-metric-loss",
    type=float,
    help="Gate: largest loss of --metric, as a share of the float model's.  [default: 0.01]",
)


MAX_LATENCY_OPTION = click.option(
    "--max-latency-ratio",
    type=float,
    help="Gate: largest processor time, relative to the float model's.  [default: 1.2]",
)


@click.command("quantize", short_help="Quantize a model behind an accuracy gate.")
@click.argument("model", type=PATH)
@click.option("-o", "--output", "out", type=PATH, required=True, help="Model file to write.")
@click.option(
    "--scheme",
    type=click.Choice(["fp32", "fp16", "int8", "int8-weights", "int8-static", "int8-dynamic", "int4"]),
    default="int8",
    show_default=True,
    help="Number format of the weights. int8-weights: float arithmetic, as fast as float; int8 takes the form that "
    "suits the target.",
)
@INPUTS_OPTION
@RANDOM_OPTION
@SEED_OPTION
@click.option("--per-tensor", is_flag=True, help="Use one scale per weight tensor instead of one per channel.")
@click.option("--signed-weights", is_flag=True, help="Use 7-bit signed weights (U8S7): faster on CPUs without VNNI.")
@click.option(
    "--target",
    type=click.Choice(["any", "x86-avx2", "x86-vnni", "arm", "arm-dotprod", "arm-i8mm"]),
    default="any",
    show_default=True,
    help="CPUs that run the model; they decide whether integer arithmetic is tried first. arm: signed 8 bits (S8S8).",
)
@click.option("--no-optimize", is_flag=True, help="Do not optimize the graph before quantizing.")
@MAX_RMS_OPTION
@MIN_TOP1_OPTION
@METRIC_OPTION
@METRIC_LOSS_OPTION
@MAX_LATENCY_OPTION
@click.option(
    "--update-of",
    "base",
    type=PATH,
    help="Quantized model on the devices: choose weights that keep the patch from it small.",
)
@click.option("--report", type=PATH, help="Write the full report as JSON, even if the gate fails.")
@click.option("--html", type=PATH, help="Write the report as an HTML page, even if the gate fails.")
@JSON_OPTION
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
    max_latency_ratio: float | None,
    base: Path | None,
    report: Path | None,
    html: Path | None,
    as_json: bool,
) -> None:
    """Quantize MODEL, and check its outputs against the float model's.

    Exit status: 0 quantized, 2 invalid input, 5 refused, gate failed or inconclusive (no model is written).
    """
    import json
    from dataclasses import replace

    from packager.errors import GateFailed, GateInconclusive, InvalidUsage, QuantizationRefused
    from packager.quantize.schemes import DEFAULT_OPTIONS, quantize_model
    from packager.quantize.targets import TARGETS
    from packager.quantize.user_metric import Metric

    _check_paths((model, inputs, base), out, report, html)
    if base is not None and (html is not None or metric_text is not None):
        raise InvalidUsage("--update-of: found --html or --metric beside it, expected neither")
    options = replace(
        DEFAULT_OPTIONS,
        per_channel=not per_tensor,
        signed_weights=signed_weights,
        target=TARGETS[target],
        optimize=not no_optimize,
        thresholds=_make_thresholds(max_relative_rms, min_top1, max_metric_loss, max_latency_ratio),
        metric=None if metric_text is None else Metric.parse(metric_text),
    )
    samples = _load_samples(model, inputs, random_count, seed)
    if base is not None and _quantize_update(model, base, out, samples, options, report, as_json=as_json):
        return
    found = quantize_model(model, out, scheme, samples, options, progress_bar(f"{scheme} of {model.name}"))
    if report is not None:
        report.write_text(json.dumps(found.as_json(), indent=2) + "\n")
    if html is not None:
        from packager.quantize.html_report import write_page

        write_page(found, model, out if found.outcome == "quantized" else Path(), samples, html)
    if found.outcome == "inconclusive":
        raise GateInconclusive(f"{model}: {found.reason}", hint=INCONCLUSIVE_HINT)
    if found.outcome == "refused":
        if not as_json and found.trials:
            print_lines(found.trials_as_lines())
        failed_gate = found.gate is not None
        raise (GateFailed if failed_gate else QuantizationRefused)(
            f"{model}: {found.reason}",
            hint="add --report FILE to list every candidate; ship the float variant meanwhile",
        )
    print_result(found.as_json(), as_json=as_json, text=found.as_lines())


def _quantize_update(
    model: Path,
    base: Path,
    out: Path,
    samples: "Samples",
    options: "QuantizeOptions",
    report: Path | None,
    *,
    as_json: bool,
) -> bool:
    """Quantize near the base and print the result; return False if the model has to be quantized afresh."""
    import json
    import sys
    import tempfile

    from packager.errors import GateFailed, GateInconclusive
    from packager.quantize.update_aware.quantize_update import explain_failure, quantize_update

    calibration, held_back = samples.split_halves()
    # write beside `out`: an existing file there stays until the update has passed its gate
    with tempfile.TemporaryDirectory(prefix=".airweights-", dir=out.parent) as folder:
        candidate = Path(folder) / out.name
        try:
            found = quantize_update(model, base, candidate, calibration, held_back, thresholds=options.thresholds)
        except Exception as error:  # an update is an optimization: no failure of it ends the command
            reason = explain_failure(error)
            if reason is None:
                raise
            print_lines(f"note: {model} is quantized afresh, not near {base}: {reason}", stream=sys.stderr)
            return False
        if report is not None:
            report.write_text(json.dumps(found.as_json(), indent=2) + "\n")
        if found.gate.verdict == "fail":
            raise GateFailed(f"{model}: {found.gate.explanation}", hint="run the command without --update-of")
        if found.gate.verdict == "inconclusive":
            raise GateInconclusive(f"{model}: {found.gate.explanation}", hint=INCONCLUSIVE_HINT)
        for part in sorted(Path(folder).iterdir(), reverse=True):
            part.replace(out.parent / part.name)
    print_result(found.as_json(), as_json=as_json, text=found.as_lines())
    return True


@click.command("compare", short_help="Compare a model with its reference model.")
@click.argument("model", type=PATH)
@click.option("--reference", type=PATH, required=True, help="Reference model, whose outputs are taken as correct.")
@INPUTS_OPTION
@RANDOM_OPTION
@SEED_OPTION
@MAX_RMS_OPTION
@MIN_TOP1_OPTION
@METRIC_OPTION
@METRIC_LOSS_OPTION
@click.option(
    "--no-baseline", is_flag=True, help="Do not compare an int8 model with plain quantization of the reference model."
)
@JSON_OPTION
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
    """Compare MODEL (quantized, pruned or distilled) with its reference model on the same samples.

    Exit status: 0 passed, 2 invalid input, 5 gate failed or inconclusive.
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
    baseline = (
        baseline_error(reference, samples, thresholds) if _is_int8_of(model, reference) and not no_baseline else None
    )
    found = run_gate(reference, model, samples, thresholds, baseline_rms=baseline, shapes_vary=measure is not None)
    if measure is not None:
        found = measure.add_to_report(found, model, samples, thresholds.max_metric_loss)
    if found.verdict == "fail":
        raise GateFailed(f"{model}: {found.explanation}")
    if found.verdict == "inconclusive":
        raise GateInconclusive(f"{model}: {found.explanation}", hint=INCONCLUSIVE_HINT)
    rows = [f"{found.verdict}: {found.explanation}", *(f"  {output.as_line()}" for output in found.outputs)]
    print_result(found.as_json(), as_json=as_json, text=rows)


def _is_int8_of(candidate: Path, reference: Path) -> bool:
    """Return whether plain int8 quantization of `reference` is a fair baseline for `candidate`."""
    from packager.models.graphs import all_nodes, is_quantized
    from packager.models.inputs import load_outline

    small, large = (load_outline(path) for path in (candidate, reference))
    has_four_bits = any(node.op_type == "MatMulNBits" for node in all_nodes(small))
    return is_quantized(small) and not has_four_bits and not is_quantized(large)


@click.command("prune", short_help="Prune small weights behind the gate.")
@click.argument("model", type=PATH)
@click.option("-o", "--output", "out", type=PATH, required=True, help="Model file to write.")
@click.option(
    "--sparsity", type=float, default=0.5, show_default=True, help="Share of the weights to set to zero, 0 to 1."
)
@click.option(
    "--pattern",
    type=click.Choice(["unstructured", "2:4"]),
    default="unstructured",
    show_default=True,
    help="unstructured: the smallest weights anywhere. 2:4: the two smallest of every four.",
)
@INPUTS_OPTION
@RANDOM_OPTION
@SEED_OPTION
@JSON_OPTION
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
    """Set the smallest weights of MODEL to zero, behind the same gate as quantization.

    Exit status: 0 written, 2 invalid input, 5 gate failed or inconclusive (no model is written).
    """
    from packager.quantize.prune import prune_model

    _check_paths((model, inputs), out)
    samples = _load_samples(model, inputs, random_count, seed)
    found = prune_model(model, out, samples, sparsity=sparsity, pattern=pattern)
    error = found.gate.relative_rms or 0.0
    text = f"{found.sparsity:.1%} of {found.weights:,} weights are zero, relative RMS {error:.4f}"
    print_result(found.as_json(), as_json=as_json, text=text)


@click.command("lint", short_help="Check a model for problems on devices.")
@click.argument("model", type=PATH)
@JSON_OPTION
def lint_command(model: Path, as_json: bool) -> None:
    """Check MODEL for problems on devices: outputs that differ between CPUs, operators that runtimes lack.

    Exit status: 0 checked, with or without findings, 2 not a model.
    """
    from packager.quantize.lint import lint

    found = lint(model)
    text = [f"{finding.severity}: {finding.code}: {finding.message}" for finding in found] or "no findings"
    print_result({"findings": [finding.as_json() for finding in found]}, as_json=as_json, text=text)


def _check_paths(inputs: tuple[Path | None, ...], *outputs: Path | None) -> None:
    """Check before any work that each output has a folder, is not a folder, and is not one of the inputs."""
    from packager.errors import FileNotFound, OutputExists

    for path in outputs:
        if path is None:
            continue
        if not path.parent.is_dir():
            raise FileNotFound(f"output {path}: folder {path.parent} does not exist", hint="create the folder")
        if path.is_dir():
            raise OutputExists(f"output {path}: found a folder, expected the name of a file to write")
        check_output(path, *inputs)


def _make_thresholds(
    max_relative_rms: float | None,
    min_top1: float | None,
    max_metric_loss: float | None,
    max_latency_ratio: float | None = None,
) -> "Thresholds":
    from dataclasses import replace

    from packager.quantize.gate import DEFAULT_THRESHOLDS

    given = {
        "max_relative_rms": max_relative_rms,
        "min_top1_agreement": min_top1,
        "max_metric_loss": max_metric_loss,
        "max_latency_ratio": max_latency_ratio,
    }
    return replace(DEFAULT_THRESHOLDS, **{name: value for name, value in given.items() if value is not None})


def _load_samples(model: Path, inputs: Path | None, count: int, seed: int) -> "Samples":
    from packager.models.missing_values import load_inputs
    from packager.models.random_inputs import random_samples

    return random_samples(model, count, seed) if inputs is None else load_inputs(model, inputs)
