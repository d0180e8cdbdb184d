"""The generated pages match the code, and every error has a kind and a reason."""

import pytest

from bundle.errors import KINDS
from tools.generate_docs.__main__ import DOCS, PAGES
from tools.generate_docs.error_page import written_errors


@pytest.mark.parametrize("page", PAGES)
def test_a_page_is_what_the_code_says(page: str) -> None:
    assert (DOCS / page).read_text() == PAGES[page](), "run: make docs"


def test_every_error_has_a_kind_a_reason_of_its_own_and_the_kinds_exit_code() -> None:
    seen: dict[tuple[str, str], str] = {}
    codes: dict[str, set[int]] = {}
    for error in written_errors():
        (kind,) = (kind for kind in KINDS if issubclass(error, kind))
        assert error.exit_code == kind.exit_code, error
        assert "exit_code" not in vars(error), f"{error} sets an exit code; only kinds do"
        assert "reason" in vars(error), f"{error} has no reason of its own"
        package = error.__module__.split(".")[0]
        other = seen.setdefault((package, error.reason), error.__name__)
        assert other == error.__name__, f"{error} and {other} share the reason {error.reason!r}"
        codes.setdefault(error.reason, set()).add(error.exit_code)
    assert [reason for reason, found in codes.items() if len(found) > 1] == []


def test_reasons_are_words_joined_by_hyphens() -> None:
    for error in written_errors():
        assert error.reason.replace("-", "").isalnum(), error
        assert error.reason == error.reason.lower(), error
