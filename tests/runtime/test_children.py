"""Workers: calls, errors, events, requests and descriptors are exchanged; crashes and timeouts are reported."""

import fcntl
import logging
import os
import select
import threading
import time
from pathlib import Path

import pytest

from bundle.errors import Bug, Unfit
from device_agent.errors import DeviceLocked, WorkerCrashed, WorkerFailed, WorkerTimeout, error_from_dict
from device_agent.process import channel
from device_agent.process.jail import JailPolicy, detect_jail
from tests.support.worker_fixtures import start_jail_probe

MEMFD_READ = "did: plain model"


def test_an_inmate_can_open_its_memfd_and_nothing_else(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("secret")
    fd = os.memfd_create("model", os.MFD_ALLOW_SEALING)
    os.write(fd, b"plain model")
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
    with start_jail_probe() as worker:
        request = {"readable": str(secret), "supervisor": os.getpid()}
        tried = worker.call("attempts", request, (fd,), deadline_s=60).value
        assert worker.jail.is_confined
        assert worker.jail.undumpable
        assert worker.jail.threads == 1
    os.close(fd)
    for attempt in ("inet", "unix", "fork", "exec", "create", "kill-parent", "ptrace"):
        assert tried[attempt] == "PermissionError", (attempt, tried)
    for attempt in ("passwd", "readable"):
        assert tried[attempt] == ("FileNotFoundError" if worker.jail.own_files else "PermissionError"), (attempt, tried)
    for attempt in ("memfd", "thread", "pair"):
        assert tried[attempt].startswith("did: "), (attempt, tried)
    assert tried["memfd"] == MEMFD_READ
    assert tried["uid"] == (worker.jail.own_uid if os.geteuid() == 0 else os.geteuid())


def test_a_policy_opens_the_paths_and_sockets_that_it_names(tmp_path: Path) -> None:
    readable = tmp_path / "readable"
    readable.write_text("yes")
    fd = os.memfd_create("model")
    policy = JailPolicy("fetcher", sockets="inet", read=(str(tmp_path), "/no/such/path"), own_user=False)
    with start_jail_probe(policy) as worker:
        request = {"readable": str(readable), "supervisor": os.getpid()}
        tried = worker.call("attempts", request, (fd,), deadline_s=60).value
    os.close(fd)
    assert tried["readable"] == "did: yes"
    assert tried["inet"].startswith("did: ")
    assert tried["passwd"] == ("FileNotFoundError" if worker.jail.own_files else "PermissionError")
    assert tried["uid"] == os.geteuid()


def test_what_a_child_can_be_kept_from_is_known_before_one_starts() -> None:
    with start_jail_probe() as worker:
        promised = detect_jail()
        assert (worker.jail.landlock_abi, worker.jail.seccomp) == (promised.landlock_abi, promised.seccomp)
        assert worker.jail.network_namespace == promised.network_namespace


def test_workers_of_a_fixed_user_start_however_many_there_are(tmp_path: Path) -> None:
    """The kernel counts the threads of all agents and families of a machine together if their user is the same."""
    policy = JailPolicy("verifier", write=(str(tmp_path),), fixed_user=True, threads=2)
    with start_jail_probe(policy), start_jail_probe(policy), start_jail_probe(policy) as third:
        assert third.jail.threads_limited == (third.jail.own_uid is not None or third.jail.user_namespace)


def test_an_error_of_the_child_is_raised_as_its_class() -> None:
    with start_jail_probe() as worker:
        with pytest.raises(DeviceLocked, match="found 1, expected 0") as caught:
            worker.call("fail", {"how": "busy"}, deadline_s=60)
        assert caught.value.hint == "wait"
        with pytest.raises(WorkerFailed, match="KeyError in 'fail'") as foreign:
            worker.call("fail", {"how": "foreign"}, deadline_s=60)
        assert foreign.value.reason == "worker-failed"
        with pytest.raises(
            WorkerFailed,
            match="unknown operation 'dance', this worker has attempts, control, device, environment, fail, list, talk",
        ):
            worker.call("dance", deadline_s=60)
        assert worker.is_alive()


def test_an_error_class_that_is_not_loaded_here_keeps_its_kind_and_reason() -> None:
    error = error_from_dict({"reason": "never-heard-of", "message": "m", "hint": None, "exit_code": 5})
    assert isinstance(error, Unfit)
    assert error.reason == "never-heard-of"
    assert isinstance(error_from_dict({"reason": "../x", "message": "m"}), Bug)
    assert isinstance(error_from_dict(None), Bug)


@pytest.mark.parametrize(("how", "words"), [("crash", "ended by SIGSEGV: .*jail_probe.py"), ("exit", "exit code 3")])
def test_a_child_that_dies_in_a_call_is_told_with_how_it_ended(how: str, words: str) -> None:
    with start_jail_probe() as worker:
        with pytest.raises(WorkerCrashed, match=words):
            worker.call("fail", {"how": how}, deadline_s=60)
        assert not worker.is_alive()
        assert select.select([worker], [], [], 0)[0]


def test_a_child_that_sends_nonsense_has_failed_and_the_caller_has_not() -> None:
    with start_jail_probe() as worker, pytest.raises(WorkerFailed, match="jail_probe sent a malformed message"):
        worker.call("fail", {"how": "nonsense"}, deadline_s=60, on_event=lambda event: event["done"] + 1)


def test_a_child_that_has_ended_takes_any_priority() -> None:
    with start_jail_probe() as worker:
        worker.kill()
        worker.set_nice(5)  # whoever watches it need not ask first: it could end in between


def test_a_silent_child_is_killed_at_the_deadline() -> None:
    with start_jail_probe() as worker:
        before = time.monotonic()
        with pytest.raises(WorkerTimeout, match=r"did not reply to 'fail' within 0.2 s"):
            worker.call("fail", {"how": "sleep"}, deadline_s=0.2)
        assert time.monotonic() - before < 30
        assert not worker.is_alive()


def test_events_questions_and_descriptors_cross() -> None:
    events: list[channel.JsonObject] = []
    with start_jail_probe() as worker:
        reply = worker.call(
            "talk",
            {"n": 21},
            deadline_s=60,
            on_event=events.append,
            on_request=lambda request: ({"n": request.value["n"] * 2}, ()),
        )
        assert events == [{"done": 1}, {"done": 2}]
        assert os.pread(reply.fds[0], 10, 0) == b"42"
        reply.close()
        with pytest.raises(DeviceLocked):
            worker.call("talk", {"n": 1}, deadline_s=60, on_request=_refuse)


def _refuse(_question: channel.Message) -> tuple[dict[str, object], tuple[int, ...]]:
    raise DeviceLocked("not now")


def test_a_child_ends_with_its_supervisor_even_in_native_code() -> None:
    worker = start_jail_probe()
    crashes: list[WorkerCrashed] = []

    def call() -> None:
        with pytest.raises(WorkerCrashed) as caught:
            worker.call("fail", {"how": "sleep"}, deadline_s=60)
        crashes.append(caught.value)

    caller = threading.Thread(target=call)
    caller.start()
    before = time.monotonic()
    worker.stop()
    caller.join()
    assert crashes
    assert not worker.is_alive()
    assert time.monotonic() - before < 4
    worker.stop()


def test_the_words_of_a_crash_reach_the_log(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING), start_jail_probe() as worker, pytest.raises(WorkerCrashed):
        worker.call("fail", {"how": "crash"}, deadline_s=60)
    assert "Segmentation fault" in caplog.text


def test_no_secret_of_the_environment_reaches_a_child(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRWEIGHTS_PASSPHRASE", "hunter2")
    with start_jail_probe() as worker:
        seen = worker.call("environment", deadline_s=60).value
        assert "hunter2" not in str(seen)
        assert seen["environment"]["ORT_DISABLE_TELEMETRY"] == "1"
