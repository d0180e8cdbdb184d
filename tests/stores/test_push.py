"""A push replaces a publication whole, wherever it is interrupted, and sends only what is missing."""

import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from bundle.errors import AirweightsError, NotFound
from bundle.manifest import Manifest
from packager.errors import PublishConflict, RepositoryMissing
from packager.remote.pull import pull
from packager.remote.push import PushReport, push, read_timestamps
from packager.remote.remote_repository import collect_store_garbage, open_repository
from packager.stores import errors, object_store
from packager.stores.open_store import open_store
from tests.support.cutting_proxy import CuttingProxy
from tests.support.json_schemas import check_schema
from tests.support.metadata_publisher import (
    CHANNEL,
    FAMILY,
    CheckClient,
    MetadataPublisher,
    copy_publisher,
    make_rollout,
    set_percent,
)
from tests.support.packager_cli import assert_refused, run_packager
from tests.support.publisher_race import race_two_publishers
from tests.support.s3_server import OPEN_BUCKET, READER, S3Server, needs_s3

PUSH_REQUESTS = 30  # more than an update's push sends


@pytest.fixture
def folder_url(tmp_path: Path) -> str:
    return (tmp_path / "site").as_uri()


def push_all(publisher: MetadataPublisher, url: str) -> PushReport:
    layout = publisher.repository.layout
    return push(layout, open_store(url), read_timestamps(layout))


def manifest_of(publisher: MetadataPublisher) -> Manifest:
    manifest = publisher.repository.published_manifest(FAMILY, "1.0.0")
    assert manifest is not None
    return manifest


