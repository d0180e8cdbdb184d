"""An error class is named for its reason, is documented, and is the only place where the reason is written."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from bundle.errors import KINDS, AirweightsError, action_of, kind_of
from tests.support.docstring_rules import product_files
from tools.generate_docs.__main__ import DOCS
from tools.generate_docs.error_page import meaning, written_errors

ROOT = Path(__file__).parents[1]
ERRORS = written_errors()
MAX_SENTENCE = 110  # characters: a cell of the table

# file and text -> why the text is written there although it is a reason, too
LITERALS: dict[tuple[str, str], str] = {}


def name_of(error: type[AirweightsError]) -> str:
    return error.__name__


@pytest.mark.parametrize("error", ERRORS, ids=name_of)
def test_a_class_is_its_reason_in_camel_case(error: type[AirweightsError]) -> None:
    assert error.__name__ == "".join(part.capitalize() for part in error.reason.split("-"))


@pytest.mark.parametrize("error", ERRORS, ids=name_of)
def test_the_page_lists_every_class_with_its_meaning_and_what_to_do(error: type[AirweightsError]) -> None:
    rows = [line for line in (DOCS / "errors.md").read_text().splitlines() if line.startswith(f"| `{error.reason}` |")]
    assert len(rows) == 1
    for cell in (error.__name__, kind_of(error).reason, f" {error.exit_code} ", meaning(error), action_of(error)):
        assert cell in rows[0]


@pytest.mark.parametrize("error", [*KINDS, *ERRORS], ids=name_of)
def test_meaning_and_action_are_one_short_sentence_each(error: type[AirweightsError]) -> None:
    assert vars(error).get("__doc__"), "no docstring"
    for sentence in (meaning(error), action_of(error)):
        assert sentence.endswith(".")
        assert len(sentence) <= MAX_SENTENCE, sentence


def test_no_two_classes_have_one_reason() -> None:
    reasons = [error.reason for error in (*KINDS, *ERRORS)]
    assert sorted(reasons) == sorted(set(reasons))


def test_no_reason_is_written_outside_of_its_class() -> None:
    reasons = {error.reason for error in ERRORS}
    found = {
        (path.relative_to(ROOT).as_posix(), text)
        for path in product_files()
        for text in _texts_outside_of_reason_fields(ast.parse(path.read_text()))
        if text in reasons
    }
    assert found == set(LITERALS), "use the class's `reason` instead, or add the text to LITERALS and say why"


def _texts_outside_of_reason_fields(tree: ast.Module) -> Iterator[str]:
    fields = {
        id(statement.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef)
        for statement in node.body
        if isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]) == "reason"
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in fields:
            yield node.value
