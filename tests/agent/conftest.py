"""Fixtures of the agent tests: two releases, created once and copied for each test, a server and a device."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.faulty_http_server import Site, serve_folder
from tests.support.publisher import FAMILY, DeviceUnderTest, Publisher
from tests.support.real_servers import RealServers, missing_programs, start_real_servers


@pytest.fixture(scope="session")
def first_publisher(tmp_path_factory: pytest.TempPathFactory) -> Publisher:
    """Return a publisher of 1.0.0 and 1.1.0 with the channel at 1.0.0 and one enrolled device."""
    publisher = Publisher(tmp_path_factory.mktemp("publisher") / "site")
    publisher.release("1.0.0", seed=0)
    publisher.release("1.1.0", seed=1)
    publisher.offer("1.0.0")
    return publisher


@pytest.fixture(scope="session")
def first_device(first_publisher: Publisher, tmp_path_factory: pytest.TempPathFactory) -> DeviceUnderTest:
    """Return the enrolled device with 1.0.0 installed and committed."""
    folder = tmp_path_factory.mktemp("device")
    with serve_folder(first_publisher.published) as site:
        device = DeviceUnderTest.create(folder, site.url, first_publisher.root)
        first_publisher.enroll(device.directory)
        device.start()
        try:
            assert device.call("update")["outcome"] == "updated"
        finally:
            device.stop()
    return device


@pytest.fixture(scope="session")
def first_update(
    first_publisher: Publisher, first_device: DeviceUnderTest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Publisher, DeviceUnderTest]:
    """Return a publisher with the channel at 1.1.0, and a device with 1.1.0 active and 1.0.0 previous."""
    folder = tmp_path_factory.mktemp("update")
    publisher = first_publisher.copy(folder / "site")
    publisher.offer("1.1.0")
    with serve_folder(publisher.published) as site:
        device = first_device.copy(folder / "lab", site.url)
        device.start()
        try:
            assert device.call("update")["outcome"] == "updated"
        finally:
            device.stop()
    return publisher, device


@pytest.fixture
def updated(
    first_update: tuple[Publisher, DeviceUnderTest], tmp_path: Path
) -> Iterator[tuple[Publisher, DeviceUnderTest]]:
    """Return copies of the publisher that offers 1.1.0 and of the stopped device that has installed it."""
    publisher = first_update[0].copy(tmp_path / "updated-site")
    with serve_folder(publisher.published) as site:
        device = first_update[1].copy(tmp_path / "updated", site.url)
        yield publisher, device
        device.stop()


@pytest.fixture
def installed(
    first_device: DeviceUnderTest, publisher: Publisher, site: Site, tmp_path: Path
) -> Iterator[DeviceUnderTest]:
    """Return a copy of the stopped device that has installed 1.0.0."""
    device = first_device.copy(tmp_path / "lab", site.url)
    yield device
    device.stop()


@pytest.fixture
def publisher(first_publisher: Publisher, tmp_path: Path) -> Publisher:
    """Return a copy of the publisher that the test may change."""
    return first_publisher.copy(tmp_path / "site")


@pytest.fixture
def site(publisher: Publisher) -> Iterator[Site]:
    """Serve the publisher's files."""
    with serve_folder(publisher.published) as site:
        yield site


@pytest.fixture
def device(publisher: Publisher, site: Site, tmp_path: Path) -> Iterator[DeviceUnderTest]:
    """Return an enrolled device without any bundle."""
    device = DeviceUnderTest.create(tmp_path / "lab", site.url, publisher.root)
    publisher.enroll(device.directory)
    yield device
    device.stop()


@pytest.fixture(scope="session")
def real_servers(
    first_publisher: Publisher, first_device: DeviceUnderTest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RealServers]:
    """Run nginx, tinyproxy and squid before the publisher's files, with an update, and of another repository."""
    if "nginx" in missing_programs():
        pytest.skip("nginx is not installed")
    folder = tmp_path_factory.mktemp("servers")
    assert first_device.config.family == FAMILY  # enrolled before the copy, so that the copy's metadata is newer
    update, other = first_publisher.copy(folder / "update"), Publisher(folder / "other")
    update.offer("1.1.0")
    with start_real_servers(folder, first_publisher.published, update.published, other.published) as servers:
        yield servers
