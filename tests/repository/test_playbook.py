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
    envelope_name,
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
class Play:
    """A shop with release 1.1.0 out, a device that has it, and commands as they are typed."""

    shop: MetadataPublisher
    device: CheckClient

    def run(self, *words: str) -> None:
        assert main([*words, "--repo", str(self.shop.repository.root)]) == 0, words

    def new_key(self, algorithm: str) -> str:
        """A new key file; its signer joins those at hand."""
        path = self.shop.folder / "new" / f"{len(list(self.shop.folder.glob('new/*')))}.key"
        generate_key_file(path, algorithm, PASSPHRASE)
        self.shop.signers.append(load_signer(path, PASSPHRASE))
        return str(path)

    def new_pair(self) -> list[str]:
        return ["--key", self.new_key("ed25519"), "--key", self.new_key("ml-dsa-65")]

    def lose(self, *gone: Signer) -> None:
        """They sign nothing any more."""
        self.shop.signers = [signer for signer in self.shop.signers if signer not in gone]

    def replace_one(self, role: str) -> Signer:
        """The command of a lost or stolen key: the first of the role is replaced. Returns the old one."""
        old = self.shop.signers_of(role)[0]
        self.run("keys", "role", "replace", role, old.public_key.keyid, "--key", self.new_key("ed25519"))
        self.lose(old)
        self.shop.publish()
        return old

    def replace_all(self, *roles: str) -> list[Signer]:
        """The command of stolen roles: all their keys are replaced. Returns the old ones."""
        for role in roles:
            self.run("keys", "role", "replace", role, *self.new_pair())
        old = self.shop.signers_of(*roles)
        self.lose(*old)
        self.shop.publish()
        return old

    def thief(self, *signers: Signer) -> Attacker:
        return Attacker(
            self.shop, signers, self.shop.copy_published(f"attacker-{len(list(self.shop.folder.glob('attacker*')))}")
        )

    def twin(self) -> CheckClient:
        """A device that remembers the same; what a thief with online keys says about versions stays with it."""
        place = self.shop.folder / f"twin-{len(list(self.shop.folder.glob('twin-*')))}"
        return replace(self.device, folder=Path(shutil.copytree(self.device.folder, place, symlinks=True)))

    def refused(self, thief: Attacker, error: type[AirweightsError] = UntrustedMetadata) -> None:
        """A device does not follow the thief's mirror."""
        with pytest.raises(error):
            self.twin().check(thief.publish())

    def goes_on(self, version: str = "2.0.0", counter: int = 10) -> None:
        """A new release reaches the device."""
        self.shop.release(version, counter)
        assert self.device.check(self.shop.published).manifest.version == version


def evil_release(thief: Attacker) -> Attacker:
    manifest = thief.publisher.make_manifest("6.6.6", 666)
    thief.release(manifest)
    thief.roll_out(make_rollout(manifest))
    return thief


def evil_root(thief: Attacker) -> Attacker:
    """A root of the thief's own keys."""
    published = thief.published
    root = tuf_documents.next_root(published.root, published.repository_id, NOW_S)
    for role in tuf_documents.TOP_LEVEL:
        root.roles[role].keyids = [signer.public_key.keyid for signer in thief.signers]
        root.roles[role].threshold = 1
    root.keys |= {signer.public_key.keyid: signer.public_key for signer in thief.signers}
    thief.changed_documents["root"] = root
    return thief


def evil_targets(thief: Attacker) -> Attacker:
    """Targets that give the family to the thief."""
    held = thief.published.targets
    targets = tuf_documents.next_targets(held, "targets", {}, NOW_S)
    assert targets.delegations is not None
    assert targets.delegations.roles is not None
    stolen = thief.signers[0].public_key
    targets.delegations.keys[stolen.keyid] = stolen
    targets.delegations.roles[RELEASE].keyids = [stolen.keyid]
    targets.delegations.roles[RELEASE].threshold = 1
    thief.changed_documents["targets"] = targets
    return evil_release(thief)


def root_key_lost(play: Play) -> None:
    play.lose(play.shop.signers_of("root")[0])
    play.replace_one("root")
    play.goes_on()


def root_key_stolen(play: Play) -> None:
    stolen = play.shop.signers_of("root")[0]
    play.refused(evil_root(play.thief(stolen, *play.shop.signers_of(*ONLINE))))
    assert play.replace_one("root") is stolen
    play.refused(evil_root(play.thief(stolen, *play.shop.signers_of(*ONLINE))))
    play.goes_on()


def targets_key_lost(play: Play) -> None:
    play.lose(play.shop.signers_of("targets")[0])
    play.replace_one("targets")
    play.goes_on()


def targets_key_stolen(play: Play) -> None:
    stolen = play.shop.signers_of("targets")[0]
    play.refused(evil_targets(play.thief(stolen, *play.shop.signers_of(*ONLINE))))
    play.replace_one("targets")
    play.refused(evil_targets(play.thief(stolen, *play.shop.signers_of(*ONLINE))))
    play.goes_on()


