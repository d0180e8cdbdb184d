"""Large files can be stored plain, if release and owner agree; a changed file is never lent."""

import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from bundle.errors import AirweightsError
from bundle.files import BundleDigest
from device_agent.apps.client import AppClient
from device_agent.errors import PlainNotAllowed, StoreDamaged
from device_agent.policy.attempt import Outcome
from device_agent.storage.bundle_store import BundleStore
from tests.support.app_lab import WEIGHTS, app_lab, release, socket_path
from tests.support.plaintext_search import contains_any, distinctive_windows
from tests.support.publisher import FAMILY, DeviceUnderTest, Publisher

PLAIN = 'at_rest = "plain"'
NOBODY = 65534
Lab = tuple[Publisher, DeviceUnderTest]


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """Yield a publisher and a device; the tests of the module run in order."""
    with app_lab(tmp_path_factory.mktemp("plain")) as lab:
        yield lab


def test_without_the_owners_consent_nothing_is_fetched(lab: Lab) -> None:
    publisher, device = lab
    release(publisher, "1.1.0", "plain\n", extra=PLAIN)
    result = device.update()
    assert (result.outcome, result.reason) == (Outcome.REFUSED, PlainNotAllowed.reason)
    assert result.attempt.downloaded.patch == 0
    assert not BundleStore(device.directory.root).digests()
    planned = device.command("plan")
    assert PlainNotAllowed.reason in planned.stdout + planned.stderr
    assert f"apps.{FAMILY}.allow_plain" in planned.stdout + planned.stderr


def test_files_are_lent_from_disk_and_only_the_agent_writes_them(lab: Lab) -> None:
    _, device = lab
    _allow_plain(device, is_allowed=True)
    device.start()
    updated = device.call("update")
    assert (updated["outcome"], updated["release"]) == ("updated", "1.1.0"), updated
    files = _plain_files(device)
    assert [path.stat().st_mode & 0o777 for path in files] == [0o444, 0o444]
    assert contains_any(files[1].read_bytes(), distinctive_windows(WEIGHTS))
    with AppClient(socket_path(device)) as client, client.open(FAMILY) as lent:
        fd = lent.fds["model/weights.bin"]
        assert os.fstat(fd).st_ino == files[1].stat().st_ino
        with pytest.raises(OSError):
            os.write(fd, b"x")
        if os.geteuid() == 0:
            assert _writing_as_nobody_is_refused(fd)
    assert device.command("files", "cat", "labels").stdout == "plain\n"
    assert device.command("files", "exec", "--", "cat", "{labels}").stdout == "plain\n"


def test_a_changed_file_is_not_lent_and_the_next_update_replaces_it(lab: Lab) -> None:
    _, device = lab
    words = _plain_files(device)[0]
    words.chmod(0o644)
    with AppClient(socket_path(device)) as client:
        _expect_damaged(client, "mode 0644")
        words.write_bytes(b"forge\n")
        words.chmod(0o444)
        _expect_damaged(client, "SHA-256 of 'labels/words.txt' differs")
        assert device.call("update")["outcome"] == "updated"
        with client.open(FAMILY) as lent:
            assert lent.read("labels") == b"plain\n"


def test_a_file_changed_while_the_agent_was_off_is_noticed_at_its_start(lab: Lab) -> None:
    _, device = lab
    device.stop()
    words = _plain_files(device)[0]
    words.unlink()
    words.write_bytes(b"forge\n")
    words.chmod(0o444)
    device.start()
    assert device.call("update")["outcome"] == "updated"
    assert device.command("files", "cat", "labels").stdout == "plain\n"


