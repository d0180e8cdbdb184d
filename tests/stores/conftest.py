"""Fixtures of the store tests: a repository with release 1.0.0, and proxies of one S3 server and one registry."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from packager.stores import object_store, registry_client
from packager.stores.registry_client import AUTH_VARIABLE
from tests.support.cutting_proxy import CuttingProxy, start_cutting_proxy
from tests.support.registry_server import start_registry
from tests.support.repository_fixtures import device as device
from tests.support.repository_fixtures import pristine_publisher as pristine_publisher
from tests.support.repository_fixtures import publisher as publisher
from tests.support.s3_server import S3Server


@pytest.fixture(scope="session")
def s3_proxy(s3_server: S3Server) -> Iterator[CuttingProxy]:
    """A proxy in front of the server that can cut requests."""
    with start_cutting_proxy(s3_server.endpoint) as proxy:
        yield proxy


@pytest.fixture
def bucket(s3_server: S3Server, s3_proxy: CuttingProxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The URL of an empty prefix, reached through the proxy with the publisher's credentials."""
    s3_proxy.pass_all()
    for name, value in s3_server.environment(endpoint=s3_proxy.url).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(object_store, "FIRST_PAUSE_S", 0.01)
    return f"s3://models/{tmp_path.name}"


@pytest.fixture(scope="session")
def open_registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """One registry for all tests; each test has a name of its own."""
    with start_registry(tmp_path_factory.mktemp("registry")) as host:
        yield host


@pytest.fixture(scope="session")
def proxy(open_registry: str) -> Iterator[CuttingProxy]:
    """A proxy in front of the registry that can cut requests."""
    with start_cutting_proxy(f"http://{open_registry}") as found:
        yield found


@pytest.fixture
def registry(proxy: CuttingProxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The URL of an empty name, through the proxy, without any credentials."""
    proxy.pass_all()
    monkeypatch.delenv(AUTH_VARIABLE, raising=False)
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    monkeypatch.setattr(registry_client, "FIRST_PAUSE_S", 0.01)
    name = "".join(letter if letter.isalnum() else "-" for letter in tmp_path.name.lower()).strip("-")
    return f"oci+http://{proxy.url.removeprefix('http://')}/models/x{name}"
