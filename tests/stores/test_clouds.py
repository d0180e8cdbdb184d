"""Publications in Azure Blob Storage and Google Cloud Storage, as their emulators answer."""

import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from bundle.errors import NotFound
from packager.errors import PublishConflict
from packager.remote.pull import pull
from packager.remote.push import PushReport, push, read_timestamps
from packager.remote.remote_repository import collect_store_garbage, open_repository
from packager.repository.layout import RepositoryLayout
from packager.stores import errors, object_store
from packager.stores.open_store import open_store
from packager.stores.store import PRIVATE
from tests.support.cloud_emulators import CONTAINER, CloudServer, needs_azurite, needs_gcs, start_azurite, start_gcs
from tests.support.cutting_proxy import CuttingProxy, start_cutting_proxy
from tests.support.metadata_publisher import (
    CheckClient,
    MetadataPublisher,
    copy_publisher,
    set_percent,
)
from tests.support.publisher_race import race_two_publishers

CLOUDS = [pytest.param(start_gcs, id="gs", marks=needs_gcs), pytest.param(start_azurite, id="az", marks=needs_azurite)]
PUSH_REQUESTS = 30


@dataclass(frozen=True, slots=True)
class Cloud:
    """A server behind a proxy that can cut requests."""

    server: CloudServer
    proxy: CuttingProxy


@pytest.fixture(scope="module", params=CLOUDS)
def cloud(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cloud]:
    with request.param(tmp_path_factory.mktemp("cloud")) as server, start_cutting_proxy(server.endpoint) as proxy:
        yield Cloud(server, proxy)


