"""An offline pack updates a device without a network, under the same checks."""

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from bundle.errors import MetadataExpired, OfflinePackRefused, RollbackRefused, TrustStateLost
from keys.passphrase import PASSPHRASE_VARIABLE
from packager.commands.root import main
from packager.errors import FamilyUnknown, OutputExists, StagingInvalid
from packager.repository.offline_pack import create_pack
from tests.support.metadata_publisher import (
    FAMILY,
    NOW_S,
    PASSPHRASE,
    CheckClient,
    MetadataPublisher,
    fetch_http,
    start_server,
)
from tests.support.repository_commands import check_command_output

DAY_S = 86_400


@pytest.fixture
def pack(publisher: MetadataPublisher) -> Path:
    out = publisher.folder / "pack"
    create_pack(publisher.repository, out, [], 30, publisher.signers)
    return out


def test_a_device_without_network_updates_from_a_pack_for_a_month(pack: Path, device: CheckClient) -> None:
    later = device.with_time(NOW_S + 20 * DAY_S)
    release = later.check(pack)
    assert release.manifest.version == "1.0.0"
    blob = release.manifest.variants[0][1].patches[0].blob
    assert (pack / "blobs" / blob[:2] / blob).is_file()
    with pytest.raises(MetadataExpired):
        device.with_time(NOW_S + 40 * DAY_S).check(pack)


def test_a_pack_that_a_server_offers_is_refused(pack: Path, device: CheckClient) -> None:
    url, stop = start_server(pack)
    try:
        with pytest.raises(OfflinePackRefused) as refused:
            device.check(url, fetch_http)
    finally:
        stop()
    assert refused.value.reason == "offline-pack-refused"
    assert device.trust_states.load() is None


def test_after_a_pack_the_online_repository_is_newer_and_never_the_other_way(
    publisher: MetadataPublisher, pack: Path, device: CheckClient
) -> None:
    packed = device.check(pack)
    online = device.check(publisher.published)
    assert online.context.timestamp_version == packed.context.timestamp_version + 1
    with pytest.raises(RollbackRefused):
        device.check(pack)
    publisher.release("1.1.0", 2)
    assert device.check(publisher.published).manifest.version == "1.1.0"


def test_a_device_that_lost_its_memory_does_not_begin_again_from_a_pack(pack: Path, device: CheckClient) -> None:
    device.check(pack)
    for name in ("slot-a", "slot-b"):
        (device.folder / "slots" / name).write_bytes(b"damaged")
    with pytest.raises(TrustStateLost) as lost:
        device.check(pack)
    assert lost.value.reason == "trust-state-lost"


def test_a_pack_lives_no_longer_than_root_allows(publisher: MetadataPublisher) -> None:
    for days in (0, 91, 10_000):
        with pytest.raises(StagingInvalid):
            create_pack(publisher.repository, publisher.folder / "pack", [], days, publisher.signers)
    with pytest.raises(FamilyUnknown):
        create_pack(publisher.repository, publisher.folder / "pack", ["speech"], 30, publisher.signers)
    online_only = publisher.signers_of("snapshot", "timestamp")
    with pytest.raises(StagingInvalid):
        create_pack(publisher.repository, publisher.folder / "pack", [FAMILY], 30, online_only)
    assert not (publisher.folder / "pack").exists()
    assert [path for path in publisher.folder.iterdir() if path.name.startswith(".pack")] == []


def test_the_command_makes_a_pack_once(
    publisher: MetadataPublisher,
    device: CheckClient,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(PASSPHRASE_VARIABLE, PASSPHRASE.value.decode())
    out = publisher.folder / "stick"
    words = ["repo", "offline-pack", os.fspath(out), "--valid", "14d", "--repo", os.fspath(publisher.repository.root)]
    assert main([*words, "--keys", os.fspath(publisher.keys), "--json"]) == 0
    report = json.loads(capfd.readouterr().out)
    check_command_output(["repo", "offline-pack"], report)
    assert report["releases"] == [{"family": FAMILY, "channel": "stable", "version": "1.0.0"}]
    assert replace(device).with_time(NOW_S + 10 * DAY_S).check(out).manifest.version == "1.0.0"
    assert main([*words, "--keys", os.fspath(publisher.keys), "--json"]) == OutputExists.exit_code
    assert json.loads(capfd.readouterr().err)["error"]["reason"] == "output-exists"
