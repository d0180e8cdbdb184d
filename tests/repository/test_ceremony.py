"""A key ceremony to its end: a token, files, two people and a build machine; rotation, theft, a late device."""

from collections.abc import Sequence
from pathlib import Path

import pytest
from securesystemslib.signer import Signer

from bundle.errors import UntrustedMetadataRefused
from bundle.fleet import Fleet
from keys.cohorts import new_epoch
from keys.files import generate_key_file, load_signer
from keys.registry import Registry
from packager.errors import BelowThreshold
from packager.repository.detached import merge, prepare, review, sign_request
from packager.repository.repository import Repository
from packager.repository.request import parse_request
from packager.repository.rotation import replace_key, replace_keys
from tests.keys.softhsm import PIN, make_token, needs_softhsm
from tests.repository.shop import FAMILY, NOW_S, PASSPHRASE, Shop, new_device, rollout_of
from tests.trust.thief import Thief


def key(folder: Path, name: str, algorithm: str) -> Signer:
    """A new key file, as its owner opens it."""
    path = folder / f"{name}.key"
    generate_key_file(path, algorithm, PASSPHRASE)
    return load_signer(path, PASSPHRASE)


def pair(folder: Path, name: str) -> list[Signer]:
    return [key(folder, f"{name}-ed25519", "ed25519"), key(folder, f"{name}-ml-dsa-65", "ml-dsa-65")]


def signed_at_desks(shop: Shop, desks: dict[str, Sequence[Signer]], online: Sequence[Signer]) -> bool:
    """One request goes round; each desk sees it and signs; the build machine merges. Returns whether it is complete."""
    request = parse_request(prepare(shop.repository.layout, NOW_S).as_bytes())
    files = []
    for desk, signers in desks.items():
        memory = shop.folder / "desks" / desk
        reviewed = review(request, [signer.public_key for signer in signers], memory, NOW_S)
        files.append(sign_request(request, reviewed, signers, memory))
    return merge(shop.repository.layout, files, online, NOW_S).is_complete


@needs_softhsm
def test_a_ceremony_and_ten_years_in_one_afternoon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in make_token(tmp_path / "token").items():
        monkeypatch.setenv(name, value)
    safe = tmp_path / "safe"
    token = load_signer("hsm:2?label=test", PIN)
    root: list[Signer] = [
        token,
        key(safe, "root-ed25519", "ed25519"),
        *(key(safe, f"root-{n}", "ml-dsa-65") for n in "ab"),
    ]
    targets = [
        load_signer("hsm:3?label=test", PIN),
        key(safe, "t-c", "ed25519"),
        *(key(safe, f"t-{n}", "ml-dsa-65") for n in "ab"),
    ]
    engineer, ci = key(safe, "engineer", "ml-dsa-65"), key(safe, "ci", "ed25519")
    online = {role: pair(tmp_path / "ci", role) for role in ("snapshot", "timestamp", "rollout-vision")}
    fleet = pair(safe, "fleet")
    signers = {"root": root, "targets": targets, "fleet": fleet, "release-vision": [ci, engineer], **online}
    repository = Repository.create(tmp_path / "repository", signers=signers, families=[FAMILY])
    assert [(role.threshold, role.classical, role.post_quantum) for role in repository.status().roles[:2]] == [
        (3, 2, 2)
    ] * 2
    machine = [signer for group in online.values() for signer in group]
    shop = Shop(tmp_path, [])
    repository.stage_fleet(
        Fleet(Registry(repository.registry_path).digest(), 0, (new_epoch(safe, "default", None, PASSPHRASE),))
    )
    repository.sign([*fleet, *machine])
    repository.publish()

    late = new_device(shop, "late")
    manifest = shop.manifest("1.0.0", 1)
    repository.stage_manifest(manifest)
    repository.stage_rollout(rollout_of(manifest))
    assert not signed_at_desks(shop, {"ci": [ci]}, machine)
    with pytest.raises(BelowThreshold):
        repository.publish()
    assert signed_at_desks(shop, {"ci": [ci], "engineer": [engineer]}, machine)
    repository.publish()
    assert late.check(shop.published).manifest.version == "1.0.0"

    # the token is replaced: three of the four old keys and three of the four new ones sign the next root
    successor = key(safe, "root-ed25519-2", "ed25519")
    replace_key(repository.layout, "root", token.public_key.keyid, successor.public_key)
    assert signed_at_desks(shop, {"officer": root[1:3], "second": [root[3]], "third": [successor]}, machine)
    repository.publish()
    root = [*root[1:], successor]

    # the machine is stolen: its online keys go, and what the thief signed with them is worth nothing afterwards
    stolen, machine = machine, []
    for role in online:
        online[role] = pair(tmp_path / "ci-2", role)
        replace_keys(repository.layout, role, [signer.public_key for signer in online[role]])
        machine += online[role]
    desks: dict[str, Sequence[Signer]] = {
        "officer": root[:2],
        "second": [root[2]],
        "t1": targets[:2],
        "t2": [targets[2]],
    }
    assert signed_at_desks(shop, {**desks, "ci": machine}, machine)
    repository.publish()
    thief = Thief(shop, stolen, shop.copy_published("thief"))
    thief.roll_out(rollout_of(manifest))
    witness = new_device(shop, "witness")
    witness.check(shop.published)
    with pytest.raises(UntrustedMetadataRefused):
        witness.check(thief.publish())

    # the engineer leaves: her key is replaced on the family, the build machine's stays
    heir = key(safe, "heir", "ml-dsa-65")
    replace_key(repository.layout, "release-vision", engineer.public_key.keyid, heir.public_key)
    assert signed_at_desks(shop, {"t1": targets[:2], "t2": [targets[2]], "heir": [heir], "ci": [ci]}, machine)
    repository.publish()
    shop_manifest = shop.manifest("2.0.0", 2)
    repository.stage_manifest(shop_manifest)
    repository.stage_rollout(rollout_of(shop_manifest))
    assert signed_at_desks(shop, {"ci": [ci], "heir": [heir]}, machine)
    repository.publish()

    # a lost key of root: the other three go on, and name a new fourth
    spare = key(safe, "root-spare", "ml-dsa-65")
    lost = root[1]
    remaining = [signer for signer in root if signer is not lost]
    assert replace_key(repository.layout, "root", lost.public_key.keyid, spare.public_key).threshold == 3
    assert signed_at_desks(shop, {"officer": remaining, "spare": [spare]}, machine)
    repository.publish()

    assert repository.status().is_sound
    assert late.check(shop.published).manifest.version == "2.0.0"
    assert all(path.stat().st_mode & 0o077 == 0 for path in safe.rglob("*.key"))
