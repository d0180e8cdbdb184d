"""Every row of the playbook in docs/operations/incidents.md."""

import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from securesystemslib.signer import Signer

from bundle.acceptance import ReleaseCounter
from bundle.enrollment import EnrollmentRequest
from bundle.envelope import (
    COHORT_KEY_PURPOSE,
    CONTENT_KEY_PURPOSE,
    EnvelopeContext,
    derive_public_key,
    generate_private_key,
    open_envelope,
    seal,
)
from bundle.errors import (
    AirweightsError,
    EnrollmentRefused,
    MetadataExpired,
    NotAuthentic,
    UntrustedMetadata,
)
from bundle.fleet import Cohort, Fleet
from bundle.frames import Secret
from keys.cohorts import load_private_key
from keys.enrollment_batch import parse_batch, sign_batch
from keys.errors import WrongPassphrase
from keys.key_files import generate_key_file, load_public_key, load_signer
from keys.passphrase import PASSPHRASE_VARIABLE
from packager.commands.root import main
from packager.repository import tuf_documents
from packager.repository.devices import enroll_batch, enroll_device
from tests.support.attacker import Attacker
from tests.support.envelope_files import cohort_envelope_of
from tests.support.metadata_publisher import (
    FAMILY,
    NOW_S,
    PASSPHRASE,
    CheckClient,
    MetadataPublisher,
    create_client,
    make_rollout,
)
from tools.generate_docs.__main__ import DOCS

ONLINE = (f"rollout-{FAMILY}", "snapshot", "timestamp")
RELEASE, ROLLOUT = f"release-{FAMILY}", f"rollout-{FAMILY}"


@dataclass
class IncidentCase:
    """A publisher of release 1.1.0, a device that accepted it, and the commands of the page."""

    publisher: MetadataPublisher
    device: CheckClient

    def run(self, *words: str) -> None:
        assert main([*words, "--repo", str(self.publisher.repository.root)]) == 0, words

    def new_key(self, algorithm: str) -> str:
        """Create a key file and add its signer to the publisher's."""
        path = self.publisher.folder / "new" / f"{len(list(self.publisher.folder.glob('new/*')))}.key"
        generate_key_file(path, algorithm, PASSPHRASE)
        self.publisher.signers.append(load_signer(path, PASSPHRASE))
        return str(path)

    def new_pair(self) -> list[str]:
        return ["--key", self.new_key("ed25519"), "--key", self.new_key("ml-dsa-65")]

    def drop_signers(self, *gone: Signer) -> None:
        """Remove signers from the publisher, as if their keys were lost."""
        self.publisher.signers = [signer for signer in self.publisher.signers if signer not in gone]

    def replace_key(self, role: str) -> Signer:
        """Replace the first key of a role by the command, and return the old one."""
        old = self.publisher.signers_of(role)[0]
        self.run("keys", "role", "replace", role, old.public_key.keyid, "--key", self.new_key("ed25519"))
        self.drop_signers(old)
        self.publisher.publish()
        return old

    def replace_all(self, *roles: str) -> list[Signer]:
        """Replace all keys of the roles by the command, and return the old ones."""
        for role in roles:
            self.run("keys", "role", "replace", role, *self.new_pair())
        old = self.publisher.signers_of(*roles)
        self.drop_signers(*old)
        self.publisher.publish()
        return old

    def create_attacker(self, *signers: Signer) -> Attacker:
        return Attacker(
            self.publisher,
            signers,
            self.publisher.copy_published(f"attacker-{len(list(self.publisher.folder.glob('attacker*')))}"),
        )

    def copy_device(self) -> CheckClient:
        """Return a copy of the device, since the attacker's versions change its state."""
        place = self.publisher.folder / f"twin-{len(list(self.publisher.folder.glob('twin-*')))}"
        return replace(self.device, folder=Path(shutil.copytree(self.device.folder, place, symlinks=True)))

    def assert_refused(self, attacker: Attacker, error: type[AirweightsError] = UntrustedMetadata) -> None:
        """Assert that a device refuses the attacker's mirror."""
        with pytest.raises(error):
            self.copy_device().check(attacker.publish())

    def assert_updates_continue(self, version: str = "2.0.0", counter: int = 10) -> None:
        """Assert that a device accepts a new release."""
        self.publisher.release(version, counter)
        assert self.device.check(self.publisher.published).manifest.version == version


def evil_release(attacker: Attacker) -> Attacker:
    manifest = attacker.publisher.make_manifest("6.6.6", 666)
    attacker.release(manifest)
    attacker.roll_out(make_rollout(manifest))
    return attacker


