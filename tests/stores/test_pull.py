"""What is pulled from a store is verified; a store's word counts for freshness only."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from bundle.errors import AirweightsError
from packager.errors import RepositoryDamaged, RepositoryMissing
from packager.remote.pull import pull
from packager.remote.push import push, read_timestamps
from packager.remote.remote_repository import check_store_files, open_repository
from packager.repository.layout import RepositoryLayout
from packager.stores.errors import PublicationUntrusted, StoreOtherRepository
from packager.stores.open_store import open_store
from tests.support.metadata_publisher import CheckClient, MetadataPublisher, build_publisher
from tests.support.packager_cli import read_all_files


@pytest.fixture
def site(publisher: MetadataPublisher, tmp_path: Path) -> Path:
    """A folder that the publisher has pushed to."""
    folder = tmp_path / "site"
    layout = publisher.repository.layout
    push(layout, open_store(folder.as_uri()), read_timestamps(layout))
    return folder


def root_of(publisher: MetadataPublisher) -> bytes:
    return (publisher.published / "metadata" / "1.root.json").read_bytes()


def test_a_pulled_repository_has_the_published_files(
    publisher: MetadataPublisher, site: Path, device: CheckClient, tmp_path: Path
) -> None:
    pulled = RepositoryLayout(tmp_path / "pulled")
    report = pull(open_store(site.as_uri()), pulled, root_of(publisher))
    assert read_all_files(pulled.published).items() <= read_all_files(publisher.published).items()
    assert report.present == 0
    assert device.check(pulled.published).manifest.version == "1.0.0"
    again = pull(open_store(site.as_uri()), pulled, None)
    assert (again.received, again.received_bytes) == ((), 0)
    dry = pull(open_store(site.as_uri()), RepositoryLayout(tmp_path / "dry"), None, is_dry_run=True)
    assert dry.received == report.received
    assert not (tmp_path / "dry" / "published" / "metadata" / "timestamp.json").exists()


def test_a_store_without_publication_says_so(tmp_path: Path) -> None:
    with pytest.raises(RepositoryMissing, match=r"has no metadata/timestamp\.json"):
        pull(open_store((tmp_path / "empty").as_uri()), RepositoryLayout(tmp_path / "pulled"), None)


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> MetadataPublisher:
    """A repository with other keys."""
    return build_publisher(tmp_path_factory.mktemp("stranger"))


def test_another_repository_is_refused(
    publisher: MetadataPublisher, stranger: MetadataPublisher, site: Path, tmp_path: Path
) -> None:
    shutil.rmtree(site)
    shutil.copytree(stranger.published, site)
    with pytest.raises(StoreOtherRepository):
        pull(open_store(site.as_uri()), RepositoryLayout(tmp_path / "pulled"), root_of(publisher))


def test_documents_that_other_keys_signed_are_refused(
    publisher: MetadataPublisher, stranger: MetadataPublisher, site: Path, tmp_path: Path
) -> None:
    """Who can write to the store replaces everything but the first root."""
    shutil.rmtree(site)
    shutil.copytree(stranger.published, site)
    (site / "metadata" / "1.root.json").write_bytes(root_of(publisher))
    with pytest.raises(PublicationUntrusted, match="lacks"):
        pull(open_store(site.as_uri()), RepositoryLayout(tmp_path / "pulled"), root_of(publisher))


def remove_blob(site: Path) -> None:
    next((site / "blobs").glob("*/*")).unlink()


def change_blob(site: Path) -> None:
    blob = next((site / "blobs").glob("*/*"))
    blob.write_bytes(bytes(len(blob.read_bytes())))


def change_document(site: Path) -> None:
    path = next((site / "metadata").glob("*.release-*.json"))
    path.write_bytes(path.read_bytes().replace(b"vision", b"fusion"))


def remove_snapshot(site: Path) -> None:
    next((site / "metadata").glob("*.snapshot.json")).unlink()


@pytest.mark.parametrize("damage", [remove_blob, change_blob, change_document, remove_snapshot])
def test_damaged_files_are_refused(
    publisher: MetadataPublisher, site: Path, tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    damage(site)
    pulled = RepositoryLayout(tmp_path / "pulled")
    with pytest.raises(RepositoryDamaged):
        pull(open_store(site.as_uri()), pulled, root_of(publisher))
    assert not (pulled.metadata / "timestamp.json").exists()


def test_a_missing_blob_is_found_by_verify(publisher: MetadataPublisher, site: Path) -> None:
    remove_blob(site)
    with open_repository(site.as_uri()) as repository:
        with pytest.raises(RepositoryDamaged, match="blobs/"):
            check_store_files(repository, open_store(site.as_uri()))


def test_a_listing_cannot_leave_the_folder(publisher: MetadataPublisher, site: Path, tmp_path: Path) -> None:
    store = open_store(site.as_uri())
    listed = dict(store.list_files())
    store.list_files = lambda: {**listed, "metadata/../../x": listed["metadata/1.root.json"]}  # type: ignore[method-assign]
    with pytest.raises(AirweightsError, match="no path of a repository"):
        pull(store, RepositoryLayout(tmp_path / "pulled"), None)
