"""A device that was offline during many key rotations still follows the repository."""

from collections.abc import Callable
from pathlib import Path

import pytest
from securesystemslib.signer import CryptoSigner, Signer

from bundle.acceptance import ReleaseCounter
from bundle.errors import RollbackRefused, UntrustedMetadata
from bundle.trust.role_names import release_role
from keys.errors import SignerNotInRole, ThresholdInvalid
from packager.errors import BelowThreshold, StagingInvalid
from packager.repository.role_changes import (
    add_keys,
    advance_counter_epoch,
    remove_family,
    remove_keys,
    renew,
    replace_key,
    replace_keys,
    require_hybrid,
    set_threshold,
)
from tests.support.metadata_publisher import (
    FAMILY,
    CheckClient,
    MetadataPublisher,
    build_publisher,
    create_client,
    make_rollout,
)


def generate_key_pair() -> list[Signer]:
    return [CryptoSigner.generate_ed25519(), CryptoSigner.generate_mldsa()]


def test_an_online_key_is_replaced_and_the_old_one_signs_nothing(
    publisher: MetadataPublisher, device: CheckClient
) -> None:
    device.check(publisher.published)
    old = publisher.signers_of("timestamp")
    fresh = generate_key_pair()
    change = replace_keys(publisher.repository.layout, "timestamp", [signer.public_key for signer in fresh])
    assert change.threshold == 2
    assert not publisher.repository.sign(publisher.signers).is_complete
    with pytest.raises(BelowThreshold) as refused:
        publisher.repository.publish()
    assert "timestamp" in refused.value.message
    assert publisher.repository.sign([*publisher.signers, *fresh]).is_complete
    publisher.repository.publish()
    assert device.check(publisher.published).manifest.version == "1.0.0"
    with pytest.raises(BelowThreshold):
        publisher.repository.refresh(publisher.signers)
    publisher.signers = [signer for signer in publisher.signers if signer not in old] + fresh
    publisher.repository.refresh(publisher.signers)
    assert device.check(publisher.published).manifest.version == "1.0.0"


def test_a_new_root_needs_the_old_roots_threshold(publisher: MetadataPublisher) -> None:
    fresh = [*generate_key_pair(), *generate_key_pair()]
    replace_keys(publisher.repository.layout, "root", [signer.public_key for signer in fresh])
    online = publisher.signers_of("snapshot", "timestamp")
    assert not publisher.repository.sign([*fresh, *online]).is_complete
    assert not publisher.repository.sign(publisher.signers_of("root")[:2]).is_complete
    assert publisher.repository.sign([publisher.signers_of("root")[2], *online]).is_complete
    publisher.repository.publish()
    assert sorted(path.name for path in (publisher.published / "metadata").glob("*.root.json")) == [
        "1.root.json",
        "2.root.json",
    ]


def test_a_familys_keys_are_replaced_and_its_document_signed_anew(
    publisher: MetadataPublisher, device: CheckClient
) -> None:
    device.check(publisher.published)
    stolen = publisher.signers_of("release-vision")
    fresh = generate_key_pair()
    replace_keys(publisher.repository.layout, release_role(FAMILY), [signer.public_key for signer in fresh])
    publisher.signers = [signer for signer in publisher.signers if signer not in stolen] + fresh
    report = publisher.publish()
    assert report.roles.keys() == {"targets", "release-vision", "snapshot", "timestamp"}
    publisher.release("1.1.0", 2)
    assert device.check(publisher.published).manifest.version == "1.1.0"
    publisher.repository.stage_manifest(publisher.make_manifest("6.6.6", 666))
    without_fresh = [signer for signer in publisher.signers if signer not in fresh]
    assert not publisher.repository.sign([*stolen, *without_fresh]).is_complete


