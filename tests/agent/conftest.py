"""Fixtures of the agent tests: two releases, created once in a run and copied for each test, a server and a device."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.faulty_http_server import Site, serve_folder
from tests.support.publisher import DeviceUnderTest, Publisher
from tests.support.real_servers import RealServers, missing_programs, start_real_servers
from tests.support.run_folders import build_once, set_run_folder


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of what one process of the run builds and all of them copy."""
    return set_run_folder(tmp_path_factory)


@pytest.fixture(scope="session")
def first_publisher(run_folder: Path) -> Publisher:
    """Return a publisher of 1.0.0 and 1.1.0 with the channel at 1.0.0 and one enrolled device."""
    return Publisher(build_once(run_folder, "first", _build_first) / "site")


@pytest.fixture(scope="session")
def first_device(first_publisher: Publisher) -> DeviceUnderTest:
    """Return the enrolled device with 1.0.0 installed and committed; tests copy it."""
    return DeviceUnderTest.open(first_publisher.folder.with_name("lab"))


@pytest.fixture(scope="session")
def first_update(
    run_folder: Path, first_publisher: Publisher, first_device: DeviceUnderTest
) -> tuple[Publisher, DeviceUnderTest]:
    """Return a publisher with the channel at 1.1.0, and a device with 1.1.0 active and 1.0.0 previous."""

    def build(folder: Path) -> None:
        publisher = first_publisher.copy(folder / "site")
        publisher.offer("1.1.0")
        with serve_folder(publisher.published) as site:
            _update(first_device.copy(folder / "lab", site.url))

    folder = build_once(run_folder, "update", build)
    return Publisher(folder / "site"), DeviceUnderTest.open(folder / "lab")


def _build_first(folder: Path) -> None:
    publisher = Publisher(folder / "site")
    publisher.release("1.0.0", seed=0)
    publisher.release("1.1.0", seed=1)
    publisher.offer("1.0.0")
    with serve_folder(publisher.published) as site:
        device = DeviceUnderTest.create(folder / "lab", site.url, publisher.root)
        publisher.enroll(device.directory)
        _update(device)


def _update(device: DeviceUnderTest) -> None:
    device.start()
    try:
        assert device.call("update")["outcome"] == "updated"
    finally:
        device.stop()


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
def real_servers(first_publisher: Publisher, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealServers]:
    """Run nginx, tinyproxy and squid before the publisher's files, with an update, and of another repository."""
    if "nginx" in missing_programs():
        pytest.skip("nginx is not installed")
    folder = tmp_path_factory.mktemp("servers")
    update, other = first_publisher.copy(folder / "update"), Publisher(folder / "other")
    update.offer("1.1.0")
    with start_real_servers(folder, first_publisher.published, update.published, other.published) as servers:
        yield servers
