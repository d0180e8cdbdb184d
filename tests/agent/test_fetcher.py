"""The fetcher worker downloads from servers that misbehave, with real sockets and files."""

import hashlib
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from bundle.errors import DigestMismatch, DownloadFailed, NotFound, TooLarge
from device_agent.errors import WorkerTimeout
from device_agent.process.jail import JailPolicy
from device_agent.process.worker_process import WorkerProcess
from device_agent.workers.worker_processes import NETWORK_FILES
from tests.support import faulty_http_server
from tests.support.faulty_http_server import Exchange, Site, serve_folder
from tests.support.fetcher_process import start_fetcher

DATA = bytes(range(256)) * 1024  # 256 KiB
SHA256 = hashlib.sha256(DATA).hexdigest()
HALF = len(DATA) // 2


@pytest.fixture(scope="module")
def shared_child() -> Iterator[WorkerProcess]:
    with WorkerProcess.start(
        "device_agent.workers.fetcher", JailPolicy("fetcher", sockets="inet", read=NETWORK_FILES)
    ) as child:
        yield child


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    folder = tmp_path / "served"
    folder.mkdir()
    (folder / "blob").write_bytes(DATA)
    with serve_folder(folder) as site:
        yield site


class PartialDownload:
    """The partial file of a download, as the bundle store passes it."""

    def __init__(self, child: WorkerProcess, folder: Path, site: Site) -> None:
        self.child, self.site = child, site
        self.part = folder / "part"

    def fetch(self, *, size: int = len(DATA), sha256: str = SHA256, deadline_s: float = 60, min_rate: int = 0) -> int:
        """Fetch the blob and return the bytes received over the network."""
        fd = os.open(self.part, os.O_RDWR | os.O_CREAT, 0o600)
        request = {"url": f"{self.site.url}/blob", "sha256": sha256, "size": size, "backoff_ms": 1}
        rates = {"min_rate_bytes_s": min_rate, "max_rate_bytes_s": None}
        try:
            return int(self.child.call("blob", {**request, **rates}, (fd,), deadline_s=deadline_s).value["received"])
        finally:
            os.close(fd)


@pytest.fixture
def spool(shared_child: WorkerProcess, tmp_path: Path, site: Site) -> PartialDownload:
    return PartialDownload(shared_child, tmp_path, site)


def _fetch_document(child: WorkerProcess, url: str, max_bytes: int) -> bytes:
    answer = child.call("get", {"url": url, "max_bytes": max_bytes}, deadline_s=60)
    try:
        return os.pread(answer.fds[0], max_bytes + 1, 0)
    finally:
        answer.close()


def test_a_document_comes_whole_and_within_its_limit(shared_child: WorkerProcess, site: Site) -> None:
    assert _fetch_document(shared_child, f"{site.url}/blob", len(DATA)) == DATA
    with pytest.raises(TooLarge, match=f"{len(DATA)} bytes announced, at most 1000"):
        _fetch_document(shared_child, f"{site.url}/blob", 1000)
    with pytest.raises(NotFound, match="HTTP 404"):
        _fetch_document(shared_child, f"{site.url}/nothing", 1000)


def test_a_document_without_an_end_is_cut_at_its_limit(shared_child: WorkerProcess, site: Site) -> None:
    site.faults = [faulty_http_server.send_endless_body]
    with pytest.raises(TooLarge, match="more than the allowed 300000 bytes"):
        _fetch_document(shared_child, f"{site.url}/blob", 300_000)


def test_a_file_url_works_without_a_server(tmp_path: Path) -> None:
    (tmp_path / "a b").write_bytes(b"from a stick")
    with WorkerProcess.start(
        "device_agent.workers.fetcher", JailPolicy("fetcher", read=(str(tmp_path),), own_user=False)
    ) as child:
        assert _fetch_document(child, f"file://{tmp_path}/a%20b", 100) == b"from a stick"
        with pytest.raises(NotFound):
            _fetch_document(child, f"file://{tmp_path}/c", 100)


