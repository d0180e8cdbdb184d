"""A registry mirrors a publication: blobs, then tags, then the timestamp; nothing twice, and never an older one."""

import base64
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from bundle.errors import AirweightsError
from packager.errors import PublishConflict, RepositoryMissing
from packager.stores import errors, registry_client
from packager.stores.registry_client import AUTH_VARIABLE, RegistryClient
from tests.support.cutting_proxy import CuttingProxy
from tests.support.metadata_publisher import CheckClient, MetadataPublisher, copy_publisher, set_percent
from tests.support.packager_cli import run_packager
from tests.support.registry_mirror import percent_seen_by, push_all
from tests.support.registry_server import LOGIN, TokenServer, needs_registry, start_registry, start_token_server

pytestmark = needs_registry
PUSH_REQUESTS = 80  # more than an update's push sends


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


def test_a_registry_without_publication_says_so(registry: str) -> None:
    for words in (("status", "--repo", registry), ("collect-garbage", "--repo", registry)):
        result = run_packager("repo", *words, "--json")
        assert (result.code, result.error["reason"]) == (2, RepositoryMissing.reason)


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
