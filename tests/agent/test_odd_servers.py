"""Odd but honest servers work; servers that drip are cut by the wall clock, and one honest mirror is enough."""

import hashlib
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from bundle.errors import DownloadFailed
from device_agent.errors import ConnectionFailed, RedirectRefused, RepositoryNotReached, ServerTooSlow
from device_agent.policy.attempt import Outcome
from device_agent.policy.proxy_choice import choose_proxy
from device_agent.policy.redirect_rules import check_redirect_address, kind_of_address, redirect_target
from device_agent.process.worker_process import WorkerProcess
from tests.support.faulty_http_server import Exchange, Fault, Site, only_below, respond_with_status, serve_folder
from tests.support.fetcher_process import get, start_fetcher
from tests.support.publisher import DeviceUnderTest, Publisher

DOCUMENT = b'{"a": "document"}'


@pytest.fixture(scope="module")
def child() -> Iterator[WorkerProcess]:
    with start_fetcher(first_byte_s=2, stall_window_s=1) as child:
        yield child


@pytest.fixture(scope="module")
def patient_child() -> Iterator[WorkerProcess]:
    """Start a fetcher for honest servers, which a busy machine may keep waiting."""
    with start_fetcher() as child:
        yield child


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    folder = tmp_path / "served"
    folder.mkdir()
    (folder / "a.json").write_bytes(DOCUMENT)
    with serve_folder(folder) as site:
        yield site


def _raw(*parts: bytes, pause_s: float = 0.0, repeat: bytes = b"") -> Fault:
    """Return a fault that writes bytes as they are, then `repeat` until the client has gone, and closes."""

    def fault(exchange: Exchange) -> bool:
        exchange.cut()
        try:
            for part in parts:
                exchange.write(part)
            until = time.monotonic() + 60
            while repeat and time.monotonic() < until:
                exchange.write(repeat)
                time.sleep(pause_s)
        except OSError:
            pass
        return True

    return fault


HEAD = b"HTTP/1.1 200 OK\r\n"
HONEST: dict[str, Fault] = {
    "identity": _raw(HEAD + b"Content-Encoding: identity\r\nContent-Length: 17\r\n\r\n" + DOCUMENT),
    "aws-chunked": _raw(HEAD + b"Content-Encoding: aws-chunked\r\nContent-Length: 17\r\n\r\n" + DOCUMENT),
    "both": _raw(HEAD + b"Content-Encoding: aws-chunked, identity\r\nContent-Length: 17\r\n\r\n" + DOCUMENT),
    "HTTP/1.0": _raw(b"HTTP/1.0 200 OK\r\n\r\n" + DOCUMENT),
    "chunked": _raw(HEAD + b"Transfer-Encoding: chunked\r\n\r\n11\r\n" + DOCUMENT + b"\r\n0\r\nX: y\r\n\r\n"),
    "one interim response": _raw(
        b"HTTP/1.1 103 Early Hints\r\nLink: <x>\r\n\r\n" + HEAD + b"Content-Length: 17\r\n\r\n" + DOCUMENT
    ),
    "8-bit header fields": _raw(HEAD + b"X-Name: m\xc3\xbcller \xff\r\nContent-Length: 17\r\n\r\n" + DOCUMENT),
    "no reason phrase": _raw(b"HTTP/1.1 200\r\nContent-Length: 17\r\n\r\n" + DOCUMENT),
}
DRIPPING: dict[str, Fault] = {
    "interim responses": _raw(pause_s=0.3, repeat=b"HTTP/1.1 100 Continue\r\n\r\n"),
    "other interim responses": _raw(pause_s=0.3, repeat=b"HTTP/1.1 102 Processing\r\n\r\n"),
    "status line": _raw(b"HTTP/1.1 ", pause_s=0.1, repeat=b"2"),
    "header fields": _raw(HEAD, pause_s=0.1, repeat=b"X-A: b\r\n"),
    "one header field": _raw(HEAD + b"X-A: ", pause_s=0.1, repeat=b"b"),
    "chunk extension": _raw(HEAD + b"Transfer-Encoding: chunked\r\n\r\n5;", pause_s=0.1, repeat=b"x"),
    "trailers": _raw(
        HEAD + b"Transfer-Encoding: chunked\r\n\r\n11\r\n" + DOCUMENT + b"\r\n0\r\n", pause_s=0.1, repeat=b"X-A: b\r\n"
    ),
    "body": _raw(HEAD + b"Content-Length: 9000\r\n\r\n", pause_s=0.2, repeat=b" "),
}


@pytest.mark.parametrize("name", HONEST)
def test_an_odd_but_honest_server_works(patient_child: WorkerProcess, site: Site, name: str) -> None:
    site.faults = [HONEST[name]]
    assert get(patient_child, f"{site.url}/a.json") == DOCUMENT


@pytest.mark.parametrize("name", DRIPPING)
def test_a_dripping_server_is_cut(child: WorkerProcess, site: Site, name: str) -> None:
    site.faults = [DRIPPING[name]]
    before = time.monotonic()
    with pytest.raises(DownloadFailed) as cut:
        get(child, f"{site.url}/a.json")
    assert time.monotonic() - before < 30, "it would drip for a minute"
    assert isinstance(cut.value, ServerTooSlow) or "transfer broke" in cut.value.message or "no response" in str(cut)


@pytest.mark.parametrize("name", DRIPPING)
@pytest.mark.parametrize("folder", ["blobs/", "metadata/"])
def test_one_honest_mirror_is_enough_beside_a_dripping_one(
    installed: DeviceUnderTest, publisher: Publisher, folder: str, name: str
) -> None:
    publisher.offer("1.1.0")
    with serve_folder(publisher.published) as dripping, serve_folder(publisher.published) as honest:
        dripping.faults = [only_below(folder, DRIPPING[name])]
        config = installed.config
        installed.config = replace(
            config,
            repository_url=dripping.url,
            mirrors=(honest.url,),
            repository=replace(config.repository, first_byte_s=2, stall_window_s=1),
        )
        result = installed.update()
    assert result.outcome is Outcome.STAGED, result
    assert any(seen.path.startswith(folder) for seen in honest.requests)


