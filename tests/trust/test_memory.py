"""The two copies keep the trust state if a power cut damages the one that is being written."""

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bundle.acceptance import ReleaseCounter
from bundle.errors import Malformed
from bundle.trust.clock import TimeFloor
from bundle.trust.trust_state import RoleVersion, TrustState, TrustStateStore, parse_trust_state

DIGESTS = st.text("0123456789abcdef", min_size=64, max_size=64)
NAMES = st.from_regex(r"[a-z0-9]{1,12}", fullmatch=True)
COUNTERS = st.builds(ReleaseCounter, st.integers(0, 2**40), st.integers(0, 2**40))
MEMORIES = st.builds(
    lambda repository, roles, families, time: TrustState(
        repository,
        roles,
        {name: floor for name, (floor, _) in families.items()},
        {name: known for name, (_, known) in families.items()},
        time,
    ),
    DIGESTS,
    st.dictionaries(
        NAMES,
        st.builds(RoleVersion, st.integers(1, 2**31), DIGESTS, st.lists(DIGESTS, unique=True).map(tuple)),
        max_size=4,
    ),
    st.dictionaries(NAMES, st.tuples(COUNTERS, st.dictionaries(COUNTERS, DIGESTS, max_size=3)), max_size=3),
    st.builds(TimeFloor, st.integers(0, 2**40), NAMES, st.integers(0, 2**31)),
)


@settings(max_examples=50, deadline=None)
@given(memory=MEMORIES)
def test_what_is_saved_is_what_is_loaded(memory: TrustState, tmp_path_factory: pytest.TempPathFactory) -> None:
    store = TrustStateStore(tmp_path_factory.mktemp("slots"))
    saved = store.save(memory)
    loaded = store.load()
    assert loaded == saved
    assert loaded is not None
    assert loaded.has_same_content(memory)


def test_nothing_saved_is_not_lost(tmp_path: Path) -> None:
    store = TrustStateStore(tmp_path / "slots")
    assert store.load() is None
    assert not store.is_lost


def test_slots_are_written_in_turn_and_the_higher_one_wins(tmp_path: Path) -> None:
    store = TrustStateStore(tmp_path)
    for version in range(1, 6):
        store.save(TrustState(roles={"timestamp": RoleVersion(version, "0" * 64, ())}))
        loaded = store.load()
        assert loaded is not None
        assert (loaded.sequence, loaded.roles["timestamp"].version) == (version, version)


def test_a_write_cut_off_at_any_byte_leaves_the_memory_before_it(tmp_path: Path) -> None:
    store = TrustStateStore(tmp_path)
    store.save(TrustState(repository_id="a" * 64))
    second = store.save(TrustState(repository_id="b" * 64))
    written = tmp_path / "slot-b"
    data = written.read_bytes()
    for length in range(0, len(data), 7):
        written.write_bytes(data[:length])
        loaded = store.load()
        assert loaded is not None
        assert loaded.repository_id == "a" * 64
        again = store.save(replace(second, repository_id="c" * 64))
        assert store.load() == again
        assert (tmp_path / "slot-a").read_bytes()
        (tmp_path / "slot-a").write_bytes(_make_state_file("a" * 64, tmp_path))


def _make_state_file(repository_id: str, folder: Path) -> bytes:
    scratch = TrustStateStore(folder / "scratch")
    scratch.save(TrustState(repository_id=repository_id))
    data = (folder / "scratch" / "slot-a").read_bytes()
    (folder / "scratch" / "slot-a").unlink()
    return data


def test_both_slots_damaged_are_lost_and_it_shows(tmp_path: Path) -> None:
    store = TrustStateStore(tmp_path)
    store.save(TrustState(repository_id="a" * 64))
    store.save(TrustState(repository_id="b" * 64))
    for name in ("slot-a", "slot-b"):
        (tmp_path / name).write_bytes(b"\xff" * 200)
    assert store.load() is None
    assert store.is_lost
    assert store.damaged_copies == ("slot-a", "slot-b")


def test_slots_are_for_their_owner_only(tmp_path: Path) -> None:
    store = TrustStateStore(tmp_path / "slots")
    store.save(TrustState())
    assert (tmp_path / "slots" / "slot-a").stat().st_mode & 0o777 == 0o600


def test_a_memory_of_another_schema_is_malformed() -> None:
    with pytest.raises(Malformed):
        parse_trust_state(b'{"schema":"airweights.memory/2"}')
