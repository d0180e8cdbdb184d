"""Applications borrow the verified files of a release; strangers borrow nothing."""

import contextlib
import fcntl
import json
import os
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from bundle.contract import Health
from bundle.errors import AirweightsError
from bundle.files import BundleFile
from device_agent.apps.access import ClientProcess, FamilyAccess
from device_agent.apps.app_socket import MAX_CONNECTIONS_PER_USER
from device_agent.apps.client import AppClient
from device_agent.apps.lender import MAX_GENERATIONS, FileLender
from device_agent.apps.protocol import parse_request
from device_agent.errors import DaemonNotRunning, FileUnknown, LendLimitReached, NotAllowed
from device_agent.policy.app_verdicts import HEALTH_COMMAND, AppVerdict, AppVerdicts, judge_verdicts, summarize_verdicts
from device_agent.policy.attempt import Outcome
from device_agent.policy.journal_records import BundleRecord
from device_agent.policy.probation import ProbationAction, ProbationLimits
from device_agent.policy.serving_counts import ProbationVerdict
from device_agent.process.channel import receive_message, send_message
from device_agent.runtime.bundle_fds import MEMFD_SEALS, create_sealed_memfd
from device_agent.update.health_command import HealthCommand
from tests.support.app_lab import WEIGHTS, app_lab, release, socket_path
from tests.support.json_schemas import check_schema
from tests.support.load_clients import wait_until
from tests.support.plaintext_search import contains_any, distinctive_windows
from tests.support.publisher import FAMILY, DeviceUnderTest, Publisher

NOBODY = 65534


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Publisher, DeviceUnderTest]]:
    """Yield a publisher of 1.0.0 and a device that is not updated yet; the tests of the module run in order."""
    with app_lab(tmp_path_factory.mktemp("apps")) as lab:
        yield lab


def test_without_a_daemon_the_release_is_committed_and_its_files_are_read(
    lab: tuple[Publisher, DeviceUnderTest],
) -> None:
    _, device = lab
    result = device.update()
    assert (result.outcome, result.attempt.release) == (Outcome.UPDATED, "1.0.0")
    assert device.command("files", "cat", "labels").stdout == "one\ntwo\n"
    assert device.command("files", "cat", "labels/words.txt", "--family", FAMILY).stdout == "one\ntwo\n"
    listed = json.loads(device.command("files", "list", "--json").stdout)
    check_schema("agent-files-list", listed)
    assert [(row["path"], row["role"], row["size"]) for row in listed["files"]] == [
        ("labels/words.txt", "labels", 8),
        ("model/weights.bin", "model", len(WEIGHTS)),
    ]
    missing = device.command("files", "cat", "tokenizer")
    assert missing.returncode == 2
    assert "has no file 'tokenizer'" in missing.stderr
    windows = distinctive_windows(WEIGHTS)
    assert contains_any(WEIGHTS, windows)
    stored = [path for path in device.folder.rglob("*") if path.is_file()]
    assert not any(contains_any(path.read_bytes(), windows) for path in stored)


def test_the_daemon_lends_sealed_memory_with_an_offset_of_its_own(lab: tuple[Publisher, DeviceUnderTest]) -> None:
    _, device = lab
    device.start()
    with AppClient(socket_path(device)) as first, AppClient(socket_path(device)) as second:
        with first.open(FAMILY) as one, second.open(FAMILY, roles=["labels"]) as two:
            assert set(two.fds) == {"labels/words.txt"}
            assert one.read("labels") == two.read("words.txt") == b"one\ntwo\n"
            assert len(one.read("model")) == len(WEIGHTS)
            mine, theirs = one.fds["labels/words.txt"], two.fds["labels/words.txt"]
            assert fcntl.fcntl(mine, fcntl.F_GET_SEALS) & MEMFD_SEALS == MEMFD_SEALS
            os.lseek(mine, 4, os.SEEK_SET)
            assert os.lseek(theirs, 0, os.SEEK_CUR) == 0
            with pytest.raises(OSError):
                os.write(mine, b"x")
            with pytest.raises(OSError):
                os.write(os.open(f"/proc/self/fd/{mine}", os.O_RDWR), b"x")
        with pytest.raises(FileUnknown):
            first.open(FAMILY, paths=["labels/other.txt"])
        with pytest.raises(NotAllowed):
            first.open("other-family")
    shown = device.command("files", "exec", "--", "cat", "{labels}")
    assert shown.stdout == "one\ntwo\n", shown.stderr
    assert "lending 1.0.0 to applications" in device.command("status").stdout