def evil_root(attacker: Attacker) -> Attacker:
    """Forge a root with the attacker's own keys."""
    published = attacker.published
    root = tuf_documents.next_root(published.root, published.repository_id, NOW_S)
    for role in tuf_documents.TOP_LEVEL:
        root.roles[role].keyids = [signer.public_key.keyid for signer in attacker.signers]
        root.roles[role].threshold = 1
    root.keys |= {signer.public_key.keyid: signer.public_key for signer in attacker.signers}
    attacker.changed_documents["root"] = root
    return attacker


def evil_targets(attacker: Attacker) -> Attacker:
    """Forge targets that delegate the family to the attacker."""
    targets_before = attacker.published.targets
    targets = tuf_documents.next_targets(targets_before, "targets", {}, NOW_S)
    assert targets.delegations is not None
    assert targets.delegations.roles is not None
    stolen = attacker.signers[0].public_key
    targets.delegations.keys[stolen.keyid] = stolen
    targets.delegations.roles[RELEASE].keyids = [stolen.keyid]
    targets.delegations.roles[RELEASE].threshold = 1
    attacker.changed_documents["targets"] = targets
    return evil_release(attacker)


def root_key_lost(case: IncidentCase) -> None:
    case.drop_signers(case.publisher.signers_of("root")[0])
    case.replace_key("root")
    case.assert_updates_continue()


def root_key_stolen(case: IncidentCase) -> None:
    stolen = case.publisher.signers_of("root")[0]
    case.assert_refused(evil_root(case.create_attacker(stolen, *case.publisher.signers_of(*ONLINE))))
    assert case.replace_key("root") is stolen
    case.assert_refused(evil_root(case.create_attacker(stolen, *case.publisher.signers_of(*ONLINE))))
    case.assert_updates_continue()


def targets_key_lost(case: IncidentCase) -> None:
    case.drop_signers(case.publisher.signers_of("targets")[0])
    case.replace_key("targets")
    case.assert_updates_continue()


def targets_key_stolen(case: IncidentCase) -> None:
    stolen = case.publisher.signers_of("targets")[0]
    case.assert_refused(evil_targets(case.create_attacker(stolen, *case.publisher.signers_of(*ONLINE))))
    case.replace_key("targets")
    case.assert_refused(evil_targets(case.create_attacker(stolen, *case.publisher.signers_of(*ONLINE))))
    case.assert_updates_continue()


def family_key_lost(case: IncidentCase) -> None:
    case.drop_signers(case.publisher.signers_of(RELEASE)[0])
    case.publisher.repository.stage_manifest(case.publisher.make_manifest("1.2.0", 3))
    assert not case.publisher.repository.sign(case.publisher.signers).is_complete
    case.replace_key(RELEASE)
    case.assert_updates_continue()


def family_key_stolen(case: IncidentCase) -> None:
    stolen = case.publisher.signers_of(RELEASE)[0]
    case.assert_refused(evil_release(case.create_attacker(stolen, *case.publisher.signers_of(*ONLINE))))
    case.replace_key(RELEASE)
    case.assert_refused(evil_release(case.create_attacker(stolen, *case.publisher.signers_of(*ONLINE))))
    case.assert_updates_continue()


def family_stolen(case: IncidentCase) -> None:
    case.assert_refused(evil_release(case.create_attacker(*case.publisher.signers_of(RELEASE))))
    # worst: the attacker's release with a huge counter passed the build machine unnoticed
    case.publisher.release("6.6.6", 2**50, min_counter=2**50)
    assert case.device.check(case.publisher.published).floor == ReleaseCounter(1, 2**50)
    case.run("repo", "withdraw", FAMILY, "6.6.6")
    case.run("keys", "family", "counter-epoch", FAMILY)
    stolen = case.replace_all(RELEASE)
    case.assert_refused(evil_release(case.create_attacker(*stolen, *case.publisher.signers_of(*ONLINE))))
    case.assert_updates_continue(counter=3)
    assert case.device.check(case.publisher.published).counter == ReleaseCounter(2, 3)


def rollout_stolen(case: IncidentCase) -> None:
    first = case.publisher.repository.manifest(FAMILY, "1.0.0")
    assert first is not None
    attacker = case.create_attacker(*case.publisher.signers_of(ROLLOUT))
    attacker.roll_out(make_rollout(first))
    case.assert_refused(attacker)
    stolen = case.replace_all(ROLLOUT)
    attacker = case.create_attacker(*stolen, *case.publisher.signers_of("snapshot", "timestamp"))
    attacker.roll_out(make_rollout(first))
    case.assert_refused(attacker)
    case.assert_updates_continue()


