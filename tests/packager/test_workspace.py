"""The private folder stores bundles by digest, and keys in files that only the owner can read."""

from pathlib import Path

import pytest

from bundle.files import bundle_digest, scan_directory
from bundle.frames import Secret
from packager.errors import WorkspaceDamaged
from packager.repository.workspace import StoredVariant, Workspace


def store_variant(workspace: Workspace, content: str, counter: int) -> StoredVariant:
    with workspace.build_folder() as folder:
        root = folder / "b"
        root.mkdir()
        (root / "file").write_text(content)
        directory = scan_directory(root, {})
        stored = StoredVariant(
            "kws", counter, "1.0.0", "int8", bundle_digest(directory.files), Secret(bytes(range(32)))
        )
        workspace.store_variant(directory, stored)
    return stored


def test_what_was_kept_is_found_again(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    stored = store_variant(workspace, "one", 3)
    assert workspace.find_variant("kws", 3, "int8") == stored
    assert workspace.find_variant("kws", 4, "int8") is None
    found = workspace.open_bundle("kws", stored.bundle)
    assert found is not None
    assert (found.root / "file").read_text() == "one"


def test_nobody_else_can_read_it_and_no_work_is_left(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    store_variant(workspace, "one", 1)
    assert workspace.folder.stat().st_mode & 0o077 == 0
    record = workspace.folder / "releases" / "kws" / "1" / "int8.json"
    assert record.stat().st_mode & 0o077 == 0
    assert {path.name for path in workspace.folder.iterdir()} == {"bundles", "releases"}


def test_equal_bundles_of_two_releases_are_kept_once(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    first, second = store_variant(workspace, "same", 1), store_variant(workspace, "same", 2)
    assert first.bundle == second.bundle
    assert len(list((workspace.folder / "bundles" / "kws").iterdir())) == 1


def test_a_changed_bundle_is_refused(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    stored = store_variant(workspace, "one", 1)
    (workspace.folder / "bundles" / "kws" / stored.bundle / "file").write_text("two")
    with pytest.raises(WorkspaceDamaged, match=stored.bundle):
        workspace.open_bundle("kws", stored.bundle)


@pytest.mark.parametrize("data", [b"", b"{}", b"not json", b'{"version":"1.0.0","bundle":"x","content_key":"y"}'])
def test_a_damaged_record_is_refused(tmp_path: Path, data: bytes) -> None:
    workspace = Workspace(tmp_path)
    store_variant(workspace, "one", 1)
    (workspace.folder / "releases" / "kws" / "1" / "int8.json").write_bytes(data)
    with pytest.raises(WorkspaceDamaged):
        workspace.find_variant("kws", 1, "int8")


def test_forgotten_bundles_are_gone_and_their_keys_stay(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    first, second = store_variant(workspace, "one", 1), store_variant(workspace, "two", 2)
    assert workspace.delete_bundles("kws", frozenset({second.bundle})) == (first.bundle,)
    assert workspace.open_bundle("kws", first.bundle) is None
    assert workspace.find_variant("kws", 1, "int8") == first


def test_a_key_shows_nowhere_in_text(tmp_path: Path) -> None:
    assert "0001020304" not in repr(store_variant(Workspace(tmp_path), "one", 1))
