"""A planned rollout of a repository and the lines of its registered devices, for tests of the follower."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from bundle.rollout import Rollout, bucket
from fleet.line import ReceivedLine
from packager.follow.follower import Follower
from packager.repository.planned_rollout import make_plan, next_rollout
from packager.repository.repository import Repository
from tests.support.fleet_devices import SigningDevice, write_registry
from tests.support.metadata_publisher import CHANNEL, FAMILY, NOW_S, MetadataPublisher

DAY = 86_400
BEGAN = NOW_S - 3 * DAY
OLD: dict[str, Any] = {"release": "1.1.0", "counter": 2}
NEW: dict[str, Any] = {"release": "1.2.0", "counter": 3}


class PlannedFleet:
    """Registered devices, the lines that they sent, and a plan whose first stage is 50 %."""

    def __init__(self, publisher: MetadataPublisher, devices: Sequence[SigningDevice]) -> None:
        self.publisher, self.lines = publisher, list[ReceivedLine]()
        self.devices = [SigningDevice(device.label) for device in devices]
        write_registry(self.repository.registry_path, [device.registered() for device in self.devices])
        self.repository.stage_registry()
        before = publisher.release("1.1.0", 2)
        manifest = publisher.make_manifest("1.2.0", 3)
        self.repository.stage_manifest(manifest)
        current = self.repository.rollout(FAMILY, CHANNEL)
        self.plan = make_plan(
            manifest,
            CHANNEL,
            current,
            stages_bp=(5_000, 10_000),
            soak_s=DAY,
            base_ceiling_ppm=100_000,
            accept_ppm=10_000,
            refuse_ppm=50_000,
            alpha_ppm=10_000,
            beta_ppm=50_000,
        )
        self.repository.stage_plan(self.plan)
        publisher.publish()
        self.exposed = [d for d in self.devices if bucket(self.plan.salt, d.device_id) < 5_000]
        self.control = [d for d in self.devices if d not in self.exposed]
        self.common = {"repository": self.repository.repository_id, "family": FAMILY, "channel": CHANNEL}
        assert before.counter == 2

    def roll_out(self, began_s: int = BEGAN) -> None:
        """Publish the first stage."""
        manifest = self.repository.manifest(FAMILY, NEW["release"])
        assert manifest is not None
        before = self.repository.rollout(FAMILY, CHANNEL)
        self.rollout = next_rollout(manifest, CHANNEL, before, self.plan, began_s)
        self.repository.publish_rollout(self.rollout, before, self.publisher.signers)

    def failure_of(self, device: SigningDevice) -> bytes:
        """Return a report that counts against the release."""
        changes: dict[str, Any] = {"outcome": "rolled-back", "state": "probation", "reason": "probation-failed"}
        return device.report(**NEW, **self.common, **changes)

    @property
    def repository(self) -> Repository:
        return self.publisher.repository

    @property
    def current(self) -> Rollout:
        found = self.repository.published_rollout(FAMILY, CHANNEL)
        assert found is not None
        return found

    def send(self, at: int, line: bytes) -> None:
        self.lines.append(ReceivedLine(BEGAN + at, line))

    def read(self, family: str, since_s: int) -> Iterator[ReceivedLine]:
        return iter([line for line in self.lines if line.received_s >= since_s and family == FAMILY])

    def fail(self, devices: Iterable[SigningDevice], at: int = 600) -> None:
        for device in devices:
            self.send(at, self.failure_of(device))

    def succeed(self, devices: Iterable[SigningDevice], at: int = DAY - 60) -> None:
        for device in devices:
            self.send(at, device.vital(**NEW, **self.common, served_days=1))

    def serve_on(self, at: int = DAY - 60) -> None:
        for device in self.control:
            self.send(at, device.vital(**OLD, **self.common))

    def follower(self, *, dry_run: bool = False, target: str | None = None) -> Follower:
        return Follower(self.repository, self, None if dry_run else self.publisher.signers, target)
