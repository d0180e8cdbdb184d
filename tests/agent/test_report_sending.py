"""A device sends signed reports and vitals to the collector, and nothing before that is configured."""

import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from bundle.vital import parse_vital
from fleet.database import Database
from fleet.device_index import fill_devices
from fleet.queries import find_device
from fleet.site import Site
from fleet.web.server import create_server, listen, open_server
from tests.support.faulty_http_server import serve_folder
from tests.support.json_schemas import check_schema
from tests.support.publisher import DeviceUnderTest, Publisher


class Collector:
    """A running collector of a publisher's repository."""

    def __init__(self, publisher: Publisher, folder: Path) -> None:
        repository = publisher.repository
        site = Site(repository.repository_id, repository.registry_path, repository.fleet().registry_digest, ())
        self.database = Database(f"sqlite:{folder / 'fleet.db'}", repository.repository_id)
        fill_devices(self.database, site.registry, site.registry_digest)
        sock = listen("127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{sock.getsockname()[1]}"
        self._server = create_server(open_server(self.database, lambda: site, "127.0.0.1"))
        self._thread = threading.Thread(target=self._server.run, args=([sock],))
        self._thread.start()

    def close(self) -> None:
        """Stop the server."""
        self._server.should_exit = True
        self._thread.join(60)
        assert not self._thread.is_alive()


@pytest.fixture
def collector(first_publisher: Publisher, tmp_path: Path) -> Iterator[Collector]:
    running = Collector(first_publisher, tmp_path)
    yield running
    running.close()


def send_to(device: DeviceUnderTest, url: str, interval_s: int = 86_400) -> None:
    device.write_config()
    with device.config_path.open("a") as file:
        file.write(f'\n[reports]\nurl = "{url}"\nvital_interval_s = {interval_s}\n')


def state_of(collector: Collector, device: DeviceUnderTest) -> tuple[str, str, str]:
    found = find_device(collector.database, device.directory.read_public_identity().device_id)
    assert found is not None
    at = found.standings["kws"].position
    return at.release, at.state, at.outcome


def test_reports_and_a_vital_are_sent_once_and_shown_before(
    first_publisher: Publisher, first_device: DeviceUnderTest, collector: Collector, tmp_path: Path
) -> None:
    with serve_folder(first_publisher.published) as site:
        device = first_device.copy(tmp_path / "lab", site.url)
    assert device.command("report", "send").returncode == 2
    send_to(device, collector.url)
    shown = json.loads(device.command("report", "show", "--json").stdout)
    check_schema("agent-report-show", shown)
    assert [json.loads(line)["schema"] for line in shown["lines"]] == ["airweights.report/2"]
    sent = device.command("report", "send", "--json")
    assert sent.returncode == 0, sent.stderr
    check_schema("agent-report-send", json.loads(sent.stdout))
    assert json.loads(sent.stdout) == {"lines": 2}
    assert state_of(collector, device) == ("1.0.0", "serving", "updated")
    assert json.loads(device.command("report", "show", "--json").stdout)["lines"] == []
    assert json.loads(device.command("report", "send", "--json").stdout) == {"lines": 1}, "a vital alone"


def test_a_collector_that_is_away_costs_nothing_and_gets_everything_later(
    first_device: DeviceUnderTest, collector: Collector, tmp_path: Path
) -> None:
    device = first_device.copy(tmp_path / "lab", "http://127.0.0.1:9")
    send_to(device, "http://127.0.0.1:9")
    away = device.command("report", "send", "--json")
    assert (away.returncode, json.loads(away.stderr)["error"]["reason"]) == (4, "connection-failed")
    send_to(device, collector.url)
    assert json.loads(device.command("report", "send", "--json").stdout) == {"lines": 2}


def test_a_collector_that_lost_its_store_gets_the_reports_again(
    first_publisher: Publisher, first_device: DeviceUnderTest, collector: Collector, tmp_path: Path
) -> None:
    device = first_device.copy(tmp_path / "lab", "http://127.0.0.1:9")
    send_to(device, collector.url)
    device.command("report", "send")
    (tmp_path / "other").mkdir()
    empty = Collector(first_publisher, tmp_path / "other")
    try:
        send_to(device, empty.url)
        assert json.loads(device.command("report", "send", "--json").stdout) == {"lines": 2}
        assert state_of(empty, device) == ("1.0.0", "serving", "updated")
    finally:
        empty.close()


@pytest.mark.parametrize(
    ("status", "answer"), [(200, b"x" * 300_000), (200, b'{"logs":[]}'), (302, b"")], ids=["long", "list", "redirect"]
)
def test_an_answer_that_is_not_a_collectors_changes_nothing(
    first_device: DeviceUnderTest, tmp_path: Path, status: int, answer: bytes
) -> None:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(status)
            self.send_header("Content-Length", str(len(answer)))
            self.send_header("Location", "http://127.0.0.1:1/")
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever).start()
        device = first_device.copy(tmp_path / "lab", "http://127.0.0.1:9")
        send_to(device, f"http://127.0.0.1:{server.server_port}")
        result = device.command("report", "send", "--json")
        server.shutdown()
    assert result.returncode in (3, 4), result.stdout
    assert "Traceback" not in result.stderr
    position, reports, vital = device.journal().unsent_lines()
    assert (position.highest, len(reports), vital is None) == (0, 1, False)


def test_the_daemon_sends_by_itself_and_a_day_costs_less_than_2_kb(
    first_publisher: Publisher, first_device: DeviceUnderTest, collector: Collector, tmp_path: Path
) -> None:
    with serve_folder(first_publisher.published) as site:
        device = first_device.copy(tmp_path / "lab", site.url)
        send_to(device, collector.url, interval_s=2)
        device.start()
        try:
            deadline = time.monotonic() + 60
            vitals = 0
            while vitals < 2 and time.monotonic() < deadline:
                time.sleep(0.2)
                with collector.database.read() as connection:
                    lines = connection.exec_driver_sql("SELECT line FROM vital ORDER BY number").all()
                vitals = len(lines)
        finally:
            device.stop()
    assert vitals >= 2
    assert site.requests == [], "`update.automatic` is false: sending polls nothing"
    vital = parse_vital(bytes(lines[-1][0])).vital
    assert (vital.state, vital.release, vital.offered, vital.reports) == ("serving", "1.0.0", "1.0.0", 1)
    assert len(lines[-1][0]) <= 1200, "with the request's head, a vital a day is below 2 kB"


def test_nothing_is_sent_before_it_is_configured(first_device: DeviceUnderTest, tmp_path: Path) -> None:
    device = first_device.copy(tmp_path / "lab", "http://127.0.0.1:9")
    assert device.config.reports.url == ""
    assert device.journal().newest_vital is None
