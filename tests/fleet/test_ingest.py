"""Each line is judged alone and counts once, whatever the order in which lines arrive and however often."""

import json
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from bundle.device_report import SCHEMA, SIGNATURE_LABEL
from fleet.database import Database
from fleet.device_index import fill_devices
from fleet.errors import FleetStoreInvalid, FleetStoreUnavailable, RegistryUnsigned
from fleet.ingest import MAX_LOGS, BatchResult, ingest
from fleet.tables import DEVICE, FORK, REFUSED, REPORT, TALLY, VITAL
from tests.support.device_reports import REPOSITORY, make_vital
from tests.support.fleet_devices import SigningDevice, open_store, with_revoked, write_registry

RELEASES = ("1.0.0", "1.1.0", "1.2.0", "1.3.0")


@pytest.fixture
def camera() -> SigningDevice:
    return SigningDevice("camera")


@pytest.fixture
def microphone() -> SigningDevice:
    return SigningDevice("microphone")


@pytest.fixture
def store(tmp_path: Path, camera: SigningDevice, microphone: SigningDevice) -> Database:
    return open_store(tmp_path, [camera, microphone])


def four_reports(device: SigningDevice) -> list[bytes]:
    return [device.report(release=release, counter=n) for n, release in enumerate(RELEASES, 1)]


def reasons(result: BatchResult) -> list[str]:
    return [one.reason for one in result.refused]


def tally(store: Database, kind: str) -> dict[tuple[str, str], int]:
    """Return release and value → devices of a kind of the tally."""
    with store.read() as connection:
        rows = connection.execute(select(TALLY).where((TALLY.c.kind == kind) & (TALLY.c.devices != 0))).all()
    return {(row.release, row.value): row.devices for row in rows}


def stored(store: Database) -> list[int]:
    with store.read() as connection:
        return sorted(connection.execute(select(REPORT.c.sequence)).scalars())


def test_a_line_in_other_bytes_is_refused(store: Database, camera: SigningDevice) -> None:
    for line in (camera.report(), camera.vital()):
        fields = json.loads(line)
        swapped = {name: fields[name] for name in reversed(fields)}
        other = (line + b" ", line.replace(b",", b", ", 1), json.dumps(swapped, separators=(",", ":")).encode())
        found = ingest(store, [*other, line])
        assert (found.new, reasons(found)) == (1, ["malformed"] * len(other))


def test_a_line_counts_once(store: Database, camera: SigningDevice) -> None:
    lines = four_reports(camera)
    assert ingest(store, lines[:2]).new == 2
    result = ingest(store, [*lines, *lines])
    assert (result.new, result.known, result.refused) == (2, 6, [])
    assert result.logs[camera.log].as_json() == {"contiguous_to": 4, "highest": 4, "missing": [], "vital": 0}
    assert tally(store, "outcome") == {("1.3.0", "updated"): 1}


def test_a_late_report_fills_its_gap(store: Database, camera: SigningDevice) -> None:
    first, second, third, fourth = four_reports(camera)
    answer = ingest(store, [first, fourth]).logs[camera.log]
    assert (answer.contiguous_to, answer.highest, answer.missing) == (1, 4, ((2, 3),))
    assert ingest(store, [third]).logs[camera.log].missing == ((2, 2),)
    result = ingest(store, [second])
    assert (result.new, result.logs[camera.log].contiguous_to) == (1, 4)
    assert tally(store, "outcome") == {("1.3.0", "updated"): 1}


@pytest.mark.parametrize("number", [1, 2, 3, 4])
@pytest.mark.parametrize("is_missing", [False, True])
def test_a_fork_is_found_at_every_position(
    store: Database, camera: SigningDevice, microphone: SigningDevice, number: int, is_missing: bool
) -> None:
    lines = four_reports(camera)
    forged = camera.sign(replace(camera.reports[number - 1], reason="untried"))
    if is_missing:
        del lines[number - 1]
    result = ingest(store, [*lines, microphone.report(), forged])
    if is_missing and number == 4:
        assert (result.new, result.forks) == (5, 0)  # it follows the third: nothing contradicts it yet
        result = ingest(store, [camera.sign(camera.reports[3])])
    assert (reasons(result), result.forks) == (["line-forked"], 1)
    assert set(tally(store, "suspect").values()) == {1}
    assert tally(store, "outcome") == {("1.0.0", "updated"): 1}, "a suspect device is in no sum"
    with store.read() as connection:
        assert connection.execute(select(FORK.c.number)).scalars().all() == [number]


def test_clones_that_alternate_are_found(store: Database, camera: SigningDevice) -> None:
    ingest(store, four_reports(camera))
    clone = camera.copy_of_disk()
    ours = [camera.report(release=f"2.{n}.0", counter=10 + n) for n in range(6)]
    theirs = [clone.report(release=f"2.{n}.0", counter=10 + n, agent="0.1.1") for n in range(6)]
    result = ingest(store, [ours[0], theirs[2]])
    assert (result.new, result.forks) == (2, 0), "nothing contradicts anything yet"
    assert ingest(store, [ours[1]]).forks == 1


