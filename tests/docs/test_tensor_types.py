"""The page about quantization lists every type of tensor with the answer of the one table."""

from bundle.tensor_types import OTHER_KINDS, TENSOR_TYPES
from tools.generate_docs.__main__ import DOCS


def test_page_has_the_rows_of_the_table() -> None:
    page = (DOCS / "quantization.md").read_text()
    for row in TENSOR_TYPES:
        protocol = f"`{row.protocol}`" if row.protocol else ""
        answer = "served" if row.is_served else f"refused: {row.remedy}"
        line = f"| `{row.name}` | {protocol} | {'yes' if row.is_golden_input else 'no'} | {answer} |"
        assert line in page, row.name
    for kind, remedy in OTHER_KINDS.items():
        assert f"| {kind} | | no | refused: {remedy} |" in page, kind
