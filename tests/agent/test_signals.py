"""SIGHUP reads the configuration again under load; a signal to the whole process group ends the daemon in order."""

import ctypes
import http.client
import json
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from device_agent.config.config import Config, UpdateSettings
from device_agent.config.reload import RESTART_KEYS, merge_configs
from device_agent.config.serve import ServeSettings
from tests.support import faulty_http_server
from tests.support.daemon_workers import list_worker_pids
from tests.support.endpoint_client import get
from tests.support.faulty_http_server import Site
from tests.support.load_clients import connect, wait_until
from tests.support.publisher import FAMILY, DeviceUnderTest, Publisher

TGKILL = {"x86_64": 234, "aarch64": 131}  # the system call's number
BODY = json.dumps({"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 64], "data": [0.5] * 64}]})


class Clients:
    """Four clients that send requests until the endpoint refuses connections: two keep theirs, two connect each time.

    Attributes:
        answered: number of responses with status 200.
        failures: requests without such a response.
    """

    def __init__(self, address: str) -> None:
        self.answered, self.failures = 0, list[str]()
        self._address, self.is_done = address, threading.Event()
        self.threads = [threading.Thread(target=self._run, args=(number < 2,)) for number in range(4)]

    def _run(self, keeps_connection: bool) -> None:
        connection: http.client.HTTPConnection | None = None
        while not self.is_done.is_set():
            if connection is None:
                connection = connect(self._address)
                try:
                    connection.connect()
                except OSError:  # nothing listens: no request is lost
                    return
            try:
                connection.request("POST", f"/v2/models/{FAMILY}/infer", BODY, {"Content-Type": "application/json"})
                response = connection.getresponse()
                data = response.read()
            except (OSError, http.client.HTTPException) as error:
                self.failures.append(repr(error))
                return
            if response.status != 200:
                self.failures.append(f"{response.status}: {data[:200]!r}")
            self.answered += 1
            if not keeps_connection or response.getheader("connection") == "close":
                connection.close()
                connection = None


@contextmanager
def _load(device: DeviceUnderTest, *, warm: int = 40) -> Iterator[Clients]:
    clients = Clients(device.config.serve.listen)
    for thread in clients.threads:
        thread.start()
    try:
        wait_until(lambda: clients.answered >= warm or clients.failures)
        yield clients
    finally:
        clients.is_done.set()
        for thread in clients.threads:
            thread.join(60)


def _rewrite(device: DeviceUnderTest, before: str, after: str) -> None:
    text = device.config_path.read_text()
    assert before in text
    device.config_path.write_text(text.replace(before, after))


def _reload(device: DeviceUnderTest) -> dict[str, Any]:
    """Send SIGHUP and return the log record of the reload."""
    os.kill(device.daemon_pid, signal.SIGHUP)
    assert device.daemon_log is not None
    record = device.daemon_log.wait_for(
        lambda record: record.get("event") == "reloaded" or "not reloaded" in record["message"]
    )
    assert record is not None, "the daemon ended"
    return record


def test_a_reload_under_load_loses_no_request_and_applies_what_needs_no_restart(
    installed: DeviceUnderTest, publisher: Publisher, site: Site, tmp_path: Path
) -> None:
    _rewrite(installed, site.url, "http://127.0.0.1:9")  # nobody listens there
    installed.start()
    assert installed.call("update")["outcome"] == "unavailable"
    publisher.offer("1.1.0")
    with _load(installed) as clients:
        _rewrite(installed, "http://127.0.0.1:9", site.url)
        _rewrite(installed, "[serve]\n", '[serve]\nallowed_hosts = ["kws.local"]\nmax_connections = 99\n')
        record = _reload(installed)
        assert record["applied"] == ["repository_url", "serve.allowed_hosts"]
        assert record["needs_restart"] == ["serve.max_connections"]
        assert installed.call("update")["release"] == "1.1.0"
        installed.config_path.write_text("directory = 1")
        assert _reload(installed)["error"]["reason"] == "config-invalid"
        assert installed.call("status")["needs_restart"] == ["serve.max_connections"], "it still needs it"
        assert installed.call("update")["outcome"] == "nothing-new", "the configuration before is in force"
        before = clients.answered
        wait_until(lambda: clients.answered > before + 20 or clients.failures)
    assert clients.failures == []
    assert installed.stop() == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_the_whole_group_under_load_answers_every_request(
    installed: DeviceUnderTest, number: signal.Signals
) -> None:
    installed.start(own_group=True)
    with _load(installed) as clients:
        assert installed.stop(number, of_group=True) == 0
    assert clients.failures == []
    assert [line["message"] for line in installed.log if line["level"] != "info"] == []


def test_a_signal_to_the_whole_group_interrupts_an_update_that_is_not_reported_as_failed(
    installed: DeviceUnderTest, publisher: Publisher, site: Site
) -> None:
    publisher.offer("1.1.0")
    release, arrived = threading.Event(), threading.Event()
    site.faults.append(faulty_http_server.hang(release, arrived))
    installed.start(own_group=True)
    update = threading.Thread(target=lambda: installed.command("update"))
    update.start()
    try:
        assert arrived.wait(60)
        for worker in list_worker_pids(installed):  # as a control group's kill does
            with suppress(ProcessLookupError):
                os.kill(worker, signal.SIGTERM)
        assert installed.stop(signal.SIGINT, of_group=True) == 0
    finally:
        site.faults.clear()
        release.set()
        update.join(120)
    warnings = [line for line in installed.log if line["level"] != "info"]
    assert warnings == []
    ended = [line for line in installed.log if line["message"] == "update ended"]
    assert [(line["outcome"], line["reason"]) for line in ended] == [("interrupted", "agent-stopping")]
    installed.start()
    assert installed.call("update")["release"] == "1.1.0"


def test_a_signal_that_another_thread_receives_ends_the_daemon(installed: DeviceUnderTest) -> None:
    """As one does that arrives just before the main thread waits: it interrupts no wait of the main thread."""
    installed.start()
    daemon = installed.daemon
    assert daemon is not None
    tasks = Path(f"/proc/{daemon.pid}/task")
    waits = 0

    def is_at_rest() -> bool:
        nonlocal waits
        waits = waits + 1 if (tasks / str(daemon.pid) / "stat").read_text().rpartition(")")[2].split()[0] == "S" else 0
        return waits > 100

    wait_until(is_at_rest)
    assert any(
        ctypes.CDLL(None).syscall(TGKILL[os.uname().machine], daemon.pid, int(path.name), signal.SIGTERM) == 0
        for path in tasks.iterdir()  # a thread that has just ended receives nothing
        if path.name != str(daemon.pid)
    )
    assert daemon.wait(60) == 0


def test_a_signal_during_the_start_is_handled_afterwards(installed: DeviceUnderTest) -> None:
    installed.start()
    os.kill(installed.daemon_pid, signal.SIGHUP)
    os.kill(installed.daemon_pid, signal.SIGHUP)
    assert get(installed, "/v2/health/ready") is not None
    assert installed.stop() == 0


BASE = Config(Path("/d"), "https://example.com/models", "kws", update=UpdateSettings(automatic=False))


@pytest.mark.parametrize(
    ("read", "applied", "needs_restart"),
    [
        (BASE, (), ()),
        (replace(BASE, channel="beta"), ("channel",), ()),
        (replace(BASE, update=UpdateSettings(metered=True)), ("update.metered", "update.automatic"), ()),
        (replace(BASE, serve=ServeSettings("unix:/x", mode="0666")), (), ("serve.listen", "serve.mode")),
        (replace(BASE, key_storage="tpm:", cohort="x"), ("cohort",), ("key_storage",)),
        (replace(BASE, family="vision", channel="beta"), (), ("family", "families", "channel")),
        (replace(BASE, directory=Path("/e"), mirrors=("https://m",)), (), ("directory", "mirrors")),
    ],
)
def test_a_reload_names_what_it_applies(read: Config, applied: tuple[str, ...], needs_restart: tuple[str, ...]) -> None:
    change = merge_configs(BASE, read)
    assert (sorted(change.applied), sorted(change.needs_restart)) == (sorted(applied), sorted(needs_restart))
    again = merge_configs(change.config, read)
    assert (again.applied, again.needs_restart) == ((), change.needs_restart)


def test_the_manual_says_which_keys_need_a_restart() -> None:
    page = (Path(__file__).parents[2] / "docs" / "configuration.md").read_text(encoding="utf-8")
    paragraph = page[page.index("A reload cannot change") :].split("\n\n")[0]
    named = set(paragraph.replace("\n", " ").split("`")[1::2])
    assert named >= {key for key in RESTART_KEYS if key not in ("families",)}, named