def test_clones_that_send_vitals_only_are_found(store: Database, camera: SigningDevice) -> None:
    ingest(store, four_reports(camera))
    clone = camera.copy_of_disk()
    assert ingest(store, [camera.vital(), camera.vital(requests=3)]).new == 2
    assert ingest(store, [clone.vital(failed=2)]).forks == 1


def test_a_refused_line_does_not_hold_up_the_others(
    store: Database, camera: SigningDevice, microphone: SigningDevice
) -> None:
    stranger, good = SigningDevice("stranger"), camera.report()
    other_place = SigningDevice("camera").report(repository="9" * 64)
    changed = microphone.report().replace(b'"1.0.0"', b'"1.0.1"')
    moved = good.replace(camera.device_id.encode(), microphone.device_id.encode())
    batch = [
        *(b"", b"nonsense", b"\xff", b"x" * 20_000, good[:-20] + b"}", stranger.report(), other_place, changed, moved),
        *(good.replace(SCHEMA.encode(), b"airweights.report/1"), good),
    ]
    result = ingest(store, batch)
    assert (result.new, result.known) == (1, 0)
    assert [one.number for one in result.refused] == list(range(1, 11))
    assert reasons(result) == [
        *("line-schema-unknown", "line-schema-unknown", "line-schema-unknown", "too-large", "malformed"),
        *("sender-unregistered", "line-of-another-repository", "line-signature-invalid", "line-signature-invalid"),
        "line-schema-unknown",
    ]
    with store.read() as connection:
        counted = {row.reason: row.lines for row in connection.execute(select(REFUSED))}
    assert counted["line-signature-invalid"] == 2


def test_a_report_is_no_vital_and_the_other_way_round(store: Database, camera: SigningDevice) -> None:
    vital = make_vital()
    label_of_a_report = SIGNATURE_LABEL + vital.signed_bytes(camera.device_id).split(b"\0", 1)[1]
    assert reasons(ingest(store, [vital.encode(camera.device_id, camera.private.sign(label_of_a_report))])) == [
        "line-signature-invalid"
    ]


def test_a_revoked_device_is_not_heard_and_leaves_the_sums(
    store: Database, camera: SigningDevice, microphone: SigningDevice, tmp_path: Path
) -> None:
    ingest(store, [camera.report(), microphone.report()])
    registry = tmp_path / "registry.jsonl"
    digest = write_registry(registry, [with_revoked(camera), microphone.registered()])
    assert fill_devices(store, registry, digest)
    assert not fill_devices(store, registry, digest)
    assert tally(store, "outcome") == {("1.0.0", "updated"): 1}
    assert reasons(ingest(store, [camera.report()])) == ["sender-revoked"]


def test_a_registry_that_is_not_the_signed_one_changes_nothing(store: Database, tmp_path: Path) -> None:
    registry = tmp_path / "registry.jsonl"
    write_registry(registry, [SigningDevice("stranger").registered()])
    with pytest.raises(RegistryUnsigned, match="found digest"):
        fill_devices(store, registry, "0" * 64)
    with store.read() as connection:
        assert len(connection.execute(select(DEVICE.c.device_id)).all()) == 2