def test_a_watching_application_follows_update_and_rollback(lab: tuple[Publisher, DeviceUnderTest]) -> None:
    publisher, device = lab
    with AppClient(socket_path(device)) as client:
        events = client.watch(FAMILY)
        assert (now := next(events)) is not None
        assert now.release == "1.0.0"
        release(publisher, "1.1.0", "one\ntwo\nthree\n")
        updated = device.call("update")
        assert (updated["outcome"], updated["release"]) == ("updated", "1.1.0")
        assert updated["downloaded"]["patch"] < len(WEIGHTS) / 20  # a patch, not the files
        assert (after := next(events)) is not None
        assert (after.release, after.generation > now.generation) == ("1.1.0", True)
        assert device.command("files", "cat", "labels").stdout == "one\ntwo\nthree\n"
        assert device.call("rollback")["outcome"] == "rolled-back"
        assert (back := next(events)) is not None
        assert back.release == "1.0.0"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_another_user_borrows_only_what_the_owner_allows(lab: tuple[Publisher, DeviceUnderTest]) -> None:
    _, device = lab
    path = socket_path(device)
    for folder in path.parents:
        if folder.stat().st_mode & 0o001 == 0:
            folder.chmod(folder.stat().st_mode | 0o001)
    assert ask_as(NOBODY, path)["error"]["reason"] == "not-allowed"


