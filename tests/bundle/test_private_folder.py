"""Keys, repositories and device state are not written where another user could replace them."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

import device_agent.commands.root as agent
from bundle.errors import FolderUnsafe
from bundle.private_folder import check_private_folder
from keys.key_files import generate_key_file
from tests.support.packager_cli import assert_refused, run_packager
from tests.support.release_fixtures import create_site

OTHER_UID = 12345


@pytest.fixture
def give_away(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], None]:
    """Return a function that gives a path to another user, or, without root, makes this process another user."""

    def change(path: Path) -> None:
        if os.geteuid() == 0:
            os.chown(path, OTHER_UID, OTHER_UID, follow_symlinks=False)
        else:
            monkeypatch.setattr(os, "geteuid", lambda: OTHER_UID)

    return change


def test_own_folders_are_accepted_before_and_after_they_exist(tmp_path: Path) -> None:
    check_private_folder(tmp_path / "a" / "b")
    (tmp_path / "a" / "b").mkdir(parents=True)
    check_private_folder(tmp_path / "a" / "b")
    (tmp_path / "link").symlink_to(tmp_path / "a")
    (tmp_path / "relative").symlink_to("a/../a/./b")
    check_private_folder(tmp_path / "link" / "b")
    check_private_folder(tmp_path / "relative")


def test_a_folder_of_another_user_is_refused(tmp_path: Path, give_away: Callable[[Path], None]) -> None:
    (tmp_path / "theirs").mkdir()
    give_away(tmp_path / "theirs")
    for folder in (tmp_path / "theirs", tmp_path / "theirs" / "new"):
        with pytest.raises(FolderUnsafe, match="belongs to user"):
            check_private_folder(folder)


def test_a_link_of_another_user_is_not_followed(tmp_path: Path, give_away: Callable[[Path], None]) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "mine")
    give_away(tmp_path / "link")
    with pytest.raises(FolderUnsafe, match=r"link of user|belongs to user"):
        check_private_folder(tmp_path / "link" / "new")


@pytest.mark.parametrize("mode", [0o777, 0o757, 0o1777, 0o702])
def test_a_folder_that_others_can_write_to_is_refused(tmp_path: Path, mode: int) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(mode)
    with pytest.raises(FolderUnsafe, match=f"writable for other users .mode {mode:04o}"):
        check_private_folder(shared)
    if mode & 0o1000:  # its entries belong to their users
        check_private_folder(shared / "mine")
        check_private_folder(shared, may_be_sticky=True)
    else:
        with pytest.raises(FolderUnsafe, match="shared is writable for other users"):
            check_private_folder(shared / "mine")


def test_links_that_lead_nowhere_end(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    with pytest.raises(OSError, match="symbolic links"):
        check_private_folder(tmp_path / "a")


def test_no_key_is_written_into_a_shared_folder(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.mkdir()
    keys.chmod(0o777)
    with pytest.raises(FolderUnsafe):
        generate_key_file(keys / "a.key", "ed25519", None, insecure_plaintext=True)
    words = ("--keys", keys, "--family", "kws", "--insecure-plaintext", "--json")
    result = run_packager("repo", "init", tmp_path / "repo", *words)
    assert_refused(result, code=2, reason="folder-unsafe", words=(str(keys), "0777"))
    assert not list(keys.iterdir())
    assert not (tmp_path / "repo").exists()


@pytest.mark.parametrize("name", ["directory", "config"])
def test_no_device_is_created_in_a_shared_folder(tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    create_site(tmp_path / "site")
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o777)
    directory, config = (shared, tmp_path) if name == "directory" else (tmp_path, shared)
    root = tmp_path / "site" / "repo" / "published" / "metadata" / "1.root.json"
    words = ["--root", str(root), "--repository-url", "http://127.0.0.1:1", "--family", "kws", "--label", "d"]
    code = agent.main(["--config", str(config / "c.toml"), "init", *words, "--directory", str(directory / "d")])
    assert code == 2
    assert "shared is writable for other users" in capsys.readouterr().err
    assert not list(shared.iterdir())
