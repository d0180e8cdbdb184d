"""Key files of these tests are as the product creates them."""

from collections.abc import Iterator

import pytest

from tests.support.key_stretching import PRODUCT_LOG2_N, stretched


@pytest.fixture(scope="module", autouse=True)
def product_key_files() -> Iterator[None]:
    """Create key files with the product's parameters."""
    with stretched(PRODUCT_LOG2_N):
        yield