def ask_as(user: int, path: Path) -> dict[str, Any]:
    """Return the reply to an open request of a child process of another user."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        try:
            os.setgroups([])
            os.setgid(user)
            os.setuid(user)
            with socket.socket(socket.AF_UNIX) as connection:
                connection.connect(str(path))
                send_message(connection, {"version": 1, "command": "open", "family": FAMILY})
                os.write(writing, json.dumps(receive_message(connection).value).encode())
        finally:
            os._exit(0)
    os.close(writing)
    with open(reading, "rb") as stream:
        data = stream.read()
    os.waitpid(child, 0)
    return dict(json.loads(data))


@pytest.mark.parametrize(
    "data", [b"\xff" * 64, struct.pack(">I", 1 << 30), struct.pack(">I", 2) + b"[]", b"GET / HTTP"]
)
def test_nonsense_ends_the_connection_and_nothing_else(lab: tuple[Publisher, DeviceUnderTest], data: bytes) -> None:
    _, device = lab
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(socket_path(device)))
        connection.settimeout(60)
        connection.sendall(data)
        with contextlib.suppress(ConnectionResetError):  # what was not read yet is lost
            assert connection.recv(1) == b""
    with AppClient(socket_path(device)) as client:
        assert client.list(FAMILY).release.release == "1.0.0"


@pytest.mark.parametrize(
    "request_fields",
    [
        {},
        {"version": 2, "command": "list", "family": "kws"},
        {"version": 1, "command": "update", "family": "kws"},
        {"version": 1, "command": "open", "family": "../kws"},
        {"version": 1, "command": "open", "family": "kws", "paths": ["../../etc/shadow"]},
        {"version": 1, "command": "list", "family": "kws", "more": 1},
        {"version": 1, "command": "verdict", "family": "kws", "bundle": "a" * 64, "is_healthy": "yes"},
    ],
)
def test_requests_are_parsed_strictly(request_fields: dict[str, object]) -> None:
    with pytest.raises(AirweightsError) as caught:
        parse_request(request_fields)
    assert caught.value.reason == "malformed"


@pytest.mark.parametrize(("on_swap", "last"), [("restart", "six"), ("signal", "hang up")])
def test_a_program_is_started_again_or_signaled_when_another_release_serves(
    lab: tuple[Publisher, DeviceUnderTest], on_swap: str, last: str
) -> None:
    publisher, device = lab
    script = "trap 'echo hang up; exit 7' HUP; cat {labels}; while ! grep -q six {labels}; do sleep 0.1; done; exit 5"
    words = ["files", "exec", "--on-swap", on_swap, "--", "sh", "-c", script]
    command = ["nohup", sys.executable, "-m", "device_agent", "--config", str(device.config_path), *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as program:
        assert program.stdout is not None
        lines = [program.stdout.readline()]
        publish_next(publisher, device, "six\n")
        lines += program.stdout.readlines()
    assert program.returncode == {"restart": 5, "signal": 7}[on_swap]
    assert lines[-1].strip() == last, lines
    publish_next(publisher, device, "seven\n")


def publish_next(publisher: Publisher, device: DeviceUnderTest, words: str) -> None:
    """Publish and install the next release."""
    version = f"2.{len(publisher.repository.releases(FAMILY))}.0"
    release(publisher, version, words)
    assert device.call("update")["outcome"] == "updated"


def test_one_user_cannot_take_all_connections(lab: tuple[Publisher, DeviceUnderTest]) -> None:
    _, device = lab
    with ExitStack() as stack:
        clients = [stack.enter_context(AppClient(socket_path(device))) for _ in range(MAX_CONNECTIONS_PER_USER)]
        assert clients[-1].list(FAMILY).files
        with AppClient(socket_path(device)) as one_more, pytest.raises(DaemonNotRunning):
            one_more.list(FAMILY)
    for _ in range(600):  # the server notices the end of a connection a moment later
        with contextlib.suppress(DaemonNotRunning), AppClient(socket_path(device)) as client:
            client.list(FAMILY)
            return
        time.sleep(0.1)
    pytest.fail("the closed connections still count")


def make_record(version: str) -> BundleRecord:
    digest = version.encode().hex().ljust(64, "0")
    return BundleRecord(digest, FAMILY, version, 1, 0, "all", "{}")  # type: ignore[arg-type]  # a digest by its form


def open_descriptors() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def test_a_client_holds_two_generations_and_no_third() -> None:
    unsealed: list[tuple[str, ...]] = []

    def unseal(bundle: BundleRecord, paths: object) -> dict[str, int]:
        assert isinstance(paths, list)
        unsealed.append(tuple(paths))
        return {path: create_sealed_memfd("test", bundle.version.encode()) for path in paths}

    lender = FileLender(unseal, keep_s=0)
    files = [BundleFile("a.txt", "labels", 5, "0" * 64)]
    records = [make_record(f"1.{n}.0") for n in range(MAX_GENERATIONS + 1)]
    before = open_descriptors()
    for connection, record in enumerate(records[:-1]):
        for fd in lender.borrow(record, files, connection, pid=7):
            os.close(fd)
    with pytest.raises(LendLimitReached):
        lender.borrow(records[-1], files, 9, pid=7)
    assert lender.held_bytes() == {7: 5 * MAX_GENERATIONS}
    for fd in lender.borrow(records[-1], files, 10, pid=8):
        os.close(fd)
    lender.give_back(0)
    for fd in lender.borrow(records[-1], files, 9, pid=7):
        os.close(fd)
    assert len(unsealed) == MAX_GENERATIONS + 1  # the third generation was in memory already
    for connection in (1, 9, 10):
        lender.give_back(connection)
    assert not lender.held_bytes()
    assert open_descriptors() == before


def test_files_without_a_borrower_stay_for_a_while_and_one_release_at_most() -> None:
    unsealed: list[str] = []

    def unseal(bundle: BundleRecord, paths: object) -> dict[str, int]:
        unsealed.append(bundle.version)
        return {"a.txt": create_sealed_memfd("test", b"12345")}

    files, (first, second) = [BundleFile("a.txt", "labels", 5, "0" * 64)], (make_record("1.0.0"), make_record("1.1.0"))
    before = open_descriptors()
    lender = FileLender(unseal, keep_s=300)
    for number, record in enumerate((first, first, second, first)):
        for fd in lender.borrow(record, files, number, pid=7):
            os.close(fd)
        lender.give_back(number)
        assert not lender.held_bytes()  # nobody's
        assert open_descriptors() == before + 1
    assert unsealed == ["1.0.0", "1.1.0", "1.0.0"]
    lender.close()
    assert open_descriptors() == before
    lender = FileLender(unseal, keep_s=0.01)
    for number in range(3):
        for fd in lender.borrow(first, files, number, pid=7):
            os.close(fd)
        lender.give_back(number)
        wait_until(lambda: open_descriptors() == before)


def test_only_the_first_verdict_of_each_judge_counts() -> None:
    verdicts = AppVerdicts(["user:a", "user:b"])
    verdicts.begin(3)
    assert not verdicts.add(2, AppVerdict("user:a", is_healthy=False))
    assert verdicts.add(3, AppVerdict("user:a", is_healthy=True))
    assert not verdicts.add(3, AppVerdict("user:a", is_healthy=False))
    assert (verdicts.unhealthy(), verdicts.are_complete()) == (None, False)
    assert verdicts.add(3, AppVerdict("user:b", is_healthy=False, reason="noise"))
    assert verdicts.are_complete()
    assert (found := verdicts.unhealthy()) is not None
    assert found.reason == "noise"
    verdicts.begin(4)
    assert not verdicts.all()
    assert not AppVerdicts([]).are_complete()


def test_rights_follow_user_group_and_unit() -> None:
    me = ClientProcess(7, 1234, frozenset({5678, 9}), "doorbell.service")
    assert FamilyAccess(readers=("user:1234",)).may_read(me)
    assert FamilyAccess(readers=("group:9",)).may_read(me)
    assert FamilyAccess(readers=("unit:doorbell.service",)).may_read(me)
    assert FamilyAccess(judges=("group:5678",)).may_read(me)
    assert not FamilyAccess(
        readers=("user:1235", "group:5679", "user:no-such-user", "group:no-such-group", "unit:x.service")
    ).may_read(me)
    assert FamilyAccess(readers=("user:1234",)).judge_of(me) is None
    assert FamilyAccess(judges=("user:1", "group:5678")).judge_of(me) == "group:5678"
    assert FamilyAccess().may_read(ClientProcess(1, 0, frozenset()))


def test_the_kernel_names_the_process_at_the_other_end() -> None:
    mine, other = socket.socketpair()
    with mine, other:
        found = ClientProcess.of(mine)
    assert (found.pid, found.uid) == (os.getpid(), os.getuid())
    assert found.groups == {os.getgid(), *os.getgroups()}


def test_each_judge_must_answer_and_one_unhealthy_verdict_is_enough() -> None:
    limits = ProbationLimits.from_health(Health(inconclusive="rollback"), window_s=60, min_requests=None)
    verdicts = AppVerdicts(["user:a", "user:b"])
    verdicts.begin(1)
    assert judge_verdicts(limits, verdicts, 1.0).action is ProbationAction.WATCH
    verdicts.add(1, AppVerdict("user:a", is_healthy=True))
    assert judge_verdicts(limits, verdicts, 59.0).action is ProbationAction.WATCH
    assert judge_verdicts(limits, verdicts, 60.0).action is ProbationAction.INCONCLUSIVE
    commits = ProbationLimits.from_health(Health(), window_s=60, min_requests=None)
    assert judge_verdicts(commits, verdicts, 60.0).is_inconclusive
    assert summarize_verdicts(verdicts, 60.0).verdict is ProbationVerdict.INCONCLUSIVE
    verdicts.add(1, AppVerdict("user:b", is_healthy=True))
    assert judge_verdicts(limits, verdicts, 2.0).action is ProbationAction.COMMIT
    assert summarize_verdicts(verdicts, 2.0).text == "2 verdicts in 2 s, 0 unhealthy"
    verdicts.begin(2)
    verdicts.add(2, AppVerdict("user:a", is_healthy=False, reason="too slow"))
    decision = judge_verdicts(limits, verdicts, 1.0)
    assert (decision.action, decision.detail) == (ProbationAction.ROLL_BACK, "user:a judges it unhealthy: too slow")


def test_a_judge_decides_about_a_release_that_its_application_runs(lab: tuple[Publisher, DeviceUnderTest]) -> None:
    publisher, device = lab
    release(publisher, "1.2.0", "four\n", runtime="app")
    release(publisher, "1.3.0", "five\n", runtime="app")
    with AppClient(socket_path(device)) as watcher:
        events = watcher.watch(FAMILY)
        next(events)
        for version, is_healthy, outcome in (("1.2.0", True, "updated"), ("1.3.0", False, "rolled-back")):
            publisher.offer(version)
            with ThreadPoolExecutor(1) as pool:
                update = pool.submit(device.call, "update")
                serving = next(found for found in events if found is not None and found.release == version)
                with AppClient(socket_path(device)) as judge, judge.open(FAMILY) as bundle:
                    assert bundle.release == serving
                    assert judge.send_verdict(bundle, is_healthy=is_healthy, reason="" if is_healthy else "all noise")
                    assert not judge.send_verdict(bundle, is_healthy=True)
                result = update.result(120)
            assert (result["outcome"], result["release"]) == (outcome, version), result
            assert result["probation"]["unit"] == "verdicts"
        assert result["detail"].endswith("user:root judges it unhealthy: all noise")
        assert (back := next(events)) is not None
        assert back.release == "1.2.0"
    assert device.command("files", "cat", "labels").stdout == "four\n"


def test_a_command_of_the_owner_decides_about_a_release(lab: tuple[Publisher, DeviceUnderTest], tmp_path: Path) -> None:
    publisher, device = lab
    check = tmp_path / "check"
    code = (
        "import os, sys, airweights\n"
        "with airweights.open_bundle(os.environ['AIRWEIGHTS_FAMILY']) as bundle:\n"
        "    words = bundle.read('labels').decode()\n"
        "    assert bundle.release.release == os.environ['AIRWEIGHTS_RELEASE'], bundle.release\n"
        "print('found', words.strip())\n"
        "sys.exit(words == 'seven\\n')\n"
    )
    check.write_text(f"#!{sys.executable}\nimport sys\nsys.path[:0] = {sys.path!r}\n{code}")
    check.chmod(0o755)
    before = device.config_path.read_text()
    settings = before.replace('judges = ["user:root"]', f'health_command = ["{check}"]')
    assert settings != before
    device.stop()
    device.config_path.write_text(settings)
    device.start()
    try:
        release(publisher, "1.6.0", "six\n", runtime="app")
        release(publisher, "1.7.0", "seven\n", runtime="app")
        publisher.offer("1.6.0")
        good = device.call("update")
        assert (good["outcome"], good["probation"]["verdict"], good["probation"]["unit"]) == (
            "updated",
            "passed",
            "verdicts",
        ), good
        publisher.offer("1.7.0")
        bad = device.call("update")
        assert bad["outcome"] == "rolled-back", bad
        assert bad["detail"].endswith("health_command judges it unhealthy: exit status 1: found seven")
        assert device.command("files", "cat", "labels").stdout == "six\n"
    finally:
        device.stop()
        device.config_path.write_text(before)
        device.start()


def test_a_client_finds_socket_and_family_in_its_environment(lab: tuple[Publisher, DeviceUnderTest]) -> None:
    _, device = lab
    variables = {**os.environ, "AIRWEIGHTS_APPS_SOCKET": str(socket_path(device))}
    device.config_path.rename(device.config_path.with_suffix(".away"))  # an application may not be able to read it
    try:
        assert "config.toml: No such file" in _list_files(device, variables).stderr
        assert "--socket needs --family" in _list_files(device, variables, "--socket", str(socket_path(device))).stderr
        found = _list_files(device, {**variables, "AIRWEIGHTS_FAMILY": FAMILY})
        assert found.stdout.startswith(f"{FAMILY} "), found.stderr
        unknown = _list_files(device, {**variables, "AIRWEIGHTS_FAMILY": FAMILY}, "--family", "other")
        assert unknown.returncode == 3, unknown.stderr  # the option counts, not the variable
    finally:
        device.config_path.with_suffix(".away").rename(device.config_path)


def _list_files(device: DeviceUnderTest, variables: dict[str, str], *words: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "device_agent", "--config", str(device.config_path), "files", "list", *words]
    return subprocess.run(command, env=variables, capture_output=True, text=True, check=False)


def _run_health_command(words: tuple[str, ...], seconds: float = 60, mark: Path | None = None) -> AppVerdict | None:
    """Run a command as a probation does, and return its verdict, or None if it has none after a time.

    Args:
        words: of the command.
        seconds: the time.
        mark: a file; the time begins when the command has written to it.
    """
    verdicts = AppVerdicts((HEALTH_COMMAND,))
    verdicts.begin(3)
    command = HealthCommand(words, make_record("1.0.0"), Path("/run/apps.sock"))
    try:
        wait_until(lambda: mark is None or (mark.exists() and mark.read_text()))
        end = time.monotonic() + seconds
        while not verdicts.all() and time.monotonic() < end:
            command.poll(verdicts, 3)
            time.sleep(0.01)
    finally:
        command.close()
    return next(iter(verdicts.all()), None)


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("exit 0", None),
        ("echo one; echo two >&2; exit 3", "exit status 3: two"),
        ("kill -TERM $$", "signal SIGTERM: it printed nothing"),
        ("kill -40 $$", "signal 40: it printed nothing"),
        ("printf 'red \\033[31m'; exit 1", "exit status 1: red \\x1b[31m"),
        ("head -c 1000000 /dev/zero | tr '\\0' x; exit 1", "exit status 1: " + 200 * "x"),
        ('test -z "$HOME" && test "$AIRWEIGHTS_APPS_SOCKET" = /run/apps.sock', None),
    ],
)
def test_the_exit_status_of_a_command_is_its_verdict(script: str, reason: str | None) -> None:
    verdict = _run_health_command(("/bin/sh", "-c", script))
    assert verdict == AppVerdict(HEALTH_COMMAND, is_healthy=reason is None, reason=reason or "")


def test_a_command_that_cannot_start_is_unhealthy_and_one_that_does_not_end_says_nothing(tmp_path: Path) -> None:
    verdict = _run_health_command((f"{tmp_path}/none",))
    assert verdict is not None
    assert verdict.reason == f"{tmp_path}/none cannot be started: No such file or directory"
    mark = tmp_path / "pid"
    assert _run_health_command(("/bin/sh", "-c", f"echo $$ > {mark}; sleep 600 & wait"), 1, mark) is None
    assert not Path(f"/proc/{mark.read_text().strip()}").exists()
    assert _run_health_command(("/usr/bin/yes",), seconds=1) is None, "one that never stops printing holds nothing up"
