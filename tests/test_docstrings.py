"""Every docstring of the product follows the rules of tests/support/docstring_rules.py."""

from pathlib import Path

import pytest

from tests.support.docstring_rules import ROOT, breaches, product_files


@pytest.mark.parametrize("path", product_files(), ids=lambda path: str(path.relative_to(ROOT)))
def test_docstrings_state_a_contract_in_plain_words(path: Path) -> None:
    assert list(breaches(path)) == []


@pytest.mark.parametrize(
    "docstring", ["Rule 4.", "Rules 2 and 3.", "Rule 1: 64 digits.", "See above.", "Unix seconds."]
)
def test_a_bare_reference_or_fragment_is_a_breach(docstring: str, tmp_path: Path) -> None:
    path = tmp_path / "module.py"
    path.write_text(f'"""The module of an example."""\n\n\ndef value() -> int:\n    """{docstring}"""\n    return 1\n')
    assert list(breaches(path))
