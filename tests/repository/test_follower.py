"""The follower halts and advances planned rollouts from signed lines, once, and anyone can compute why."""

import gzip
import json
import socket
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from fleet.line import ReceivedLine
from packager.errors import CensusDamaged, EvidenceMismatch, LinesMalformed, NoPlan, NotificationFailed
from packager.follow.evidence import recompute
from packager.follow.follower import Follower
from packager.follow.lines import FileLines
from packager.follow.notify import notify
from tests.support.fleet_devices import SigningDevice
from tests.support.json_schemas import check_schema
from tests.support.metadata_publisher import CHANNEL, FAMILY, PASSPHRASE, MetadataPublisher
from tests.support.packager_cli import run_packager
from tests.support.planned_fleet import BEGAN, DAY, NEW, OLD, PlannedFleet


@pytest.fixture(scope="module")
def devices() -> list[SigningDevice]:
    return [SigningDevice(f"device-{number}") for number in range(600)]


@pytest.fixture
def fleet(publisher: MetadataPublisher, devices: list[SigningDevice]) -> PlannedFleet:
    planned = PlannedFleet(publisher, devices)
    planned.roll_out()
    for device in planned.devices:
        planned.send(-3_600, device.vital(**OLD, **planned.common))
    return planned


def evidence_files(fleet: PlannedFleet) -> list[Path]:
    return sorted((fleet.repository.layout.root / "evidence" / f"{FAMILY}.{CHANNEL}").glob("*"))


def test_a_halt_is_signed_with_the_digest_of_its_evidence_and_never_lifted(fleet: PlannedFleet) -> None:
    follower = fleet.follower()
    assert follower.step(now_s=BEGAN + 500)[0].published is None
    fleet.fail(fleet.exposed[:14])
    found = follower.step(now_s=BEGAN + 700)[0]
    assert found.published is not None
    assert fleet.current == replace(fleet.rollout, halted=True, note=f"halt, failures: evidence {found.evidence}")
    fleet.succeed(fleet.exposed[14:])
    fleet.serve_on()
    after = follower.step(now_s=BEGAN + DAY + 60)[0]
    assert (after.published, fleet.current.halted) == (None, True)
    look, digest = recompute(evidence_files(fleet)[0], fleet.repository.registry_path)
    assert (look.decision.word, look.counts.whole.bad, digest) == ("halt", 14, found.evidence)
    assert set(look.bad_devices) == {device.device_id for device in fleet.exposed[:14]}


def test_evidence_that_was_changed_is_refused(fleet: PlannedFleet, tmp_path: Path) -> None:
    fleet.fail(fleet.exposed[:14])
    fleet.follower().step(now_s=BEGAN + 700)
    rows = gzip.decompress(evidence_files(fleet)[0].read_bytes()).splitlines(keepends=True)
    changed = tmp_path / "changed.jsonl.gz"
    changed.write_bytes(gzip.compress(b"".join(row for row in rows if b"rolled-back" not in row)))
    with pytest.raises(EvidenceMismatch):
        recompute(changed, fleet.repository.registry_path)
    changed.write_bytes(gzip.compress(b"".join(rows[:-1])))
    with pytest.raises(LinesMalformed):
        recompute(changed, fleet.repository.registry_path)


def test_complete_devices_advance_the_rollout_inside_the_plan(fleet: PlannedFleet) -> None:
    fleet.succeed(fleet.exposed)
    fleet.serve_on()
    assert fleet.follower(dry_run=True).step(now_s=BEGAN + DAY + 60)[0].rollout is not None
    assert fleet.current == fleet.rollout, "a dry run publishes nothing"
    assert not evidence_files(fleet)
    found = fleet.follower().step(now_s=BEGAN + DAY + 60)[0]
    assert (fleet.current.percent_bp, fleet.current.raised_s) == (10_000, BEGAN + DAY + 60)
    assert fleet.current.note == f"go, evidence: evidence {found.evidence}"
    assert recompute(evidence_files(fleet)[0], fleet.repository.registry_path)[0].decision.word == "go"


def test_lines_that_nobody_signed_change_nothing(fleet: PlannedFleet) -> None:
    stranger = SigningDevice("stranger")
    for device in fleet.exposed[:20]:
        stranger.device_id = device.device_id  # the collector knows ids, and has no key
        report = stranger.report(**NEW, **fleet.common, outcome="rolled-back", state="probation", reason="nan-output")
        fleet.send(600, report)
    found = fleet.follower().step(now_s=BEGAN + 700)[0]
    assert found.published is None
    assert found.look is not None
    assert found.look.refused == {"line-signature-invalid": 20}
    assert found.look.counts.whole.bad == 0


