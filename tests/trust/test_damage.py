"""A flipped byte in any file, or damage to the device's cache, never changes what a device accepts."""

import itertools
import random
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from bundle.acceptance import VerifiedRelease
from bundle.errors import AirweightsError, RollbackRefused
from tests.support.file_damage import DAMAGES, damage_file
from tests.support.metadata_publisher import FAMILY, CheckClient, MetadataPublisher, fetch_file, replace_file

SEED = 20260101
POSITIONS = 24  # per file; the first and last byte of each file are included


def published_files(publisher: MetadataPublisher) -> list[str]:
    """Return every file that a check reads, except the shipped root."""
    read: list[str] = []

    def spy(url: str, max_bytes: int) -> bytes:
        data = fetch_file(url, max_bytes)
        read.append(Path(url).relative_to(publisher.published.as_uri()).as_posix())
        return data

    CheckClient(publisher.folder / "spy", (publisher.published / "metadata" / "1.root.json").read_bytes()).check(
        publisher.published, spy
    )
    return read


def differ_only_in_time(one: VerifiedRelease, other: VerifiedRelease) -> bool:
    return (
        replace(one, context=other.context) == other
        and one.context.timestamp_version == other.context.timestamp_version
    )


def test_any_flipped_byte_is_refused_or_changes_nothing(publisher: MetadataPublisher, device: CheckClient) -> None:
    device.check(publisher.published)
    publisher.release("1.1.0", 2, min_counter=2)
    before = device.trust_states.load()
    assert before is not None
    good = CheckClient(publisher.folder / "other", device.root).check(publisher.published)
    chance = random.Random(SEED)
    files = published_files(publisher)
    assert len(files) == 9
    kinds: dict[str, int] = {}
    for path in files:
        data = (publisher.published / path).read_bytes()
        places = {0, 1, len(data) - 1, *(chance.randrange(len(data)) for _ in range(POSITIONS))}
        for place in sorted(places):
            changed = bytearray(data)
            changed[place] ^= 1 << chance.randrange(8)
            tried = CheckClient(publisher.folder / "tried", device.root)
            shutil.rmtree(tried.folder, ignore_errors=True)
            shutil.copytree(device.folder, tried.folder, symlinks=True)
            try:
                release = tried.check(publisher.published, replace_file(path, bytes(changed)))
            except AirweightsError as error:
                memory = tried.trust_states.load()
                assert memory is not None
                assert memory.floors == before.floors, (path, place)
                assert memory.known_releases == before.known_releases, (path, place)
                assert memory.time_floor.time_s >= before.time_floor.time_s
                kinds[error.reason] = kinds.get(error.reason, 0) + 1
            else:
                assert differ_only_in_time(release, good), (path, place)
    assert sum(kinds.values()) > 9 * POSITIONS // 2
    assert set(kinds) <= {"untrusted-metadata", "digest-mismatch", "malformed", "rollback-refused"}


CACHED = ("timestamp", "snapshot", "targets", f"release-{FAMILY}")


@pytest.mark.parametrize("first", DAMAGES)
def test_a_damaged_cache_never_lets_a_rollback_in(
    publisher: MetadataPublisher, device: CheckClient, first: str
) -> None:
    old = publisher.copy_published("mirror-of-then")
    publisher.release("1.1.0", 2)
    device.check(publisher.published)
    for damages in itertools.product(
        (first,), ("kept", "missing", "flipped"), ("kept", "empty"), ("kept", "truncated")
    ):
        tried = CheckClient(publisher.folder / "tried", device.root)
        shutil.rmtree(tried.folder, ignore_errors=True)
        shutil.copytree(device.folder, tried.folder, symlinks=True)
        for role, damage in zip(CACHED, damages, strict=True):
            damage_file(tried.cache / f"{role}.json", damage)
        with pytest.raises(RollbackRefused):
            tried.check(old)
        assert tried.check(publisher.published).manifest.version == "1.1.0"


def test_a_lost_cache_as_a_whole_lets_no_rollback_in(publisher: MetadataPublisher, device: CheckClient) -> None:
    old = publisher.copy_published("mirror-of-then")
    publisher.release("1.1.0", 2)
    device.check(publisher.published)
    shutil.rmtree(device.folder / "cache")
    with pytest.raises(RollbackRefused):
        device.check(old)


def test_one_lost_slot_loses_nothing(publisher: MetadataPublisher, device: CheckClient) -> None:
    device.check(publisher.published)
    old = publisher.copy_published("mirror-of-then")
    publisher.release("1.1.0", 2, min_counter=2)
    device.check(publisher.published)
    whole = device.trust_states.load()
    assert whole is not None
    for name in ("slot-a", "slot-b"):
        tried = CheckClient(publisher.folder / f"without-{name}", device.root)
        shutil.copytree(device.folder, tried.folder, symlinks=True)
        damage_file(tried.folder / "slots" / name, "flipped")
        assert tried.trust_states.damaged_copies == (name,)
        assert not tried.trust_states.is_lost
        with pytest.raises(RollbackRefused):
            tried.check(old)
        assert tried.check(publisher.published).manifest.version == "1.1.0"
