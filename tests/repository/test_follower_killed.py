"""A follower that is killed before any of its writes leaves the old or the new rollout, and the next one finishes."""

import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from packager.follow.evidence import recompute
from tests.support.fleet_devices import SigningDevice
from tests.support.metadata_publisher import CHANNEL, FAMILY, MetadataPublisher
from tests.support.planned_fleet import BEGAN, OLD, PlannedFleet

KILLED = 9
CHANGES = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.truncate", "os.chmod")


@pytest.fixture
def fleet(publisher: MetadataPublisher) -> PlannedFleet:
    planned = PlannedFleet(publisher, [SigningDevice(f"device-{number}") for number in range(80)])
    planned.roll_out()
    for device in planned.devices:
        planned.send(-3_600, device.vital(**OLD, **planned.common))
    planned.fail(planned.exposed[:14])
    return planned


def kill_before_write(number: int, root: Path, act: Callable[[], object]) -> bool:
    """Act in a child process that ends before its write of this number below `root`; return whether it was killed."""
    child = os.fork()
    if child == 0:
        left = number

        def count(event: str, arguments: tuple[object, ...]) -> None:
            nonlocal left
            is_write = event == "open" and isinstance(arguments[2], int) and bool(arguments[2] & os.O_ACCMODE)
            if (is_write or event in CHANGES) and str(root) in str(arguments[:2]):
                left -= 1
                if not left:
                    os._exit(KILLED)

        status = 1
        try:
            sys.addaudithook(count)
            act()
            status = 0
        finally:
            os._exit(status)
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    assert code in (0, KILLED)
    return code == KILLED


@pytest.mark.parametrize("number", range(1, 121))  # more than it makes
def test_a_follower_killed_before_a_write_leaves_the_old_or_the_new_rollout(fleet: PlannedFleet, number: int) -> None:
    root = fleet.repository.layout.root
    was_killed = kill_before_write(number, root, lambda: fleet.follower().step(now_s=BEGAN + 700))
    after = fleet.current
    assert replace(after, halted=False, note=fleet.rollout.note) == fleet.rollout
    assert was_killed or after.halted
    again = fleet.follower().step(now_s=BEGAN + 760)[0]
    assert again.problem == ""
    assert (again.published is None) == after.halted, "a halt is published once"
    assert fleet.current.halted
    digests = {}
    for file in (root / "evidence" / f"{FAMILY}.{CHANNEL}").glob("*.jsonl.gz"):
        look, digest = recompute(file, fleet.repository.registry_path)
        digests[digest] = look.decision.word
    named = fleet.current.note.rpartition(" ")[2]
    assert digests[named] == "halt", "the evidence of what was published is kept"
    third = fleet.follower().step(now_s=BEGAN + 820)[0]
    assert third.published is None