def online_stolen(case: IncidentCase) -> None:
    first = case.publisher.repository.manifest(FAMILY, "1.0.0")
    assert first is not None
    again = case.create_attacker(*case.publisher.signers_of(*ONLINE))
    again.roll_out(make_rollout(first))
    case.assert_refused(evil_release(case.create_attacker(*case.publisher.signers_of(*ONLINE))))
    assert case.device.check(again.publish(signed_at_s={"timestamp": NOW_S + 80_000})).manifest.version == "1.0.0"
    stolen = case.replace_all(*ONLINE)
    assert case.device.check(case.publisher.published).manifest.version == "1.1.0"
    attacker = case.create_attacker(*stolen)
    attacker.roll_out(make_rollout(first))
    case.assert_refused(attacker)
    case.assert_updates_continue()


def fleet_stolen(case: IncidentCase) -> None:
    evil = Fleet("0" * 64, 0, (Cohort("default", 2**40, derive_public_key(generate_private_key())),))
    attacker = case.create_attacker(*case.publisher.signers_of("fleet"))
    attacker.list_target("fleet", "fleet/fleet.json", evil.as_bytes())
    case.assert_refused(attacker)
    attacker.signers = [*attacker.signers, *case.publisher.signers_of("snapshot", "timestamp")]
    assert case.device.check(attacker.publish()).fleet == evil
    # the attacker had the online keys, too: both are replaced
    stolen = case.replace_all("fleet", *ONLINE)
    case.run("device", "rotate-cohort", "default", "--keys", str(case.publisher.keys))
    case.publisher.publish()
    fleet = case.device.check(case.publisher.published).fleet
    assert fleet == case.publisher.repository.fleet()
    assert fleet.cohorts[0].epoch == 2
    attacker = case.create_attacker(*stolen)
    attacker.list_target("fleet", "fleet/fleet.json", evil.as_bytes())
    case.assert_refused(attacker)
    case.assert_updates_continue()


def enroll(case: IncidentCase, label: str) -> Secret:
    """Enroll a device in the default cohort, and return its private key."""
    private, signing = generate_private_key(), Ed25519PrivateKey.generate()
    request = EnrollmentRequest(label, derive_public_key(private), signing.public_key().public_bytes_raw())
    data = request.encode(signing)
    enroll_device(case.publisher.repository, data, request.fingerprint, "default", case.publisher.keys, PASSPHRASE)
    case.publisher.publish()
    return private


def envelope_of(case: IncidentCase, private: Secret) -> bytes | None:
    """Return a device's envelope of the current epoch, or None."""
    (cohort,) = case.publisher.repository.fleet().cohorts
    return cohort_envelope_of(case.publisher.published, cohort, derive_public_key(private))


def cohort_key(case: IncidentCase, private: Secret) -> Secret:
    """Return the cohort key that a device gets from its envelope."""
    (cohort,) = case.publisher.repository.fleet().cohorts
    context = EnvelopeContext(COHORT_KEY_PURPOSE, case.publisher.repository.repository_id, "default", cohort.epoch)
    return open_envelope(envelope_of(case, private) or b"", private, context)


def sealed_release(case: IncidentCase) -> tuple[bytes, EnvelopeContext]:
    """Return the content envelope of a new release."""
    (cohort,) = case.publisher.repository.fleet().cohorts
    context = EnvelopeContext(
        CONTENT_KEY_PURPOSE, case.publisher.repository.repository_id, "default", cohort.epoch, FAMILY, 10
    )
    return seal(Secret(bytes(32)), cohort.public_key, context), context


def cohort_stolen(case: IncidentCase) -> None:
    member = enroll(case, "member")
    (cohort,) = case.publisher.repository.fleet().cohorts
    stolen = load_private_key(case.publisher.keys, cohort, PASSPHRASE)
    envelope, context = sealed_release(case)
    assert open_envelope(envelope, stolen, context).value == bytes(32)
    case.run("device", "rotate-cohort", "default", "--keys", str(case.publisher.keys))
    envelope, context = sealed_release(case)
    with pytest.raises(NotAuthentic):
        open_envelope(envelope, stolen, context)
    assert open_envelope(envelope, cohort_key(case, member), context).value == bytes(32)


