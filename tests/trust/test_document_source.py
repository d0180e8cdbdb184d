"""A check takes copies where it can, verifies them as the single files, and needs none of them."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from bundle.archive import compress_document, decode_archive, encode_archive
from bundle.errors import MetadataExpired, NotFound, RollbackRefused, UnexpectedNotModified
from bundle.trust.check import CheckRequest, check
from bundle.trust.validators import Download, Validators
from packager.repository.role_changes import renew
from tests.support.metadata_publisher import CheckClient, MetadataPublisher, make_rollout

DAY_S = 86_400


@dataclass
class Server:
    """Serve a folder with ETags; a test may replace files or change how conditions are answered."""

    folder: Path
    asked: list[str] = field(default_factory=list)
    replaced: dict[str, bytes | None] = field(default_factory=dict)
    has_etags: bool = True
    always_unmodified: bool = False
    ignores_conditions: bool = False

    def fetch_if_changed(self, url: str, max_bytes: int, validators: Validators) -> Download:
        path = url.removeprefix("http://server/")
        self.asked.append(path)
        data = self.replaced[path] if path in self.replaced else self._read(path)
        if data is None:
            raise NotFound(f"{path} is not there")
        etag = f'W/"{hash(data)}"' if self.has_etags else ""
        if self.always_unmodified or (etag and validators.etag == etag and not self.ignores_conditions):
            if validators == Validators():
                raise UnexpectedNotModified(f"{url}: HTTP 304, but the request had no condition")
            return Download(None, Validators(etag))
        assert len(data) <= max_bytes
        return Download(data, Validators(etag))

    def fetch(self, url: str, max_bytes: int) -> bytes:
        return self.fetch_if_changed(url, max_bytes, Validators()).data or b""

    def take(self) -> list[str]:
        """Return the requested paths since the last call; no check asks for one twice."""
        asked, self.asked = self.asked, []
        return asked

    def _read(self, path: str) -> bytes | None:
        file = self.folder / path
        return file.read_bytes() if file.is_file() else None


def run(client: CheckClient, server: Server, *, walk_root: bool = False) -> str:
    """Check the channel over the server, and return the version of its release."""
    request = CheckRequest(
        cache_dir=client.folder / "cache",
        bootstrap_root=client.root,
        metadata_url="http://server/metadata",
        targets_url="http://server/targets",
        family=client.family,
        channel=client.channel,
        clock=client.clock,
        agent_version="0.1.0",
        walk_root=walk_root,
    )
    return check(request, server.fetch, client.trust_states, server.fetch_if_changed).manifest.version


def archives(asked: list[str]) -> list[str]:
    return [path for path in asked if "/archives/" in path]


def singles(asked: list[str]) -> list[str]:
    return [path for path in asked if path.endswith(".json") and ".root." not in path]


@pytest.fixture
def server(publisher: MetadataPublisher) -> Server:
    return Server(publisher.published)


def test_a_first_check_takes_three_requests_and_a_poll_takes_one(device: CheckClient, server: Server) -> None:
    assert run(device, server) == "1.0.0"
    first = server.take()
    assert [path.rpartition("/")[2] for path in first[:2]] == ["timestamp.awz", "2.root.json"]
    assert (len(first), len(archives(first))) == (3, 1)
    assert run(device, server) == "1.0.0"
    assert server.take() == ["metadata/timestamp.awz"]


def test_a_release_is_two_files_beside_the_root_probe(
    device: CheckClient, server: Server, publisher: MetadataPublisher
) -> None:
    run(device, server)
    publisher.release("1.1.0", 2)
    server.take()
    assert run(device, server) == "1.1.0"
    asked = server.take()
    assert len(asked) == 3
    assert not archives(asked)[0].endswith("-0.awz"), "only what changed"


def test_root_is_walked_before_a_swap_after_a_day_and_after_a_restart(device: CheckClient, server: Server) -> None:
    run(device, server)
    server.take()
    for walk_root, later_s, boot, walked in (
        (False, 60, "boot", False),
        (True, 61, "boot", True),
        (False, 23 * 3600, "boot", False),
        (False, 61 + DAY_S, "boot", True),
        (False, 10, "other boot", True),
        (False, 5, "other boot", True),  # a clock that went back
    ):
        clock = replace(device.clock, boot_elapsed_s=1000 + later_s, boot_id=boot)
        run(replace(device, clock=clock), server, walk_root=walk_root)
        assert ("metadata/2.root.json" in server.take()) is walked, (later_s, boot)


def test_servers_without_etags_or_that_ignore_conditions_only_cost_bytes(device: CheckClient, server: Server) -> None:
    for has_etags in (False, True):
        server.has_etags, server.ignores_conditions = has_etags, True
        run(device, server)
        server.take()
        assert run(device, server) == "1.0.0"
        assert server.take() == ["metadata/timestamp.awz"]


def test_a_304_counts_only_while_the_stored_timestamp_verifies(device: CheckClient, server: Server) -> None:
    run(device, server)
    server.always_unmodified = True
    assert run(device, server) == "1.0.0"
    server.take()
    later = device.with_time(device.clock.now_s + 2 * DAY_S)
    with pytest.raises(UnexpectedNotModified):
        run(later, server)
    assert server.take() == ["metadata/timestamp.awz", "metadata/2.root.json", "metadata/timestamp.json"]
    server.always_unmodified = False
    with pytest.raises(MetadataExpired):
        run(later, server)
    asked = server.take()
    assert asked.count("metadata/timestamp.json") == asked.count("metadata/timestamp.awz") == 1


def test_a_304_that_was_not_asked_for_is_unavailable(device: CheckClient, server: Server) -> None:
    server.always_unmodified = True
    with pytest.raises(UnexpectedNotModified, match="304"):
        run(device, server)


@pytest.mark.parametrize("kind", ["missing", "page", "truncated", "bomb", "other file"])
def test_a_bad_timestamp_copy_is_replaced_by_the_single_file(device: CheckClient, server: Server, kind: str) -> None:
    path = "metadata/timestamp.awz"
    whole = (server.folder / path).read_bytes()
    server.replaced[path] = {
        "missing": None,
        "page": b"<html>sign in</html>",
        "truncated": whole[:-9],
        "bomb": compress_document(bytes(1 << 24)),
        "other file": compress_document(b"{}"),
    }[kind]
    assert run(device, server) == "1.0.0"
    assert "metadata/timestamp.json" in server.take()


Change = Callable[[dict[str, bytes]], dict[str, bytes]]
CHANGES: dict[str, Change] = {
    "archive-mismatch": lambda members: {path: data[:-1] + b"!" for path, data in members.items()},
    "stale snapshot": lambda members: {path: data for path, data in members.items() if "snapshot" not in path},
    "a file too many": lambda members: members | {"metadata/9.extra.json": b"{}"},
    "targets of others": lambda members: members | {"targets/bundles/vision/" + "0" * 64 + ".1.0.0.json": b"{}"},
}


@pytest.mark.parametrize("change", CHANGES)
def test_an_archive_that_disagrees_is_dropped_whole(
    device: CheckClient, server: Server, caplog: pytest.LogCaptureFixture, change: str
) -> None:
    run(replace(device, folder=device.folder / "probe"), server)
    (path,) = archives(server.take())
    server.replaced[path] = encode_archive(CHANGES[change](decode_archive((server.folder / path).read_bytes())))
    assert run(device, server) == "1.0.0"
    assert singles(server.take()), "the single files"
    assert "archive-mismatch" in caplog.text


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "archive-truncated"),
        (b"no frame at all, but long enough", "archive-malformed"),
        (compress_document(bytes(1 << 23)), "archive-too-large"),
        (compress_document(b"AWARCH00"), "archive-malformed"),
        (compress_document(b"AWARCH01\0"), "archive-truncated"),
        (compress_document(b"AWARCH01\0\x04/etc\0\0\0\0"), "archive-malformed"),
    ],
)
def test_an_archive_that_is_none_has_its_own_reason_in_the_log(
    device: CheckClient, server: Server, caplog: pytest.LogCaptureFixture, data: bytes, reason: str
) -> None:
    run(replace(device, folder=device.folder / "probe"), server)
    (path,) = archives(server.take())
    server.replaced[path] = data
    assert run(device, server) == "1.0.0"
    assert reason in caplog.text


def test_a_stale_copy_of_the_timestamp_does_not_hold_a_device_back_for_ever(
    device: CheckClient, server: Server, publisher: MetadataPublisher
) -> None:
    stale = (server.folder / "metadata/timestamp.awz").read_bytes()
    publisher.release("1.1.0", 2)
    assert run(device, server) == "1.1.0"
    server.replaced["metadata/timestamp.awz"] = stale
    assert run(device, server) == "1.1.0", "older than the stored one: the single file decides"


def test_the_single_files_decide_about_a_rollback(
    device: CheckClient, server: Server, publisher: MetadataPublisher
) -> None:
    old = publisher.copy_published("old")
    publisher.release("1.1.0", 2)
    run(device, server)
    with pytest.raises(RollbackRefused):
        run(device, Server(old))


def test_all_new_roots_come_in_one_file(device: CheckClient, server: Server, publisher: MetadataPublisher) -> None:
    run(device, server)
    for _ in range(4):
        renew(publisher.repository.layout, ["root"])
        publisher.publish()
    server.take()
    assert run(device, server) == "1.0.0"
    roots = [path for path in server.take() if "root" in path]
    assert roots == ["metadata/roots/5.awz", "metadata/6.root.json"]
    (publisher.published / "metadata/roots/5.awz").write_bytes(encode_archive({"metadata/2.root.json": b"{}"}))
    assert run(replace(device, folder=device.folder / "other"), server) == "1.0.0"


def test_a_manifest_of_another_channel_is_in_the_archive_too(
    device: CheckClient, server: Server, publisher: MetadataPublisher
) -> None:
    manifest = publisher.make_manifest("1.1.0", 2, channels=("stable", "beta"))
    publisher.repository.stage_manifest(manifest)
    publisher.repository.stage_rollout(make_rollout(manifest, "beta"))
    publisher.publish()
    assert run(replace(device, channel="beta"), server) == "1.1.0"
    assert singles(server.take()) == []
