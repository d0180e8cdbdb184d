"""The TLS client key, sealed under the device's storage key."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bundle.errors import FileNotRegular
from device_agent.commands import root
from device_agent.errors import IdentityInvalid, InvalidUsage
from device_agent.storage.bundle_store import BundleStore
from device_agent.storage.device_directory import CLIENT_KEY_FILE, DeviceDirectory
from device_agent.workers.worker_pool import WorkerPool
from tests.support.certificates import create_certificates
from tests.support.faulty_http_server import serve_folder
from tests.support.fetcher_process import get, start_fetcher
from tests.support.json_schemas import check_schema
from tests.support.publisher import DeviceUnderTest, Publisher


@pytest.fixture(scope="module")
def device(first_publisher: Publisher, tmp_path_factory: pytest.TempPathFactory) -> DeviceUnderTest:
    """A new device; each test seals a key of its own."""
    return DeviceUnderTest.create(tmp_path_factory.mktemp("device"), "http://127.0.0.1:9", first_publisher.root)


@pytest.fixture
def pool(device: DeviceUnderTest) -> Iterator[WorkerPool]:
    """A pool of the device's workers."""
    directory = DeviceDirectory.for_family(device.config)
    with WorkerPool(device.config, directory, BundleStore(directory.family_directory)) as workers:
        yield workers


def seal(device: DeviceUnderTest, file: Path) -> int:
    """Run the command, and return its exit code."""
    return root.main(["--config", str(device.config_path), "identity", "seal-client-key", str(file), "--json"])


def test_a_sealed_key_opens_connections_and_its_plain_bytes_are_nowhere_on_the_disk(
    device: DeviceUnderTest, pool: WorkerPool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pems = create_certificates(tmp_path / "certificates")
    assert seal(device, pems.client_key) == 0
    found = json.loads(capsys.readouterr().out)
    check_schema("agent-identity-seal-client-key", found)
    assert Path(found["sealed"]).stat().st_mode & 0o777 == 0o600
    secret = pems.client_key.read_bytes().splitlines()[1]
    assert not [path for path in device.folder.rglob("*") if path.is_file() and secret in path.read_bytes()]
    (tmp_path / "a.json").write_text("{}")
    settings: dict[str, Any] = {"ca_file": pems.ca, "client_cert": pems.client, "client_key": "sealed"}
    with serve_folder(tmp_path, pems.server_context(wants_client=True)) as site:
        with start_fetcher(site.url, unseal_client_key=pool.patcher.unseal_client_key, **settings) as child:
            assert get(child, f"{site.url}/a.json") == b"{}"


def test_a_damaged_or_missing_sealed_key_is_refused_with_the_command_to_repeat(
    device: DeviceUnderTest, pool: WorkerPool, tmp_path: Path
) -> None:
    (tmp_path / "key.pem").write_text("a key")
    assert seal(device, tmp_path / "key.pem") == 0
    sealed = DeviceDirectory(device.config.directory).identity_directory / CLIENT_KEY_FILE
    fd = pool.patcher.unseal_client_key()
    assert os.pread(fd, 100, 0) == b"a key"
    os.close(fd)
    data = bytearray(sealed.read_bytes())
    data[-1] ^= 1
    sealed.write_bytes(data)
    with pytest.raises(IdentityInvalid, match="does not open") as refused:
        pool.patcher.unseal_client_key()
    assert "seal-client-key" in str(refused.value.hint)
    sealed.unlink()
    with pytest.raises(IdentityInvalid):
        pool.patcher.unseal_client_key()


def test_what_is_no_key_file_is_refused_and_the_sealed_key_stays(
    device: DeviceUnderTest, pool: WorkerPool, tmp_path: Path
) -> None:
    (tmp_path / "key.pem").write_text("a key")
    (tmp_path / "empty").write_text("")
    (tmp_path / "large").write_bytes(bytes(64 * 1024 + 1))
    os.mkfifo(tmp_path / "fifo")
    assert seal(device, tmp_path / "key.pem") == 0
    assert seal(device, tmp_path / "fifo") == FileNotRegular.exit_code
    assert seal(device, tmp_path / "nothing") == InvalidUsage.exit_code
    assert seal(device, tmp_path) == InvalidUsage.exit_code
    for name in ("empty", "large"):
        assert seal(device, tmp_path / name) == 3
    fd = pool.patcher.unseal_client_key()
    assert os.pread(fd, 100, 0) == b"a key"
    os.close(fd)
