"""Render one HTML page about a quantization: sizes, latency, outputs, layers, trials.

1. The page is one file without scripts, fonts or images from elsewhere; drawings are inline SVG.
2. Every name from a model is rendered (bundle.rendering).
3. Colors work in the system's light and dark scheme; every chart has its numbers as text.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import onnx

from bundle.rendering import escape_html
from packager.models.graphs import array_of, weight_uses
from packager.models.inputs import load_proto
from packager.models.samples import Samples
from packager.models.sessions import open_session_of, run_session, settings_for
from packager.quantize.prepare import prepare_model
from packager.quantize.quantization_report import QuantizationReport
from packager.quantize.sensitivity import with_outputs
from packager.quantize.weight_only import MIN_ELEMENTS

PAGE_SAMPLES: Final = 8  # samples from which layers are measured
HISTOGRAM_BINS: Final = 48
MAX_LAYERS: Final = 200  # rows of the table of layers
CHART_WIDTH_PX: Final = 240
CHART_HEIGHT_PX: Final = 48
EPSILON: Final = 1e-30
STYLE: Final = """
:root { color-scheme: light dark; font: 15px/1.5 system-ui, sans-serif; }
body { max-width: 70rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; width: 100%; margin: .5rem 0 2rem; }
th, td { text-align: left; padding: .25rem .6rem; border-bottom: 1px solid #8884; overflow-wrap: anywhere; }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
svg { display: block; } rect { fill: #3a7bd5; } .good { color: #188038; } .bad { color: #c5221f; }
@media (prefers-color-scheme: dark) { rect { fill: #7aaef5; } .good { color: #81c995; } .bad { color: #f28b82; } }
"""


@dataclass(frozen=True, slots=True)
class LayerError:
    """One layer of the page.

    A layer in a nested graph, or one whose output has another name in the quantized model, has neither error nor
    activation.

    Attributes:
        node: name of the node.
        operator: operator type of the node.
        relative_rms: RMS error of its output over its RMS, all layers before it quantized too.
        weight: histogram of the float weight.
        activation: histogram of the float model's output, on one sample.
        bits: "8-bit weights", "16-bit activations", "float", or "" for the method's own bits.
    """

    node: str
    operator: str
    relative_rms: float | None
    weight: "Histogram"
    activation: "Histogram | None"
    bits: str


@dataclass(frozen=True, slots=True)
class Histogram:
    """Counts in HISTOGRAM_BINS equal parts of `low`..`high`."""

    counts: np.ndarray
    low: float
    high: float

    @classmethod
    def from_values(cls, values: np.ndarray) -> "Histogram":
        """Count the finite ones among `values`."""
        finite = values[np.isfinite(values)].astype(np.float64)
        counts, edges = np.histogram(finite, HISTOGRAM_BINS)
        return cls(counts, float(edges[0]), float(edges[-1]))


def layer_errors(float_model: Path, quantized: Path, samples: Samples, report: QuantizationReport) -> list[LayerError]:
    """Measure every layer with weights, at most MAX_LAYERS, in graph order.

    Args:
        float_model: the reference model.
        quantized: the quantized model.
        samples: inputs; PAGE_SAMPLES of them are used.
        report: says which nodes have more bits.

    Raises:
        ModelDoesNotRun: a model does not load, or does not run on a sample.
    """
    # prepare the model as the quantizer did: that renames values and gives every node a name
    left, right = prepare_model(float_model, next(iter(samples.take(1)))).model, load_proto(quantized)
    theirs = {name for node in right.graph.node for name in node.output}
    uses = {use.node.output[0]: use for use in weight_uses(left)[:MAX_LAYERS]}
    names = [name for name, use in uses.items() if use.scope.depth == 0 and name in theirs]
    measured = _measure_values(left, right, names, samples) if names else {}
    bits = (
        dict.fromkeys(report.float_nodes, "float")
        | dict.fromkeys(report.promoted_activations, "16-bit activations")
        | dict.fromkeys(report.promoted_weights, "8-bit weights")
    )
    return [
        LayerError(
            node=use.node.name or name,
            operator=use.node.op_type,
            relative_rms=measured[name][0] if name in measured else None,
            weight=Histogram.from_values(array_of(use.tensor)),
            activation=measured[name][1] if name in measured else None,
            bits=bits.get(use.node.name, "float" if use.elements < MIN_ELEMENTS else ""),
        )
        for name, use in uses.items()
    ]


def _measure_values(
    left: onnx.ModelProto, right: onnx.ModelProto, names: list[str], samples: Samples
) -> dict[str, tuple[float, Histogram]]:
    """Return for each value its relative RMS error, and a histogram of the float model's."""
    runs = open_session_of(with_outputs(left, names)), open_session_of(with_outputs(right, names), settings_for(right))
    error, power = np.zeros(len(names)), np.zeros(len(names))
    seen: list[np.ndarray] = [np.zeros(0)] * len(names)
    for sample in samples.take(PAGE_SAMPLES):
        for i, (a, b) in enumerate(
            zip(run_session(runs[0], sample, names), run_session(runs[1], sample, names), strict=True)
        ):
            if a.shape == b.shape:
                error[i] += float(np.square(a.astype(np.float64) - b).sum())
                power[i] += float(np.square(a.astype(np.float64)).sum())
                seen[i] = a.ravel()
    return {
        name: (float(np.sqrt(error[i] / max(power[i], EPSILON))), Histogram.from_values(seen[i]))
        for i, name in enumerate(names)
    }


def render_page(report: QuantizationReport, title: str, layers: list[LayerError]) -> str:
    """Return the page as HTML.

    Args:
        report: figures of the quantization.
        title: name of the model.
        layers: rows of the table of layers; empty if no model was written.
    """
    is_quantized = report.outcome == "quantized"
    parts = [
        "<!doctype html><html lang=en><head><meta charset=utf-8>",
        '<meta name=viewport content="width=device-width, initial-scale=1">',
        f"<title>{escape_html(title)}: {report.scheme}</title><style>{STYLE}</style></head><body>",
        f"<h1>{escape_html(title)}: {escape_html(report.scheme)}</h1>",
        f"<p class={'good' if is_quantized else 'bad'}><b>{escape_html(report.outcome)}</b>:"
        f" {escape_html(report.reason)}</p>",
        _draw_table(("", "reference model", report.scheme), _summary_rows(report)),
        "<h2>Outputs</h2>",
        _draw_table(
            (
                "output",
                "relative RMS error",
                "cosine, 1st percentile",
                "top-1 agreement",
                "KL divergence",
                "relative RMS error, worst sample",
                "varies over the samples",
            ),
            _output_rows(report),
        ),
        "<h2>Nodes in float</h2>",
        f"<p>{escape_html(', '.join(report.float_nodes)) or 'none'}</p>",
        "<h2>Nodes with 16-bit activations</h2>",
        f"<p>{escape_html(', '.join(report.promoted_activations)) or 'none'}</p>",
        *(
            ["<h2>Nodes with 8-bit weights</h2>", f"<p>{escape_html(', '.join(report.promoted_weights))}</p>"]
            if report.promoted_weights
            else []
        ),
        "<h2>Layers</h2>",
        "<p>The relative RMS error compares the layer's output with the reference model's; all layers before it are "
        "quantized too. Bars of the histograms have square-root heights, so that tails are visible.</p>",
        _draw_table(
            ("layer", "operator", "relative RMS error", "error bar", "weights", "activations"), _layer_rows(layers)
        ),
        "<h2>Trials</h2>",
        _draw_table(
            (
                "method",
                "nodes in float",
                "nodes with more bits",
                "bytes",
                "relative RMS error",
                "verdict on calibration samples",
                "explanation",
                "verdict on held-out samples",
            ),
            _trial_rows(report),
        ),
    ]
    if report.sensitivity:
        parts += [
            "<h2>Node errors</h2>",
            "<p>The error of the model's outputs if these nodes alone are quantized.</p>",
            _draw_table(("nodes", "relative RMS error of the outputs"), _sensitivity_rows(report)),
        ]
    if report.notes:
        parts.append("<h2>Notes</h2><ul>" + "".join(f"<li>{escape_html(note)}" for note in report.notes) + "</ul>")
    return "\n".join([*parts, "</body></html>\n"])


def write_page(report: QuantizationReport, float_model: Path, quantized: Path, samples: Samples, out: Path) -> None:
    """Measure the layers, if there is a quantized model, and write the page.

    Args:
        report: figures of the quantization.
        float_model: the reference model.
        quantized: the quantized model; need not exist.
        samples: inputs to run the model on.
        out: the file to write.
    """
    layers = layer_errors(float_model, quantized, samples, report) if quantized.is_file() else []
    out.write_text(render_page(report, float_model.name, layers), encoding="utf-8")


def _summary_rows(report: QuantizationReport) -> list[tuple[str, ...]]:
    rows = [("bytes", f"{report.float_bytes:,}", "" if report.bytes is None else f"{report.bytes:,}")]
    if report.latency is not None:
        rows.append(("median latency", f"{report.latency.float_ms:.2f} ms", f"{report.latency.quantized_ms:.2f} ms"))
    rows.append(("method", "", f"{report.method} ({report.numerics})"))
    if report.oldest_runtime is not None:
        rows.append(("onnxruntime versions", "", f"{report.oldest_runtime} and later"))
    if report.gate is not None and report.gate.metric is not None:
        figures = report.gate.metric
        rows.append((f"metric {figures.name}", f"{figures.float_value:.4f}", f"{figures.value:.4f}"))
    rows.append(("calibration samples", "", f"{report.calibration_samples}, {report.origin[:24]}"))
    return [tuple(map(escape_html, row)) for row in rows]


def _output_rows(report: QuantizationReport) -> list[tuple[str, ...]]:
    outputs = report.gate.outputs if report.gate else ()
    return [
        (
            escape_html(o.name),
            _format_number(o.relative_rms),
            _format_number(o.cosine_p1),
            _format_number(o.top1_agreement),
            _format_number(o.kl_mean),
            _format_number(o.worst_relative),
            "yes" if o.varies else "no",
        )
        for o in outputs
    ]


def _layer_rows(layers: list[LayerError]) -> list[tuple[str, ...]]:
    worst = max((layer.relative_rms or 0.0 for layer in layers), default=1.0) or 1.0
    return [
        (
            escape_html(layer.node) + (f" ({layer.bits})" if layer.bits else ""),
            escape_html(layer.operator),
            _format_number(layer.relative_rms),
            _draw_bar(layer.relative_rms, worst),
            _draw_histogram(layer.weight),
            _draw_histogram(layer.activation) if layer.activation is not None else "",
        )
        for layer in layers
    ]


def _trial_rows(report: QuantizationReport) -> list[tuple[str, ...]]:
    return [
        (
            escape_html(trial.method),
            str(len(trial.float_nodes)),
            str(len(trial.promoted)),
            "" if trial.bytes is None else f"{trial.bytes:,}",
            _format_number(trial.relative_rms),
            escape_html(trial.verdict),
            escape_html(trial.explanation),
            escape_html(trial.held_out or ""),
        )
        for trial in report.trials
    ]


def _sensitivity_rows(report: QuantizationReport) -> list[tuple[str, ...]]:
    return [
        (escape_html(", ".join(measured.nodes)), _format_number(float(np.sqrt(measured.squared_error))))
        for measured in report.sensitivity
    ]


def _draw_bar(value: float | None, worst: float) -> str:
    if value is None:
        return ""
    width = 120 * min(1.0, value / worst)
    return f'<svg width=120 height=12 role=img aria-label="{value:.4f}"><rect width={width:.1f} height=12 /></svg>'


def _draw_histogram(found: Histogram) -> str:
    """Draw a histogram with its range; heights are square roots, so that tails are visible."""
    counts = found.counts
    heights = np.sqrt(counts / max(1, int(counts.max(initial=0)))) * CHART_HEIGHT_PX
    step = CHART_WIDTH_PX / len(counts)
    bars = "".join(
        f"<rect x={i * step:.1f} y={CHART_HEIGHT_PX - h:.1f} width={step:.1f} height={h:.1f} />"
        for i, h in enumerate(heights)
        if h
    )
    label = f"histogram of {int(counts.sum())} values from {found.low:.3g} to {found.high:.3g}"
    return (
        f'<svg width={CHART_WIDTH_PX} height={CHART_HEIGHT_PX} role=img aria-label="{label}">{bars}</svg>'
        f"<small>{found.low:.3g} … {found.high:.3g}</small>"
    )


def _draw_table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    top = "".join(f"<th>{escape_html(name)}</th>" for name in head)
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>"


def _format_number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"