def test_a_collector_that_hides_the_exposed_devices_halts_and_one_that_hides_all_asks(fleet: PlannedFleet) -> None:
    found = fleet.follower().step(now_s=BEGAN + DAY + 60)[0]
    assert found.look is not None
    assert (found.look.decision.word, found.look.decision.reason) == ("ask", "no-vitals")
    fleet.serve_on()
    found = fleet.follower().step(now_s=BEGAN + DAY + 60)[0]
    assert found.look is not None
    assert (found.look.decision.word, found.look.decision.reason) == ("halt", "silence")


def test_a_collector_cannot_take_failed_devices_out_of_the_census(fleet: PlannedFleet) -> None:
    fleet.follower().step(now_s=BEGAN + 30)
    hidden = {device.device_id for device in fleet.exposed[:20]}
    fleet.lines = [line for line in fleet.lines if json.loads(line.data)["device_id"] not in hidden]
    fleet.succeed(fleet.exposed[20:])
    fleet.serve_on()
    found = fleet.follower().step(now_s=BEGAN + DAY + 60)[0]
    assert found.look is not None
    assert (found.look.counts.whole.exposed, found.look.counts.whole.silent) == (len(fleet.exposed), 20)
    assert (found.look.decision.word, found.look.decision.reason) == ("halt", "silence")
    look, digest = recompute(evidence_files(fleet)[0], fleet.repository.registry_path)
    assert (look.counts, digest) == (found.look.counts, found.evidence)


def test_devices_whose_old_lines_appear_later_are_not_counted(fleet: PlannedFleet) -> None:
    late = fleet.exposed[:100]
    old = [line for line in fleet.lines if json.loads(line.data)["device_id"] in {one.device_id for one in late}]
    fleet.lines = [line for line in fleet.lines if line not in old]
    fleet.follower().step(now_s=BEGAN + 30)
    fleet.lines += old
    found = fleet.follower().step(now_s=BEGAN + 600)[0]
    assert found.look is not None
    assert found.look.counts.whole.exposed == len(fleet.exposed) - 100


def test_a_damaged_list_of_members_is_refused(fleet: PlannedFleet) -> None:
    fleet.follower().step(now_s=BEGAN + 30)
    path = fleet.repository.layout.root / "census" / f"{FAMILY}.{CHANNEL}.members"
    data = path.read_bytes()
    assert len(data.splitlines()) == 1 + len(fleet.devices)
    for damaged in (data[:-10], data[:-66], data.replace(b"members/1", b"members/2"), b"nonsense\n", b"\n"):
        path.write_bytes(damaged)
        with pytest.raises(CensusDamaged):
            fleet.follower().step(now_s=BEGAN + 60)


def test_of_two_followers_one_publishes_and_the_other_is_told(fleet: PlannedFleet) -> None:
    fleet.fail(fleet.exposed[:14])
    first = fleet.follower()

    def read_while_the_other_acts(family: str, since_s: int) -> Iterator[ReceivedLine]:
        del second_source.read
        first.step(now_s=BEGAN + 700)
        return fleet.read(family, since_s)

    second_source = Source(fleet)
    second = Follower(fleet.repository, second_source, fleet.publisher.signers)
    second_source.read = read_while_the_other_acts  # type: ignore[method-assign]
    lost = second.step(now_s=BEGAN + 701)[0]
    assert lost.published is None
    assert "has changed since it was read" in lost.problem
    assert second.step(now_s=BEGAN + 702)[0].problem == ""
    assert fleet.current.halted


class Source:
    """The lines of a fleet; a test can put another `read` in front."""

    def __init__(self, fleet: PlannedFleet) -> None:
        self._fleet = fleet

    def read(self, family: str, since_s: int) -> Iterator[ReceivedLine]:
        return self._fleet.read(family, since_s)


def test_people_are_called_once_for_each_cause(fleet: PlannedFleet, tmp_path: Path) -> None:
    out = tmp_path / "calls"
    script = f"import sys; open({str(out)!r}, 'a').write(sys.stdin.read())"
    (tmp_path / "call.py").write_text(script)
    follower = fleet.follower(target=f"{sys.executable} {tmp_path / 'call.py'}")
    for seconds in (60, 120, 180):
        follower.step(now_s=BEGAN + DAY + seconds)
    fleet.fail(fleet.exposed[:14])
    follower.step(now_s=BEGAN + DAY + 240)
    follower.step(now_s=BEGAN + DAY + 300)
    events = [json.loads(line)["event"] for line in out.read_text().splitlines()]
    assert events == ["stale-collector", "ask", "halt"]