def family_key_lost(play: Play) -> None:
    play.lose(play.shop.signers_of(RELEASE)[0])
    play.shop.repository.stage_manifest(play.shop.make_manifest("1.2.0", 3))
    assert not play.shop.repository.sign(play.shop.signers).is_complete
    play.replace_one(RELEASE)
    play.goes_on()


def family_key_stolen(play: Play) -> None:
    stolen = play.shop.signers_of(RELEASE)[0]
    play.refused(evil_release(play.thief(stolen, *play.shop.signers_of(*ONLINE))))
    play.replace_one(RELEASE)
    play.refused(evil_release(play.thief(stolen, *play.shop.signers_of(*ONLINE))))
    play.goes_on()


def family_stolen(play: Play) -> None:
    play.refused(evil_release(play.thief(*play.shop.signers_of(RELEASE))))
    # worst: the thief's huge release went through the build machine before anybody noticed
    play.shop.release("6.6.6", 2**50, min_counter=2**50)
    assert play.device.check(play.shop.published).floor == ReleaseCounter(1, 2**50)
    play.run("repo", "withdraw", FAMILY, "6.6.6")
    play.run("keys", "family", "counter-epoch", FAMILY)
    stolen = play.replace_all(RELEASE)
    play.refused(evil_release(play.thief(*stolen, *play.shop.signers_of(*ONLINE))))
    play.goes_on(counter=3)
    assert play.device.check(play.shop.published).counter == ReleaseCounter(2, 3)


def rollout_stolen(play: Play) -> None:
    first = play.shop.repository.manifest(FAMILY, "1.0.0")
    assert first is not None
    thief = play.thief(*play.shop.signers_of(ROLLOUT))
    thief.roll_out(make_rollout(first))
    play.refused(thief)
    stolen = play.replace_all(ROLLOUT)
    thief = play.thief(*stolen, *play.shop.signers_of("snapshot", "timestamp"))
    thief.roll_out(make_rollout(first))
    play.refused(thief)
    play.goes_on()


def online_stolen(play: Play) -> None:
    first = play.shop.repository.manifest(FAMILY, "1.0.0")
    assert first is not None
    again = play.thief(*play.shop.signers_of(*ONLINE))
    again.roll_out(make_rollout(first))
    play.refused(evil_release(play.thief(*play.shop.signers_of(*ONLINE))))
    assert play.device.check(again.publish(signed_at_s={"timestamp": NOW_S + 80_000})).manifest.version == "1.0.0"
    stolen = play.replace_all(*ONLINE)
    assert play.device.check(play.shop.published).manifest.version == "1.1.0"
    thief = play.thief(*stolen)
    thief.roll_out(make_rollout(first))
    play.refused(thief)
    play.goes_on()


def fleet_stolen(play: Play) -> None:
    evil = Fleet("0" * 64, 0, (Cohort("default", 2**40, derive_public_key(generate_private_key())),))
    thief = play.thief(*play.shop.signers_of("fleet"))
    thief.list_target("fleet", "fleet/fleet.json", evil.as_bytes())
    play.refused(thief)
    thief.signers = [*thief.signers, *play.shop.signers_of("snapshot", "timestamp")]
    assert play.device.check(thief.publish()).fleet == evil
    # the thief had the online keys too: both are replaced
    stolen = play.replace_all("fleet", *ONLINE)
    play.run("device", "rotate-cohort", "default", "--keys", str(play.shop.keys))
    play.shop.publish()
    fleet = play.device.check(play.shop.published).fleet
    assert fleet == play.shop.repository.fleet()
    assert fleet.cohorts[0].epoch == 2
    thief = play.thief(*stolen)
    thief.list_target("fleet", "fleet/fleet.json", evil.as_bytes())
    play.refused(thief)
    play.goes_on()


def enroll(play: Play, label: str) -> Secret:
    """A device of the default cohort. Returns its private key."""
    private, signing = generate_private_key(), Ed25519PrivateKey.generate()
    request = EnrollmentRequest(label, derive_public_key(private), signing.public_key().public_bytes_raw())
    data = request.encode(signing)
    enroll_device(play.shop.repository, data, request.fingerprint, "default", play.shop.keys, PASSPHRASE)
    play.shop.publish()
    return private


def envelope_of(play: Play, private: Secret) -> Path:
    """Where a device's envelope of the current epoch lies."""
    (cohort,) = play.shop.repository.fleet().cohorts
    folder = play.shop.published / "envelopes" / "cohorts" / "default" / str(cohort.epoch)
    return folder / envelope_name(derive_public_key(private), cohort.epoch)


