"""A follower of a repository whose master copy is a store: it pulls, decides, signs and pushes; the loser is told."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from bundle.rollout import Rollout
from fleet.errors import RegistryUnsigned
from fleet.line import ReceivedLine
from packager.follow.follower import Follower
from packager.remote.push import push, read_timestamps
from packager.remote.remote_repository import PulledRepository, open_repository
from packager.stores.open_store import open_store
from tests.support.fleet_devices import SigningDevice
from tests.support.metadata_publisher import CHANNEL, FAMILY, PASSPHRASE, MetadataPublisher
from tests.support.packager_cli import assert_refused, run_packager
from tests.support.planned_fleet import BEGAN, OLD, PlannedFleet


class RemoteFleet:
    """A planned fleet whose publication is in a store, and a folder with its registry for each follower."""

    def __init__(self, fleet: PlannedFleet, folder: Path) -> None:
        self.fleet, self._folder = fleet, folder
        self.url = (folder / "site").as_uri()
        layout = fleet.repository.layout
        push(layout, open_store(self.url), read_timestamps(layout))
        self.root = layout.metadata / "1.root.json"

    def folder(self, name: str) -> Path:
        """Return a follower's new folder."""
        path = self._folder / name
        path.mkdir()
        shutil.copy(self.fleet.repository.registry_path, path)
        return path

    def pulled(self) -> PulledRepository:
        return PulledRepository(self.url, self.root, is_signing=True)

    @property
    def current(self) -> Rollout:
        with open_repository(self.url, self.root) as repository:
            found = repository.published_rollout(FAMILY, CHANNEL)
        assert found is not None
        return found


@pytest.fixture
def remote(publisher: MetadataPublisher, tmp_path: Path) -> RemoteFleet:
    planned = PlannedFleet(publisher, [SigningDevice(f"device-{number}") for number in range(80)])
    planned.roll_out()
    for device in planned.devices:
        planned.send(-3_600, device.vital(**OLD, **planned.common))
    planned.fail(planned.exposed[:14])
    return RemoteFleet(planned, tmp_path)


def test_a_halt_is_pushed_once_with_its_evidence_in_the_folder(remote: RemoteFleet, tmp_path: Path) -> None:
    lines, passphrase, folder = tmp_path / "lines.jsonl", tmp_path / "passphrase", remote.folder("follower")
    rows = ({"received_s": line.received_s, "line": line.data.decode()} for line in remote.fleet.lines)
    lines.write_text("".join(json.dumps(row) + "\n" for row in rows))
    passphrase.write_bytes(PASSPHRASE.value)
    passphrase.chmod(0o600)
    words = ["rollout", "follow", "--once", "--json", "--lines", lines, "--repo", remote.url]
    keys = ["--keys", remote.fleet.publisher.keys, "--passphrase-file", passphrase]
    assert_refused(
        run_packager(*words, *keys, "--root", remote.root), code=2, reason="invalid-usage", words=("--folder",)
    )
    words += ["--folder", folder]
    assert_refused(run_packager(*words, *keys), code=2, reason="invalid-usage", words=("trusted root",))
    words += ["--root", remote.root]
    dry = run_packager(*words, "--dry-run").json["actions"][0]
    assert (dry["published"], dry["rollout"]["halted"], remote.current.halted) == (None, True, False)
    done = run_packager(*words, *keys).json["actions"][0]
    assert done["published"] is not None
    assert remote.current.halted
    assert remote.current.note == f"halt, failures: evidence {done['evidence']}"
    assert run_packager(*words, *keys).json["actions"][0]["published"] is None
    (file,) = (folder / "evidence" / f"{FAMILY}.{CHANNEL}").iterdir()
    why = ["rollout", "why", "--json", "--evidence", file, "--repo", remote.url, "--root", remote.root]
    assert run_packager(*why, "--folder", folder).json["is_named_by_rollout"]


def test_of_two_followers_of_a_store_one_publishes_and_the_other_is_told(remote: RemoteFleet) -> None:
    fleet = remote.fleet
    with remote.pulled() as ours, remote.pulled() as theirs:
        (stale := remote.folder("stale") / "registry.jsonl").write_bytes(b"")
        unfit = Follower(ours.refresh(), fleet, fleet.publisher.signers, folder=stale.parent)
        with pytest.raises(RegistryUnsigned, match="the fleet role signed"):
            unfit.step(now_s=BEGAN + 700)
        first = Follower(ours.refresh(), fleet, fleet.publisher.signers, folder=remote.folder("first"))

        class SlowSource:
            """Lines that are read while the first follower acts."""

            is_slow = True

            def read(self, family: str, since_s: int) -> Iterator[ReceivedLine]:
                if self.is_slow:
                    self.is_slow = False
                    assert first.step(now_s=BEGAN + 700)[0].published is not None
                return fleet.read(family, since_s)

        second = Follower(theirs.refresh(), SlowSource(), fleet.publisher.signers, folder=remote.folder("second"))
        lost = second.step(now_s=BEGAN + 701)[0]
        assert lost.published is None
        assert "published by" in lost.problem
        again = theirs.refresh()
        second.use(again)
        after = second.step(now_s=BEGAN + 702)[0]
        assert (after.published, after.problem) == (None, "")
        assert ours.refresh() is ours.refresh(), "an unchanged publication is not pulled again"
    assert remote.current.halted