def test_a_blob_goes_on_where_it_was_cut(spool: PartialDownload) -> None:
    spool.site.faults = [faulty_http_server.only_first(3, faulty_http_server.cut_after(HALF // 4))]
    assert spool.fetch() == len(DATA)
    assert [seen.start for seen in spool.site.requests] == [0, HALF // 4, HALF // 2, 3 * HALF // 4]
    assert spool.part.read_bytes() == DATA


def test_a_blob_goes_on_after_a_restart_and_a_whole_one_is_not_asked_for(spool: PartialDownload) -> None:
    spool.part.write_bytes(DATA[:HALF])
    assert spool.fetch() == HALF
    assert spool.fetch() == 0
    assert [seen.start for seen in spool.site.requests] == [HALF]


def test_a_prefix_of_another_file_is_thrown_away_once(spool: PartialDownload) -> None:
    spool.part.write_bytes(bytes(HALF))
    assert spool.fetch() == HALF + len(DATA)
    assert spool.part.read_bytes() == DATA


def test_etags_that_differ_between_backends_do_not_matter(spool: PartialDownload) -> None:
    numbers = iter(range(100))

    def another_etag(exchange: Exchange) -> bool:
        exchange.etag = f'"backend-{next(numbers)}"'
        return False

    spool.site.faults = [another_etag, faulty_http_server.only_first(3, faulty_http_server.cut_after(HALF // 4))]
    assert spool.fetch() == len(DATA)
    assert [seen.start for seen in spool.site.requests] == [0, HALF // 4, HALF // 2, 3 * HALF // 4]


def test_a_server_whose_ranges_are_wrong_is_asked_for_the_whole_file(spool: PartialDownload) -> None:
    def wrong(exchange: Exchange) -> bool:
        if not exchange.is_range:
            return False
        exchange.head(206, {"Content-Length": "5", "Content-Range": f"bytes 0-4/{len(DATA)}"})
        exchange.write(DATA[:5])
        return True

    spool.part.write_bytes(DATA[:HALF])
    spool.site.faults = [wrong]
    assert spool.fetch() == len(DATA)
    assert spool.part.read_bytes() == DATA


def test_a_server_without_ranges_gets_its_prefix_skipped(spool: PartialDownload) -> None:
    spool.site.ranges = False
    spool.part.write_bytes(DATA[:HALF])
    assert spool.fetch() == len(DATA)
    assert spool.part.read_bytes() == DATA


def test_other_bytes_are_refused_and_not_kept(spool: PartialDownload) -> None:
    spool.site.faults = [faulty_http_server.replace_body("blob", DATA[:-1] + b"\0")]
    with pytest.raises(DigestMismatch, match=f"SHA-256 of the {len(DATA)} bytes"):
        spool.fetch()
    assert spool.part.read_bytes() == b""


def test_a_longer_blob_is_refused_unread(spool: PartialDownload) -> None:
    spool.site.faults = [faulty_http_server.replace_body("blob", DATA + b"more")]
    with pytest.raises(DigestMismatch, match=f"{len(DATA) + 4} bytes announced, {len(DATA)} are signed"):
        spool.fetch()


def test_a_body_without_an_end_is_refused_at_the_signed_size(spool: PartialDownload) -> None:
    spool.site.faults = [faulty_http_server.send_endless_body]
    with pytest.raises(DigestMismatch, match="longer than"):
        spool.fetch()
    assert spool.part.stat().st_size <= len(DATA)


def test_a_shorter_blob_is_fetched_once_more_and_refused(spool: PartialDownload) -> None:
    spool.site.faults = [faulty_http_server.replace_body("blob", DATA[:HALF])]
    with pytest.raises(DigestMismatch, match=f"shorter than the signed {len(DATA)} bytes"):
        spool.fetch()


@pytest.mark.parametrize("code", [500, 502, 503, 429])
def test_a_server_in_trouble_is_asked_again(spool: PartialDownload, code: int) -> None:
    spool.site.faults = [
        faulty_http_server.only_first(3, faulty_http_server.respond_with_status(code, {"Retry-After": "0"}))
    ]
    assert spool.fetch() == len(DATA)
    assert len(spool.site.requests) == 4


@pytest.mark.parametrize("code", [403, 404, 410])
def test_a_blob_that_is_not_there_is_asked_for_once(spool: PartialDownload, code: int) -> None:
    spool.site.faults = [faulty_http_server.respond_with_status(code)]
    with pytest.raises(NotFound, match=str(code)):
        spool.fetch()
    assert len(spool.site.requests) == 1


def test_a_server_that_never_recovers_is_left_after_five_tries(spool: PartialDownload) -> None:
    spool.site.faults = [faulty_http_server.respond_with_status(503)]
    with pytest.raises(DownloadFailed, match="HTTP 503"):
        spool.fetch()
    assert len(spool.site.requests) == 5


def test_a_range_that_was_not_asked_for_is_not_written(spool: PartialDownload) -> None:
    def shifted(exchange: Exchange) -> bool:
        body = exchange.data[exchange.start + 7 :]
        total = len(exchange.data)
        headers = {"Content-Range": f"bytes {exchange.start + 7}-{total - 1}/{total}", "Content-Length": str(len(body))}
        exchange.head(206, headers)
        exchange.write(body)
        return True

    spool.part.write_bytes(DATA[:HALF])
    spool.site.faults = [faulty_http_server.only_first(1, shifted)]
    assert spool.fetch() == HALF
    assert spool.part.read_bytes() == DATA


def test_a_partial_answer_to_a_whole_question_is_not_taken(spool: PartialDownload) -> None:
    def partial(exchange: Exchange) -> bool:
        exchange.head(206, {"Content-Length": "5", "Content-Range": f"bytes 0-4/{len(DATA)}"})
        exchange.write(DATA[:5])
        return True

    spool.site.faults = [faulty_http_server.only_first(1, partial)]
    assert spool.fetch() == len(DATA)


def test_a_coding_that_was_not_asked_for_is_not_decoded(spool: PartialDownload) -> None:
    def gzipped(exchange: Exchange) -> bool:
        exchange.head(200, {"Content-Encoding": "gzip", "Content-Length": "10"})
        exchange.write(b"0123456789")
        return True

    spool.site.faults = [gzipped]
    with pytest.raises(DownloadFailed, match="content coding"):
        spool.fetch()


def test_redirects_end_and_lead_nowhere_but_to_http(spool: PartialDownload) -> None:
    spool.site.faults = [faulty_http_server.respond_with_status(302, {"Location": "/blob"})]
    with pytest.raises(DownloadFailed, match="redirected more than 5 times"):
        spool.fetch()
    spool.site.faults = [faulty_http_server.respond_with_status(302, {"Location": "file:///etc/passwd"})]
    with pytest.raises(DownloadFailed, match="redirects to 'file:"):
        spool.fetch()


def test_one_redirect_is_followed(spool: PartialDownload) -> None:
    spool.site.faults = [
        faulty_http_server.only_first(
            1, faulty_http_server.respond_with_status(307, {"Location": f"{spool.site.url}/blob"})
        )
    ]
    assert spool.fetch() == len(DATA)


def test_nobody_waits_longer_than_the_deadline(site: Site, tmp_path: Path) -> None:
    release = threading.Event()
    site.faults = [faulty_http_server.hang(release)]
    with WorkerProcess.start(
        "device_agent.workers.fetcher", JailPolicy("fetcher", sockets="inet", read=NETWORK_FILES)
    ) as child:
        try:
            with pytest.raises(WorkerTimeout):
                PartialDownload(child, tmp_path, site).fetch(deadline_s=0.5)
        finally:
            release.set()


def test_a_slow_server_is_cut_with_its_progress_kept(site: Site, tmp_path: Path) -> None:
    site.faults = [faulty_http_server.trickle(0.05)]
    with start_fetcher(module="tests.support.fast_fetcher", stall_window_s=0.2) as child:
        spool = PartialDownload(child, tmp_path, site)
        with pytest.raises(DownloadFailed, match="less than 1000 bytes per second"):
            spool.fetch(min_rate=1000)
    stored = spool.part.read_bytes()
    assert stored
    assert DATA.startswith(stored)
