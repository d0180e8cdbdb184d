"""One HTML page about a quantization: sizes, latency, figures of every output, error of every layer, histograms.

Rules:
1. The page is one file without scripts, fonts or images from elsewhere; drawings are inline SVG.
2. Every name from a model is escaped: names are data.
3. Colours have the system's light or dark scheme behind them; every chart has its numbers as text beside it.
"""

from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Final

import numpy as np
import onnx

from packager.models.graphs import array_of, weight_uses
from packager.models.inputs import load_proto
from packager.models.samples import Samples
from packager.models.sessions import run, session_of, settings_for
from packager.quantize.prepare import prepare
from packager.quantize.quantization_report import QuantizationReport
from packager.quantize.sensitivity import with_outputs
from packager.quantize.weight_only import MIN_ELEMENTS

SAMPLES: Final = 8
BINS: Final = 48
MAX_LAYERS: Final = 200
WIDTH: Final = 240
HEIGHT: Final = 48
TINY: Final = 1e-30
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
    """One layer: relative RMS error of its output in the quantized model, histograms of its weight and its output.

    A layer in a nested graph, or one whose output has another name in the quantized model, has neither error nor
    `activation`. `bits` says what it became: "8 bits", "16-bit activations", "float".
    """

    node: str
    operator: str
    relative_rms: float | None
    weight: "Histogram"
    activation: "Histogram | None"
    bits: str


@dataclass(frozen=True, slots=True)
class Histogram:
    """Counts in BINS equal parts of `low`..`high`."""

    counts: np.ndarray
    low: float
    high: float

    @classmethod
    def of(cls, values: np.ndarray) -> "Histogram":
        """Of the finite ones among `values`."""
        finite = values[np.isfinite(values)].astype(np.float64)
        counts, edges = np.histogram(finite, BINS)
        return cls(counts, float(edges[0]), float(edges[-1]))


def layer_errors(float_model: Path, quantized: Path, samples: Samples, report: QuantizationReport) -> list[LayerError]:
    """Every layer with weights, at most MAX_LAYERS, in graph order. Raises ModelDoesNotRun."""
    # as the quantizer saw it: its simplification renames values and gives every node a name
    left, right = prepare(float_model, next(iter(samples.take(1)))).model, load_proto(quantized)
    theirs = {name for node in right.graph.node for name in node.output}
    uses = {use.node.output[0]: use for use in weight_uses(left)[:MAX_LAYERS]}
    names = [name for name, use in uses.items() if use.scope.depth == 0 and name in theirs]
    measured = _measured(left, right, names, samples) if names else {}
    bits = (
        dict.fromkeys(report.kept_float, "float")
        | dict.fromkeys(report.wide_activations, "16-bit activations")
        | dict.fromkeys(report.wide_weights, "8-bit weights")
    )
    return [
        LayerError(
            node=use.node.name or name,
            operator=use.node.op_type,
            relative_rms=measured[name][0] if name in measured else None,
            weight=Histogram.of(array_of(use.tensor)),
            activation=measured[name][1] if name in measured else None,
            bits=bits.get(use.node.name, "float" if use.elements < MIN_ELEMENTS else ""),
        )
        for name, use in uses.items()
    ]


def _measured(
    left: onnx.ModelProto, right: onnx.ModelProto, names: list[str], samples: Samples
) -> dict[str, tuple[float, Histogram]]:
    """Relative RMS of the values `names` of two models, and a histogram of the float model's."""
    runs = session_of(with_outputs(left, names)), session_of(with_outputs(right, names), settings_for(right))
    error, power = np.zeros(len(names)), np.zeros(len(names))
    seen: list[np.ndarray] = [np.zeros(0)] * len(names)
    for sample in samples.take(SAMPLES):
        for i, (a, b) in enumerate(zip(run(runs[0], sample, names), run(runs[1], sample, names), strict=True)):
            if a.shape == b.shape:
                error[i] += float(np.square(a.astype(np.float64) - b).sum())
                power[i] += float(np.square(a.astype(np.float64)).sum())
                seen[i] = a.ravel()
    return {
        name: (float(np.sqrt(error[i] / max(power[i], TINY))), Histogram.of(seen[i])) for i, name in enumerate(names)
    }


