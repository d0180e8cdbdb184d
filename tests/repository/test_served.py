"""`packager repo verify --url` finds what a web server, a cache or a file mode does to a published repository."""

import gzip
import shutil
from pathlib import Path

import pytest

from packager.repository.published import PublishedDocuments
from packager.repository.served_check import MAX_ENVELOPES_PER_FOLDER, ServedReport, check_served
from tests.support.faulty_http_server import (
    Exchange,
    Fault,
    cut_after,
    only_below,
    respond_with_status,
    serve_folder,
)
from tests.support.metadata_publisher import FAMILY, MetadataPublisher, copy_publisher
from tests.support.packager_cli import run_packager


@pytest.fixture(scope="module")
def served(pristine_publisher: MetadataPublisher, tmp_path_factory: pytest.TempPathFactory) -> MetadataPublisher:
    """Return a publisher with a release and an envelope; the tests do not change it."""
    publisher = copy_publisher(pristine_publisher, tmp_path_factory.mktemp("served") / "site")
    publisher.repository.put_shard(f"envelopes/content/{FAMILY}/1", b"sealed")
    return publisher


def check(publisher: MetadataPublisher, url: str) -> ServedReport:
    """Check a URL against a publisher's folder."""
    layout = publisher.repository.layout
    return check_served(layout, PublishedDocuments(layout), url)


def find(report: ServedReport, reason: str) -> str:
    """Return the message of the first problem with this reason."""
    return next(problem.message for problem in report.problems if problem.reason == reason)


def test_what_is_served_as_it_is_has_no_problem(served: MetadataPublisher) -> None:
    with serve_folder(served.published) as site:
        report = check(served, site.url)
    assert (report.problems, report.is_sound, report.replaced_s) == ((), True, 0)
    assert report.timestamp_version == PublishedDocuments(served.repository.layout).timestamp_version
    fetched = {request.path for request in site.requests}
    names = {path.relative_to(served.published).as_posix() for path in served.published.rglob("*") if path.is_file()}
    old = {name for name in names if "metadata/" in name and "root" not in name}
    assert names - old <= fetched
    assert check(served, served.published.as_uri()).is_sound


def test_envelopes_are_sampled_and_the_compressed_timestamp_may_be_missing(publisher: MetadataPublisher) -> None:
    (publisher.published / "metadata" / "timestamp.awz").unlink()
    url = publisher.published.as_uri()
    before = check(publisher, url)
    assert before.is_sound
    for number in range(2 * MAX_ENVELOPES_PER_FOLDER - 1):
        publisher.repository.put_shard(f"envelopes/cohorts/default/1/1-{number}", b"sealed")
    after = check(publisher, url)
    assert (after.is_sound, after.files) == (True, before.files + MAX_ENVELOPES_PER_FOLDER)


def send_coded(exchange: Exchange) -> bool:
    """Send the body compressed, though no coding was requested."""
    data = gzip.compress(exchange.data)
    exchange.head(200, {"Content-Length": str(len(data)), "Content-Encoding": "gzip"})
    exchange.write(data)
    return True


def send_page(exchange: Exchange) -> bool:
    """Send the page of a login portal."""
    page = b"<!DOCTYPE html><html><body>Log in</body></html>"
    exchange.head(200, {"Content-Length": str(len(page)), "Content-Type": "text/html"})
    exchange.write(page)
    return True


def send_longer(exchange: Exchange) -> bool:
    """Announce and send one byte too many."""
    exchange.data += b"x"
    return False


