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


def unchanged(
    device: CheckClient,
    shop: MetadataPublisher,
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
            device.check(shop.published)
        rotate_online_keys(shop)
    assert device.check(shop.published).manifest.version == "1.0.0"
    return failed.value


def rotate_online_keys(shop: MetadataPublisher) -> None:
    """Replace the online keys in a new root, which ends a compromise of them."""
    for role in ("snapshot", "timestamp"):
        signers = [CryptoSigner.generate_ed25519(), CryptoSigner.generate_mldsa()]
        replace_keys(shop.repository.layout, role, [signer.public_key for signer in signers])
        shop.signers += signers
    shop.publish()


def test_arbitrary_install_without_a_key(shop: MetadataPublisher, device: CheckClient) -> None:
    device.check(shop.published)
    thief = Attacker.from_publisher(shop)
    thief.signers = [CryptoSigner.generate_ed25519(), CryptoSigner.generate_mldsa()]
    evil = shop.make_manifest("6.6.6", 666)
    thief.release(evil)
    thief.roll_out(make_rollout(evil))
    unchanged(device, shop, thief.publish(), UntrustedMetadata)


def test_rollback_to_an_old_repository(shop: MetadataPublisher, device: CheckClient) -> None:
    old = shop.copy_published("then")
    shop.repository.refresh(shop.signers)
    device.check(shop.published)
    assert unchanged(device, shop, old, RollbackRefused).reason == "rollback-refused"


def test_freeze_ends_with_the_expiry_and_serving_does_not(shop: MetadataPublisher, device: CheckClient) -> None:
    frozen = shop.copy_published("frozen")
    device.check(frozen)
    release = device.check(frozen)
    later = int(time.time()) + DAY_S + 60
    with pytest.raises(MetadataExpired):
        device.with_time(later).check(frozen)
    assert check_eligibility(release, "device", "default", later).reason == "metadata-expired"


def test_mix_and_match_of_two_publications(shop: MetadataPublisher, device: CheckClient) -> None:
    old = shop.copy_published("then")
    shop.release("1.1.0", 2)
    mixed = shop.copy_published("mixed")
    (new_snapshot,) = (mixed / "metadata").glob(f"{shop.repository.status().roles[2].version}.snapshot.json")
    (old_snapshot,) = (old / "metadata").glob(f"{shop.repository.status().roles[2].version - 1}.snapshot.json")
    shutil.copy(old_snapshot, new_snapshot)
    with pytest.raises(DigestMismatch):
        device.check(mixed)


@pytest.mark.parametrize(
    "name", ["timestamp.json", "snapshot.json", "targets.json", "release-vision.json", "stable.json"]
)
def test_endless_data(shop: MetadataPublisher, device: CheckClient, name: str) -> None:
    asked: list[int] = []

    def endless(url: str, max_bytes: int) -> bytes:
        if not url.endswith(name):
            return fetch_file(url, max_bytes)
        asked.append(max_bytes)
        return bytes(max_bytes + 1)

    with pytest.raises(TooLarge):
        device.check(shop.published, endless)
    assert max(asked) <= 4 * 1024 * 1024


def test_wrong_software_under_a_right_name(shop: MetadataPublisher, device: CheckClient) -> None:
    other = shop.make_manifest("2.0.0", 2, channels=(CHANNEL,))
    shop.repository.stage_manifest(other)
    shop.publish()
    (wrong,) = (shop.published / "targets" / "bundles" / FAMILY).glob("*.2.0.0.json")
    with pytest.raises((DigestMismatch, TooLarge)):
        device.check(shop.published, replace_file(".1.0.0.json", wrong.read_bytes()))


def test_extraneous_dependencies_are_unknown_fields(shop: MetadataPublisher, device: CheckClient) -> None:
    thief = Attacker.from_publisher(shop, "release-vision", *ONLINE)
    manifest = shop.repository.manifest(FAMILY, "1.0.0")
    assert manifest is not None
    extra = strict_json.encode({**manifest.as_json(), "depends": ["malware"]})
    thief.list_target("release-vision", f"bundles/{FAMILY}/1.0.0.json", extra)
    with pytest.raises(Malformed):
        device.check(thief.publish())


def test_drop_request_is_unavailable(shop: MetadataPublisher, device: CheckClient) -> None:
    def dropping(url: str, max_bytes: int) -> bytes:
        if "timestamp" in url:
            raise DownloadFailed(f"{url}: connection reset")
        return fetch_file(url, max_bytes)

    with pytest.raises(DownloadFailed):
        device.check(shop.published, dropping)
    shutil.rmtree(shop.published / "targets" / "fleet")
    with pytest.raises(NotFound):
        device.check(shop.published)


def test_withdrawal_in_mid_flight(shop: MetadataPublisher, device: CheckClient) -> None:
    release = device.check(shop.published)
    assert check_eligibility(release, "device", "default", NOW_S).is_eligible
    shop.repository.withdraw(FAMILY, "1.0.0")
    shop.publish()
    with pytest.raises(ReleaseWithdrawn):
        device.check(shop.published)


@pytest.mark.parametrize("role", ["timestamp", "snapshot", "targets", "release-vision", "rollout-vision", "fleet"])
@pytest.mark.parametrize("kind", ["ed25519", "mldsa"])
def test_key_compromise_below_threshold(shop: MetadataPublisher, device: CheckClient, role: str, kind: str) -> None:
    """All keys of one algorithm of a role, with all keys of the other online roles, are not enough."""
    device.check(shop.published)
    others = [name for name in ("snapshot", "timestamp") if name != role]
    thief = Attacker.from_publisher(shop, *others)
    broken = [s for s in shop.signers_of(role) if s.public_key.keytype.startswith("ml") == (kind == "mldsa")]
    thief.signers = [*thief.signers, *broken]
    if role not in ("timestamp", "snapshot"):
        thief.changed_documents[role] = tuf_documents.next_targets(thief.published.role(role), role, {}, NOW_S)
    unchanged(device, shop, thief.publish(), UntrustedMetadata, is_ahead=role != "timestamp")


def test_stolen_online_keys_can_only_select_what_was_released_for_the_channel(
    shop: MetadataPublisher, device: CheckClient
) -> None:
    shop.release("1.1.0", 2)
    beta = shop.make_manifest("1.2.0", 3, channels=("beta",))
    shop.repository.stage_manifest(beta)
    shop.publish()
    assert device.check(shop.published).manifest.version == "1.1.0"
    old = shop.repository.manifest(FAMILY, "1.0.0")
    assert old is not None

    def attempt(thief: Attacker) -> VerifiedRelease:
        tried = CheckClient(shop.folder / f"device-{thief.mirror.name}", device.root)
        shutil.copytree(device.folder, tried.folder, symlinks=True)
        return tried.check(thief.publish())

    allowed = Attacker.from_publisher(shop, *ONLINE)
    allowed.roll_out(make_rollout(old))
    assert attempt(allowed).manifest.version == "1.0.0"
    refused: dict[str, type[AirweightsError]] = {
        "never released": ReleaseWithdrawn,
        "another channel": ReleaseMismatch,
        "other content": ReleaseMismatch,
        "new manifest": UntrustedMetadata,
    }
    for attack, error in refused.items():
        thief = Attacker.from_publisher(shop, *ONLINE)
        match attack:
            case "never released":
                thief.roll_out(make_rollout(shop.make_manifest("6.6.6", 666)))
            case "another channel":
                thief.roll_out(replace(make_rollout(beta), counter=2))
            case "other content":
                thief.roll_out(replace(make_rollout(old), manifest_digest="0" * 64))
            case _:
                evil = shop.make_manifest("6.6.6", 666)
                thief.release(evil)
                thief.roll_out(make_rollout(evil))
        with pytest.raises(error):
            attempt(thief)


def test_stolen_online_keys_and_the_floor(shop: MetadataPublisher, device: CheckClient) -> None:
    shop.release("1.1.0", 2, min_counter=2)
    device.check(shop.published)
    old = shop.repository.manifest(FAMILY, "1.0.0")
    assert old is not None
    thief = Attacker.from_publisher(shop, *ONLINE)
    thief.roll_out(make_rollout(old))
    with pytest.raises(RollbackRefused):
        device.check(thief.publish())


def test_a_stolen_release_key_alone_reaches_nobody(shop: MetadataPublisher, device: CheckClient) -> None:
    device.check(shop.published)
    thief = Attacker.from_publisher(shop, "release-vision")
    thief.release(shop.make_manifest("6.6.6", 666))
    unchanged(device, shop, thief.publish(), UntrustedMetadata)


def test_all_keys_of_a_family_do_not_reach_another(tmp_path: Path) -> None:
    from tests.support.metadata_publisher import build_publisher, create_client

    shop = build_publisher(tmp_path / "shop", families=(FAMILY, "speech"))
    shop.release("1.0.0", 1)
    device = create_client(shop)
    device.check(shop.published)
    thief = Attacker.from_publisher(shop, "release-speech", "rollout-speech", "snapshot", "timestamp")
    evil = shop.make_manifest("6.6.6", 666)
    thief.release(evil)
    thief.roll_out(make_rollout(evil))
    with pytest.raises(UntrustedMetadata):
        device.check(thief.publish())
    smuggling = Attacker.from_publisher(shop, "release-speech", "rollout-speech", "snapshot", "timestamp")
    smuggling.list_target("release-speech", f"bundles/{FAMILY}/6.6.6.json", evil.as_bytes())
    smuggling.list_target("rollout-speech", f"rollouts/{FAMILY}/{CHANNEL}.json", make_rollout(evil).as_bytes())
    assert create_client(shop, "another").check(smuggling.publish()).manifest.version == "1.0.0"


def test_targets_that_list_files_themselves_are_refused(shop: MetadataPublisher, device: CheckClient) -> None:
    thief = Attacker.from_publisher(shop, "targets", *ONLINE)
    manifest = shop.make_manifest("6.6.6", 666)
    thief.list_target("targets", f"bundles/{FAMILY}/6.6.6.json", manifest.as_bytes())
    with pytest.raises(UntrustedMetadata) as refused:
        device.check(thief.publish())
    assert "expected delegations only" in refused.value.message


@pytest.mark.parametrize("ahead_s", [30 * DAY_S, 73 * 365 * DAY_S])
def test_an_online_thief_who_dates_the_future_bricks_nobody_for_good(
    shop: MetadataPublisher, device: CheckClient, ahead_s: int
) -> None:
    device.check(shop.published)
    thief = Attacker.from_publisher(shop, *ONLINE)
    device.check(thief.publish(signed_at_s={"timestamp": NOW_S + ahead_s}))
    memory = device.trust_states.load()
    assert memory is not None
    if ahead_s > 365 * DAY_S:
        assert memory.time_floor.time_s <= int(time.time())
    rotate_online_keys(shop)
    healed = device.check(shop.published)
    assert healed.manifest.version == "1.0.0"
    memory = device.trust_states.load()
    assert memory is not None
    assert memory.time_floor.time_s < int(time.time()) + DAY_S
    assert memory.roles["timestamp"].version == shop.repository.status().timestamp_version


def test_a_device_offline_for_years_comes_back(shop: MetadataPublisher, device: CheckClient) -> None:
    device.check(shop.published)
    for _ in range(3):
        fresh = [CryptoSigner.generate_ed25519(), CryptoSigner.generate_mldsa()]
        replace_keys(shop.repository.layout, "timestamp", [signer.public_key for signer in fresh])
        shop.signers += fresh
        shop.publish()
    shop.release("2.0.0", 2)
    clockless = replace(device, clock=ClockFacts(0, False, 0, 10, "another boot"))
    assert clockless.check(shop.published).counter == ReleaseCounter(1, 2)