def as_html(report: QuantizationReport, title: str, layers: list[LayerError]) -> str:
    """The page (rules above)."""
    good = report.outcome == "quantized"
    parts = [
        "<!doctype html><html lang=en><head><meta charset=utf-8>",
        '<meta name=viewport content="width=device-width, initial-scale=1">',
        f"<title>{escape(title)}: {report.scheme}</title><style>{STYLE}</style></head><body>",
        f"<h1>{escape(title)}: {escape(report.scheme)}</h1>",
        f"<p class={'good' if good else 'bad'}><b>{escape(report.outcome)}</b>: {escape(report.reason)}</p>",
        _table(("", "float", report.scheme), _summary(report)),
        "<h2>Outputs</h2>",
        _table(("output", "relative RMS", "cosine p1", "top-1", "KL", "worst sample", "varies"), _outputs(report)),
        "<h2>Kept in float</h2>",
        f"<p>{escape(', '.join(report.kept_float)) or 'nothing'}</p>",
        "<h2>Activations in 16 bits</h2>",
        f"<p>{escape(', '.join(report.wide_activations)) or 'none'}</p>",
        *(
            ["<h2>Weights in 8 bits instead of 4</h2>", f"<p>{escape(', '.join(report.wide_weights))}</p>"]
            if report.wide_weights
            else []
        ),
        "<h2>Layers</h2>",
        "<p>Relative RMS is the error of the layer's output over its size, all layers before it quantized too. "
        "Histograms have square-root heights, so that tails are seen.</p>",
        _table(("layer", "operator", "relative RMS", "error", "weights", "activations"), _layers(layers)),
        "<h2>Trials</h2>",
        _table(
            ("method", "float", "more bits", "bytes", "relative RMS", "calibration half", "why", "held-back half"),
            _trials(report),
        ),
    ]
    if report.sensitivity:
        parts += [
            "<h2>What each layer costs alone</h2>",
            _table(("layers", "relative RMS of the answers"), _sensitivity(report)),
        ]
    if report.notes:
        parts.append("<h2>Notes</h2><ul>" + "".join(f"<li>{escape(note)}" for note in report.notes) + "</ul>")
    return "\n".join([*parts, "</body></html>\n"])


def write_page(report: QuantizationReport, float_model: Path, quantized: Path, samples: Samples, out: Path) -> None:
    """Measure the layers where there is a quantized model, and write the page."""
    layers = layer_errors(float_model, quantized, samples, report) if quantized.is_file() else []
    out.write_text(as_html(report, float_model.name, layers), encoding="utf-8")


def _summary(report: QuantizationReport) -> list[tuple[str, ...]]:
    rows = [("bytes", f"{report.float_bytes:,}", "" if report.bytes is None else f"{report.bytes:,}")]
    if report.latency is not None:
        rows.append(("latency", f"{report.latency.float_ms:.2f} ms", f"{report.latency.quantized_ms:.2f} ms"))
    rows.append(("method", "", f"{report.method} ({report.numerics})"))
    if report.oldest_runtime is not None:
        rows.append(("loads on onnxruntime", "", f"{report.oldest_runtime} and later"))
    if report.gate is not None and report.gate.metric is not None:
        figures = report.gate.metric
        rows.append((f"metric {figures.name}", f"{figures.float_value:.4f}", f"{figures.value:.4f}"))
    rows.append(("samples", "", f"{report.calibration_samples} for calibration, {report.origin[:24]}"))
    return [tuple(map(escape, row)) for row in rows]


def _outputs(report: QuantizationReport) -> list[tuple[str, ...]]:
    outputs = report.gate.outputs if report.gate else ()
    return [
        (
            escape(o.name),
            _number(o.relative_rms),
            _number(o.cosine_p1),
            _number(o.top1_agreement),
            _number(o.kl_mean),
            _number(o.worst_relative),
            "yes" if o.varies else "no",
        )
        for o in outputs
    ]


def _layers(layers: list[LayerError]) -> list[tuple[str, ...]]:
    worst = max((layer.relative_rms or 0.0 for layer in layers), default=1.0) or 1.0
    return [
        (
            escape(layer.node) + (f" ({layer.bits})" if layer.bits else ""),
            escape(layer.operator),
            _number(layer.relative_rms),
            _bar(layer.relative_rms, worst),
            _bars(layer.weight),
            _bars(layer.activation) if layer.activation is not None else "",
        )
        for layer in layers
    ]


def _trials(report: QuantizationReport) -> list[tuple[str, ...]]:
    return [
        (
            escape(trial.method),
            str(len(trial.kept_float)),
            str(len(trial.wide)),
            "" if trial.bytes is None else f"{trial.bytes:,}",
            _number(trial.relative_rms),
            escape(trial.verdict),
            escape(trial.why),
            escape(trial.held_back or ""),
        )
        for trial in report.trials
    ]


def _sensitivity(report: QuantizationReport) -> list[tuple[str, ...]]:
    return [(escape(", ".join(blamed.nodes)), _number(float(np.sqrt(blamed.squared)))) for blamed in report.sensitivity]


def _bar(value: float | None, worst: float) -> str:
    if value is None:
        return ""
    width = 120 * min(1.0, value / worst)
    return f'<svg width=120 height=12 role=img aria-label="{value:.4f}"><rect width={width:.1f} height=12 /></svg>'


def _bars(found: Histogram) -> str:
    """A histogram with its range; heights are square roots, so that tails are seen."""
    counts = found.counts
    heights = np.sqrt(counts / max(1, int(counts.max(initial=0)))) * HEIGHT
    step = WIDTH / len(counts)
    bars = "".join(
        f"<rect x={i * step:.1f} y={HEIGHT - h:.1f} width={step:.1f} height={h:.1f} />"
        for i, h in enumerate(heights)
        if h
    )
    label = f"histogram of {int(counts.sum())} values from {found.low:.3g} to {found.high:.3g}"
    return (
        f'<svg width={WIDTH} height={HEIGHT} role=img aria-label="{label}">{bars}</svg>'
        f"<small>{found.low:.3g} … {found.high:.3g}</small>"
    )


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    top = "".join(f"<th>{escape(name)}</th>" for name in head)
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"
