"""The collector's server takes lines, and shows small groups and single devices only after a login."""

import json
import os
import re
import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bundle.errors import AirweightsError, InvalidUsage
from bundle.rollout import Rollout
from bundle.stopping.counts import Counts, Group
from fleet.errors import BodyTooSlow, CollectorBusy, LoginRequired
from fleet.follower_look import FollowerLook, parse_look, read_looks
from fleet.line import MAX_BATCH_LINES
from fleet.rate_limit import TokenBuckets
from fleet.site import Site
from fleet.web import lines
from fleet.web.page import LookRow
from fleet.web.server import listen, open_server, read_token
from tests.support.fleet_devices import SigningDevice
from tests.support.fleet_server import FleetServer, run_fleet_server
from tests.support.json_schemas import check_schema

TOKEN = "correct horse battery staple"
ROLLOUT = Rollout("kws", "stable", "1.1.0", 2, "a" * 64, percent_bp=2_500, note="<script>alert(1)</script>")
FAILURE = {"outcome": "rolled-back", "state": "probation", "reason": "probation-failed"}
BEARER = f"Bearer {TOKEN}"
LOOK = FollowerLook(
    family="kws",
    channel="stable",
    release="1.1.0",
    at_s=1_700_000_000,
    counts=Counts(
        2_500,
        600,
        Group(400, 12, 300, 40, 1_200, 90),
        {"cpu:<b>": Group(60, 11, 40, 2, 200, 15), "agent:0.9": Group(2, 0, 1, 1, 5, 3)},
    ),
    word="halt",
    reason="failures",
    text="11 of 60 devices of cpu:<b> failed",
    numbers={"bad": 11, "exposed": 60, "log_e_milli": 23_026, "needed_milli": 6_908},
)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FleetServer]:
    devices = [SigningDevice(f"camera-{number}") for number in range(30)]
    with run_fleet_server(tmp_path_factory.mktemp("fleet"), devices, (ROLLOUT,), token=TOKEN, looks=(LOOK,)) as running:
        lines = []
        for number, device in enumerate(devices):
            variant = "fp32" if number < 3 else "int8"
            lines.append(device.report(variant=variant))
            if number < 14:
                outcome = FAILURE if number < 2 else {}
                lines.append(device.report(release="1.1.0", counter=2, variant=variant, **outcome))
        reply = running.request("/v1/lines", b"\n".join(lines))
        assert reply.status == 200
        check_schema("fleet-ingest", json.loads(reply.body))
        assert json.loads(reply.body)["new"] == 44
        yield running


def test_every_response_forbids_scripts_and_frames(server: FleetServer) -> None:
    for path in ("/", "/login", "/metrics", "/nothing", "/devices", "/style.css", "/release/kws/stable/1.1.0"):
        policy = server.request(path).headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
    assert "<script" not in server.request("/", Authorization=BEARER).text.lower()


def test_the_follower_s_numbers_are_on_the_page(server: FleetServer) -> None:
    page = server.request("/", Authorization=BEARER).text
    assert "Decision: halt, 11 of 60 devices of cpu:&lt;b&gt; failed." in page
    assert "10<sup>10.0</sup> of 10<sup>3.0</sup> that are needed to halt" in page
    assert "the follower does not run" in page
    rows = re.sub(r"<[^>]+>", " ", page)
    for name, *numbers in (("all", "400", "12", "1.7 to 5.2 %", "300", "40", "1,200", "90"), ("agent:0.9", "2", "0")):
        assert re.search(r"\s+".join([name, *numbers]), rows), rows
    page = server.request("/").text
    assert "agent:0.9" not in page, "a stratum of 7 devices"
    assert "Decision: halt, 11 of 60" in page
    assert re.search(r"cpu:&lt;b&gt;.*11 of 60|11 of 60.*cpu:&lt;b&gt;", page, re.DOTALL)
    assert "below 10" in page, "2 silent devices"