def device_stolen(case: IncidentCase) -> None:
    member, stolen = enroll(case, "member"), enroll(case, "stolen")
    old = cohort_key(case, stolen)
    case.run("device", "revoke", "stolen", "--keys", str(case.publisher.keys))
    case.run("device", "rotate-cohort", "default", "--keys", str(case.publisher.keys))
    assert envelope_of(case, stolen) is None
    envelope, context = sealed_release(case)
    with pytest.raises(NotAuthentic):
        open_envelope(envelope, old, context)
    # another's envelope does not open either
    (cohort,) = case.publisher.repository.fleet().cohorts
    own = EnvelopeContext(COHORT_KEY_PURPOSE, case.publisher.repository.repository_id, "default", cohort.epoch)
    with pytest.raises(NotAuthentic):
        open_envelope(envelope_of(case, member) or b"", stolen, own)
    assert open_envelope(envelope, cohort_key(case, member), context).value == bytes(32)
    assert case.device.check(case.publisher.published).fleet.cohorts[0].epoch == 2


def enrollment_key_stolen(case: IncidentCase) -> None:
    old, new = (load_signer(case.new_key("ed25519"), PASSPHRASE) for _ in range(2))
    private, signing = generate_private_key(), Ed25519PrivateKey.generate()
    request = EnrollmentRequest("intruder", derive_public_key(private), signing.public_key().public_bytes_raw())
    batch = sign_batch([request.encode(signing)], old)
    admitted = parse_batch(batch, [old.public_key])
    assert enroll_batch(case.publisher.repository, admitted, "default", case.publisher.keys, PASSPHRASE) == 1
    with pytest.raises(EnrollmentRefused):
        parse_batch(batch, [new.public_key])
    case.run("device", "revoke", "intruder", "--keys", str(case.publisher.keys))
    case.run("device", "rotate-cohort", "default", "--keys", str(case.publisher.keys))
    assert envelope_of(case, private) is None


def metadata_expired(case: IncidentCase) -> None:
    later = case.device.with_time(NOW_S + 8 * tuf_documents.DAY_S)
    with pytest.raises(MetadataExpired):
        later.check(case.publisher.published)
    case.run("repo", "refresh", "--keys", str(case.publisher.keys))
    case.run("keys", "role", "renew", "root", "targets", "fleet", RELEASE)
    case.publisher.publish()
    assert case.device.check(case.publisher.published).manifest.version == "1.1.0"


def passphrase_lost(case: IncidentCase) -> None:
    path = case.publisher.keys / f"{RELEASE}-ed25519-1.key"
    with pytest.raises(WrongPassphrase):
        load_signer(path, Secret(b"what was it again"))
    assert load_public_key(path).keyid == case.publisher.signers_of(RELEASE)[0].public_key.keyid
    family_key_lost(case)


def algorithm_broken(case: IncidentCase) -> None:
    """Give the attacker all classical keys of all roles, then all ML-DSA keys."""
    for kind in ("ed25519", "ml-dsa"):
        broken = [signer for signer in case.publisher.all_signers if signer.public_key.keytype == kind]
        assert len(broken) == 9
        for attack in (evil_root, evil_targets, evil_release):
            case.assert_refused(attack(case.create_attacker(*broken)))
    case.replace_key("timestamp")
    case.assert_updates_continue()


ROWS: dict[str, Callable[[IncidentCase], None]] = {
    "a key of `root` lost": root_key_lost,
    "a key of `root` stolen": root_key_stolen,
    "a key of `targets` lost": targets_key_lost,
    "a key of `targets` stolen": targets_key_stolen,
    "a family's key lost": family_key_lost,
    "a family's key stolen": family_key_stolen,
    "both keys of a family stolen": family_stolen,
    "both keys of a rollout stolen": rollout_stolen,
    "the online keys stolen": online_stolen,
    "both keys of `fleet` stolen": fleet_stolen,
    "a cohort's key stolen": cohort_stolen,
    "a device stolen": device_stolen,
    "the enrollment key stolen": enrollment_key_stolen,
    "metadata expired": metadata_expired,
    "a passphrase lost": passphrase_lost,
    "one algorithm broken": algorithm_broken,
}


def rows_of_the_page() -> Sequence[str]:
    section = (DOCS / "operations/incidents.md").read_text().split("## When something happens\n")[1].split("\n## ")[0]
    return re.findall(r"^\| ([^|]+) \|", section, re.MULTILINE)[2:]


def test_every_row_of_the_page_is_played() -> None:
    assert list(rows_of_the_page()) == list(ROWS)


@pytest.mark.parametrize("row", ROWS)
def test_playbook(publisher: MetadataPublisher, monkeypatch: pytest.MonkeyPatch, row: str) -> None:
    monkeypatch.setenv(PASSPHRASE_VARIABLE, PASSPHRASE.value.decode())
    publisher.release("1.1.0", 2)
    case = IncidentCase(publisher, create_client(publisher))
    assert case.device.check(publisher.published).manifest.version == "1.1.0"
    ROWS[row](case)
    assert publisher.repository.status().is_sound