def test_a_collector_that_is_silent_again_is_a_new_cause(fleet: PlannedFleet, tmp_path: Path) -> None:
    out = tmp_path / "calls"
    (tmp_path / "call.py").write_text(f"import sys; open({str(out)!r}, 'a').write(sys.stdin.read())")
    follower = fleet.follower(target=f"{sys.executable} {tmp_path / 'call.py'}")
    for at in (2 * DAY, 2 * DAY + 60):
        follower.step(now_s=BEGAN + at)
    fleet.serve_on(2 * DAY + 120)
    for at in (2 * DAY + 180, 4 * DAY, 4 * DAY + 60):
        follower.step(now_s=BEGAN + at)
    events = [json.loads(line)["event"] for line in out.read_text().splitlines()]
    assert events.count("stale-collector") == 2


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("http://127.0.0.1:9/hooks/s3cret?key=s3cret", "127.0.0.1"),
        ("http://user:s3cret@127.0.0.1:9/", "127.0.0.1"),
        ("http://127.0.0.1:9/ s3cret", "InvalidURL"),
        ("http://[s3cret", "ValueError"),
        ("false --password s3cret", "status 1"),
        ("/nonexistent/program s3cret", "No such file"),
        ("'s3cret", "ValueError"),
        ("", "empty command"),
    ],
)
def test_a_notification_that_fails_names_no_secret(target: str, words: str) -> None:
    with pytest.raises(NotificationFailed, match=words) as failed:
        notify(target, {"event": "halt"})
    assert "s3cret" not in failed.value.message


def test_an_answer_that_is_no_http_is_a_failed_notification() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(65_536)
                connection.sendall(b"nonsense\r\n\r\n")

        thread = threading.Thread(target=answer)
        thread.start()
        with pytest.raises(NotificationFailed, match="BadStatusLine"):
            notify(f"http://127.0.0.1:{server.getsockname()[1]}/", {"event": "halt"})
        thread.join(60)


def test_a_line_from_the_future_hides_no_later_ones(fleet: PlannedFleet) -> None:
    follower = fleet.follower()
    fleet.send(30 * DAY, fleet.control[0].vital(**OLD, **fleet.common))  # the collector's clock was ahead
    assert follower.step(now_s=BEGAN + 500)[0].published is None
    fleet.fail(fleet.exposed[:14])
    assert follower.step(now_s=BEGAN + 7_000)[0].published is not None
    assert fleet.current.halted


def test_bytes_that_are_no_text_in_the_store_do_not_stop_a_halt(fleet: PlannedFleet) -> None:
    fleet.fail(fleet.exposed[:14])
    fleet.send(600, b"\xff\xfe")
    found = fleet.follower().step(now_s=BEGAN + 700)[0]
    assert found.published is not None
    assert recompute(evidence_files(fleet)[0], fleet.repository.registry_path)[0].decision.word == "halt"


def test_a_channel_without_a_plan_is_not_followed(publisher: MetadataPublisher) -> None:
    publisher.release("1.1.0", 2)
    follower = Follower(publisher.repository, FileLines(Path("/nonexistent")), publisher.signers)
    assert follower.step() == []
    with pytest.raises(NoPlan):
        follower.step([(FAMILY, CHANNEL)])


def test_the_command_line_follows_and_says_why(fleet: PlannedFleet, tmp_path: Path) -> None:
    fleet.fail(fleet.exposed[:14])
    rows = [json.dumps({"received_s": line.received_s, "line": line.data.decode()}) for line in fleet.lines]
    lines = tmp_path / "lines.jsonl"
    lines.write_text("\n".join(rows) + "\n")
    repo = ("--repo", str(fleet.repository.layout.root), "--json")
    why = run_packager("rollout", "why", FAMILY, CHANNEL, "--lines", str(lines), *repo).json
    check_schema("rollout-why", why)
    assert why["decision"]["word"] == "halt"
    keys = ("--keys", str(fleet.publisher.keys), "--passphrase-file", str(_passphrase(tmp_path)))
    done = run_packager("rollout", "follow", "--once", "--lines", str(lines), *keys, *repo).json
    check_schema("rollout-follow", done)
    assert done["actions"][0]["rollout"]["halted"] is True
    file = evidence_files(fleet)[0]
    again = run_packager("rollout", "why", "--evidence", str(file), *repo).json
    check_schema("rollout-why", again)
    assert again["is_named_by_rollout"] is True
    assert again["decision"]["word"] == "halt"


def _passphrase(folder: Path) -> Path:
    path = folder / "passphrase"
    path.write_bytes(PASSPHRASE.value)
    path.chmod(0o600)
    return path


def test_a_damaged_file_of_lines_is_refused(fleet: PlannedFleet, tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    surrogate = f'{{"received_s":1,"line":"\\"family\\":\\"{FAMILY}\\"\\ud800"}}\n'
    nested = "[" * 200_000 + "\n"
    for text in ("nonsense\n", "[]\n", '{"received_s":1.5,"line":""}\n', '{"received_s":1}\n', surrogate, nested):
        path.write_text(text)
        with pytest.raises(LinesMalformed):
            list(FileLines(path).read(FAMILY, 0))