@given(st.sampled_from(("halt", "wait")), st.integers(0, 9), st.integers(0, 2**40))
def test_a_text_about_a_small_group_is_not_shown_without_a_login(word: str, bad: int, at_s: int) -> None:
    look = replace(LOOK, word=word, numbers={"bad": bad, "exposed": 60}, at_s=at_s)
    assert parse_look(look.as_bytes()) == look
    shown = LookRow.create(look, at_s, is_logged_in=False)
    assert shown.text == (look.text if bad == 0 else "failures")
    assert LookRow.create(look, at_s, is_logged_in=True).text == look.text


def test_a_look_that_is_damaged_is_left_out(tmp_path: Path) -> None:
    folder = LOOK.path(tmp_path).parent
    folder.mkdir()
    for number, data in enumerate((LOOK.as_bytes(), b"", LOOK.as_bytes()[:-1], b"[]", b"x" * 10**6)):
        (folder / f"{number}.json").write_bytes(data)
    (folder / "f.json").mkdir()
    assert list(read_looks(tmp_path)) == [LOOK]


def test_without_a_login_no_small_group_is_shown(server: FleetServer) -> None:
    page = server.request("/").text
    assert "1.1.0" in page
    assert "below 10 devices are left out" in page
    release = server.request("/release/kws/stable/1.1.0").text
    assert "probation-failed" not in release
    assert "fp32" not in release
    assert server.request("/device/camera-1").status == 303
    assert server.request("/devices").headers["Location"] == "/login"


def test_an_operator_sees_all(server: FleetServer) -> None:
    release = server.request("/release/kws/stable/1.1.0", Authorization=BEARER).text
    assert "probation-failed" in release
    assert "variant: fp32" in release
    assert "camera-1" in server.request("/devices", Authorization=BEARER).text
    assert "rolled-back" in server.request("/device/camera-1", Authorization=BEARER).text
    assert server.request("/device/nobody", Authorization=BEARER).status == 404


