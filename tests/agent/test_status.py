"""`status` reports time, metadata expiry and memory."""

import json
import re
import time
from dataclasses import replace
from pathlib import Path

import pytest

from bundle.errors import Malformed
from device_agent.commands.result_text import status_lines
from device_agent.daemon import status
from device_agent.daemon.status import family_status
from device_agent.errors import JournalUnreadable
from device_agent.host.system_clock import clock_facts
from device_agent.policy.status_report import FamilyStatus, ServingStatus, StatusReport
from device_agent.process import memory_lock
from device_agent.process.jail import JailPolicy
from device_agent.storage.journal import Journal
from tests.support.publisher import DeviceUnderTest
from tests.support.worker_fixtures import start_jail_probe


def read_status(device: DeviceUnderTest, **clock: object) -> FamilyStatus:
    """Return the status under another clock."""
    facts = {**clock_facts(), **clock}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(status, "clock_facts", lambda: facts)
        journal = Journal(device.directory.journal_path)
        try:
            return family_status(device.config, device.directory.read_public_identity(), journal)
        finally:
            journal.close()


def test_stale_metadata_is_said_with_its_date(installed: DeviceUnderTest) -> None:
    now_s = int(time.time())
    fresh = read_status(installed, now_s=now_s, is_synchronized=True)
    assert (fresh.stale_since_ms, fresh.is_clock_suspect) == (None, False)
    years_later = read_status(installed, now_s=now_s + 5 * 365 * 86_400, is_synchronized=True)
    assert years_later.stale_since_ms == years_later.metadata_expires_ms
    assert re.search(
        r"^stale since 20\d\d-\d\d-\d\dT\d\d:\d\d:\d\dZ: ",
        "\n".join(status_lines(StatusReport(years_later))),
        re.MULTILINE,
    )


@pytest.mark.parametrize("now_s", [0, 1, 1_700_000_000])
def test_a_clock_that_was_turned_back_is_suspect(installed: DeviceUnderTest, now_s: int) -> None:
    behind = read_status(installed, now_s=now_s, is_synchronized=True)
    assert behind.is_clock_suspect is True
    assert "clock suspect: it is behind the time of the last check" in status_lines(StatusReport(behind))


def test_a_clock_that_nobody_set_is_suspect(installed: DeviceUnderTest) -> None:
    unset = read_status(installed, now_s=int(time.time()), is_synchronized=False)
    assert (unset.is_clock_suspect, unset.is_clock_synchronized) == (True, False)
    assert "clock suspect: it is not synchronized" in status_lines(StatusReport(unset))


@pytest.mark.parametrize(
    ("alive", "line"),
    [
        (True, "serving 1.0.0 at a (process 7)"),
        (False, "not serving: the model process of 1.0.0 keeps crashing; next restart in 40 s"),
    ],
)
def test_a_process_that_is_down_does_not_serve(installed: DeviceUnderTest, *, alive: bool, line: str) -> None:
    found = read_status(installed)
    assert found.active is not None
    digest = found.active.bundle
    serving = ServingStatus(
        "1.0.0", "fp32", digest, generation=1, pid=7, is_alive=alive, resident_bytes=9, provider="CPU"
    )
    down = replace(found, is_daemon_running=True, address="a", serving=serving, next_restart_s=None if alive else 40)
    assert down.is_ready is alive
    lines = status_lines(StatusReport(down))
    assert next(text for text in lines if "serving" in text).startswith(line)


def test_memory_that_can_be_swapped_out_is_said(installed: DeviceUnderTest) -> None:
    found = replace(read_status(installed), is_daemon_running=True, is_memory_swappable=True)
    lacks = (("verifier", ("own-user", "thread-limit")),)
    assert "jail of verifier lacks: own-user, thread-limit" in status_lines(
        StatusReport(replace(found, missing_restrictions=lacks))
    )
    assert "memory swappable: the kernel does not let the agent lock models into memory" in status_lines(
        StatusReport(found)
    )


def test_a_status_is_the_same_after_the_control_socket(installed: DeviceUnderTest) -> None:
    found = read_status(installed)
    assert found.active is not None
    assert found.last_update is not None
    digest = found.active.bundle
    serving = ServingStatus(
        "1.0.0", "fp32", digest, generation=3, pid=7, is_alive=True, resident_bytes=9, provider="CPU"
    )
    running = replace(found, is_daemon_running=True, address="a", serving=serving, next_restart_s=4)
    running = replace(running, missing_restrictions=(("front", ("landlock",)), ("verifier", ("own-user",))))
    other = replace(running, family="vision", serving=None, previous=running.active)
    failed = JournalUnreadable("no such file", hint="try again")
    for report in (
        StatusReport(found),
        StatusReport(running, (("vision", other),)),
        StatusReport(running, (("vision", failed),)),
    ):
        parsed = StatusReport.parse(json.loads(json.dumps(report.as_json())))
        assert parsed.as_json() == report.as_json()
        assert status_lines(parsed) == status_lines(report)
    with pytest.raises(Malformed, match="unknown field 'color'"):
        StatusReport.parse({**found.as_json(), "color": 1})


def test_a_child_locks_its_memory_where_it_may() -> None:
    with start_jail_probe(replace(JailPolicy(), lock_memory=True)) as child:
        locked_bytes = child.memory_bytes("VmLck")
        if not child.jail.memory_locked:
            assert locked_bytes == 0
            pytest.skip("memory may not be locked here (RLIMIT_MEMLOCK)")
        assert locked_bytes > 1024 * 1024
    with start_jail_probe() as child:
        assert child.memory_bytes("VmLck") == 0


def test_whether_there_is_swap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    swaps = tmp_path / "swaps"
    monkeypatch.setattr(memory_lock, "SWAPS", swaps)
    monkeypatch.setattr(memory_lock, "GROUPS", tmp_path / "groups")
    assert memory_lock.swap_is_enabled()
    swaps.write_text("Filename Type Size Used Priority\n")
    assert not memory_lock.swap_is_enabled()
    swaps.write_text("Filename Type Size Used Priority\n/dev/sda2 partition 1000 0 -2\n")
    assert memory_lock.swap_is_enabled()
    (tmp_path / "groups").mkdir()
    (tmp_path / "groups" / "memory.swap.max").write_text("0\n")
    assert not memory_lock.swap_is_enabled()
