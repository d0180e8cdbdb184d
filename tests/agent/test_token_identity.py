"""The device keys can be wrapped by a key in a real PKCS#11 token (SoftHSM)."""

from dataclasses import replace
from pathlib import Path

import pytest

from device_agent.errors import DeviceTokenUnavailable, IdentityInvalid
from device_agent.identity.device_keys import create_enrollment_request, open_signing_key
from device_agent.identity.provision import initialize_device
from keys.tokens import LIBRARY_VARIABLE
from tests.support.faulty_http_server import serve_folder
from tests.support.publisher import DeviceUnderTest, Publisher
from tests.support.softhsm import PIN, make_token, needs_softhsm

pytestmark = needs_softhsm


@pytest.fixture(scope="module")
def token(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return make_token(tmp_path_factory.mktemp("device-token") / "token")


@pytest.fixture
def identity(token: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Return the key's URI, and set the environment of SoftHSM in this process."""
    for name, value in token.items():
        monkeypatch.setenv(name, value)
    pin = tmp_path / "pin"
    pin.touch(0o600)
    pin.write_bytes(PIN.value + b"\n")
    return f"pkcs11:test?module={token[LIBRARY_VARIABLE]}&pin-file={pin}"


def create_token_device(folder: Path, url: str, publisher: Publisher, identity: str) -> DeviceUnderTest:
    device = DeviceUnderTest(
        folder, replace(DeviceUnderTest.create(folder / "plain", url, publisher.root).config, key_storage=identity)
    )
    device.config = replace(device.config, directory=folder / "device")
    initialize_device(device.directory, publisher.root, f"token-{folder.parent.name[-8:].strip('_')}", identity)
    device.write_config()
    return device


def test_a_device_with_a_token_enrols_updates_and_serves(
    first_publisher: Publisher, identity: str, tmp_path: Path
) -> None:
    publisher = first_publisher.copy(tmp_path / "site")
    with serve_folder(publisher.published) as site:
        device = create_token_device(tmp_path / "lab", site.url, publisher, identity)
        publisher.enroll(device.directory, create_enrollment_request(device.directory, identity))
        device.start()
        try:
            result = device.call("update")
            assert result["outcome"] == "updated", result
            status = device.call("status")
            assert (status["key_storage"], status["ready"]) == ("pkcs11", True)
        finally:
            device.stop()
    secret = open_signing_key(device.directory, identity).private_bytes_raw()
    for path in device.config.directory.rglob("*"):
        if path.is_file():
            assert secret not in path.read_bytes(), path
            assert secret.hex().encode() not in path.read_bytes(), path


def test_what_is_wrong_with_a_token_is_told(first_publisher: Publisher, identity: str, tmp_path: Path) -> None:
    device = create_token_device(tmp_path / "lab", "http://127.0.0.1:9", first_publisher, identity)
    with pytest.raises(DeviceTokenUnavailable, match="elsewhere"):
        open_signing_key(device.directory, identity.replace("pkcs11:test", "pkcs11:elsewhere"))
    with pytest.raises(DeviceTokenUnavailable, match="nothing"):
        open_signing_key(device.directory, identity.replace("libsofthsm2.so", "nothing.so"))
    pin = tmp_path / "pin"
    pin.write_bytes(b"4321")
    with pytest.raises(DeviceTokenUnavailable, match="PinIncorrect"):
        open_signing_key(device.directory, identity)
    pin.chmod(0o644)
    with pytest.raises(IdentityInvalid, match="can be read by other users"):
        open_signing_key(device.directory, identity)
    pin.unlink()
    with pytest.raises(IdentityInvalid, match="cannot read the token's PIN"):
        open_signing_key(device.directory, identity)


def test_a_key_of_one_use_does_not_open_as_another(first_publisher: Publisher, identity: str, tmp_path: Path) -> None:
    device = create_token_device(tmp_path / "lab", "http://127.0.0.1:9", first_publisher, identity)
    folder = device.directory.identity_directory
    text = (folder / "storage.key").read_text()
    (folder / "ed25519.key").write_text(text)
    with pytest.raises(IdentityInvalid, match="ed25519"):
        open_signing_key(device.directory, identity)
