"""One repository a test run, with releases 1.0.0 and 1.1.0 (which raises the floor), copied for each test."""

from pathlib import Path

import pytest

from tests.support.metadata_publisher import Shop, TestDevice, build_shop, copy_shop, new_device


@pytest.fixture(scope="session")
def pristine_shop(tmp_path_factory: pytest.TempPathFactory) -> Shop:
    """Release 1.0.0 is out."""
    shop = build_shop(tmp_path_factory.mktemp("shop"))
    shop.release("1.0.0", 1)
    return shop


@pytest.fixture
def shop(pristine_shop: Shop, tmp_path: Path) -> Shop:
    """A copy."""
    return copy_shop(pristine_shop, tmp_path / "shop")


@pytest.fixture
def device(shop: Shop) -> TestDevice:
    """Fresh."""
    return new_device(shop)
