"""One repository with two releases, created once per test run, for the tests that only read it."""

import pytest

from tests.support.release_fixtures import ReleaseSite, create_site


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> ReleaseSite:
    """Releases 1.0.0 and 1.1.0 are published; tests must not change it."""
    made = create_site(tmp_path_factory.mktemp("site"))
    for version in ("1.0.0", "1.1.0"):
        result = made.release(f"{version}.toml", "--json")
        assert result.code == 0, result.stderr
    return made
