"""Every attack that TUF and Uptane name is refused, by its name."""

import shutil
import time
from dataclasses import replace
from pathlib import Path

import pytest
from securesystemslib.signer import CryptoSigner

from bundle import strict_json
from bundle.acceptance import ReleaseCounter, VerifiedRelease, check_eligibility
from bundle.errors import (
    AirweightsError,
    DigestMismatch,
    DownloadFailed,
    Malformed,
    MetadataExpired,
    NotFound,
    ReleaseMismatch,
    ReleaseWithdrawn,
    RollbackRefused,
    TooLarge,
    UntrustedMetadata,
)
from bundle.trust.clock import ClockFacts
from packager.repository import tuf_documents
from packager.repository.role_changes import replace_keys
from tests.support.attacker import Attacker
from tests.support.metadata_publisher import (
    CHANNEL,
    FAMILY,
    NOW_S,
    CheckClient,
    MetadataPublisher,
    fetch_file,
    make_rollout,
    replace_file,
)

DAY_S = 86_400
ONLINE = ("rollout-vision", "snapshot", "timestamp")


def assert_attack_fails(
    device: CheckClient,
    publisher: MetadataPublisher,
    mirror: Path,
    expected: type[AirweightsError],
    *,
    is_ahead: bool = False,
) -> AirweightsError:
    """Check that an attack fails with an error and leaves the floors unchanged; return the error.

    The honest repository still works afterwards. If the attacker could sign timestamps and snapshots of higher versions
    (`is_ahead`), it works only after the online keys were replaced.
    """
    before = device.trust_states.load()
    with pytest.raises(expected) as failed:
        device.check(mirror)
    after = device.trust_states.load()
    assert (before and (before.floors, before.known_releases)) == (after and (after.floors, after.known_releases))
    if is_ahead:
        with pytest.raises(RollbackRefused):
            device.check(publisher.published)
        rotate_online_keys(publisher)
    assert device.check(publisher.published).manifest.version == "1.0.0"
    return failed.value


def rotate_online_keys(publisher: MetadataPublisher) -> None:
    """Replace the online keys in a new root, which ends a compromise of them."""
    for role in ("snapshot", "timestamp"):
        signers = [CryptoSigner.generate_ed25519(), CryptoSigner.generate_mldsa()]
        replace_keys(publisher.repository.layout, role, [signer.public_key for signer in signers])
        publisher.signers += signers
    publisher.publish()


def test_arbitrary_install_without_a_key(publisher: MetadataPublisher, device: CheckClient) -> None:
    device.check(publisher.published)
    attacker = Attacker.from_publisher(publisher)
    attacker.signers = [CryptoSigner.generate_ed25519(), CryptoSigner.generate_mldsa()]
    evil = publisher.make_manifest("6.6.6", 666)
    attacker.release(evil)
    attacker.roll_out(make_rollout(evil))
    assert_attack_fails(device, publisher, attacker.publish(), UntrustedMetadata)


def test_rollback_to_an_old_repository(publisher: MetadataPublisher, device: CheckClient) -> None:
    old = publisher.copy_published("then")
    publisher.repository.refresh(publisher.signers)
    device.check(publisher.published)
    assert assert_attack_fails(device, publisher, old, RollbackRefused).reason == "rollback-refused"


def test_freeze_ends_with_the_expiry_and_serving_does_not(publisher: MetadataPublisher, device: CheckClient) -> None:
    frozen = publisher.copy_published("frozen")
    device.check(frozen)
    release = device.check(frozen)
    later = int(time.time()) + DAY_S + 60
    with pytest.raises(MetadataExpired):
        device.with_time(later).check(frozen)
    assert check_eligibility(release, "device", "default", later).reason == "metadata-expired"


def test_mix_and_match_of_two_publications(publisher: MetadataPublisher, device: CheckClient) -> None:
    old = publisher.copy_published("then")
    publisher.release("1.1.0", 2)
    mixed = publisher.copy_published("mixed")
    (new_snapshot,) = (mixed / "metadata").glob(f"{publisher.repository.status().roles[2].version}.snapshot.json")
    (old_snapshot,) = (old / "metadata").glob(f"{publisher.repository.status().roles[2].version - 1}.snapshot.json")
    shutil.copy(old_snapshot, new_snapshot)
    with pytest.raises(DigestMismatch):
        device.check(mixed)


@pytest.mark.parametrize(
    "name", ["timestamp.json", "snapshot.json", "targets.json", "release-vision.json", "stable.json"]
)
def test_endless_data(publisher: MetadataPublisher, device: CheckClient, name: str) -> None:
    limits: list[int] = []

    def endless(url: str, max_bytes: int) -> bytes:
        if not url.endswith(name):
            return fetch_file(url, max_bytes)
        limits.append(max_bytes)
        return bytes(max_bytes + 1)

    with pytest.raises(TooLarge):
        device.check(publisher.published, endless)
    assert max(limits) <= 4 * 1024 * 1024


