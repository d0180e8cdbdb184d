"""The shards of a cohort epoch grow with the fleet, and lose no envelope."""

import hashlib
from pathlib import Path

import pytest

from bundle.envelope_shard import MAX_SHARD_BYTES, decode_shard, find_envelope
from bundle.fleet import Cohort
from bundle.repository_paths import cohort_shard_path
from packager.errors import RepositoryDamaged
from packager.repository.cohort_shards import COHORT_ENVELOPE_BYTES, MEAN_RECORDS, CohortShards
from packager.repository.repository import Repository

KEY = bytes(1216)


def names_of(first: int, end: int) -> list[str]:
    return sorted(hashlib.sha256(number.to_bytes(8, "big")).hexdigest() for number in range(first, end))


def envelope_of(name: str, salt: int = 0) -> bytes:
    return hashlib.shake_128(bytes.fromhex(name) + bytes([salt])).digest(COHORT_ENVELOPE_BYTES)


def add(repository: Repository, cohort: Cohort, names: list[str], *, is_new: bool = False, salt: int = 0) -> Cohort:
    shards = CohortShards(repository, cohort, names, is_new=is_new, is_synced=False)
    for name in names:
        shards.add(name, envelope_of(name, salt))
    return shards.close()


def read(repository: Repository, cohort: Cohort, name: str) -> bytes:
    path = repository.published / cohort_shard_path(cohort.name, cohort.epoch, cohort.shards, name)
    return find_envelope(path.read_bytes(), name)


def test_a_growing_cohort_is_divided_into_more_shards(tmp_path: Path) -> None:
    repository, cohort = Repository(tmp_path), Cohort("default", 3, KEY)
    first = names_of(0, MEAN_RECORDS)
    cohort = add(repository, cohort, first, is_new=True)
    assert cohort.shards == 1
    added = names_of(MEAN_RECORDS, 5 * MEAN_RECORDS)
    grown = add(repository, cohort, added)
    assert grown.shards == 8
    for name in (*first, *added):
        assert read(repository, grown, name) == envelope_of(name)
    for name in first:
        assert read(repository, cohort, name) == envelope_of(name), "the earlier shards stay"
    paths = sorted((repository.published / "envelopes" / "cohorts" / "default" / "3").iterdir())
    assert [path.name for path in paths] == ["1-0", *(f"8-{number}" for number in range(8))]
    assert all(path.stat().st_size <= MAX_SHARD_BYTES for path in paths)


def test_one_more_device_changes_one_shard(tmp_path: Path) -> None:
    repository, cohort = Repository(tmp_path), Cohort("default", 3, KEY)
    cohort = add(repository, cohort, names_of(0, 4 * MEAN_RECORDS - 10), is_new=True)
    folder = repository.published / "envelopes" / "cohorts" / "default" / "3"
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert len(before) == cohort.shards == 4
    (name,) = names_of(9999, 10_000)
    assert add(repository, cohort, [name]) == cohort
    after = {path.name: path.read_bytes() for path in folder.iterdir()}
    (changed,) = (key for key in after if before[key] != after[key])
    assert decode_shard(after[changed]) == decode_shard(before[changed]) | {name: envelope_of(name)}


def test_the_envelope_of_a_device_is_replaced(tmp_path: Path) -> None:
    repository, cohort = Repository(tmp_path), Cohort("default", 3, KEY)
    names = names_of(0, 20)
    cohort = add(repository, cohort, names, is_new=True)
    assert add(repository, cohort, names[3:4], salt=1) == cohort
    assert read(repository, cohort, names[3]) == envelope_of(names[3], 1)
    assert read(repository, cohort, names[4]) == envelope_of(names[4])


def test_a_damaged_shard_stops_the_enrollment(tmp_path: Path) -> None:
    repository, cohort = Repository(tmp_path), Cohort("default", 3, KEY)
    names = names_of(0, 20)
    cohort = add(repository, cohort, names, is_new=True)
    path = repository.published / cohort_shard_path("default", 3, 1, names[0])
    data = path.read_bytes()
    for damaged in (data[:-1], b"", data[:20], bytes(len(data))):
        path.write_bytes(damaged)
        with pytest.raises(RepositoryDamaged, match="1-0"):
            add(repository, cohort, names_of(50, 51))
        assert path.read_bytes() == damaged