@pytest.fixture
def url(cloud: Cloud, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The URL of an empty prefix, reached through the proxy."""
    cloud.proxy.pass_all()
    for name, value in cloud.server.environment(cloud.proxy.url).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(object_store, "FIRST_PAUSE_S", 0.01)
    return f"{cloud.server.scheme}://{CONTAINER}/{tmp_path.name}"


def push_all(publisher: MetadataPublisher, url: str) -> PushReport:
    layout = publisher.repository.layout
    return push(layout, open_store(url), read_timestamps(layout))


def seen_by(device: CheckClient, cloud: Cloud, url: str) -> int:
    """Return the percentage that a device reads without credentials."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def fetch(address: str, max_bytes: int) -> bytes:
        try:
            with opener.open(address, timeout=60) as response:
                return bytes(response.read(max_bytes + 1))
        except urllib.error.HTTPError as error:
            raise NotFound(f"{address}: HTTP {error.code}") from error

    base = f"{cloud.server.endpoint}{cloud.server.base}/{url.partition('://')[2]}"
    return device.check(base, fetch).rollout.percent_bp


def test_conditional_puts_compare(url: str) -> None:
    store = open_store(url)
    assert store.create("a", b"1", PRIVATE)
    assert not store.create("a", b"2", PRIVATE)
    first = store.read("a")
    assert first is not None
    assert store.swap("a", b"3", first.version, PRIVATE)
    assert not store.swap("a", b"4", first.version, PRIVATE)
    second = store.read("a")
    assert second is not None
    assert second.data == b"3"
    store.check_conditional_puts()
    assert store.read("b") is None
    assert not store.swap("b", b"5", second.version, PRIVATE)


def test_files_come_back_whole_also_those_sent_in_parts(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(object_store, "MULTIPART_BYTES", 4)
    store, path = open_store(url), tmp_path / "file"
    path.write_bytes(bytes(range(256)) * 50_000)
    store.put("blobs/large", path, PRIVATE)
    store.download("blobs/large", tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == path.read_bytes()
    assert store.list_files()["blobs/large"].size == path.stat().st_size


def test_files_that_do_not_exist_are_deleted_without_complaint(url: str) -> None:
    store = open_store(url)
    for path in ("a", "c"):
        store.put(path, b"1", PRIVATE)
    store.delete(["a", "b", "c"])
    store.delete(["b"])
    store.delete([])
    assert not store.list_files()


def test_a_bucket_that_does_not_exist_is_named(url: str, cloud: Cloud) -> None:
    store = open_store(f"{cloud.server.scheme}://nowhere/{Path(url).name}")
    with pytest.raises(errors.StoreBucketMissing, match="nowhere"):
        store.put("a", b"1", PRIVATE)


def test_an_unchanged_publication_costs_three_requests_and_is_pulled_again(
    publisher: MetadataPublisher, device: CheckClient, cloud: Cloud, url: str, tmp_path: Path
) -> None:
    push_all(publisher, url)
    assert seen_by(device, cloud, url) == 10_000
    cloud.proxy.pass_all()
    assert push_all(publisher, url).sent == ()
    assert len(cloud.proxy.requests) == 3
    root = (publisher.published / "metadata" / "1.root.json").read_bytes()
    pull(open_store(url), RepositoryLayout(tmp_path / "pulled"), root)
    assert device.check(tmp_path / "pulled" / "published").rollout.percent_bp == 10_000


def test_the_second_of_two_publishers_is_told_who_was_first_and_garbage_goes(
    publisher: MetadataPublisher,
    device: CheckClient,
    cloud: Cloud,
    url: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    push_all(publisher, url)
    other = copy_publisher(publisher, tmp_path / "other")
    for percent in (1000, 3000):
        set_percent(publisher, percent)
        push_all(publisher, url)
    set_percent(other, 2000)
    with pytest.raises(PublishConflict, match="published by"):
        push_all(other, url)
    assert seen_by(device, cloud, url) == 3000
    later_s = time.time() + 90_000
    monkeypatch.setattr("time.time", lambda: later_s)
    with open_repository(url) as repository:
        done = collect_store_garbage(repository, open_store(url), dry_run=False, grace_s=86_400)
    assert "metadata/3.snapshot.json" in done.removed


@pytest.mark.parametrize("attempt", range(50))
def test_of_two_publishers_in_a_cloud_each_succeeds_or_is_told_who_did(
    pristine_publisher: MetadataPublisher,
    publisher: MetadataPublisher,
    device: CheckClient,
    cloud: Cloud,
    url: str,
    attempt: int,
) -> None:
    """Both change the rollout in the store at once; a loser tries again, so that nothing is lost."""
    push_all(publisher, url)
    outcomes = race_two_publishers(publisher, url)
    assert sorted(version for _, version, _ in outcomes) == [4, 5]
    assert all("by " in message or "another publisher" in message for _, _, found in outcomes for message in found)
    assert seen_by(device, cloud, url) == max(outcomes, key=lambda outcome: outcome[1])[0]


@pytest.mark.parametrize("is_answer_lost", [False, True], ids=["request", "answer"])
@pytest.mark.parametrize("number", range(1, PUSH_REQUESTS))
def test_a_push_to_a_cloud_that_ends_at_any_request_shows_the_old_or_the_new_publication(
    publisher: MetadataPublisher,
    device: CheckClient,
    cloud: Cloud,
    url: str,
    monkeypatch: pytest.MonkeyPatch,
    number: int,
    is_answer_lost: bool,
) -> None:
    push_all(publisher, url)
    set_percent(publisher, 1000)
    with monkeypatch.context() as patch:
        patch.setattr(object_store, "MAX_RETRIES", 0)
        cloud.proxy.cut(number, is_answer_lost=is_answer_lost)
        try:
            push_all(publisher, url)
            is_pushed = True
        except errors.StoreUnavailable:
            is_pushed = False
        requests = list(cloud.proxy.requests)
        cloud.proxy.pass_all()
    assert is_pushed == (len(requests) < number)
    assert seen_by(device, cloud, url) in ({1000} if is_pushed else {1000, 10_000})
    push_all(publisher, url)
    assert seen_by(device, cloud, url) == 1000
    assert push_all(publisher, url).sent == ()
