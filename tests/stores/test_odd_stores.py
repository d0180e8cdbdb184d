"""Buckets with versions, rules that delete, listings that lag: a push repairs, a pull refuses what is not whole."""

from collections.abc import Mapping
from pathlib import Path

import pytest

from bundle.errors import NotFound
from packager.errors import RepositoryDamaged
from packager.remote.pull import pull
from packager.remote.push import push, read_timestamps
from packager.remote.remote_repository import check_store_files, collect_store_garbage, open_repository
from packager.repository.layout import RepositoryLayout
from packager.stores.folder_store import FolderStore
from packager.stores.open_store import open_store
from packager.stores.store import StoredFile
from tests.support.metadata_publisher import CheckClient, MetadataPublisher, set_percent
from tests.support.packager_cli import read_all_files
from tests.support.s3_server import S3Server, needs_s3, set_versioning


class LaggingStore(FolderStore):
    """A store whose listings show what was there at the listing before."""

    before: Mapping[str, StoredFile]

    def __init__(self, folder: Path) -> None:
        super().__init__(folder.as_uri(), folder)
        self.before = super().list_files()

    def list_files(self) -> Mapping[str, StoredFile]:
        """Return the files of the call before."""
        shown, self.before = self.before, super().list_files()
        return shown


def push_all(publisher: MetadataPublisher, store: FolderStore) -> tuple[str, ...]:
    layout = publisher.repository.layout
    return push(layout, store, read_timestamps(layout)).sent


def test_listings_that_lag_cost_files_that_are_sent_twice_and_nothing_else(
    publisher: MetadataPublisher, device: CheckClient, tmp_path: Path
) -> None:
    site = tmp_path / "site"
    store = LaggingStore(site)
    for percent in (1000, 2000, 3000):
        set_percent(publisher, percent)
        push_all(publisher, store)
        assert device.check(site).rollout.percent_bp == percent
    fresh = FolderStore(site.as_uri(), site)
    assert push_all(publisher, fresh) == ()
    root = (site / "metadata" / "1.root.json").read_bytes()
    pull(fresh, RepositoryLayout(tmp_path / "pulled"), root)
    late = LaggingStore(site)
    late.before = {path: file for path, file in late.before.items() if not path.endswith(".snapshot.json")}
    with pytest.raises(RepositoryDamaged):
        pull(late, RepositoryLayout(tmp_path / "other"), root)
    assert not (tmp_path / "other" / "published" / "metadata" / "timestamp.json").exists()


@pytest.mark.parametrize("kind", ["blobs/", "targets/", "metadata/", ""])
def test_what_a_rule_deleted_is_sent_again(
    publisher: MetadataPublisher, device: CheckClient, tmp_path: Path, kind: str
) -> None:
    site = tmp_path / "site"
    store = FolderStore(site.as_uri(), site)
    push_all(publisher, store)
    whole = {path: data for path, data in read_all_files(site).items() if not path.startswith((".", "publisher/"))}
    for path in whole:
        if path.startswith(kind) and "timestamp" not in path:
            (site / path).unlink()
    if kind in ("blobs/", "targets/"):
        with pytest.raises(RepositoryDamaged), open_repository(store.url) as repository:
            check_store_files(repository, store)
    assert push_all(publisher, store)
    found = read_all_files(site)
    assert {path: found[path] for path in whole} == whole
    assert device.check(site).rollout.percent_bp == 10_000


def test_a_device_in_mid_check_finds_its_files_after_the_garbage_went(
    publisher: MetadataPublisher, device: CheckClient, tmp_path: Path
) -> None:
    """It has read the timestamp of a publication that was replaced and whose files would be garbage without grace."""
    site = tmp_path / "site"
    store = FolderStore(site.as_uri(), site)
    push_all(publisher, store)
    old = {path: (site / "metadata" / path).read_bytes() for path in ("timestamp.json", "timestamp.awz")}
    for percent in (1000, 2000):
        set_percent(publisher, percent)
        push_all(publisher, store)
    with open_repository(store.url) as repository:
        assert collect_store_garbage(repository, store, dry_run=False, grace_s=86_400).removed == ()

    def fetch(address: str, max_bytes: int) -> bytes:
        name = address.rpartition("/")[2]
        data = old.get(name) or read(site / address.removeprefix("https://store/"))
        assert len(data) <= max_bytes
        return data

    assert device.check("https://store", fetch).rollout.percent_bp == 10_000
    assert device.check(site).rollout.percent_bp == 2000


def read(path: Path) -> bytes:
    if not path.is_file():
        raise NotFound(str(path))
    return path.read_bytes()


@needs_s3
def test_a_bucket_with_versions_is_like_any_other(
    publisher: MetadataPublisher, s3_server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in s3_server.environment().items():
        monkeypatch.setenv(name, value)
    set_versioning(s3_server, "versions")
    store = open_store(f"s3://versions/{tmp_path.name}")
    layout = publisher.repository.layout
    push(layout, store, read_timestamps(layout))
    set_percent(publisher, 1000)
    assert push(layout, store, read_timestamps(layout)).replaced_version == 3
    assert push(layout, store, read_timestamps(layout)).sent == ()
    found = store.read("metadata/timestamp.json")
    assert found is not None
    assert not store.swap("metadata/timestamp.json", b"late", "another version", "no-store")
    store.delete([path for path in store.list_files() if path.startswith("blobs/")])
    assert push(layout, store, read_timestamps(layout)).sent
    pulled = RepositoryLayout(tmp_path / "pulled")
    assert pull(store, pulled, (layout.published / "metadata" / "1.root.json").read_bytes()).received
