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

from packager.inputs import Samples, load_proto
from packager.quantize.graphs import array_of, weight_uses
from packager.quantize.report import QuantizationReport
from packager.quantize.runs import run, session_of
from packager.quantize.sensitivity import with_outputs

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
    """One layer: relative RMS error of its output in the quantized model, histograms of its weight and its output."""

    node: str
    operator: str
    relative_rms: float
    weight: np.ndarray
    activation: np.ndarray
    is_float: bool


def layer_errors(float_model: Path, quantized: Path, samples: Samples, kept: tuple[str, ...]) -> list[LayerError]:
    """Layers with weights whose outputs have the same name in both models, in graph order. Raises ModelDoesNotRun."""
    left, right = load_proto(float_model), load_proto(quantized)
    theirs = {name for node in right.graph.node for name in node.output}
    uses = {use.node.output[0]: use for use in weight_uses(left) if use.scope.depth == 0}
    names = [name for name in uses if name in theirs][:MAX_LAYERS]
    if not names:
        return []
    runs = session_of(with_outputs(left, names)), session_of(with_outputs(right, names))
    error, power = np.zeros(len(names)), np.zeros(len(names))
    seen: list[np.ndarray] = [np.zeros(0)] * len(names)
    for sample in samples.take(SAMPLES):
        for i, (a, b) in enumerate(zip(run(runs[0], sample, names), run(runs[1], sample, names), strict=True)):
            if a.shape == b.shape:
                error[i] += float(np.square(a.astype(np.float64) - b).sum())
                power[i] += float(np.square(a.astype(np.float64)).sum())
                seen[i] = a.ravel()
    return [
        LayerError(
            node=uses[name].node.name or name,
            operator=uses[name].node.op_type,
            relative_rms=float(np.sqrt(error[i] / max(power[i], TINY))),
            weight=np.histogram(array_of(uses[name].tensor).astype(np.float64), BINS)[0],
            activation=np.histogram(seen[i], BINS)[0],
            is_float=uses[name].node.name in kept,
        )
        for i, name in enumerate(names)
    ]


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
        "<h2>Layers</h2>",
        _table(("layer", "operator", "relative RMS", "error", "weights", "activations"), _layers(layers)),
        "<h2>Trials</h2>",
        _table(("method", "kept", "bytes", "relative RMS", "verdict", "why"), _trials(report)),
    ]
    if report.notes:
        parts.append("<h2>Notes</h2><ul>" + "".join(f"<li>{escape(note)}" for note in report.notes) + "</ul>")
    return "\n".join([*parts, "</body></html>\n"])


def write_page(report: QuantizationReport, float_model: Path, quantized: Path, samples: Samples, out: Path) -> None:
    """Measure the layers where there is a quantized model, and write the page."""
    layers = layer_errors(float_model, quantized, samples, report.kept_float) if quantized.is_file() else []
    out.write_text(as_html(report, float_model.name, layers), encoding="utf-8")


def _summary(report: QuantizationReport) -> list[tuple[str, ...]]:
    rows = [("bytes", f"{report.float_bytes:,}", "" if report.bytes is None else f"{report.bytes:,}")]
    if report.latency is not None:
        rows.append(("latency", f"{report.latency.float_ms:.2f} ms", f"{report.latency.quantized_ms:.2f} ms"))
    rows.append(("method", "", f"{report.method} ({report.numerics})"))
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
    worst = max((layer.relative_rms for layer in layers), default=1.0) or 1.0
    return [
        (
            escape(layer.node) + (" (float)" if layer.is_float else ""),
            escape(layer.operator),
            _number(layer.relative_rms),
            f'<svg width=120 height=12 role=img aria-label="{layer.relative_rms:.4f}">'
            f"<rect width={120 * min(1.0, layer.relative_rms / worst):.1f} height=12 /></svg>",
            _bars(layer.weight),
            _bars(layer.activation),
        )
        for layer in layers
    ]


def _trials(report: QuantizationReport) -> list[tuple[str, ...]]:
    return [
        (
            escape(trial.method),
            str(len(trial.kept_float)),
            "" if trial.bytes is None else f"{trial.bytes:,}",
            _number(trial.relative_rms),
            escape(trial.verdict),
            escape(trial.why),
        )
        for trial in report.trials
    ]


def _bars(counts: np.ndarray) -> str:
    """A histogram; heights are square roots, so that tails are seen."""
    heights = np.sqrt(counts / max(1, int(counts.max(initial=0)))) * HEIGHT
    step = WIDTH / len(counts)
    bars = "".join(
        f"<rect x={i * step:.1f} y={HEIGHT - h:.1f} width={step:.1f} height={h:.1f} />"
        for i, h in enumerate(heights)
        if h
    )
    return (
        f'<svg width={WIDTH} height={HEIGHT} role=img aria-label="histogram of {int(counts.sum())} values">{bars}</svg>'
    )


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    top = "".join(f"<th>{escape(name)}</th>" for name in head)
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"
