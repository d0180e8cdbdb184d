"""A registry mirrors a publication: blobs, then tags, then the timestamp; nothing twice, and never an older one."""

import base64
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bundle.errors import AirweightsError, NotFound
from bundle.registry_paths import place_of
from packager.errors import PublishConflict
from packager.remote.push import PushReport, read_timestamps
from packager.remote.push_registry import push_to_registry
from packager.stores import errors, registry_client
from packager.stores.registry_client import AUTH_VARIABLE, RegistryClient
from tests.support.cutting_proxy import CuttingProxy, start_cutting_proxy
from tests.support.metadata_publisher import CheckClient, MetadataPublisher, copy_publisher, set_percent
from tests.support.packager_cli import run_packager
from tests.support.registry_server import LOGIN, TokenServer, needs_registry, start_registry, start_token_server

pytestmark = needs_registry
PUSH_REQUESTS = 80  # more than an update's push sends


@pytest.fixture(scope="module")
def open_registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with start_registry(tmp_path_factory.mktemp("registry")) as host:
        yield host


@pytest.fixture(scope="module")
def proxy(open_registry: str) -> Iterator[CuttingProxy]:
    with start_cutting_proxy(f"http://{open_registry}") as found:
        yield found


@pytest.fixture
def registry(proxy: CuttingProxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The URL of an empty name, through the proxy, without any credentials."""
    proxy.pass_all()
    monkeypatch.delenv(AUTH_VARIABLE, raising=False)
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    monkeypatch.setattr(registry_client, "FIRST_PAUSE_S", 0.01)
    name = "".join(letter if letter.isalnum() else "-" for letter in tmp_path.name.lower()).strip("-")
    return f"oci+http://{proxy.url.removeprefix('http://')}/models/x{name}"


def push_all(publisher: MetadataPublisher, url: str) -> PushReport:
    layout = publisher.repository.layout
    return push_to_registry(layout, RegistryClient(url), read_timestamps(layout))


def fetcher_of(url: str) -> Callable[[str, int], bytes]:
    """Return a fetch function that reads a registry by the rules of bundle.registry_paths."""
    client = RegistryClient(url)

    def fetch(address: str, max_bytes: int) -> bytes:
        place = place_of(address.removeprefix(f"{url}/"))
        digest = place.digest
        if place.tag:
            manifest = client.read_manifest(place.tag)
            if manifest is None:
                raise NotFound(address)
            digest = manifest["layers"][0]["digest"]
        response = client._request("GET", f"blobs/{digest}", {})
        if response.status == 404:
            raise NotFound(address)
        return bytes(response.data)

    return fetch


def percent_seen_by(device: CheckClient, url: str) -> int:
    return device.check(url, fetcher_of(url)).rollout.percent_bp


def test_a_device_sees_the_publication_and_nothing_is_sent_twice(
    publisher: MetadataPublisher, device: CheckClient, registry: str, proxy: CuttingProxy
) -> None:
    push_all(publisher, registry)
    assert percent_seen_by(device, registry) == 10_000
    proxy.pass_all()
    assert push_all(publisher, registry).sent == ()
    assert len(proxy.requests) == 3
    set_percent(publisher, 1000)
    sent = push_all(publisher, registry).sent
    assert not [path for path in sent if path.startswith("blobs/")]
    assert percent_seen_by(device, registry) == 1000
    manifest = RegistryClient(registry).read_manifest("timestamp.json")
    assert manifest is not None
    assert "data" in manifest["layers"][0]


@pytest.mark.parametrize("is_answer_lost", [False, True], ids=["request", "answer"])
@pytest.mark.parametrize("number", range(1, PUSH_REQUESTS))
def test_a_push_to_a_registry_that_ends_at_any_request_shows_the_old_or_the_new_publication(
    publisher: MetadataPublisher,
    device: CheckClient,
    registry: str,
    proxy: CuttingProxy,
    monkeypatch: pytest.MonkeyPatch,
    number: int,
    is_answer_lost: bool,
) -> None:
    push_all(publisher, registry)
    set_percent(publisher, 1000)
    with monkeypatch.context() as patch:
        patch.setattr(registry_client, "MAX_TRIES", 1)
        proxy.cut(number, is_answer_lost=is_answer_lost)
        try:
            push_all(publisher, registry)
            is_pushed = True
        except errors.StoreUnavailable:
            is_pushed = False
        proxy.pass_all()
    assert percent_seen_by(device, registry) in ({1000} if is_pushed else {1000, 10_000})
    push_all(publisher, registry)
    assert percent_seen_by(device, registry) == 1000
    assert push_all(publisher, registry).sent == ()


@pytest.mark.parametrize("is_answer_lost", [False, True], ids=["request", "answer"])
@pytest.mark.parametrize("number", range(1, PUSH_REQUESTS, 3))
def test_a_request_to_a_registry_that_is_cut_once_is_repeated(
    publisher: MetadataPublisher,
    device: CheckClient,
    registry: str,
    proxy: CuttingProxy,
    number: int,
    is_answer_lost: bool,
) -> None:
    proxy.cut(number, number, is_answer_lost=is_answer_lost)
    push_all(publisher, registry)
    assert percent_seen_by(device, registry) == 10_000


def test_an_older_publication_is_refused(publisher: MetadataPublisher, registry: str, tmp_path: Path) -> None:
    old = copy_publisher(publisher, tmp_path / "old")
    set_percent(publisher, 1000)
    push_all(publisher, registry)
    with pytest.raises(PublishConflict, match="has timestamp 4, and this one is timestamp 3"):
        push_all(old, registry)


def test_a_registry_is_no_master_copy(publisher: MetadataPublisher, registry: str) -> None:
    result = run_packager("repo", "status", "--repo", registry, "--json")
    assert (result.code, result.error["reason"]) == (2, errors.StoreUrlInvalid.reason)


def test_the_command_pushes_to_a_registry(publisher: MetadataPublisher, device: CheckClient, registry: str) -> None:
    result = run_packager("repo", "push", registry, "--repo", publisher.repository.root, "--json")
    assert result.code == 0, result.stderr
    assert percent_seen_by(device, registry) == 10_000


@pytest.fixture(scope="module")
def closed_registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with start_registry(tmp_path_factory.mktemp("closed"), is_closed=True) as host:
        yield host


def test_a_closed_registry_wants_credentials(
    publisher: MetadataPublisher,
    device: CheckClient,
    closed_registry: str,
    registry: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    url = f"oci+http://{closed_registry}/models/kws"
    with pytest.raises(errors.StoreCredentialsMissing) as found:
        push_all(publisher, url)
    assert "docker login" in (found.value.hint or "")
    monkeypatch.setenv(AUTH_VARIABLE, "publisher:wrong-password")
    with pytest.raises(errors.StoreCredentialsRefused) as refused:
        push_all(publisher, url)
    assert "wrong-password" not in str(refused.value)
    monkeypatch.delenv(AUTH_VARIABLE)
    auth = base64.b64encode(LOGIN.encode()).decode()
    (tmp_path / "config.json").write_text(json.dumps({"auths": {closed_registry: {"auth": auth}}}))
    push_all(publisher, url)
    assert percent_seen_by(device, url) == 10_000


@pytest.fixture
def tokens(tmp_path: Path) -> Iterator[TokenServer]:
    (tmp_path / "tokens").mkdir()
    with start_token_server(tmp_path / "tokens") as server:
        yield server


def test_a_registry_with_tokens(
    publisher: MetadataPublisher,
    device: CheckClient,
    tokens: TokenServer,
    registry: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "registry").mkdir()
    with start_registry(tmp_path / "registry", tokens=tokens) as host:
        url = f"oci+http://{host}/models/kws"
        with pytest.raises(AirweightsError) as found:
            push_all(publisher, url)
        assert found.value.reason == errors.StoreCredentialsMissing.reason
        monkeypatch.setenv(AUTH_VARIABLE, LOGIN)
        push_all(publisher, url)
        monkeypatch.delenv(AUTH_VARIABLE)
        assert percent_seen_by(device, url) == 10_000  # pulling needs no credentials


@pytest.mark.parametrize(
    "url", ["oci://", "oci://host", "oci://host/Upper", "oci://u:secret@host/name", "oci://host/a?b"]
)
def test_other_urls_are_refused_without_their_secrets(url: str) -> None:
    with pytest.raises(errors.StoreUrlInvalid) as found:
        RegistryClient(url)
    assert "secret" not in str(found.value)


def test_a_publisher_that_was_first_during_the_upload_stays(
    publisher: MetadataPublisher, device: CheckClient, registry: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    old = copy_publisher(publisher, tmp_path / "old")
    set_percent(publisher, 1000)
    put_blob, others = RegistryClient.put_blob, [publisher]

    def put_after_the_other(client: RegistryClient, digest: str, source: bytes | Path) -> None:
        if others:
            push_all(others.pop(), registry)
        put_blob(client, digest, source)

    monkeypatch.setattr(RegistryClient, "put_blob", put_after_the_other)
    with pytest.raises(PublishConflict):
        push_all(old, registry)
    assert percent_seen_by(device, registry) == 1000