@pytest.mark.parametrize(
    "page", [b"<!DOCTYPE html><title>Log in", b"\n <html><body>", b"\xef\xbb\xbf<HTML>", b"<?xml?>"]
)
def test_a_web_page_is_not_the_repository(child: WorkerProcess, site: Site, page: bytes) -> None:
    (site.folder / "a.json").write_bytes(page)
    with pytest.raises(RepositoryNotReached, match=f"{site.url}/a.json: answers with a web page"):
        get(child, f"{site.url}/a.json")


@pytest.mark.parametrize(
    "location",
    ["", "http://[::1", "http://", "http://host:port/", "ftp://h/x", "http://user:s3cret@h/x", "file:///etc/passwd"],
)
def test_a_malformed_redirect_is_the_servers_fault(child: WorkerProcess, site: Site, location: str) -> None:
    site.faults = [respond_with_status(302, {"Location": location} if location else {})]
    with pytest.raises(RedirectRefused) as refused:
        get(child, f"{site.url}/a.json")
    assert site.url in str(refused.value)
    assert "s3cret" not in str(refused.value)


def test_a_redirect_never_leads_from_https_to_http() -> None:
    with pytest.raises(RedirectRefused, match="from https to http"):
        redirect_target("https://a.example/x", "http://a.example/y", "https://a.example/x")
    assert redirect_target("http://a.example/x", "https://b.example/y#z", "") == "https://b.example/y"


@pytest.mark.parametrize(
    ("address", "kind"),
    [
        ("127.0.0.1", "loopback"),
        ("::1", "loopback"),
        ("0.0.0.0", "loopback"),  # an address in a redirect
        ("::ffff:127.0.0.1", "loopback"),
        ("169.254.169.254", "link-local"),
        ("fe80::1%eth0", "link-local"),
        ("10.1.2.3", "private"),
        ("192.168.0.1", "private"),
        ("100.64.0.1", "private"),
        ("fd00::1", "private"),
        ("64:ff9b::a01:203", "private"),
        ("224.0.0.1", "private"),
        ("localhost", "loopback"),
        ("8.8.8.8", "public"),
        ("2606:4700::1111", "public"),
        ("models.example.com", "public"),
    ],
)
def test_the_kind_of_an_address(address: str, kind: str) -> None:
    assert kind_of_address(address) == kind


def test_a_redirect_to_an_internal_address_needs_a_reason() -> None:
    with pytest.raises(RedirectRefused, match=r"link-local address 169\.254\.169\.254"):
        check_redirect_address("meta.example", 80, "169.254.169.254", {"private"}, (), "http://meta.example/")
    check_redirect_address("store", 80, "10.0.0.9", {"private"}, (), "")
    for rule in ("10.0.0.0/8", "store", "*.intern", "store:9000", "10.0.0.9:9000"):
        host = "s3.intern" if rule == "*.intern" else "store"
        check_redirect_address(host, 9000, "10.0.0.9", set(), (rule,), "")
    with pytest.raises(RedirectRefused):
        check_redirect_address("store", 80, "10.0.0.9", set(), ("store:9000", "192.168.0.0/16"), "")


def test_an_international_name_is_resolved_behind_the_jail(child: WorkerProcess) -> None:
    with pytest.raises(ConnectionFailed, match=r"cannot resolve 'xn--mller-kva\.invalid'"):
        get(child, "http://müller.invalid/a.json")
    with pytest.raises(DownloadFailed, match="not a valid host name"):
        get(child, f"http://{'ü' * 80}.invalid/a.json")


@pytest.mark.parametrize(
    ("no_proxy", "host", "port", "is_direct"),
    [
        ("example.com", "models.example.com", 443, True),
        (".example.com", "example.com", 443, True),
        ("*.example.com", "a.example.com", 443, True),
        ("example.com", "notexample.com", 443, False),
        ("example.com:8443", "example.com", 8443, True),
        ("example.com:8443", "example.com", 443, False),
        ("10.0.0.0/8", "10.1.2.3", 80, True),
        ("10.0.0.0/8", "11.1.2.3", 80, False),
        ("10.1.2.3", "10.1.2.3", 80, True),
        ("fd00::/8", "fd00::1", 80, True),
        ("[::1]:8080", "::1", 8080, True),
        ("a, *", "anything", 80, True),
        ("", "anything", 80, False),
    ],
)
def test_the_forms_of_no_proxy(no_proxy: str, host: str, port: int, is_direct: bool) -> None:
    environment = {"HTTP_PROXY": "proxy.example:3128", "no_proxy": no_proxy}
    found = choose_proxy("http", host, port, configured="", no_proxy=None, environment=environment)
    assert (found is None) == is_direct


def test_a_blob_whose_trailers_do_not_end_is_complete(child: WorkerProcess, site: Site) -> None:
    site.faults = [DRIPPING["trailers"]]
    path = site.folder / "part"
    with path.open("w+b") as part:
        request = {"url": f"{site.url}/a.json", "sha256": hashlib.sha256(DOCUMENT).hexdigest(), "size": len(DOCUMENT)}
        rates = {"min_rate_bytes_s": 34, "max_rate_bytes_s": None, "backoff_ms": 1}
        answer = child.call("blob", {**request, **rates}, (part.fileno(),), deadline_s=60)
    assert answer.value["received"] == len(DOCUMENT)