def test_the_login_page_sets_a_cookie_that_scripts_and_other_sites_cannot_use(server: FleetServer) -> None:
    assert server.request("/login", b"token=wrong").status == 403
    reply = server.request("/login", b"token=" + TOKEN.replace(" ", "+").encode())
    assert reply.status == 303
    cookie = reply.headers["Set-Cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=strict" in cookie
    assert server.request("/devices", Cookie=cookie.split(";")[0]).status == 200
    expires, _, mac = cookie.split(";")[0].split("=")[1].partition(".")
    for forged in (f"{int(expires) + 9}.{mac}", f"{expires}.", f".{mac}", "x", f"1.{mac}", f"{expires}.é"):
        assert server.request("/devices", Cookie=f"airweights_fleet={forged}").status == 303


def test_wrong_tokens_are_limited(tmp_path: Path) -> None:
    with run_fleet_server(tmp_path, [], token=TOKEN) as server:
        texts = [server.request("/login", b"token=wrong").text for _ in range(12)]
        assert "too many wrong tokens" in texts[-1]
        assert server.request("/devices", Authorization=BEARER).status == 303, "the right one is not looked at either"


def test_a_trusted_header_logs_in_only_if_it_is_configured(server: FleetServer, tmp_path: Path) -> None:
    assert server.request("/devices", X_Forwarded_User="mallory").status == 303
    with run_fleet_server(tmp_path, [SigningDevice("lamp")], trusted_header="X-Forwarded-User") as behind_a_proxy:
        assert "lamp" in behind_a_proxy.request("/devices", X_Forwarded_User="anna").text
        assert behind_a_proxy.request("/devices").status == 303


def test_metrics_name_no_small_group(server: FleetServer) -> None:
    text = server.request("/metrics", Authorization=BEARER).text
    assert 'airweights_fleet_devices{channel="stable",family="kws",release="1.1.0",state="updated"} 12.0' in text
    assert "probation-failed" not in text
    assert "airweights_fleet_registered_devices 30.0" in text


def test_a_server_that_others_reach_needs_a_login(server: FleetServer, tmp_path: Path) -> None:
    site = Site("d" * 64, tmp_path / "registry", "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855", ())
    for host in ("0.0.0.0", "::", "192.0.2.7", "fleet.example.org"):
        with pytest.raises(LoginRequired, match="show the fleet to everybody"):
            open_server(server.database, lambda: site, host)


def test_a_batch_that_is_too_large_is_refused_whole(server: FleetServer) -> None:
    assert server.request("/v1/lines", b"x\n" * (MAX_BATCH_LINES + 1)).status == 413
    assert server.request("/v1/lines", b"\n" * 1_000_000).status == 413
    assert server.request("/v1/lines", b"\r" * (MAX_BATCH_LINES + 1)).status == 413
    assert server.request("/login", b"token=" + b"x" * 5_000).status == 413
    assert server.request("/v1/lines").status == 405
    reply = server.request("/v1/lines", b"x\n" * MAX_BATCH_LINES)
    assert reply.status == 200
    assert len(json.loads(reply.body)["refused"]) == MAX_BATCH_LINES


def test_a_flood_in_the_name_of_a_device_uses_a_bucket_of_its_own() -> None:
    clock = [0.0]
    buckets = TokenBuckets(burst=3, per_second=1, now_s=lambda: clock[0], max_buckets=2)
    assert [buckets.take("192.0.2.1", "d") for _ in range(4)] == [True, True, True, False]
    assert buckets.take("192.0.2.2", "d")
    clock[0] = 1.0
    assert [buckets.take("192.0.2.1", "d") for _ in range(2)] == [True, False]


def test_the_alert_rules_use_metrics_that_exist(server: FleetServer) -> None:
    text = server.request("/metrics", Authorization=BEARER).text
    rules = (Path(__file__).parents[2] / "packaging" / "prometheus" / "airweights-fleet.rules.yml").read_text()
    names = set(re.findall(r"airweights_fleet_\w+", rules))
    assert len(names) >= 6
    assert {name for name in names if f"\n{name}" not in text} == set()


def test_a_body_that_does_not_come_is_answered(server: FleetServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines, "BODY_S", 0.2)
    host, _, port = server.url.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port)), 60) as slow:
        slow.sendall(b"POST /v1/lines HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nhalf")
        answer = b"".join(iter(lambda: slow.recv(65_536), b""))
    assert answer.startswith(b"HTTP/1.1 408")
    assert BodyTooSlow.reason.encode() in answer


def test_all_bodies_together_are_bounded_and_a_device_comes_again(
    server: FleetServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(lines, "MAX_BODIES_BYTES", 10)
        busy = server.request("/v1/lines", b"x" * 11)
    assert (busy.status, json.loads(busy.body)["reason"]) == (503, CollectorBusy.reason)
    assert int(busy.headers["Retry-After"]) > 0
    monkeypatch.setattr(lines, "MAX_BODIES_BYTES", 11)
    assert [server.request("/v1/lines", b"x" * 11).status for _ in range(3)] == [200, 200, 200]


def test_a_token_is_read_from_a_regular_file_of_text(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "binary").write_bytes(b"\xff" * 40)
    (tmp_path / "short").write_text("short\n")
    (tmp_path / "long").write_bytes(b"x" * 10_000)
    for name, words in (("fifo", "FIFO"), ("binary", "UTF-8"), ("short", "5 characters"), ("long", "10,000 bytes")):
        with pytest.raises(AirweightsError, match=words):
            read_token(tmp_path / name)
    (tmp_path / "good").write_bytes(b"\xef\xbb\xbf" + TOKEN.encode() + b"\r\nsecond line")
    assert read_token(tmp_path / "good") == TOKEN


def test_a_name_that_no_host_can_have_is_invalid() -> None:
    with pytest.raises(InvalidUsage, match="is not the name of a host"):
        listen("a..b", 0)
