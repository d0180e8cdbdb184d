"""For each subset of roles whose keys are all stolen, an attacker can do what the design allows, and nothing more.

1. To install a release that was never made, an attacker needs the keys of targets (which can delegate the family to
   new keys), or the keys of release and rollout together.
2. To select a release that was made for the channel and is not below the floor, an attacker needs the keys of targets
   or of rollout.
Both also need the keys of snapshot and timestamp to be published.
"""

import itertools
import shutil
from pathlib import Path

import pytest
from securesystemslib.signer import CryptoSigner, Signer
from tuf.api.metadata import Targets

from bundle.acceptance import ReleaseCounter
from bundle.errors import AirweightsError, Refused, Unavailable
from bundle.manifest import Manifest
from packager.repository import tuf_documents
from tests.support.attacker import Attacker
from tests.support.metadata_publisher import NOW_S, CheckClient, MetadataPublisher, create_client, make_rollout

ROLES = ("timestamp", "snapshot", "targets", "release-vision", "rollout-vision")
SUBSETS = [set(roles) for size in range(len(ROLES) + 1) for roles in itertools.combinations(ROLES, size)]


def may_install_anything(stolen: set[str]) -> bool:
    """Return whether an attacker can install a release that was never made (line 1)."""
    return {"timestamp", "snapshot"} <= stolen and (
        "targets" in stolen or {"release-vision", "rollout-vision"} <= stolen
    )


def may_choose_a_release(stolen: set[str]) -> bool:
    """Return whether an attacker can select a release that was made for the channel (line 2)."""
    return {"timestamp", "snapshot"} <= stolen and bool({"targets", "rollout-vision"} & stolen)


@pytest.fixture(scope="module")
def attacked(tmp_path_factory: pytest.TempPathFactory) -> tuple[MetadataPublisher, CheckClient, list[Signer]]:
    """Return a repository with 1.0.0 and 1.1.0, a device that accepted 1.1.0, and the attacker's own keys."""
    from tests.support.metadata_publisher import build_publisher

    publisher = build_publisher(tmp_path_factory.mktemp("attacked") / "publisher")
    publisher.release("1.0.0", 1)
    publisher.release("1.1.0", 2)
    device = create_client(publisher)
    device.check(publisher.published)
    return publisher, device, [CryptoSigner.generate_ed25519(), CryptoSigner.generate_mldsa()]


def check_attacker_mirror(
    publisher: MetadataPublisher, device: CheckClient, attacker: Attacker, tried: Path
) -> ReleaseCounter | AirweightsError:
    """Return what a copy of the device accepts from the attacker's mirror: a counter or an error."""
    shutil.rmtree(tried, ignore_errors=True)
    shutil.copytree(device.folder, tried, symlinks=True)
    try:
        return CheckClient(tried, device.root).check(attacker.publish()).counter
    except (Refused, Unavailable) as error:
        return error
    finally:
        shutil.rmtree(attacker.mirror)


def redelegate(attacker: Attacker, role: str, own: list[Signer]) -> None:
    """Delegate a role to the attacker's own keys, with the stolen keys of targets."""
    targets: Targets = attacker.changed_documents.get("targets") or tuf_documents.next_targets(
        attacker.published.role("targets"), "targets", {}, NOW_S
    )
    assert targets.delegations is not None
    assert targets.delegations.roles is not None
    for keyid in list(targets.delegations.roles[role].keyids):
        targets.revoke_key(keyid, role)
    for signer in own:
        targets.add_key(signer.public_key, role)
    attacker.changed_documents["targets"] = targets


def create_attacker(publisher: MetadataPublisher, stolen: set[str], own: list[Signer]) -> Attacker:
    """Return an attacker with the stolen keys and its own."""
    attacker = Attacker.from_publisher(publisher, *sorted(stolen))
    attacker.signers = [*attacker.signers, *own]
    return attacker


@pytest.mark.parametrize("stolen", SUBSETS, ids=["+".join(sorted(roles)) or "none" for roles in SUBSETS])
def test_a_subset_of_stolen_keys(
    attacked: tuple[MetadataPublisher, CheckClient, list[Signer]], stolen: set[str], tmp_path: Path
) -> None:
    publisher, device, own = attacked
    evil = publisher.make_manifest("6.6.6", 666)
    anything = create_attacker(publisher, stolen, own)
    if "targets" in stolen:
        redelegate(anything, "release-vision", own)
        redelegate(anything, "rollout-vision", own)
    anything.release(evil)
    anything.roll_out(make_rollout(evil))
    found = check_attacker_mirror(publisher, device, anything, tmp_path / "anything")
    assert (found == ReleaseCounter(1, 666)) == may_install_anything(stolen), found

    old = publisher.repository.manifest("vision", "1.0.0")
    assert isinstance(old, Manifest)
    choosing = create_attacker(publisher, stolen, own)
    if "targets" in stolen:
        redelegate(choosing, "rollout-vision", own)
    choosing.roll_out(make_rollout(old))
    found = check_attacker_mirror(publisher, device, choosing, tmp_path / "choosing")
    assert (found == ReleaseCounter(1, 1)) == may_choose_a_release(stolen), found
    if not may_choose_a_release(stolen):
        assert isinstance(found, AirweightsError)