def test_releases_switch_between_the_forms(lab: Lab) -> None:
    publisher, device = lab
    store = BundleStore(device.directory.root)
    release(publisher, "1.2.0", "sealed\n")  # a patch with a plain base
    assert device.call("update")["outcome"] == "updated"
    assert {store.is_plain(digest) for digest in store.digests()} == {True, False}
    release(publisher, "1.3.0", "sealed\n", extra=PLAIN)  # the same files: nothing is downloaded
    with AppClient(socket_path(device)) as client, client.open(FAMILY) as lent:
        assert device.call("update")["outcome"] == "nothing-new"
        assert {store.is_plain(digest) for digest in store.digests()} == {True}
        assert lent.read("labels") == b"sealed\n"
    release(publisher, "1.4.0", "sealed\n")
    assert device.call("update")["outcome"] == "nothing-new"
    assert {store.is_plain(digest) for digest in store.digests()} == {True, False}
    assert device.call("rollback")["outcome"] == "rolled-back"  # to the plain bundle of 1.1.0
    assert device.command("files", "cat", "labels").stdout == "plain\n"
    assert len(list((device.directory.root / "store").iterdir())) == 1  # the other one is garbage


def test_an_owner_who_withdraws_the_consent_gets_sealed_files(lab: Lab) -> None:
    _, device = lab
    _allow_plain(device, is_allowed=False)
    assert device.daemon is not None
    device.daemon.send_signal(signal.SIGHUP)
    with (
        AppClient(socket_path(device)) as client,
        pytest.raises(AirweightsError, match="allow_plain forbids") as caught,
    ):
        _open_until_refused(client)
    assert caught.value.reason == PlainNotAllowed.reason
    device.stop()
    device.start()
    windows = distinctive_windows(WEIGHTS)
    stored = [path for path in device.directory.root.rglob("*") if path.is_file()]
    assert not any(contains_any(path.read_bytes(), windows) for path in stored)
    assert device.command("files", "cat", "labels").stdout == "plain\n"


def test_a_crash_leaves_no_bundle_that_is_not_whole(tmp_path: Path) -> None:
    digest = BundleDigest("ab" * 32)
    store = BundleStore(tmp_path)
    _close(store.create_incoming(digest, 2))
    store = BundleStore(tmp_path)  # after a crash in mid-write
    assert not store.contains(digest)
    fds = store.create_incoming(digest, 1)
    store.commit_incoming(digest, fds)
    _close(fds)
    assert store.is_plain(digest)
    plain = next((tmp_path / "store").iterdir())
    copy = tmp_path / "copy"
    shutil.copytree(plain, copy)
    fds = store.create_incoming(digest)
    store.commit_incoming(digest, fds)
    _close(fds)
    shutil.copytree(copy, plain)  # after a crash between the rename and the end of the other form
    assert (store.contains(digest), store.is_plain(digest)) == (True, False)
    store.delete_unlisted([digest])
    assert [path.suffix for path in (tmp_path / "store").iterdir()] == [".sealed"]


def _allow_plain(device: DeviceUnderTest, *, is_allowed: bool) -> None:
    text = device.config_path.read_text().replace("\nallow_plain = true", "")
    if is_allowed:
        text = text.replace(f"[apps.{FAMILY}]", f"[apps.{FAMILY}]\nallow_plain = true")
    device.config_path.write_text(text)


def _plain_files(device: DeviceUnderTest) -> list[Path]:
    return sorted((device.directory.root / "store").glob("*.plain/0*"))


def _open_until_refused(client: AppClient) -> None:
    while True:  # the daemon reads its configuration meanwhile
        client.open(FAMILY).close()


def _expect_damaged(client: AppClient, message: str) -> None:
    with pytest.raises(AirweightsError, match=message) as caught:
        client.open(FAMILY)
    assert caught.value.reason == StoreDamaged.reason


def _writing_as_nobody_is_refused(fd: int) -> bool:
    if (pid := os.fork()) == 0:
        os.setuid(NOBODY)
        os.read(os.open(f"/proc/self/fd/{fd}", os.O_RDONLY), 1)
        try:
            os.open(f"/proc/self/fd/{fd}", os.O_RDWR)
        except PermissionError:
            os._exit(0)
        os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def _close(fds: tuple[int, ...]) -> None:
    for fd in fds:
        os.close(fd)
