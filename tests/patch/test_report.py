"""The figures of a patch's report add up, and its HTML page is complete and safe."""

from html.parser import HTMLParser
from pathlib import Path

from packager.diff.write.patch_html import bits_per_element, write_html
from packager.diff.write.patch_table import format_table
from tests.support import model_formats
from tests.support.memory_bundles import make_patch_between


class _Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        assert not any(name in ("src", "href") or name.startswith("on") for name, _ in attrs)

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_rows_add_up_to_target_and_patch(tmp_path: Path) -> None:
    arrays = model_formats.make_weights(1)
    base, target = model_formats.to_onnx(arrays), model_formats.to_onnx(model_formats.fine_tune(arrays, 2))
    patch, report = make_patch_between(tmp_path, {"m": base}, {"m": target}, "typed")
    assert sum(row.target_bytes for row in report.rows) == len(target) == report.target_bytes
    rows = sum(row.patch_bytes for row in report.rows)
    assert len(patch) - 600 < rows < len(patch)
    dense = next(row for row in report.rows if row.name.endswith("dense"))
    assert (dense.dtype, dense.shape) == ("f32", (256, 96))
    bits = bits_per_element(dense)
    assert bits is not None
    assert 0 < bits < 32


def test_the_page_shows_every_tensor_and_runs_nothing(tmp_path: Path) -> None:
    arrays = {
        "<script>alert(1)</script>": model_formats.make_weights(1)["dense"],
        "plain": model_formats.make_weights(1)["levels"],
    }
    _, report = make_patch_between(tmp_path, None, {"m": model_formats.to_safetensors(arrays)}, "typed")
    write_html(report, tmp_path / "report.html")
    page = _Page()
    page.feed((tmp_path / "report.html").read_text())
    assert "script" not in page.tags
    for name in arrays:
        assert name in page.text
    assert f"{report.plain_size:,} bytes" in page.text


def test_the_table_lists_the_largest_rows_and_sums_up_the_rest(tmp_path: Path) -> None:
    arrays = model_formats.make_weights(1)
    _, report = make_patch_between(tmp_path, None, {"m": model_formats.to_safetensors(arrays)}, "typed")
    lines = format_table(report, max_rows=3)
    assert len(lines) == 5
    assert "embedding" in lines[1]
    assert lines[-1].startswith(f"{len(report.rows) - 3} more")
