"""Fixtures: one repository per test run, with release 1.0.0, copied for each test."""

from pathlib import Path

import pytest

from tests.support.metadata_publisher import (
    CheckClient,
    MetadataPublisher,
    build_publisher,
    copy_publisher,
    create_client,
)


@pytest.fixture(scope="session")
def pristine_shop(tmp_path_factory: pytest.TempPathFactory) -> MetadataPublisher:
    """A repository with release 1.0.0; tests must not change it."""
    shop = build_publisher(tmp_path_factory.mktemp("shop"))
    shop.release("1.0.0", 1)
    return shop


@pytest.fixture
def shop(pristine_shop: MetadataPublisher, tmp_path: Path) -> MetadataPublisher:
    """A copy of the repository, for one test."""
    return copy_publisher(pristine_shop, tmp_path / "shop")


@pytest.fixture
def device(shop: MetadataPublisher) -> CheckClient:
    """A device that has seen nothing but the first root."""
    return create_client(shop)