def test_a_flood_is_stopped_before_signatures_are_verified(
    store: Database, camera: SigningDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second, third = (camera.report() for _ in range(3))
    ingest(store, [first])
    tokens = [1]

    def take(_: str) -> bool:
        tokens[0] -= 1
        return tokens[0] >= 0

    result = ingest(store, [first, second, third], is_allowed=take)
    assert (result.new, result.known, reasons(result)) == (1, 1, ["sender-too-fast"])


def test_a_device_that_loses_its_journal_begins_another_log_but_not_for_ever(
    store: Database, camera: SigningDevice
) -> None:
    ingest(store, four_reports(camera))
    for number in range(MAX_LOGS - 1):
        camera.reports = []
        line = camera.report(log=f"{number:032x}", release="2.0.0")
        assert ingest(store, [line], now_s=lambda: int(time.time()) + number).new == 1  # noqa: B023
    assert tally(store, "outcome") == {("2.0.0", "updated"): 1}
    camera.reports = []
    assert reasons(ingest(store, [camera.report(log="f" * 32)])) == ["log-limit-reached"]


def test_nobody_takes_the_numbers_of_another_devices_log(
    store: Database, camera: SigningDevice, microphone: SigningDevice
) -> None:
    assert ingest(store, [microphone.report(log=camera.log, agent="6.6.6")]).new == 1
    assert ingest(store, [camera.report()]).new == 1


def test_the_order_of_vitals_and_reports_does_not_change_the_standing(
    tmp_path: Path, camera: SigningDevice, microphone: SigningDevice
) -> None:
    lines = [
        camera.report(),
        camera.vital(),
        camera.report(release="1.1.0", counter=2, outcome="rolled-back", state="probation", reason="probation-failed"),
        camera.vital(offered="1.1.0", state="rejected", reason="probation-failed"),
    ]
    seen: list[dict[str, Any]] = []
    orders: Sequence[Sequence[int]] = ((0, 1, 2, 3), (3, 2, 1, 0), (2, 0, 3, 1), (1, 3, 0, 2))
    for number, order in enumerate(orders):
        (tmp_path / str(number)).mkdir()
        store = open_store(tmp_path / str(number), [camera, microphone])
        for place in order:
            ingest(store, [lines[place]])
        seen.append({kind: tally(store, kind) for kind in ("state", "failure", "failed-cpu", "variant")})
    assert seen == [seen[0]] * 4
    assert seen[0]["state"] == {("1.1.0", "failed"): 1}
    assert seen[0]["failure"] == {("1.1.0", "probation-failed"): 1}


def test_a_crash_loop_after_the_update_is_a_failure(store: Database, camera: SigningDevice) -> None:
    ingest(store, [camera.report(), camera.vital(restarts=3, served_days=1)])
    assert tally(store, "state") == {("1.0.0", "failed"): 1}


def test_nothing_of_a_batch_is_stored_if_the_store_cannot_be_written(
    store: Database, camera: SigningDevice, tmp_path: Path
) -> None:
    ingest(store, [camera.report()])
    lines = [camera.report(), camera.vital()]
    with store.write() as connection:
        connection.exec_driver_sql(
            "CREATE TRIGGER full BEFORE INSERT ON vital BEGIN SELECT RAISE(ABORT, 'disk full'); END"
        )
    with pytest.raises(FleetStoreUnavailable, match="disk full"):
        ingest(store, lines)
    assert stored(store) == [1]
    with store.write() as connection:
        connection.exec_driver_sql("DROP TRIGGER full")
    assert ingest(store, lines).new == 2


def test_a_store_from_a_backup_counts_less_and_takes_the_lines_again(
    store: Database, camera: SigningDevice, microphone: SigningDevice, tmp_path: Path
) -> None:
    lines = four_reports(camera)
    ingest(store, lines[:2])
    store.close()
    backup = (tmp_path / "fleet.db").read_bytes()
    ingest(store, lines[2:])
    store.close()
    for name in ("fleet.db-wal", "fleet.db-shm"):
        (tmp_path / name).unlink(missing_ok=True)
    (tmp_path / "fleet.db").write_bytes(backup)
    again = Database(f"sqlite:{tmp_path / 'fleet.db'}", REPOSITORY)
    answer = ingest(again, [camera.vital()]).logs[camera.log]
    assert answer.highest == 2, "the device reads from the answer that it must send reports 3 and 4 again"
    assert ingest(again, lines[2:]).new == 2


def test_a_store_that_is_not_ours_is_refused(store: Database, tmp_path: Path) -> None:
    with pytest.raises(FleetStoreInvalid, match="found repository"):
        Database(f"sqlite:{tmp_path / 'fleet.db'}", "9" * 64)
    for url in ("mysql://localhost/fleet", "nonsense", "redis:6379"):
        with pytest.raises(FleetStoreInvalid):
            Database(url, REPOSITORY)
    (tmp_path / "text.db").write_text("this is no database\n" * 99)
    with pytest.raises(FleetStoreUnavailable, match="not a database"):
        Database(f"sqlite:{tmp_path / 'text.db'}", REPOSITORY)
    with pytest.raises(FleetStoreUnavailable, match="unable to open"):
        Database(f"sqlite:{tmp_path / 'no-folder' / 'fleet.db'}", REPOSITORY)


def test_two_lines_of_one_device_may_be_of_two_families(store: Database, camera: SigningDevice) -> None:
    lines = [camera.report(), SigningDevice("camera").report(log="7" * 32, family="sounds")]
    assert ingest(store, lines).new == 2
    with store.read() as connection:
        assert len(connection.execute(select(REPORT.c.family).distinct()).all()) == 2
        assert connection.execute(select(VITAL.c.number)).all() == []


def test_a_log_belongs_to_one_family(store: Database, camera: SigningDevice, microphone: SigningDevice) -> None:
    """A device that signs reports of two families in one log is suspect; the lines of others are stored."""
    first = camera.report()
    camera.reports.clear()
    same_number, other = camera.report(family="wakeword"), microphone.report()
    result = ingest(store, [first, same_number, other])
    assert (result.new, reasons(result)) == (2, ["line-forked"])
    assert ingest(store, [same_number]).forks == 1
    assert tally(store, "suspect") == {("1.0.0", "suspect"): 1}


def test_a_reason_that_no_store_has_room_for_is_refused(store: Database, camera: SigningDevice) -> None:
    changes = {"outcome": "rolled-back", "state": "probation"}
    assert reasons(ingest(store, [camera.report(**changes, reason="a" * 65)])) == ["malformed"]
