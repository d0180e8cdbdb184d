"""The glossary's terms are used, and the words that they replaced are gone from docs and schemas.

tests/test_help.py looks for the same words in the help texts, tests/test_docstrings.py in the code.
"""

import re
from functools import cache
from pathlib import Path

import pytest

from tests.support.docstring_rules import old_words, product_files

ROOT = Path(__file__).parents[1]
GLOSSARY = ROOT / "docs" / "glossary.md"
SCHEMAS = sorted((ROOT / "docs" / "schemas").glob("*.json"))
PAGES = sorted(
    [ROOT / "README.md", ROOT / "SECURITY.md", ROOT / "benchmarks" / "README.md", *(ROOT / "docs").rglob("*.md")]
)
PAGES = [page for page in PAGES if "adr" not in page.parts]  # decisions keep the words of their time


def rows() -> list[str]:
    """Return the first cell of every row of the glossary."""
    return re.findall(r"^\| ([^|]+) \| ", GLOSSARY.read_text(), re.MULTILINE)[2:]


def terms() -> list[str]:
    """Return every term of the glossary; a cell can have several, and a symbol in parentheses."""
    return [re.sub(r" \(.\)$", "", term) for row in rows() for term in row.split(", ")]


@cache
def all_text() -> str:
    text = "\n".join(path.read_text() for path in (*PAGES, *product_files()) if path != GLOSSARY)
    return re.sub(r"[\s_-]+", " ", re.sub(r"(?<=[a-z])(?=[A-Z])", " ", text)).lower()


@pytest.mark.parametrize("term", terms())
def test_a_term_is_used_in_docs_or_code(term: str) -> None:
    assert term.lower().replace("-", " ") in all_text()


def test_the_terms_are_in_alphabetical_order() -> None:
    assert len(rows()) > 60
    assert [row.lower() for row in rows()] == sorted(row.lower() for row in rows())


def test_every_row_has_a_meaning_that_ends_with_a_period() -> None:
    lines = [line for line in GLOSSARY.read_text().splitlines() if line.startswith("| ")][2:]
    assert [line for line in lines if not re.fullmatch(r"\| [^|]+ \| [A-Z][^|]+\. \|", line)] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_a_page_uses_no_replaced_word(page: Path) -> None:
    assert old_words(page.read_text()) == []


@pytest.mark.parametrize("schema", SCHEMAS, ids=lambda path: path.name)
def test_a_schema_uses_no_replaced_word(schema: Path) -> None:
    assert old_words(f"{schema.name} {schema.read_text()}") == []