def test_wrong_software_under_a_right_name(publisher: MetadataPublisher, device: CheckClient) -> None:
    other = publisher.make_manifest("2.0.0", 2, channels=(CHANNEL,))
    publisher.repository.stage_manifest(other)
    publisher.publish()
    (wrong,) = (publisher.published / "targets" / "bundles" / FAMILY).glob("*.2.0.0.json")
    with pytest.raises((DigestMismatch, TooLarge)):
        device.check(publisher.published, replace_file(".1.0.0.json", wrong.read_bytes()))


def test_extraneous_dependencies_are_unknown_fields(publisher: MetadataPublisher, device: CheckClient) -> None:
    attacker = Attacker.from_publisher(publisher, "release-vision", *ONLINE)
    manifest = publisher.repository.manifest(FAMILY, "1.0.0")
    assert manifest is not None
    extra = strict_json.encode({**manifest.as_json(), "depends": ["malware"]})
    attacker.list_target("release-vision", f"bundles/{FAMILY}/1.0.0.json", extra)
    with pytest.raises(Malformed):
        device.check(attacker.publish())


def test_drop_request_is_unavailable(publisher: MetadataPublisher, device: CheckClient) -> None:
    def dropping(url: str, max_bytes: int) -> bytes:
        if "timestamp" in url:
            raise DownloadFailed(f"{url}: connection reset")
        return fetch_file(url, max_bytes)

    with pytest.raises(DownloadFailed):
        device.check(publisher.published, dropping)
    shutil.rmtree(publisher.published / "targets" / "fleet")
    with pytest.raises(NotFound):
        device.check(publisher.published)


def test_withdrawal_in_mid_flight(publisher: MetadataPublisher, device: CheckClient) -> None:
    release = device.check(publisher.published)
    assert check_eligibility(release, "device", "default", NOW_S).is_eligible
    publisher.repository.withdraw(FAMILY, "1.0.0")
    publisher.publish()
    with pytest.raises(ReleaseWithdrawn):
        device.check(publisher.published)


@pytest.mark.parametrize("role", ["timestamp", "snapshot", "targets", "release-vision", "rollout-vision", "fleet"])
@pytest.mark.parametrize("kind", ["ed25519", "mldsa"])
def test_key_compromise_below_threshold(
    publisher: MetadataPublisher, device: CheckClient, role: str, kind: str
) -> None:
    """All keys of one algorithm of a role, with all keys of the other online roles, are not enough."""
    device.check(publisher.published)
    others = [name for name in ("snapshot", "timestamp") if name != role]
    attacker = Attacker.from_publisher(publisher, *others)
    broken = [s for s in publisher.signers_of(role) if s.public_key.keytype.startswith("ml") == (kind == "mldsa")]
    attacker.signers = [*attacker.signers, *broken]
    if role not in ("timestamp", "snapshot"):
        attacker.changed_documents[role] = tuf_documents.next_targets(attacker.published.role(role), role, {}, NOW_S)
    assert_attack_fails(device, publisher, attacker.publish(), UntrustedMetadata, is_ahead=role != "timestamp")


def test_stolen_online_keys_can_only_select_what_was_released_for_the_channel(
    publisher: MetadataPublisher, device: CheckClient
) -> None:
    publisher.release("1.1.0", 2)
    beta = publisher.make_manifest("1.2.0", 3, channels=("beta",))
    publisher.repository.stage_manifest(beta)
    publisher.publish()
    assert device.check(publisher.published).manifest.version == "1.1.0"
    old = publisher.repository.manifest(FAMILY, "1.0.0")
    assert old is not None

    def attempt(attacker: Attacker) -> VerifiedRelease:
        tried = CheckClient(publisher.folder / f"device-{attacker.mirror.name}", device.root)
        shutil.copytree(device.folder, tried.folder, symlinks=True)
        return tried.check(attacker.publish())

    allowed = Attacker.from_publisher(publisher, *ONLINE)
    allowed.roll_out(make_rollout(old))
    assert attempt(allowed).manifest.version == "1.0.0"
    refused: dict[str, type[AirweightsError]] = {
        "never released": ReleaseWithdrawn,
        "another channel": ReleaseMismatch,
        "other content": ReleaseMismatch,
        "new manifest": UntrustedMetadata,
    }
    for attack, error in refused.items():
        attacker = Attacker.from_publisher(publisher, *ONLINE)
        match attack:
            case "never released":
                attacker.roll_out(make_rollout(publisher.make_manifest("6.6.6", 666)))
            case "another channel":
                attacker.roll_out(replace(make_rollout(beta), counter=2))
            case "other content":
                attacker.roll_out(replace(make_rollout(old), manifest_digest="0" * 64))
            case _:
                evil = publisher.make_manifest("6.6.6", 666)
                attacker.release(evil)
                attacker.roll_out(make_rollout(evil))
        with pytest.raises(error):
            attempt(attacker)


