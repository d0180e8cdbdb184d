"""The index of the registry has its devices and its digest, and never outlives its content."""

import sqlite3
from dataclasses import replace
from pathlib import Path

import pytest

from keys.errors import RegistryDamaged
from keys.registry import Registry
from keys.registry_index import SUFFIX, open_index
from tests.support.fleet_devices import SigningDevice, write_registry

DEVICES = [SigningDevice(f"device-{number}", "field" if number % 3 else "lab") for number in range(30)]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Write a registry of 30 devices, one of them revoked."""
    out = tmp_path / "registry.jsonl"
    write_registry(out, [device.registered(is_revoked=device is DEVICES[7]) for device in DEVICES])
    return out


def test_the_index_has_what_the_registry_has(path: Path) -> None:
    registry = Registry(path)
    with open_index(path) as index:
        assert index.digest == registry.digest()
        assert index.count() == 29
        expected = [(d.device_id, d.label, d.cohort, d.ed25519_public, d.is_revoked) for d in registry.devices()]
        found = [(d.device_id, d.label, d.cohort, d.ed25519_public, d.is_revoked) for d in index.devices()]
        assert found == expected
        assert set(index.device_ids(("lab",))) == {d.device_id for d in registry.members("lab")}
        assert len(list(index.device_ids())) == 29
        one = DEVICES[3]
        by_label, by_id = index.find(one.label), index.find(one.device_id)
        assert by_label == by_id
        assert by_label is not None
        assert by_label.device_id == one.device_id
        assert index.find("nobody") is None


def test_it_is_filled_once_and_again_when_the_registry_changes(path: Path) -> None:
    file = path.with_name(path.name + SUFFIX)
    with open_index(path):
        pass
    first = file.stat().st_ino
    with open_index(path):
        assert file.stat().st_ino == first
    write_registry(path, [device.registered() for device in DEVICES[:5]])
    with open_index(path) as index:
        assert (index.count(), index.digest) == (5, Registry(path).digest())


@pytest.mark.parametrize("data", [b"", b"nonsense", b"SQLite format 3\0" + bytes(4096)])
def test_a_damaged_index_is_built_again(path: Path, data: bytes) -> None:
    path.with_name(path.name + SUFFIX).write_bytes(data)
    with open_index(path) as index:
        assert index.count() == 29


def test_an_index_of_another_schema_is_built_again(path: Path) -> None:
    with open_index(path):
        pass
    connection = sqlite3.connect(path.with_name(path.name + SUFFIX))
    with connection:
        connection.execute("UPDATE fact SET value = '0' WHERE name = 'schema'")
    connection.close()
    with open_index(path) as index:
        assert index.count() == 29


def test_a_damaged_registry_leaves_no_index(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"{}\n")
    with pytest.raises(RegistryDamaged), open_index(path):
        pass
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_no_registry_is_an_empty_one(tmp_path: Path) -> None:
    with open_index(tmp_path / "registry.jsonl") as index:
        assert (index.count(), index.digest) == (0, Registry(tmp_path / "none").digest())


def test_a_label_that_is_listed_twice_is_damage(tmp_path: Path) -> None:
    path = tmp_path / "registry.jsonl"
    twins = [replace(device.registered(), label="twin") for device in DEVICES[:2]]
    write_registry(path, twins)
    with pytest.raises(RegistryDamaged, match="a label is listed twice"), open_index(path):
        pass
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_a_folder_may_have_any_name(tmp_path: Path) -> None:
    folder = tmp_path / "50% of #1?"
    folder.mkdir()
    write_registry(folder / "registry.jsonl", [device.registered() for device in DEVICES])
    for _ in range(2):
        with open_index(folder / "registry.jsonl") as index:
            assert index.count() == len(DEVICES)
