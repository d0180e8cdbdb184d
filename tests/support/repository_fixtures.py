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
def pristine_publisher(tmp_path_factory: pytest.TempPathFactory) -> MetadataPublisher:
    """A repository with release 1.0.0; tests must not change it."""
    publisher = build_publisher(tmp_path_factory.mktemp("publisher"))
    publisher.release("1.0.0", 1)
    return publisher


@pytest.fixture
def publisher(pristine_publisher: MetadataPublisher, tmp_path: Path) -> MetadataPublisher:
    """A copy of the repository, for one test."""
    return copy_publisher(pristine_publisher, tmp_path / "publisher")


@pytest.fixture
def device(publisher: MetadataPublisher) -> CheckClient:
    """A device that has seen nothing but the first root."""
    return create_client(publisher)
