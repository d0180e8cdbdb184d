"""The HTML page tells the whole story in one file, and names from a model cannot break out of it."""

from html.parser import HTMLParser
from pathlib import Path

from packager.inputs import random_samples
from packager.quantize.page import write_page
from packager.quantize.schemes import Options, quantize
from tests import models


class Tags(HTMLParser):
    """Counts tags, and remembers what was left open."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append(tag)
        assert tag not in ("script", "img", "link", "iframe")


def test_page_holds_outputs_layers_and_trials(tmp_path: Path) -> None:
    model = models.conv_net()
    model.graph.node[1].name = "<script>alert(1)</script>"
    path = models.save(model, tmp_path / "float.onnx")
    samples = random_samples(path, 24)
    report = quantize(path, tmp_path / "int8.onnx", "int8", samples, Options(measure_latency=False))
    write_page(report, path, tmp_path / "int8.onnx", samples, tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    tags = Tags()
    tags.feed(page)
    assert tags.found.count("svg") >= 3
    assert tags.found.count("table") == 4
    assert "logits" in page
    assert all(trial.method in page for trial in report.trials)