def send_zeros(exchange: Exchange) -> bool:
    """Send other bytes of the same length."""
    exchange.data = bytes(len(exchange.data))
    return False


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (only_below("blobs/", respond_with_status(403)), "access-denied"),
        (only_below("envelopes/", respond_with_status(404)), "not-found"),
        (only_below("blobs/", send_coded), "download-failed"),
        (only_below("metadata/", send_page), "repository-not-reached"),
        (only_below("targets/", cut_after(10)), "download-failed"),
        (only_below("targets/", send_longer), "too-large"),
        (only_below("blobs/", send_longer), "digest-mismatch"),
        (only_below("blobs/", send_zeros), "digest-mismatch"),
        (only_below("targets/", send_zeros), "digest-mismatch"),
        (only_below("blobs/", respond_with_status(401)), "repository-auth-required"),
    ],
)
def test_a_fault_of_a_server_is_found(served: MetadataPublisher, fault: Fault, reason: str) -> None:
    with serve_folder(served.published) as site:
        site.faults.append(fault)
        report = check(served, site.url)
    assert not report.is_sound
    assert {problem.reason for problem in report.problems if problem.severity == "error"} == {reason}
    assert site.url in find(report, reason)


def test_a_server_without_ranges_is_a_warning(served: MetadataPublisher) -> None:
    with serve_folder(served.published) as site:
        site.ranges = False
        report = check(served, site.url)
    assert report.is_sound
    assert [problem.reason for problem in report.problems] == ["range-ignored"]


def test_an_answer_for_a_missing_file_is_found(served: MetadataPublisher, tmp_path: Path) -> None:
    shutil.copytree(served.published, tmp_path / "published")
    (tmp_path / "published" / "metadata" / "0.airweights-does-not-exist.json").write_text("{}")
    with serve_folder(tmp_path / "published") as site:
        report = check(served, site.url)
    assert "HTTP 200 for a file that does not exist" in find(report, "missing-file-answered")


def test_a_stale_cache_is_told_with_its_age(publisher: MetadataPublisher, tmp_path: Path) -> None:
    before = (publisher.published / "metadata" / "timestamp.json").read_bytes()
    publisher.release("1.1.0", 2)
    shutil.copytree(publisher.published, tmp_path / "edge")
    (tmp_path / "edge" / "metadata" / "timestamp.json").write_bytes(before)

    def add_age(exchange: Exchange) -> bool:
        body = exchange.data
        exchange.head(200, {"Content-Length": str(len(body)), "Age": "4711"})
        exchange.write(body)
        return True

    with serve_folder(tmp_path / "edge") as edge, serve_folder(publisher.published) as origin:
        edge.faults.append(only_below("metadata/timestamp.json", add_age))
        words = ("repo", "verify", "--repo", publisher.repository.root, "--url", edge.url, "--url", origin.url)
        result = run_packager(*words, "--json")
        text = run_packager(*words).stdout
    assert result.code == 3
    stale, current = result.json["served"]
    assert current["is_sound"]
    assert (stale["timestamp_version"], stale["age_s"]) == (current["timestamp_version"] - 1, 4711)
    assert 0 <= stale["replaced_s"] < 600
    assert [problem["reason"] for problem in stale["problems"]] == ["stale-timestamp"]
    assert "stale-timestamp" in text
    assert "(current)" in text


def test_a_folder_that_the_server_cannot_read_is_found(served: MetadataPublisher, tmp_path: Path) -> None:
    """The modes that a umask of 077 gives: the web server answers 403."""
    shutil.copytree(served.published, tmp_path / "published")
    (tmp_path / "published" / "blobs").chmod(0o700)
    with serve_folder(tmp_path / "published") as site:

        def without_permission(exchange: Exchange) -> bool:
            path = tmp_path / "published" / exchange.path
            is_readable = all(folder.stat().st_mode & 0o005 == 0o005 for folder in list(path.parents)[:2])
            return not is_readable and respond_with_status(403)(exchange)

        site.faults.append(without_permission)
        report = check(served, site.url)
    assert all(problem.path.startswith("blobs/") for problem in report.problems)
    assert "HTTP 403" in find(report, "access-denied")


def test_nobody_at_the_url_is_an_error(served: MetadataPublisher) -> None:
    with serve_folder(served.published) as site:
        pass
    report = check(served, site.url)
    assert not report.is_sound
    assert report.timestamp_version is None


def test_a_plain_server_at_an_https_address_is_an_error_of_tls(served: MetadataPublisher) -> None:
    with serve_folder(served.published) as site:
        report = check(served, site.url.replace("http:", "https:"))
    assert {problem.reason for problem in report.problems} == {"tls-failed"}