def test_a_huge_counter_of_a_stolen_key_is_outlived_by_an_epoch(
    publisher: MetadataPublisher, device: CheckClient
) -> None:
    publisher.release("6.6.6", 2**50, min_counter=2**50)
    assert device.check(publisher.published).floor == ReleaseCounter(1, 2**50)
    assert advance_counter_epoch(publisher.repository.layout, FAMILY) == 2
    publisher.repository.withdraw(FAMILY, "6.6.6")
    publisher.publish()
    publisher.release("7.0.0", 2)
    release = device.check(publisher.published)
    assert release.counter == ReleaseCounter(2, 2)
    assert release.floor == ReleaseCounter(2, 0)


def test_changes_that_would_make_a_role_unsound_are_not_staged(publisher: MetadataPublisher) -> None:
    layout = publisher.repository.layout
    one = CryptoSigner.generate_ed25519().public_key
    first = publisher.signers_of("timestamp")[0].public_key
    attempts: tuple[Callable[[], object], ...] = (
        lambda: set_threshold(layout, "timestamp", 1),
        lambda: set_threshold(layout, "root", 4),
        lambda: remove_keys(layout, "timestamp", [first.keyid]),
        lambda: add_keys(layout, "timestamp", [one], threshold=2),
        lambda: add_keys(layout, "timestamp", [first]),
        lambda: replace_keys(layout, "targets", [one]),
    )
    for attempt in attempts:
        with pytest.raises(ThresholdInvalid):
            attempt()
    with pytest.raises(SignerNotInRole):
        remove_keys(layout, "timestamp", ["0" * 64])
    with pytest.raises(StagingInvalid):
        add_keys(layout, "release-speech", [one])
    with pytest.raises(StagingInvalid):
        renew(layout, ["timestamp"])
    assert not publisher.repository.status().staged


def test_a_family_comes_and_goes(publisher: MetadataPublisher, device: CheckClient) -> None:
    release, rollout = generate_key_pair(), generate_key_pair()
    keys = {
        "release-speech": [signer.public_key for signer in release],
        "rollout-speech": [signer.public_key for signer in rollout],
    }
    publisher.repository.add_family("speech", keys)
    publisher.signers += release + rollout
    publisher.publish()
    assert publisher.repository.families() == ("speech", "vision")
    assert publisher.repository.next_counter("speech") == 1
    remove_family(publisher.repository.layout, "speech")
    publisher.publish()
    assert publisher.repository.families() == ("vision",)
    assert publisher.repository.status().is_sound
    assert device.check(publisher.published).manifest.version == "1.0.0"


def test_offline_roles_are_renewed_without_a_change(publisher: MetadataPublisher, device: CheckClient) -> None:
    device.check(publisher.published)
    renew(publisher.repository.layout, ["root", "targets", "fleet", "release-vision"])
    report = publisher.publish()
    assert report.roles["root"] == 2
    assert device.check(publisher.published).manifest.version == "1.0.0"


def test_a_device_walks_fifty_roots_and_the_arrival_of_ml_dsa(tmp_path: Path) -> None:
    publisher = build_publisher(tmp_path / "publisher", classical=True)
    publisher.release("1.0.0", 1)
    device = create_client(publisher)
    device.check(publisher.published)
    layout = publisher.repository.layout
    roots: list[Signer] = publisher.signers_of("root")
    others = [signer for signer in publisher.signers if signer not in roots]

    def publish() -> None:
        publisher.signers = roots + others
        publisher.publish(check_clients=False)  # the device at the end is the test; fifty client checks take minutes

    for _ in range(24):
        fresh = CryptoSigner.generate_ed25519()
        replace_key(layout, "root", roots[0].public_key.keyid, fresh.public_key)
        roots.append(fresh)
        publish()
        roots.pop(0)
    for role in ("root", "targets"):
        pair: list[Signer] = [CryptoSigner.generate_mldsa(), CryptoSigner.generate_mldsa()]
        add_keys(layout, role, [signer.public_key for signer in pair])
        first = (roots if role == "root" else publisher.signers_of("targets"))[0]
        remove_keys(layout, role, [first.public_key.keyid])
        (roots if role == "root" else others).extend(pair)
        publish()
    for role in ("snapshot", "timestamp", "fleet", "release-vision", "rollout-vision"):
        single = CryptoSigner.generate_mldsa()
        add_keys(layout, role, [single.public_key])
        others.append(single)
        publish()
    require_hybrid(layout)
    publish()
    status = publisher.repository.status()
    assert status.is_sound
    assert not status.is_classical
    while len(list((publisher.published / "metadata").glob("*.root.json"))) < 51:
        classical = next(signer for signer in reversed(roots) if signer.public_key.keytype == "ed25519")
        fresh = CryptoSigner.generate_ed25519()
        replace_key(layout, "root", classical.public_key.keyid, fresh.public_key)
        roots.append(fresh)
        publish()
        roots.remove(classical)
    publisher.signers = roots + others
    publisher.release("2.0.0", 2)
    release = device.check(publisher.published)
    assert release.manifest.version == "2.0.0"
    memory = device.trust_states.load()
    assert memory is not None
    assert memory.roles["root"].version == 51
    newcomer = create_client(publisher, "newcomer")
    assert newcomer.check(publisher.published).repository_id == release.repository_id
    newest = CheckClient(publisher.folder / "newest", (publisher.published / "metadata" / "51.root.json").read_bytes())
    assert newest.check(publisher.published).repository_id == release.repository_id