def test_stolen_online_keys_and_the_floor(publisher: MetadataPublisher, device: CheckClient) -> None:
    publisher.release("1.1.0", 2, min_counter=2)
    device.check(publisher.published)
    old = publisher.repository.manifest(FAMILY, "1.0.0")
    assert old is not None
    attacker = Attacker.from_publisher(publisher, *ONLINE)
    attacker.roll_out(make_rollout(old))
    with pytest.raises(RollbackRefused):
        device.check(attacker.publish())


def test_a_stolen_release_key_alone_reaches_nobody(publisher: MetadataPublisher, device: CheckClient) -> None:
    device.check(publisher.published)
    attacker = Attacker.from_publisher(publisher, "release-vision")
    attacker.release(publisher.make_manifest("6.6.6", 666))
    assert_attack_fails(device, publisher, attacker.publish(), UntrustedMetadata)


def test_all_keys_of_a_family_do_not_reach_another(tmp_path: Path) -> None:
    from tests.support.metadata_publisher import build_publisher, create_client

    publisher = build_publisher(tmp_path / "publisher", families=(FAMILY, "speech"))
    publisher.release("1.0.0", 1)
    device = create_client(publisher)
    device.check(publisher.published)
    attacker = Attacker.from_publisher(publisher, "release-speech", "rollout-speech", "snapshot", "timestamp")
    evil = publisher.make_manifest("6.6.6", 666)
    attacker.release(evil)
    attacker.roll_out(make_rollout(evil))
    with pytest.raises(UntrustedMetadata):
        device.check(attacker.publish())
    smuggling = Attacker.from_publisher(publisher, "release-speech", "rollout-speech", "snapshot", "timestamp")
    smuggling.list_target("release-speech", f"bundles/{FAMILY}/6.6.6.json", evil.as_bytes())
    smuggling.list_target("rollout-speech", f"rollouts/{FAMILY}/{CHANNEL}.json", make_rollout(evil).as_bytes())
    assert create_client(publisher, "another").check(smuggling.publish()).manifest.version == "1.0.0"


def test_targets_that_list_files_themselves_are_refused(publisher: MetadataPublisher, device: CheckClient) -> None:
    attacker = Attacker.from_publisher(publisher, "targets", *ONLINE)
    manifest = publisher.make_manifest("6.6.6", 666)
    attacker.list_target("targets", f"bundles/{FAMILY}/6.6.6.json", manifest.as_bytes())
    with pytest.raises(UntrustedMetadata) as refused:
        device.check(attacker.publish())
    assert "expected delegations only" in refused.value.message


@pytest.mark.parametrize("ahead_s", [30 * DAY_S, 73 * 365 * DAY_S])
def test_an_online_thief_who_dates_the_future_bricks_nobody_for_good(
    publisher: MetadataPublisher, device: CheckClient, ahead_s: int
) -> None:
    device.check(publisher.published)
    attacker = Attacker.from_publisher(publisher, *ONLINE)
    device.check(attacker.publish(signed_at_s={"timestamp": NOW_S + ahead_s}))
    memory = device.trust_states.load()
    assert memory is not None
    if ahead_s > 365 * DAY_S:
        assert memory.time_floor.time_s <= int(time.time())
    rotate_online_keys(publisher)
    healed = device.check(publisher.published)
    assert healed.manifest.version == "1.0.0"
    memory = device.trust_states.load()
    assert memory is not None
    assert memory.time_floor.time_s < int(time.time()) + DAY_S
    assert memory.roles["timestamp"].version == publisher.repository.status().timestamp_version


def test_a_device_offline_for_years_comes_back(publisher: MetadataPublisher, device: CheckClient) -> None:
    device.check(publisher.published)
    for _ in range(3):
        fresh = [CryptoSigner.generate_ed25519(), CryptoSigner.generate_mldsa()]
        replace_keys(publisher.repository.layout, "timestamp", [signer.public_key for signer in fresh])
        publisher.signers += fresh
        publisher.publish()
    publisher.release("2.0.0", 2)
    clockless = replace(device, clock=ClockFacts(0, False, 0, 10, "another boot"))
    assert clockless.check(publisher.published).counter == ReleaseCounter(1, 2)
