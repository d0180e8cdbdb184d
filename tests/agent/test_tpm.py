"""The device keys are sealed by a real TPM 2.0, and its counter protects the rollback floor."""

import json
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from device_agent.config.config import FurtherFamily
from device_agent.config.key_storage import TokenSettings, TpmSettings, parse_key_storage
from device_agent.errors import IdentityInvalid, TpmPolicyMismatch, TpmUnavailable
from device_agent.identity.device_keys import create_enrollment_request, current_key_storage, open_signing_key
from device_agent.identity.provision import initialize_device, move_keys_to_configured_storage
from device_agent.identity.tpm import Tpm
from device_agent.policy.attempt import Outcome
from device_agent.process.worker_process import WorkerProcess
from device_agent.workers.worker_processes import key_opener_jail
from tests.support.faulty_http_server import serve_folder
from tests.support.publisher import FAMILY, DeviceUnderTest, Publisher
from tests.support.swtpm import count_transient_handles, extend_pcr, needs_swtpm, run_tpm, undefine_counter

pytestmark = needs_swtpm

PCR = 16  # for debugging: a test may extend it


@pytest.fixture
def place() -> Iterator[Path]:
    """Return a folder with a short name, since the address of a Unix socket has at most 107 bytes."""
    folder = Path(tempfile.mkdtemp(prefix="tpm"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def tcti(place: Path) -> Iterator[str]:
    with run_tpm(place / "state") as found:
        yield found


def create_tpm_device(folder: Path, url: str, publisher: Publisher, identity: str) -> DeviceUnderTest:
    device = DeviceUnderTest.create(folder, url, publisher.root)
    shutil.rmtree(device.config.directory)
    device.config = replace(device.config, key_storage=identity)
    initialize_device(device.directory, publisher.root, f"tpm-{folder.name}", identity)
    device.write_config()
    return device


def test_a_sealed_device_enrols_updates_serves_and_leaves_nothing_in_the_tpm(
    first_publisher: Publisher, tcti: str, tmp_path: Path
) -> None:
    publisher = first_publisher.copy(tmp_path / "site")
    with serve_folder(publisher.published) as site:
        device = create_tpm_device(tmp_path / "lab", site.url, publisher, f"tpm:{tcti}?pcrs=7,{PCR}")
        request, data = create_enrollment_request(device.directory, device.config.key_storage)
        publisher.enroll(device.directory, (request, data))
        device.start()
        try:
            update_result = device.call("update")
            assert update_result["outcome"] == "updated", update_result
            status = device.call("status")
            assert (status["key_storage"], status["rollback_floor_unproven"], status["ready"]) == ("tpm", False, True)
        finally:
            device.stop()
        private = open_signing_key(device.directory, device.config.key_storage)
        assert private.public_key().public_bytes_raw() == device.directory.read_public_identity().ed25519_public
        secret = private.private_bytes_raw()
        for path in device.config.directory.rglob("*"):
            if path.is_file():
                data = path.read_bytes()
                assert secret not in data, path
                assert secret.hex().encode() not in data, path
    assert count_transient_handles(tcti) == 0
    assert "key storage: tpm" in device.command("status").stdout


def test_another_boot_state_unseals_nothing_and_condemns_no_release(
    first_publisher: Publisher, tcti: str, tmp_path: Path
) -> None:
    publisher = first_publisher.copy(tmp_path / "site")
    with serve_folder(publisher.published) as site:
        device = create_tpm_device(tmp_path / "lab", site.url, publisher, f"tpm:{tcti}?pcrs={PCR}")
        publisher.enroll(device.directory, create_enrollment_request(device.directory, device.config.key_storage))
        extend_pcr(tcti, PCR)
        update_result = device.update()
        assert (update_result.outcome, update_result.reason) == (Outcome.UNAVAILABLE, "tpm-policy-mismatch")
        assert not device.journal().quarantine_records()
        with pytest.raises(TpmPolicyMismatch, match=str(PCR)):
            open_signing_key(device.directory, device.config.key_storage)
        result = device.command("enroll", "--json")
        assert result.returncode == 4
        assert '"tpm-policy-mismatch"' in result.stderr
    assert count_transient_handles(tcti) == 0


def test_pcrs_are_as_before_after_the_next_power_on(place: Path, first_publisher: Publisher, tmp_path: Path) -> None:
    with run_tpm(place / "state") as tcti:
        device = create_tpm_device(tmp_path / "lab", "http://127.0.0.1:9", first_publisher, f"tpm:{tcti}?pcrs={PCR}")
        before = open_signing_key(device.directory, device.config.key_storage).private_bytes_raw()
        extend_pcr(tcti, PCR)
    with run_tpm(place / "state"):
        assert open_signing_key(device.directory, device.config.key_storage).private_bytes_raw() == before


def test_a_stolen_disk_opens_in_no_other_tpm(place: Path, first_publisher: Publisher, tmp_path: Path) -> None:
    with run_tpm(place / "a") as tcti:
        device = create_tpm_device(tmp_path / "lab", "http://127.0.0.1:9", first_publisher, f"tpm:{tcti}")
    with run_tpm(place / "b") as other:
        with pytest.raises(IdentityInvalid, match="another TPM"):
            open_signing_key(device.directory, f"tpm:{other}")


@pytest.mark.parametrize("damage", ["flipped", "truncated", "another-use"])
def test_a_damaged_sealed_key_is_told(first_publisher: Publisher, tcti: str, tmp_path: Path, damage: str) -> None:
    device = create_tpm_device(tmp_path / "lab", "http://127.0.0.1:9", first_publisher, f"tpm:{tcti}")
    path = device.directory.identity_directory / "ed25519.key"
    data = path.read_bytes()
    if damage == "another-use":
        data = (device.directory.identity_directory / "storage.key").read_bytes()
    path.write_bytes({"flipped": data.replace(b"a", b"b"), "truncated": data[:-9], "another-use": data}[damage])
    with pytest.raises(IdentityInvalid, match="ed25519 key"):
        open_signing_key(device.directory, device.config.key_storage)


def test_a_configuration_that_forgets_the_tpm_is_told_and_mends_itself_by_reseal(
    first_publisher: Publisher, tcti: str, tmp_path: Path
) -> None:
    publisher = first_publisher.copy(tmp_path / "site")
    with serve_folder(publisher.published) as site:
        device = create_tpm_device(tmp_path / "lab", site.url, publisher, f"tpm:{tcti}")
        publisher.enroll(device.directory, create_enrollment_request(device.directory, device.config.key_storage))
        update_result = device.update(key_storage="file")
        assert update_result.reason == "identity-invalid"
        assert "is sealed, but `key_storage` in the configuration is file" in update_result.detail
        assert not device.journal().quarantine_records()
        device.config = replace(device.config, key_storage="file")
        device.write_config()
        assert device.command("identity", "move").returncode == 0
        assert device.update().outcome is Outcome.STAGED


def test_a_tpm_that_is_not_there_is_told_and_leaves_no_identity(first_publisher: Publisher, tmp_path: Path) -> None:
    words = ("init", "--root", str(first_publisher.root), "--repository-url", "http://127.0.0.1:9", "--family", FAMILY)
    device = DeviceUnderTest(
        tmp_path, replace(DeviceUnderTest.create(tmp_path / "x", "http://127.0.0.1:9", first_publisher.root).config)
    )
    where = ("--directory", str(tmp_path / "device"), "--key-storage", f"tpm:swtpm:path={tmp_path}/no", "--json")
    result = device.command(*words, *where)
    assert result.returncode == 4, result.stderr
    assert '"tpm-unavailable"' in result.stderr
    assert not (tmp_path / "device" / "identity").exists()


def test_no_unseal_leaves_anything_behind(tcti: str) -> None:
    with Tpm(TpmSettings(tcti, (PCR,))) as tpm:
        sealed = tpm.seal(b"k" * 96)
        for _ in range(8):  # a TPM holds three transient objects
            assert tpm.unseal(sealed) == b"k" * 96
    extend_pcr(tcti, PCR)
    with Tpm(TpmSettings(tcti, (PCR,))) as tpm:
        for _ in range(8):
            with pytest.raises(TpmPolicyMismatch):
                tpm.unseal(sealed)
        assert tpm.transient_handles() == 0


def test_a_counter_only_grows(tcti: str) -> None:
    with Tpm(TpmSettings(tcti)) as tpm:
        assert tpm.read_counter() == 0
        assert tpm.raise_counter(5) == 5
        assert tpm.raise_counter(3) == 5
    undefine_counter(tcti, TpmSettings().nv_index)
    with Tpm(TpmSettings(tcti)) as tpm:
        assert tpm.read_counter() == 0
        assert tpm.raise_counter(1) > 5


def test_an_old_copy_of_the_disk_takes_no_pack_until_it_was_online(
    first_publisher: Publisher, tcti: str, tmp_path: Path
) -> None:
    publisher = first_publisher.copy(tmp_path / "site")
    with serve_folder(publisher.published) as site:
        device = create_tpm_device(tmp_path / "lab", site.url, publisher, f"tpm:{tcti}")
        publisher.enroll(device.directory, create_enrollment_request(device.directory, device.config.key_storage))
        assert device.update().outcome is Outcome.STAGED
        old = tmp_path / "old"
        shutil.copytree(device.config.directory, old)
        publisher.release("1.2.0", seed=2, head="min_counter = 3\n")
        assert device.update().outcome is Outcome.STAGED
        with Tpm(TpmSettings(tcti)) as tpm:
            risen = tpm.read_counter()
        assert device.journal().tpm_counter.counter == risen > 1
        # the attacker restores the old copy and brings an offline pack
        shutil.rmtree(device.config.directory)
        shutil.copytree(old, device.config.directory)
        update_result = device.update(repository_url=publisher.published.as_uri())
        assert (update_result.outcome, update_result.reason) == (Outcome.UNAVAILABLE, "rollback-floor-unproven")
        assert "floor unproven" in device.command("status").stdout
        assert device.update().outcome is Outcome.STAGED
        assert not device.journal().tpm_counter.is_unproven
        assert device.journal().persistent_state.floor_counter == 3
        again = device.update(repository_url=publisher.published.as_uri())
        assert again.reason != "rollback-floor-unproven"


def test_floors_of_two_families_rise_behind_one_counter(tcti: str, tmp_path: Path) -> None:
    publisher = Publisher(tmp_path / "site", families=(FAMILY, "vision"))
    for family, version in ((FAMILY, "1.0.0"), ("vision", "2.0.0")):
        publisher.release(version, family=family)
        place = publisher.folder / "release.toml"
        place.write_text(place.read_text().replace(f'"{version}"', f'"{version[0]}.1.0"\nmin_counter = 2'))
        publisher.publish_release_file()
    with serve_folder(publisher.published) as site:
        device = create_tpm_device(tmp_path / "lab", site.url, publisher, f"tpm:{tcti}")
        device.config = replace(device.config, further_families=(FurtherFamily("vision", variant="fp32"),))
        device.write_config()
        publisher.enroll(device.directory, create_enrollment_request(device.directory, device.config.key_storage))
        for _ in range(2):
            done = device.command("update", "--json")
            assert done.returncode == 0, done.stdout
            assert "floor unproven" not in done.stderr
        status = json.loads(device.command("status", "--json").stdout)
        assert [row["rollback_floor"]["counter"] for row in status["families"]] == [2, 2]
        assert [row["rollback_floor_unproven"] for row in status["families"]] == [False, False]
        with Tpm(TpmSettings(tcti)) as tpm:
            assert device.journal().tpm_counter.counter == tpm.read_counter() > 2


def test_the_keys_move_between_files_and_a_tpm_also_when_cut_off(
    first_publisher: Publisher, tcti: str, tmp_path: Path
) -> None:
    device = DeviceUnderTest.create(tmp_path / "lab", "http://127.0.0.1:9", first_publisher.root)
    plain = {path.name: path.read_bytes() for path in device.directory.identity_directory.glob("*.key")}
    private = open_signing_key(device.directory).private_bytes_raw()
    device.config = replace(device.config, key_storage=f"tpm:{tcti}")
    device.write_config()
    result = device.command("identity", "move", "--json")
    assert result.returncode == 0, result.stderr
    assert current_key_storage(device.directory) == device.config.key_storage
    assert open_signing_key(device.directory, device.config.key_storage).private_bytes_raw() == private
    # cut off: one of the three is still as it was
    (device.directory.identity_directory / "x-wing.key").write_bytes(plain["x-wing.key"])
    move_keys_to_configured_storage(device.config)
    assert b"x-wing" in (device.directory.identity_directory / "x-wing.key").read_bytes()
    assert plain["x-wing.key"] != (device.directory.identity_directory / "x-wing.key").read_bytes()
    move_keys_to_configured_storage(replace(device.config, key_storage="file"))
    assert {path.name: path.read_bytes() for path in device.directory.identity_directory.glob("*.key")} == plain


def test_the_keeper_is_jailed_and_knows_nothing_of_metadata_or_models(tcti: str) -> None:
    identity = f"tpm:{tcti}"
    policy = key_opener_jail(identity, allow_unjailed=False)
    with WorkerProcess.start(
        "device_agent.workers.key_opener", policy, environment={"AIRWEIGHTS_KEY_STORAGE": identity}
    ) as worker:
        assert worker.jail.is_confined
        assert worker.call("counter", deadline_s=30).value == {"value": 0}
        maps = Path(f"/proc/{worker.pid}/maps").read_text()
        assert "onnxruntime" not in maps


def test_the_library_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "tpm2_pytss", None)
    with pytest.raises(TpmUnavailable, match="tpm2_pytss") as caught:
        Tpm(TpmSettings())
    assert "airweights[tpm]" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("file", None),
        ("tpm:", TpmSettings()),
        ("tpm:?pcrs=7,0,7", TpmSettings("", (0, 7))),
        ("tpm:device:/dev/tpmrm0?pcrs=7&nv=0x1800001", TpmSettings("device:/dev/tpmrm0", (7,), 0x1800001)),
        (
            "pkcs11:my token?module=/usr/lib/x.so&pin-file=/etc/pin",
            TokenSettings("my token", Path("/usr/lib/x.so"), Path("/etc/pin")),
        ),
    ],
)
def test_homes(uri: str, expected: object) -> None:
    assert parse_key_storage(uri) == expected


@pytest.mark.parametrize(
    "uri",
    [
        *("", "tpm", "files", "vault:x", "tpm:?pcrs=24", "tpm:?pcrs=", "tpm:?pcrs=a", "tpm:?nv=0x81000001", "tpm:?x=1"),
        *("tpm:a b", "pkcs11:a", "pkcs11:a?module=x.so&pin-file=/p", "pkcs11:a?module=/x.so"),
    ],
)
def test_what_is_no_home_says_what_is_expected(uri: str) -> None:
    with pytest.raises(ValueError, match="expected"):
        parse_key_storage(uri)
