"""Named files for applications: in memory only, one release or nothing, and nothing foreign is touched."""

import os
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from bundle.errors import AirweightsError
from device_agent.apps.export_folder import check_export_filesystem, prepare_export_folder
from device_agent.errors import ExportFolderForeign, ExportNotInMemory
from tests.support.app_lab import WEIGHTS, app_lab, release
from tests.support.json_schemas import check_schema
from tests.support.load_clients import wait_until
from tests.support.publisher import FAMILY, DeviceUnderTest, Publisher

MEMORY = Path("/dev/shm")  # a tmpfs on every Linux

pytestmark = pytest.mark.skipif(not os.access(MEMORY, os.W_OK), reason="needs a tmpfs at /dev/shm")


@pytest.fixture
def folder() -> Iterator[Path]:
    """Yield a path on a tmpfs that does not exist yet."""
    with tempfile.TemporaryDirectory(dir=MEMORY) as text:
        yield Path(text) / "models"


def entries(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def exported(folder: Path) -> str | None:
    """Return the exported words, or None if nothing is exported."""
    try:
        return (folder / FAMILY / "labels/words.txt").read_text()
    except FileNotFoundError:
        return None


def test_files_of_the_serving_release_are_there_or_nothing_is(tmp_path: Path, folder: Path) -> None:
    with app_lab(tmp_path, settings=f'export = "{folder}"\n') as (publisher, device):
        device.start()
        assert entries(folder) == []
        device.call("update")
        wait_until(lambda: exported(folder) == "one\ntwo\n")
        assert (folder / FAMILY / "model/weights.bin").stat().st_size == len(WEIGHTS)
        for path in (folder / FAMILY).rglob("*"):
            assert stat.S_IMODE(path.stat().st_mode) == (0o750 if path.is_dir() else 0o440)
        status = device.call("status")
        check_schema("agent-status", status)
        assert status["export"] == {
            "path": f"{folder}/{FAMILY}",
            "release": "1.0.0",
            "filesystem": "tmpfs",
            "swappable": "noswap" not in check_options(),
            "error": None,
        }
        assert f"export: 1.0.0 in {folder}/{FAMILY} (tmpfs, " in device.command("status").stdout

        opened = (folder / FAMILY / "labels/words.txt").open()
        release(publisher, "1.1.0", "three\n")
        seen = follow_update(device, folder)
        assert seen == {"one\ntwo\n", "three\n"}, "a reader always finds a release"
        assert opened.read() == "one\ntwo\n"
        opened.close()
        assert device.call("rollback")["outcome"] == "rolled-back"
        wait_until(lambda: exported(folder) == "one\ntwo\n")
        wait_until(lambda: len(entries(folder)) == 2)

        # a crash leaves files behind, which the next start replaces
        assert device.daemon is not None
        device.daemon.kill()
        device.daemon.wait()
        device.close_after_kill()
        assert exported(folder) == "one\ntwo\n"
        before = entries(folder)
        device.start()
        wait_until(lambda: exported(folder) == "one\ntwo\n")
        assert len(entries(folder)) == len(before)

        # no room: nothing is exported, and the release is lent as before
        (folder / FAMILY).unlink()
        (folder / FAMILY).mkdir()
        release(publisher, "1.2.0", "four\n")
        assert device.call("update")["outcome"] == "updated"
        wait_until(lambda: device.call("status")["export"]["error"] is not None)
        assert device.call("status")["export"]["release"] is None
        assert device.command("files", "cat", "labels").stdout == "four\n"
        (folder / FAMILY).rmdir()
        device.stop()
        assert entries(folder) == []


def follow_update(device: DeviceUnderTest, folder: Path) -> set[str | None]:
    """Install an update, and return all that a reader finds meanwhile."""
    words = ["device_agent", "--config", str(device.config_path), "update"]
    seen: set[str | None] = set()
    with subprocess.Popen([sys.executable, "-m", *words], stdout=subprocess.DEVNULL) as update:

        def sees_new() -> bool:
            seen.add(exported(folder))
            return "three\n" in seen

        wait_until(sees_new)
    assert update.returncode == 0
    return seen


def check_options() -> str:
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    return next(line for line in lines if f" {MEMORY} " in line).rpartition(" ")[2]


def test_a_folder_on_a_disk_is_refused_by_name(tmp_path: Path, publisher: Publisher) -> None:
    if check_is_memory(tmp_path):
        pytest.skip("the temporary folder is in memory")
    for folder in (tmp_path, tmp_path / "new" / "models"):
        with pytest.raises(ExportNotInMemory, match="expected tmpfs or ramfs"):
            prepare_export_folder(folder)
    device = DeviceUnderTest.create(tmp_path / "lab", "http://127.0.0.1:9", publisher.root)
    text = device.config_path.read_text().replace("[serve]\n", f'[serve]\nexport = "{tmp_path}/models"\n')
    device.config_path.write_text(text)
    for words in (["check-config", "--json"], ["run"]):
        refused = device.command(*words)
        assert (refused.returncode, "export-not-in-memory" in refused.stderr) == (2, True), refused.stderr
    assert not (tmp_path / "models").exists()


def check_is_memory(path: Path) -> bool:
    try:
        check_export_filesystem(path)
    except ExportNotInMemory:
        return False
    return True


def test_what_a_crash_left_is_removed_and_nothing_else(folder: Path, tmp_path: Path) -> None:
    (folder / f".export-{FAMILY}-3/labels").mkdir(parents=True)
    (folder / f".export-{FAMILY}-3/labels/words.txt").write_text("one")
    (folder / FAMILY).symlink_to(f".export-{FAMILY}-3")
    (folder / f".export-{FAMILY}-4.new").symlink_to(f".export-{FAMILY}-4")
    outside = tmp_path / "outside.txt"
    outside.write_text("kept")
    (folder / f".export-{FAMILY}-3/labels/link").symlink_to(outside)
    folder.chmod(0o750)
    prepare_export_folder(folder)
    assert entries(folder) == []
    assert outside.read_text() == "kept"


@pytest.mark.parametrize("kind", ["file", "folder", "link-out", "link-absolute", "open", "folder-is-link", "is-file"])
def test_a_foreign_entry_is_refused_and_stays(folder: Path, tmp_path: Path, kind: str) -> None:
    target = tmp_path / "target"
    target.mkdir()
    if kind == "folder-is-link":
        folder.symlink_to(MEMORY)
    elif kind == "is-file":
        folder.touch()
    else:
        folder.mkdir(mode=0o777 if kind == "open" else 0o750)
        folder.chmod(0o777 if kind == "open" else 0o750)
    match kind:
        case "file":
            (folder / "notes.txt").write_text("mine")
        case "folder":
            (folder / "data").mkdir()
        case "link-out":
            (folder / FAMILY).symlink_to("../..")
        case "link-absolute":
            (folder / FAMILY).symlink_to(target)
        case _:
            pass
    before = entries(folder) if folder.is_dir() else []
    with pytest.raises(ExportFolderForeign) as caught:
        prepare_export_folder(folder)
    assert str(folder) in caught.value.message
    assert (entries(folder) if folder.is_dir() else []) == before
    assert target.is_dir()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away")
@pytest.mark.parametrize("part", ["folder", "entry"])
def test_what_belongs_to_another_user_is_refused(folder: Path, part: str) -> None:
    (folder / f".export-{FAMILY}-1").mkdir(parents=True)
    folder.chmod(0o750)
    os.chown(folder if part == "folder" else folder / f".export-{FAMILY}-1", 65534, 65534)
    with pytest.raises(AirweightsError) as caught:
        prepare_export_folder(folder)
    assert caught.value.reason == "export-folder-foreign"
    assert entries(folder) == [f".export-{FAMILY}-1"]
