"""A registry can be pulled, verified and cleaned, whatever its rules are; devices in the middle of a check read on."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from bundle.registry_paths import EMPTY_TYPE, FILE_TYPE
from packager.errors import PublishConflict, RepositoryDamaged
from packager.remote import registry_garbage
from packager.remote.pull import pull
from packager.remote.registry_garbage import collect_registry_garbage
from packager.remote.registry_store import RegistryStore
from packager.repository.layout import RepositoryLayout
from packager.stores import registry_client
from packager.stores.errors import RegistryDeletesDisabled, StoreOtherRepository, StoreRejected
from packager.stores.registry_client import RegistryClient
from tests.support.metadata_publisher import CheckClient, MetadataPublisher, set_percent
from tests.support.packager_cli import read_all_files, run_packager
from tests.support.registry_mirror import fetcher_of, percent_seen_by, push_all
from tests.support.registry_server import needs_registry
from tests.support.small_registry import SmallRegistry, start_small_registry


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> Iterator[SmallRegistry]:
    monkeypatch.setattr(registry_client, "FIRST_PAUSE_S", 0.01)
    with start_small_registry() as found:
        yield found


def url_of(registry: SmallRegistry) -> str:
    return f"oci+http://{registry.host}/models/kws"


def root_of(publisher: MetadataPublisher) -> bytes:
    return (publisher.published / "metadata" / "1.root.json").read_bytes()


@needs_registry
def test_the_commands_read_and_clean_a_real_registry(
    publisher: MetadataPublisher, device: CheckClient, registry: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    push_all(publisher, registry)
    for percent in (1000, 2000):
        set_percent(publisher, percent)
        push_all(publisher, registry)
    monkeypatch.setenv("PACKAGER_ROOT", str(publisher.published / "metadata" / "1.root.json"))
    pulled = run_packager("repo", "pull", registry, "--repo", tmp_path / "pulled", "--json")
    assert pulled.code == 0, pulled.stderr
    files = read_all_files(tmp_path / "pulled" / "published")
    assert files.items() <= read_all_files(publisher.published).items()
    assert device.check(tmp_path / "pulled" / "published").rollout.percent_bp == 2000
    assert run_packager("repo", "pull", registry, "--repo", tmp_path / "pulled", "--json").json["received"] == []
    assert run_packager("repo", "status", "--repo", registry, "--json").code == 0
    assert run_packager("repo", "verify", "--repo", registry, "--json").code == 0
    clean = ("repo", "collect-garbage", "--repo", registry, "--json")
    assert run_packager(*clean).json["removed"] == []  # replaced a moment ago
    planned = run_packager(*clean, "--grace-hours", "0", "--dry-run").json["removed"]
    removed = run_packager(*clean, "--grace-hours", "0").json["removed"]
    assert removed == planned
    assert {"p-3", "p-4"} < set(removed)
    tags = RegistryClient(registry).list_tags()
    assert not {"p-3", "p-4"} & tags
    assert {"p-5", "publication", "1.root.json"} < tags
    assert run_packager("repo", "verify", "--repo", registry, "--json").code == 0
    assert percent_seen_by(device, registry) == 2000
    assert push_all(publisher, registry).sent == ()


def test_signing_needs_a_master_copy(publisher: MetadataPublisher, small: SmallRegistry) -> None:
    push_all(publisher, url_of(small))
    root = publisher.published / "metadata" / "1.root.json"
    result = run_packager(
        "repo", "refresh", "--repo", url_of(small), "--root", root, "--keys", publisher.keys, "--json"
    )
    assert (result.code, result.error["reason"]) == (2, "store-url-invalid")
    assert "mirror" in result.error["message"]


def test_a_registry_that_collects_what_has_no_tag_keeps_every_publication_of_the_grace_period(
    publisher: MetadataPublisher, device: CheckClient, small: SmallRegistry
) -> None:
    """A device that read the old timestamp finds all files, though the registry collects and we do."""
    url = url_of(small)
    push_all(publisher, url)
    fetch, old = fetcher_of(url), {}
    stale = {f"{url}/metadata/timestamp.{kind}" for kind in ("json", "awz")}
    for address in stale:
        old[address] = fetch(address, 1 << 20)
    set_percent(publisher, 1000)
    push_all(publisher, url)
    small.collect()
    collect_registry_garbage(RegistryClient(url), root_of(publisher), dry_run=False, grace_s=3600)
    small.collect()

    def fetch_in_mid_check(address: str, max_bytes: int) -> bytes:
        return old.get(address) or fetch(address, max_bytes)

    assert device.check(url, fetch_in_mid_check).rollout.percent_bp == 10_000
    assert percent_seen_by(device, url) == 1000
    collect_registry_garbage(RegistryClient(url), root_of(publisher), dry_run=False, grace_s=-1)
    small.collect()
    assert percent_seen_by(device, url) == 1000
    assert pull(RegistryStore(url), RepositoryLayout(publisher.folder / "pulled"), root_of(publisher)).received


def test_a_registry_that_does_not_delete_says_so(publisher: MetadataPublisher, small: SmallRegistry) -> None:
    url = url_of(small)
    push_all(publisher, url)
    set_percent(publisher, 1000)
    push_all(publisher, url)
    small.can_delete = False
    with pytest.raises(RegistryDeletesDisabled, match="HTTP 405"):
        collect_registry_garbage(RegistryClient(url), root_of(publisher), dry_run=False, grace_s=-1)
    assert "p-3" in small.tags


def test_a_push_during_the_collection_ends_it(
    publisher: MetadataPublisher, small: SmallRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = url_of(small)
    push_all(publisher, url)
    set_percent(publisher, 1000)
    push_all(publisher, url)
    plan = registry_garbage.publications_in_use

    def push_meanwhile(*arguments: object) -> set[int]:
        set_percent(publisher, 500)
        push_all(publisher, url)
        return plan(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(registry_garbage, "publications_in_use", push_meanwhile)
    with pytest.raises(PublishConflict):
        collect_registry_garbage(RegistryClient(url), root_of(publisher), dry_run=False, grace_s=-1)
    assert "p-3" in small.tags


def test_the_garbage_of_another_repository_is_not_touched(publisher: MetadataPublisher, small: SmallRegistry) -> None:
    push_all(publisher, url_of(small))
    with pytest.raises(StoreOtherRepository):
        collect_registry_garbage(RegistryClient(url_of(small)), b"another root", dry_run=False, grace_s=0)


@pytest.mark.parametrize("has_ranges", [True, False], ids=["ranges", "no ranges"])
def test_a_broken_download_is_continued_or_repeated(
    publisher: MetadataPublisher, small: SmallRegistry, tmp_path: Path, has_ranges: bool
) -> None:
    push_all(publisher, url_of(small))
    small.cut_bytes, small.has_ranges = 700, has_ranges
    pull(RegistryStore(url_of(small)), RepositoryLayout(tmp_path / "pulled"), root_of(publisher))
    assert small.cut
    assert read_all_files(tmp_path / "pulled" / "published").items() <= read_all_files(publisher.published).items()


def test_a_registry_with_other_media_types_is_read_or_refused_by_name(
    publisher: MetadataPublisher, device: CheckClient, small: SmallRegistry
) -> None:
    for media_type in (FILE_TYPE, EMPTY_TYPE):
        small.refused_types = frozenset({media_type})
        with pytest.raises(StoreRejected, match="HTTP 400 MANIFEST_INVALID"):
            push_all(publisher, url_of(small))
        assert "timestamp.json" not in small.tags
    small.refused_types = frozenset()
    push_all(publisher, url_of(small))
    small.manifest_type = "application/json"
    assert percent_seen_by(device, url_of(small)) == 10_000


@pytest.mark.parametrize("lost", ["blob", "tag", "list", "size"])
def test_verify_finds_what_the_registry_lost(publisher: MetadataPublisher, small: SmallRegistry, lost: str) -> None:
    url = url_of(small)
    push_all(publisher, url)
    (blob,) = [path for path in read_all_files(publisher.published) if path.startswith("blobs/")][:1]
    digest = f"sha256:{Path(blob).name}"
    if lost == "blob":
        del small.blobs[digest]
    elif lost == "size":
        small.blobs[digest] += b"more"
    elif lost == "tag":
        del small.tags[next(tag for tag in small.tags if tag.endswith(".snapshot.json"))]
    else:
        del small.tags["p-3"]
    result = run_packager("repo", "verify", "--repo", url, "--json")
    assert (result.code, result.error["reason"]) == (3, RepositoryDamaged.reason)


@pytest.mark.parametrize(
    "index",
    [
        b"",
        b"[]",
        b"{",
        b'{"format": "airweights.registry-index/2", "files": {}, "pushed_s": 1}',
        b'{"format": "airweights.registry-index/1", "files": {"a": 1}, "pushed_s": 1}',
        b'{"format": "airweights.registry-index/1", "files": {"../../x": ["sha256:00", 1]}, "pushed_s": 1}',
    ],
)
def test_an_index_that_is_none_is_refused(
    publisher: MetadataPublisher, small: SmallRegistry, tmp_path: Path, index: bytes
) -> None:
    url = url_of(small)
    push_all(publisher, url)
    digest = registry_client.digest_of(index)
    manifest = json.loads(small.manifests[small.tags["p-3"]])
    manifest["layers"][0]["digest"] = digest
    small.blobs[digest], small.manifests["sha256:other"] = index, json.dumps(manifest).encode()
    small.tags["p-3"] = "sha256:other"
    with pytest.raises(RepositoryDamaged):
        pull(RegistryStore(url), RepositoryLayout(tmp_path / "pulled"), None)
    assert not (tmp_path / "pulled" / "published" / "metadata").exists() or not read_all_files(tmp_path / "pulled")
