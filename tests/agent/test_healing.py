"""Flipped bits on the device are detected before use, and repaired from other copies or by a download."""

import shutil
import sqlite3
from pathlib import Path

import pytest

from device_agent.errors import JournalDamaged, JournalUnreadable
from device_agent.storage.journal import Journal
from tests.support.endpoint_client import infer
from tests.support.publisher import DeviceUnderTest, Publisher


def _flip_bit(path: Path, offset: int) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)
        file.seek(offset)
        file.write(bytes([byte[0] ^ 0x10]))


def _sealed_path(device: DeviceUnderTest, publisher: Publisher, version: str) -> Path:
    return device.directory.root / "store" / f"{publisher.digest(version)}.sealed"


def test_a_damaged_active_bundle_falls_back_to_the_previous_and_is_healed(
    updated: tuple[Publisher, DeviceUnderTest],
) -> None:
    publisher, device = updated
    path = _sealed_path(device, publisher, "1.1.0")
    _flip_bit(path, path.stat().st_size // 2)
    device.start()
    assert infer(device)["model_version"] == "1.0.0"
    assert device.call("status")["degraded"] is True
    healed = device.call("update")
    assert (healed["outcome"], healed["release"]) == ("updated", "1.1.0"), healed
    assert 0 < healed["downloaded"]["patch"] - healed["patch_bytes"] < 512, "only what is needed"
    assert healed["download_bytes"] < healed["full_download_bytes"]
    assert infer(device)["model_version"] == "1.1.0"
    status = device.call("status")
    assert (status["degraded"], status["damaged_bundles"], status["active"]["release"]) == (False, [], "1.1.0")


def test_both_bundles_damaged_are_fetched_again(updated: tuple[Publisher, DeviceUnderTest]) -> None:
    publisher, device = updated
    for version in ("1.0.0", "1.1.0"):
        path = _sealed_path(device, publisher, version)
        _flip_bit(path, path.stat().st_size // 2)
    device.start()
    assert device.call("status")["ready"] is False
    assert device.call("update")["outcome"] == "updated"
    assert infer(device)["model_version"] == "1.1.0"


def test_a_damaged_journal_is_made_anew_from_the_sealed_bundles(updated: tuple[Publisher, DeviceUnderTest]) -> None:
    _, device = updated
    path = device.directory.journal_path
    for offset in range(100, path.stat().st_size, 512):
        _flip_bit(path, offset)
    device.start()
    assert infer(device)["model_version"] in ("1.0.0", "1.1.0")
    assert device.call("update")["outcome"] in ("updated", "nothing-new")
    assert infer(device)["model_version"] == "1.1.0"
    assert (device.directory.root / "state.db.damaged").exists()


def test_any_flipped_bit_of_the_journal_is_noticed_or_changes_nothing(
    updated: tuple[Publisher, DeviceUnderTest], tmp_path: Path
) -> None:
    _, device = updated
    original = device.directory.journal_path
    expected = _read_journal(original)
    noticed = 0
    for offset in range(0, original.stat().st_size, 211):
        copy = Path(shutil.copy(original, tmp_path / "state.db"))
        _flip_bit(copy, offset)
        try:
            found = _read_journal(copy)
        except JournalUnreadable:
            noticed += 1
            continue
        assert found == expected, f"byte {offset}"
    assert noticed


def _read_journal(path: Path) -> object:
    journal = Journal(path)
    try:
        journal.check()
        rows = (
            journal.bundles(),
            journal.quarantine_records(),
            journal.history(),
            journal.persistent_state,
            journal.attempt,
        )
        return (journal.state, journal.pointers, *rows)
    finally:
        journal.close()


def test_a_journal_of_a_newer_agent_is_not_rebuilt(updated: tuple[Publisher, DeviceUnderTest]) -> None:
    _, device = updated
    with sqlite3.connect(device.directory.journal_path) as db:
        db.execute("PRAGMA user_version = 99")
    with pytest.raises(JournalUnreadable) as caught:
        Journal(device.directory.journal_path)
    assert not isinstance(caught.value, JournalDamaged)


@pytest.mark.parametrize("slots", [("slot-a",), ("slot-b",), ("slot-a", "slot-b")])
def test_damaged_trust_slots_never_lower_the_floor(
    updated: tuple[Publisher, DeviceUnderTest], slots: tuple[str, ...]
) -> None:
    publisher, device = updated
    for slot in slots:
        path = device.directory.trust_directory / "slots" / slot
        if path.exists():
            _flip_bit(path, path.stat().st_size // 2)
    shutil.rmtree(device.directory.trust_directory / "cache")
    assert device.update().outcome == "nothing-new"
    journal = device.journal()
    assert journal.persistent_state.floor_counter == publisher.manifest("1.1.0").min_counter
    journal.close()
