"""A thousand families fit: a device verifies `targets.json` with the keys of all of them."""

import copy
import os
from pathlib import Path

import pytest
from tuf.api.metadata import Metadata, MetaFile, Snapshot, Targets, Timestamp

from bundle.errors import AirweightsError
from bundle.trust.updater import MAX_TARGETS_BYTES
from tests.support.metadata_publisher import CheckClient, MetadataPublisher

FAMILIES = 1000
FAMILY_BYTES = 6_800  # hybrid keys of two roles (docs/scale.md)


def with_families(publisher: MetadataPublisher, count: int) -> Path:
    """Return a copy of the published files whose `targets.json` delegates `count` more families, each with own keys."""
    site = publisher.copy_published(f"site-{count}")
    (site / "metadata" / "timestamp.awz").unlink()
    targets = Metadata[Targets].from_bytes(publisher.repository_document("targets"))
    delegations = targets.signed.delegations
    assert delegations is not None
    assert delegations.roles is not None
    for role in list(delegations.roles.values()):
        keys = [delegations.keys[keyid] for keyid in role.keyids]
        if "vision" not in role.name:
            continue
        for number in range(count):
            name = f"family-{number:04}"
            own = [copy.deepcopy(key) for key in keys]
            for key in own:
                key.keyid = os.urandom(32).hex()
                public = key.keyval["public"]
                key.keyval["public"] = os.urandom(len(public)).hex()[: len(public)]
                delegations.keys[key.keyid] = key
            added = copy.deepcopy(role)
            added.name = role.name.replace("vision", name)
            added.paths = [path.replace("vision", name) for path in role.paths or ()]
            added.keyids = [key.keyid for key in own]
            delegations.roles[added.name] = added
    snapshot = Metadata[Snapshot].from_bytes(publisher.repository_document("snapshot"))
    timestamp = Metadata[Timestamp].from_bytes((site / "metadata" / "timestamp.json").read_bytes())
    meta = write(publisher, site, targets, "targets")
    snapshot.signed.meta["targets.json"] = meta
    timestamp.signed.snapshot_meta = write(publisher, site, snapshot, "snapshot")
    write(publisher, site, timestamp, "timestamp")
    return site


def write(
    publisher: MetadataPublisher,
    site: Path,
    document: "Metadata[Targets] | Metadata[Snapshot] | Metadata[Timestamp]",
    role: str,
) -> MetaFile:
    """Sign the next version of a document, and write it."""
    document.signed.version += 1
    document.signatures.clear()
    for signer in publisher.signers_of(role):
        document.sign(signer, append=True)
    data = document.to_bytes()
    name = "timestamp.json" if role == "timestamp" else f"{document.signed.version}.{role}.json"
    (site / "metadata" / name).write_bytes(data)
    return MetaFile.from_data(document.signed.version, data, ["sha256"])


def test_a_device_accepts_a_thousand_families(publisher: MetadataPublisher, device: CheckClient) -> None:
    site = with_families(publisher, FAMILIES)
    size = max(path.stat().st_size for path in (site / "metadata").glob("*.targets.json"))
    assert FAMILIES * 6_000 < size < MAX_TARGETS_BYTES
    assert (MAX_TARGETS_BYTES - 30_000) // FAMILY_BYTES > 1_200
    assert device.check(site).manifest.version == "1.0.0"


def test_more_families_than_the_limit_are_refused(
    publisher: MetadataPublisher, device: CheckClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The limit counts, whatever length the signed snapshot names."""
    monkeypatch.setattr("bundle.trust.updater.MAX_TARGETS_BYTES", 100_000)
    with pytest.raises(AirweightsError) as found:
        device.check(with_families(publisher, 20))
    assert found.value.reason == "too-large"