def fetcher_of(server: S3Server, url: str) -> tuple[str, Callable[[str, int], bytes]]:
    """Return the HTTP URL of a prefix, and a device's fetch function without credentials."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def fetch(address: str, max_bytes: int) -> bytes:
        try:
            with opener.open(address, timeout=120) as response:
                return bytes(response.read(max_bytes + 1))
        except urllib.error.HTTPError as error:
            raise NotFound(f"{address}: HTTP {error.code}") from error

    return f"{server.endpoint}/{url.removeprefix('s3://')}", fetch


def seen_by(device: CheckClient, server: S3Server, url: str) -> int:
    base, fetch = fetcher_of(server, url)
    return device.check(base, fetch).rollout.percent_bp


# -- a folder --------------------------------------------------------------------------------------------------------


def test_a_folder_gets_the_publication_and_nothing_twice(
    publisher: MetadataPublisher, device: CheckClient, folder_url: str
) -> None:
    first = push_all(publisher, folder_url)
    assert "metadata/timestamp.json" in first.sent
    assert device.check(folder_url).manifest.version == "1.0.0"
    assert push_all(publisher, folder_url).sent == ()
    set_percent(publisher, 1000)
    second = push_all(publisher, folder_url)
    assert not [path for path in second.sent if path.startswith("blobs/")]
    assert device.check(folder_url).rollout.percent_bp == 1000


def test_a_dry_run_sends_nothing(publisher: MetadataPublisher, folder_url: str) -> None:
    layout = publisher.repository.layout
    report = push(layout, open_store(folder_url), read_timestamps(layout), is_dry_run=True)
    assert report.is_dry_run
    assert len(report.sent) > 10
    assert open_store(folder_url).read("metadata/timestamp.json") is None


def test_of_two_folders_the_second_is_told_who_was_first(
    publisher: MetadataPublisher, device: CheckClient, folder_url: str, tmp_path: Path
) -> None:
    push_all(publisher, folder_url)
    other = copy_publisher(publisher, tmp_path / "other")
    set_percent(publisher, 1000)
    push_all(publisher, folder_url)
    set_percent(other, 2000)
    with pytest.raises(PublishConflict, match=r"has timestamp 4, published by .*\(process \d+\) at Unix time"):
        push_all(other, folder_url)
    assert device.check(folder_url).rollout.percent_bp == 1000
    with pytest.raises(PublishConflict, match="is not part of"):
        pull(open_store(folder_url), other.repository.layout, None)
    pull(open_store(folder_url), other.repository.layout, None, is_replacing=True)
    set_percent(other, 2000)
    push_all(other, folder_url)
    assert device.check(folder_url).rollout.percent_bp == 2000


def test_an_older_publication_is_not_pushed_over_a_newer_one(
    publisher: MetadataPublisher, folder_url: str, tmp_path: Path
) -> None:
    old = copy_publisher(publisher, tmp_path / "old")
    set_percent(publisher, 1000)
    push_all(publisher, folder_url)
    with pytest.raises(PublishConflict, match="does not follow"):
        push_all(old, folder_url)


def test_files_of_another_repository_are_not_replaced(
    publisher: MetadataPublisher, folder_url: str, tmp_path: Path
) -> None:
    push_all(publisher, folder_url)
    (tmp_path / "site" / "metadata" / "1.root.json").write_bytes(b"{}")
    set_percent(publisher, 1000)
    with pytest.raises(errors.StoreOtherRepository):
        push_all(publisher, folder_url)


def test_publish_to_a_store_leaves_the_folder_as_it_is_when_another_was_first(
    publisher: MetadataPublisher, device: CheckClient, folder_url: str, tmp_path: Path
) -> None:
    push_all(publisher, folder_url)
    other = copy_publisher(publisher, tmp_path / "other")
    set_percent(other, 3000)
    push_all(other, folder_url)
    repository = publisher.repository
    repository.stage_rollout(replace(make_rollout(manifest_of(publisher)), percent_bp=1000))
    before = (publisher.published / "metadata" / "timestamp.json").read_bytes()
    assert repository.sign(publisher.signers).is_complete
    root = ("--repo", publisher.repository.root)
    result = run_packager("repo", "publish", "--to", folder_url, *root, "--json")
    assert_refused(result, code=4, reason="publish-conflict", words=("published by",))
    assert (publisher.published / "metadata" / "timestamp.json").read_bytes() == before
    assert not publisher.repository.is_staging_empty
    assert device.check(folder_url).rollout.percent_bp == 3000


# -- S3 --------------------------------------------------------------------------------------------------------------


@needs_s3
def test_an_unchanged_repository_costs_three_requests(
    publisher: MetadataPublisher, device: CheckClient, bucket: str, s3_server: S3Server, s3_proxy: CuttingProxy
) -> None:
    push_all(publisher, bucket)
    assert seen_by(device, s3_server, bucket) == 10_000
    s3_proxy.pass_all()
    assert push_all(publisher, bucket).sent == ()
    assert len(s3_proxy.requests) == 3
    base, _ = fetcher_of(s3_server, bucket)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    for path, expected in (("metadata/timestamp.json", "max-age=60"), ("metadata/1.root.json", "immutable")):
        with opener.open(f"{base}/{path}") as response:
            assert expected in response.headers["Cache-Control"]


@needs_s3
@pytest.mark.parametrize("is_answer_lost", [False, True], ids=["request", "answer"])
@pytest.mark.parametrize("number", range(1, PUSH_REQUESTS))
def test_a_push_that_ends_at_any_request_shows_the_old_or_the_new_publication(
    publisher: MetadataPublisher,
    device: CheckClient,
    bucket: str,
    s3_server: S3Server,
    s3_proxy: CuttingProxy,
    monkeypatch: pytest.MonkeyPatch,
    number: int,
    is_answer_lost: bool,
) -> None:
    push_all(publisher, bucket)
    set_percent(publisher, 1000)
    with monkeypatch.context() as patch:
        patch.setattr(object_store, "MAX_RETRIES", 0)
        s3_proxy.cut(number, is_answer_lost=is_answer_lost)
        try:
            push_all(publisher, bucket)
            is_pushed = True
        except errors.StoreUnavailable:
            is_pushed = False
        requests = list(s3_proxy.requests)
        s3_proxy.pass_all()
    assert is_pushed == (len(requests) < number)
    assert seen_by(device, s3_server, bucket) in ({1000} if is_pushed else {1000, 10_000})
    again = push_all(publisher, bucket)
    assert not [path for path in again.sent if path.startswith("blobs/")]
    assert seen_by(device, s3_server, bucket) == 1000
    assert push_all(publisher, bucket).sent == ()


@needs_s3
@pytest.mark.parametrize("is_answer_lost", [False, True], ids=["request", "answer"])
@pytest.mark.parametrize("number", range(1, PUSH_REQUESTS))
def test_a_request_that_is_cut_once_is_repeated(
    publisher: MetadataPublisher,
    device: CheckClient,
    bucket: str,
    s3_server: S3Server,
    s3_proxy: CuttingProxy,
    number: int,
    is_answer_lost: bool,
) -> None:
    s3_proxy.cut(number, number, is_answer_lost=is_answer_lost)
    push_all(publisher, bucket)
    assert seen_by(device, s3_server, bucket) == 10_000


@needs_s3
@pytest.mark.parametrize("attempt", range(50))
def test_of_two_publishers_at_the_same_time_each_succeeds_or_is_told_who_did(
    pristine_publisher: MetadataPublisher,
    publisher: MetadataPublisher,
    device: CheckClient,
    bucket: str,
    s3_server: S3Server,
    attempt: int,
) -> None:
    """Both change the rollout in the store at once; a loser tries again, so that nothing is lost."""
    push_all(publisher, bucket)
    outcomes = race_two_publishers(publisher, bucket)
    assert sorted(version for _, version, _ in outcomes) == [4, 5]
    assert all("by " in message or "another publisher" in message for _, _, found in outcomes for message in found)
    last = max(outcomes, key=lambda outcome: outcome[1])
    base, fetch = fetcher_of(s3_server, bucket)
    release = device.check(base, fetch)
    assert (release.rollout.percent_bp, release.rollout.note) == (last[0], "xx")


@needs_s3
@pytest.mark.parametrize("field", ["if-match", "if-none-match"])
def test_a_store_without_conditional_puts_is_refused(
    publisher: MetadataPublisher, bucket: str, s3_proxy: CuttingProxy, field: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket = bucket.replace("models", OPEN_BUCKET)
    monkeypatch.setenv("AWS_SKIP_SIGNATURE", "true")  # a signature covers the condition
    s3_proxy.dropped_fields = frozenset({field})
    try:
        with pytest.raises(errors.ConditionalPutsMissing, match="ignores If-"):
            push_all(publisher, bucket)
        assert open_store(bucket).read("metadata/timestamp.json") is None
    finally:
        s3_proxy.dropped_fields = frozenset()


@needs_s3
def test_an_interrupted_publisher_does_not_block_the_next_one(
    publisher: MetadataPublisher,
    device: CheckClient,
    bucket: str,
    s3_server: S3Server,
    s3_proxy: CuttingProxy,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """Documents that an interrupted publisher left are neither replaced nor reused: the next versions are taken."""
    push_all(publisher, bucket)
    other = copy_publisher(publisher, tmp_path / "other")
    set_percent(other, 2000)
    with monkeypatch.context() as patch:
        patch.setattr(object_store.ObjectStore, "swap", _fail)
        with pytest.raises(errors.StoreUnavailable):
            push_all(other, bucket)
    root = publisher.published / "metadata" / "1.root.json"
    with open_repository(bucket, root, is_signing=True) as repository:
        before = repository.published_rollout(FAMILY, CHANNEL)
        assert before is not None
        changed = replace(before, percent_bp=3000)
        report = repository.publish_rollout(changed, before, publisher.signers)
    assert report.roles["snapshot"] == 5
    assert seen_by(device, s3_server, bucket) == 3000
    with pytest.raises(PublishConflict):
        push_all(other, bucket)
    assert seen_by(device, s3_server, bucket) == 3000


def _fail(self: object, *words: object) -> bool:
    if words[0] == object_store.PROBE:
        return False
    raise errors.StoreUnavailable("cut")


@needs_s3
def test_the_commands_work_on_a_bucket(
    publisher: MetadataPublisher,
    device: CheckClient,
    bucket: str,
    s3_server: S3Server,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PACKAGER_PASSPHRASE", "a passphrase for tests")
    assert_refused(run_packager("repo", "status", "--repo", bucket, "--json"), code=2, reason=RepositoryMissing.reason)
    pushed = run_packager("repo", "push", bucket, "--repo", publisher.repository.root, "--json")
    assert pushed.code == 0, pushed.stderr
    check_schema("repo-push", pushed.json)
    root = ("--repo", bucket, "--root", publisher.published / "metadata" / "1.root.json")
    keys = ("--keys", publisher.keys)
    for words in (
        ("repo", "verify", *root),
        ("repo", "status", *root),
        ("rollout", "status", *root),
        ("rollout", "set", FAMILY, CHANNEL, "1.0.0", "--percent", "20", *root, *keys),
        ("repo", "refresh", *root, *keys),
        ("repo", "collect-garbage", "--dry-run", *root),
        ("repo", "collect-garbage", *root),
        ("repo", "verify", *root),
        ("repo", "pull", bucket, "--repo", tmp_path / "pulled"),
    ):
        result = run_packager(*words, "--json")
        assert result.code == 0, result.stderr
    check_schema("repo-pull", result.json)
    assert seen_by(device, s3_server, bucket) == 2000
    assert device.check(tmp_path / "pulled" / "published").rollout.percent_bp == 2000
    unsigned = run_packager("rollout", "set", FAMILY, CHANNEL, "1.0.0", *root, "--json")
    assert_refused(unsigned, code=2, reason="invalid-usage", words=("staged changes need a folder",))
    untrusting = run_packager("repo", "refresh", "--repo", bucket, *keys, "--json")
    assert_refused(untrusting, code=2, reason="invalid-usage", words=("trusted root",))


@needs_s3
def test_garbage_in_a_bucket_goes_when_the_publication_list_says_so(
    publisher: MetadataPublisher, device: CheckClient, bucket: str, s3_server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    push_all(publisher, bucket)
    base, fetch = fetcher_of(s3_server, bucket)
    store = open_store(bucket)
    set_percent(publisher, 1000)
    push_all(publisher, bucket)
    set_percent(publisher, 2000)
    push_all(publisher, bucket)
    with open_repository(bucket) as repository:
        kept = collect_store_garbage(repository, store, dry_run=True, grace_s=86_400)
        assert kept.removed == ()
    now_s = time.time()
    monkeypatch.setattr("time.time", lambda: now_s + 90_000)
    with open_repository(bucket) as repository:
        # the first publication was replaced a day ago, but the second one only now
        done = collect_store_garbage(repository, store, dry_run=False, grace_s=86_400)
    assert "metadata/3.snapshot.json" in done.removed
    assert not [path for path in done.removed if path.startswith("blobs/") or "root" in path]
    monkeypatch.undo()
    assert fetch(f"{base}/metadata/5.snapshot.json", 1 << 20)
    with pytest.raises(AirweightsError):
        fetch(f"{base}/metadata/3.snapshot.json", 1 << 20)


# -- what stores answer ----------------------------------------------------------------------------------------------


def test_missing_credentials_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for names in object_store.CREDENTIAL_VARIABLES.values():
        for name in names:
            monkeypatch.delenv(name, raising=False)
    for url, variable in (("s3://abc/p", "AWS_ACCESS_KEY_ID"), ("gs://abc/p", "GOOGLE_"), ("az://abc/p", "AZURE_")):
        with pytest.raises(errors.StoreCredentialsMissing) as found:
            open_store(url)
        assert variable in (found.value.hint or "")


@pytest.mark.parametrize(
    "url", ["s3://", "s3://user:secret@b/p", "ftp://b/p", "file://host/p", "s3://b/p?x=1", "oci://r/n"]
)
def test_other_urls_are_refused_without_their_secrets(url: str) -> None:
    with pytest.raises(errors.StoreUrlInvalid) as found:
        open_store(url)
    assert "secret" not in str(found.value)


@needs_s3
@pytest.mark.parametrize(
    ("keys", "reason"),
    [
        (READER, errors.StoreAccessDenied),
        (("publisher", "wrong-secret-1234"), errors.StoreCredentialsRefused),
        (("nobody", "wrong-secret-1234"), errors.StoreCredentialsRefused),
    ],
    ids=["reader", "secret", "key"],
)
def test_credentials_that_are_refused_are_told_apart(
    publisher: MetadataPublisher,
    bucket: str,
    monkeypatch: pytest.MonkeyPatch,
    keys: tuple[str, str],
    reason: type[AirweightsError],
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", keys[0])
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", keys[1])
    with pytest.raises(reason) as found:
        push_all(publisher, bucket)
    assert keys[1] not in str(found.value)


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[int, str]]]:
    """A server that answers every request with the status and the error code in the list."""
    found: list[tuple[int, str]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, code = found[0]
            body = f"<Error><Code>{code}</Code></Error>".encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Print nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_address[1]}")
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "top-secret")
        monkeypatch.setattr(object_store, "MAX_RETRIES", 0)
        yield found
        server.shutdown()


@needs_s3
@pytest.mark.parametrize(
    ("status", "code", "reason"),
    [
        (400, "ExpiredToken", errors.StoreCredentialsExpired),
        (403, "RequestTimeTooSkewed", errors.StoreClockSkewed),
        (403, "AccessDenied", errors.StoreAccessDenied),
        (403, "InvalidAccessKeyId", errors.StoreCredentialsRefused),
        (404, "NoSuchBucket", errors.StoreBucketMissing),
        (503, "SlowDown", errors.StoreUnavailable),
        (301, "PermanentRedirect", errors.StoreUnavailable),
    ],
)
def test_every_answer_has_its_reason(
    answers: list[tuple[int, str]], status: int, code: str, reason: type[AirweightsError]
) -> None:
    answers[:] = [(status, code)]
    with pytest.raises(reason) as found:
        open_store("s3://models/p").read("metadata/timestamp.json")
    assert "s3://models" in found.value.message
    assert "top-secret" not in str(found.value)
