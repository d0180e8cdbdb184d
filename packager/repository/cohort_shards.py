"""Write the shards of a cohort epoch's envelopes (bundle.envelope_shard).

Rules:
- An epoch has a power of two of shards, so that a shard has MEAN_RECORDS envelopes on average and every shard is within
  its limit. The number never falls within an epoch.
- If more devices need more shards, all shards are written anew under the new number, and the fleet document names it.
  The shards of the earlier number stay until the garbage collection, for devices that have the earlier document.
- Envelopes arrive sorted by name, so that one shard at a time is in memory. A shard is replaced as a whole.
- A name that exists already is replaced.
"""

from array import array
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Final

from bundle.envelope_shard import (
    HEAD_BYTES,
    MAX_SHARD_BYTES,
    decode_shard,
    encode_shard,
    max_records,
    parse_index,
)
from bundle.errors import AirweightsError
from bundle.fleet import MAX_SHARDS, Cohort
from bundle.key_sizes import PRIVATE_BYTES
from bundle.repository_paths import cohort_shard_path, key_of, shard_of
from packager.errors import RepositoryDamaged, StagingInvalid
from packager.repository.repository import Repository

MEAN_RECORDS: Final = 256  # with names at random, 409 records in one shard are ten standard deviations away
COHORT_ENVELOPE_BYTES: Final = 8 + 1120 + PRIVATE_BYTES + 16  # magic, encapsulated key, private key, tag


class CohortShards:
    """Writes the envelopes of one cohort epoch into its shards.

    Args:
        repository: the repository.
        cohort: the cohort, with the number of shards that exist.
        names: names of all envelopes that will be added, in hexadecimal.
        is_new: the epoch has no shards yet; otherwise those that exist are kept.
        is_synced: sync each shard; False only if the caller ends with one `os.sync`.

    Attributes:
        cohort: the cohort, with the number of shards that it has afterwards.

    Raises:
        RepositoryDamaged: an existing shard is damaged.
        StagingInvalid: there are more devices than MAX_SHARDS shards have room for.
    """

    def __init__(
        self, repository: Repository, cohort: Cohort, names: Iterable[str], *, is_new: bool, is_synced: bool
    ) -> None:
        self._repository, self._before, self._is_synced = repository, cohort, is_synced
        self._is_new = is_new
        keys = set(map(key_of, names))
        for number in range(0 if is_new else cohort.shards):
            path = self._path(cohort, number)
            if path.exists():
                keys.update(_read_keys(path))
        self.cohort = replace(cohort, shards=_choose_shards(array("Q", sorted(keys)), 1 if is_new else cohort.shards))
        self._touched: int | None = None
        self._envelopes: dict[str, bytes] = {}
        self._next = 0  # the first shard that is not written yet

    def add(self, name: str, envelope: bytes) -> None:
        """Add one envelope to its shard.

        Args:
            name: its name, in hexadecimal, above all that were added before.
            envelope: the envelope.
        """
        number = shard_of(name, self.cohort.shards)
        if number != self._touched:
            self._write()
            self._touched = number
        self._envelopes[name] = envelope

    def close(self) -> Cohort:
        """Write what is left, and return the cohort with its number of shards."""
        self._write()
        self._copy_until(self.cohort.shards)
        return self.cohort

    def _write(self) -> None:
        if self._touched is None:
            return
        self._copy_until(self._touched)
        self._put(self._touched, self._read_existing(self._touched) | self._envelopes)
        self._next, self._envelopes = self._touched + 1, {}

    def _copy_until(self, end: int) -> None:
        """Write the shards before `end` that get no envelope, if their number has changed."""
        if not self._is_new and self.cohort.shards != self._before.shards:
            for number in range(self._next, end):
                self._put(number, self._read_existing(number))
        self._next = end

    def _put(self, number: int, envelopes: dict[str, bytes]) -> None:
        if envelopes:
            path = self._path(self.cohort, number).relative_to(self._repository.published).as_posix()
            self._repository.put_shard(path, encode_shard(envelopes), is_synced=self._is_synced)

    def _read_existing(self, number: int) -> dict[str, bytes]:
        path = self._path(self._before, number * self._before.shards // self.cohort.shards)
        if self._is_new or not path.exists():
            return {}
        try:
            with path.open("rb") as file:
                found = decode_shard(file.read(MAX_SHARD_BYTES + 1))
        except AirweightsError as error:
            raise _damaged(path, error) from error
        return {name: data for name, data in found.items() if shard_of(name, self.cohort.shards) == number}

    def _path(self, cohort: Cohort, number: int) -> Path:
        first_name = f"{(number << 64) // cohort.shards:016x}".ljust(64, "0")
        path = cohort_shard_path(cohort.name, cohort.epoch, cohort.shards, first_name)
        return self._repository.published / path


def _read_keys(path: Path) -> tuple[int, ...]:
    try:
        with path.open("rb") as file:
            return parse_index(file.read(HEAD_BYTES)).keys
    except AirweightsError as error:
        raise _damaged(path, error) from error


def _choose_shards(keys: "array[int]", shards: int) -> int:
    fullest = max_records(COHORT_ENVELOPE_BYTES)
    while shards <= MAX_SHARDS:
        counts = Counter(key * shards >> 64 for key in keys)
        if len(keys) <= MEAN_RECORDS * shards and max(counts.values(), default=0) <= fullest:
            return shards
        shards *= 2
    raise StagingInvalid(f"{len(keys)} envelopes need more than {MAX_SHARDS} shards", hint="use further cohorts")


def _damaged(path: Path, error: AirweightsError) -> RepositoryDamaged:
    return RepositoryDamaged(
        f"{path}: {error.message}", hint="restore it from a copy, or start a new epoch: packager device rotate-cohort"
    )
