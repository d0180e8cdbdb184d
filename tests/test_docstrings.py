"""Every docstring of the product follows the rules of tests/support/docstring_rules.py."""

from pathlib import Path
from typing import Final

import pytest

from tests.support.docstring_rules import ROOT, breaches, product_files

# files and folders (without their subfolders) that still break rules; one that is revised is removed from here
UNREVISED: Final = frozenset(
    {
        "packager/demo",
    }
)


def is_unrevised(path: Path) -> bool:
    name = path.relative_to(ROOT)
    return name.as_posix() in UNREVISED or name.parent.as_posix() in UNREVISED


@pytest.mark.parametrize(
    "path", [path for path in product_files() if not is_unrevised(path)], ids=lambda path: str(path.relative_to(ROOT))
)
def test_docstrings_state_a_contract_in_plain_words(path: Path) -> None:
    assert list(breaches(path)) == []


@pytest.mark.parametrize("name", sorted(UNREVISED))
def test_an_unrevised_folder_still_breaks_a_rule(name: str) -> None:
    files = [ROOT / name] if name.endswith(".py") else list((ROOT / name).glob("*.py"))
    assert any(list(breaches(path)) for path in files), f"{name} is revised: remove it from UNREVISED"


@pytest.mark.parametrize(
    "docstring", ["Rule 4.", "Rules 2 and 3.", "Rule 1: 64 digits.", "See above.", "Unix seconds."]
)
def test_a_bare_reference_or_fragment_is_a_breach(docstring: str, tmp_path: Path) -> None:
    path = tmp_path / "module.py"
    path.write_text(f'"""The module of an example."""\n\n\ndef value() -> int:\n    """{docstring}"""\n    return 1\n')
    assert list(breaches(path))