def cohort_key(play: Play, private: Secret) -> Secret:
    """What a device gets out of its envelope."""
    (cohort,) = play.shop.repository.fleet().cohorts
    context = EnvelopeContext(COHORT_KEY_PURPOSE, play.shop.repository.repository_id, "default", cohort.epoch)
    return open_envelope(envelope_of(play, private).read_bytes(), private, context)


def sealed_release(play: Play) -> tuple[bytes, EnvelopeContext]:
    """The content envelope of a release that is made now."""
    (cohort,) = play.shop.repository.fleet().cohorts
    context = EnvelopeContext(
        CONTENT_KEY_PURPOSE, play.shop.repository.repository_id, "default", cohort.epoch, FAMILY, 10, "fp32"
    )
    return seal(Secret(bytes(32)), cohort.public_key, context), context


def cohort_stolen(play: Play) -> None:
    member = enroll(play, "member")
    (cohort,) = play.shop.repository.fleet().cohorts
    stolen = load_private_key(play.shop.keys, cohort, PASSPHRASE)
    envelope, context = sealed_release(play)
    assert open_envelope(envelope, stolen, context).value == bytes(32)
    play.run("device", "rotate-cohort", "default", "--keys", str(play.shop.keys))
    envelope, context = sealed_release(play)
    with pytest.raises(NotAuthentic):
        open_envelope(envelope, stolen, context)
    assert open_envelope(envelope, cohort_key(play, member), context).value == bytes(32)


def device_stolen(play: Play) -> None:
    member, stolen = enroll(play, "member"), enroll(play, "stolen")
    old = cohort_key(play, stolen)
    play.run("device", "revoke", "stolen", "--keys", str(play.shop.keys))
    play.run("device", "rotate-cohort", "default", "--keys", str(play.shop.keys))
    assert not envelope_of(play, stolen).exists()
    envelope, context = sealed_release(play)
    with pytest.raises(NotAuthentic):
        open_envelope(envelope, old, context)
    # another's envelope, under the revoked device's own name, does not open either
    envelope_of(play, stolen).write_bytes(envelope_of(play, member).read_bytes())
    with pytest.raises(NotAuthentic):
        cohort_key(play, stolen)
    assert open_envelope(envelope, cohort_key(play, member), context).value == bytes(32)
    assert play.device.check(play.shop.published).fleet.cohorts[0].epoch == 2


def enrollment_key_stolen(play: Play) -> None:
    old, new = (load_signer(play.new_key("ed25519"), PASSPHRASE) for _ in range(2))
    private, signing = generate_private_key(), Ed25519PrivateKey.generate()
    request = EnrollmentRequest("intruder", derive_public_key(private), signing.public_key().public_bytes_raw())
    batch = sign_batch([request.encode(signing)], old)
    admitted = parse_batch(batch, [old.public_key])
    assert enroll_batch(play.shop.repository, admitted, "default", play.shop.keys, PASSPHRASE) == 1
    with pytest.raises(EnrollmentRefused):
        parse_batch(batch, [new.public_key])
    play.run("device", "revoke", "intruder", "--keys", str(play.shop.keys))
    play.run("device", "rotate-cohort", "default", "--keys", str(play.shop.keys))
    assert not envelope_of(play, private).exists()


def metadata_expired(play: Play) -> None:
    later = play.device.with_time(NOW_S + 8 * tuf_documents.DAY_S)
    with pytest.raises(MetadataExpired):
        later.check(play.shop.published)
    play.run("repo", "refresh", "--keys", str(play.shop.keys))
    play.run("keys", "role", "renew", "root", "targets", "fleet", RELEASE)
    play.shop.publish()
    assert play.device.check(play.shop.published).manifest.version == "1.1.0"


def passphrase_lost(play: Play) -> None:
    path = play.shop.keys / f"{RELEASE}-ed25519-1.key"
    with pytest.raises(WrongPassphrase):
        load_signer(path, Secret(b"what was it again"))
    assert load_public_key(path).keyid == play.shop.signers_of(RELEASE)[0].public_key.keyid
    family_key_lost(play)


def algorithm_broken(play: Play) -> None:
    """Every classical key of every role in the thief's hand, then every ML-DSA key."""
    for kind in ("ed25519", "ml-dsa"):
        broken = [signer for signer in play.shop.all_signers if signer.public_key.keytype == kind]
        assert len(broken) == 9
        for attack in (evil_root, evil_targets, evil_release):
            play.refused(attack(play.thief(*broken)))
    play.replace_one("timestamp")
    play.goes_on()


ROWS: dict[str, Callable[[Play], None]] = {
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
def test_playbook(shop: MetadataPublisher, monkeypatch: pytest.MonkeyPatch, row: str) -> None:
    monkeypatch.setenv(PASSPHRASE_VARIABLE, PASSPHRASE.value.decode())
    shop.release("1.1.0", 2)
    play = Play(shop, create_client(shop))
    assert play.device.check(shop.published).manifest.version == "1.1.0"
    ROWS[row](play)
    assert shop.repository.status().is_sound