def test_a_fast_forward_heals_by_rotating_the_online_keys(publisher: MetadataPublisher, device: CheckClient) -> None:
    device.check(publisher.published)
    attacker = build_attacker_mirror(publisher)
    assert device.check(attacker).context.timestamp_version == 2**40
    publisher.repository.refresh(publisher.signers)
    with pytest.raises(RollbackRefused):
        device.check(publisher.published)
    fresh = {role: generate_key_pair() for role in ("timestamp", "snapshot")}
    for role, signers in fresh.items():
        replace_keys(publisher.repository.layout, role, [signer.public_key for signer in signers])
    old = publisher.signers_of("timestamp", "snapshot")
    publisher.signers = [signer for signer in publisher.signers if signer not in old] + [
        *fresh["timestamp"],
        *fresh["snapshot"],
    ]
    publisher.publish()
    assert device.check(publisher.published).manifest.version == "1.0.0"
    with pytest.raises((RollbackRefused, UntrustedMetadata)):
        device.check(attacker)


def build_attacker_mirror(publisher: MetadataPublisher) -> Path:
    """Create a mirror with huge versions and far dates, signed by the snapshot and timestamp keys."""
    from tuf.api.metadata import Metadata, Snapshot, Timestamp

    from packager.repository import tuf_documents

    mirror = publisher.copy_published("attacker")
    metadata = mirror / "metadata"
    stamped: Metadata[Timestamp] = Metadata.from_bytes((metadata / "timestamp.json").read_bytes())
    number = stamped.signed.snapshot_meta.version
    snapped: Metadata[Snapshot] = Metadata.from_bytes((metadata / f"{number}.snapshot.json").read_bytes())
    snapped.signed.version = 2**40
    for signer in publisher.signers_of("snapshot"):
        snapped.sign(signer, append=True)
    (metadata / f"{2**40}.snapshot.json").write_bytes(snapped.to_bytes())
    stamped.signed.version = 2**40
    stamped.signed.snapshot_meta = tuf_documents.meta_file(2**40, snapped.to_bytes())
    for signer in publisher.signers_of("timestamp"):
        stamped.sign(signer, append=True)
    (metadata / "timestamp.json").write_bytes(stamped.to_bytes())
    return mirror


def test_rollouts_survive_the_change_of_every_key(publisher: MetadataPublisher, device: CheckClient) -> None:
    release = device.check(publisher.published)
    for role in ("targets", "fleet", "rollout-vision", "release-vision", "snapshot", "timestamp", "root"):
        fresh = [*generate_key_pair(), *generate_key_pair()] if role in ("targets", "root") else generate_key_pair()
        replace_keys(publisher.repository.layout, role, [signer.public_key for signer in fresh])
        publisher.signers += fresh
        publisher.publish()
    assert device.check(publisher.published).rollout == release.rollout == make_rollout(release.manifest)
    assert publisher.repository.status().is_sound
