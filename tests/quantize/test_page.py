"""The HTML report is complete in one file, escapes names from the model, and a browser shows it."""

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest

from packager.models.random_inputs import random_samples
from packager.models.samples import Samples
from packager.quantize.html_report import write_page
from packager.quantize.quantization_report import QuantizationReport
from packager.quantize.schemes import QuantizeOptions, quantize_model
from tests.support import tiny_models

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
# asked of the page in the browser: what a person would see
PROBE = """<script>
const boxes = [...document.querySelectorAll("svg rect")].map(r => r.getBoundingClientRect());
const found = {
  title: document.title,
  drawn: boxes.filter(b => b.width > 0 && b.height > 0).length,
  outside: boxes.filter(b => b.left < -1 || b.right > innerWidth + 1).length,
  rows: document.querySelectorAll("tbody tr").length,
  overflow: document.documentElement.scrollWidth - innerWidth,
  scripts: document.scripts.length,
};
document.body.innerHTML = "<pre id=found>" + JSON.stringify(found) + "</pre>";
</script>"""


class TagCollector(HTMLParser):
    """Collects tags, and asserts that no external or active element occurs."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append(tag)
        assert tag not in ("script", "img", "link", "iframe")


@pytest.fixture(scope="module")
def report_and_page(tmp_path_factory: pytest.TempPathFactory) -> tuple[QuantizationReport, Path]:
    """Return (report, page) of a network with HTML in a node name."""
    folder = tmp_path_factory.mktemp("page")
    model = tiny_models.conv_net()
    model.graph.node[1].name = "<script>alert(1)</script>"
    path = tiny_models.save(model, folder / "float.onnx")
    samples = random_samples(path, 24)
    return quantize_with_page(path, folder, samples)


def quantize_with_page(path: Path, folder: Path, samples: Samples) -> tuple[QuantizationReport, Path]:
    report = quantize_model(path, folder / "int8.onnx", "int8", samples, QuantizeOptions(measure_latency=False))
    write_page(report, path, folder / "int8.onnx", samples, folder / "page.html")
    return report, folder / "page.html"


def test_page_holds_outputs_layers_and_trials(report_and_page: tuple[QuantizationReport, Path]) -> None:
    report, path = report_and_page
    page = path.read_text()
    tags = TagCollector()
    tags.feed(page)
    assert tags.found.count("svg") >= 3 * 4  # four layers: error, weights, activations
    assert tags.found.count("table") == 4 + bool(report.sensitivity)
    assert "logits" in page
    assert all(trial.method in page for trial in report.trials)


def test_layers_of_nested_graphs_are_shown_by_their_weights(tmp_path: Path) -> None:
    path = tiny_models.save(tiny_models.branching(), tmp_path / "float.onnx")
    _, page = quantize_with_page(path, tmp_path, random_samples(path, 16))
    assert len(re.findall("histogram of 6144 values", page.read_text())) == 4


@pytest.mark.skipif(BROWSER is None, reason="Chromium is not installed (Debian: chromium)")
@pytest.mark.parametrize("width", [1280, 480])
def test_browser_draws_every_histogram_inside_the_window(
    width: int, report_and_page: tuple[QuantizationReport, Path], tmp_path: Path
) -> None:
    report, path = report_and_page
    copy = tmp_path / "probed.html"
    copy.write_text(path.read_text().replace("</body>", f"{PROBE}</body>"))
    command = [str(BROWSER), "--headless", "--no-sandbox", "--disable-gpu", f"--window-size={width},900", "--dump-dom"]
    done = subprocess.run(
        [*command, f"--user-data-dir={tmp_path / 'profile'}", copy.as_uri()],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    match = re.search(r"<pre id=\"found\">(.*?)</pre>", done.stdout, re.DOTALL)
    assert match is not None, done.stderr[-2000:]
    found = json.loads(match[1])
    assert found["title"] == "float.onnx: int8"
    assert found["scripts"] == 1  # ours alone: the name of a node is no script
    assert found["drawn"] > 100
    assert found["rows"] >= len(report.trials) + 4
    if width > 1000:
        assert found["outside"] == 0
        assert found["overflow"] <= 0  # below zero where a scroll bar takes room
