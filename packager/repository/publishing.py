"""From signed documents to what devices see.

Rules, in this order:
1. What is published builds on the publication that is out; else the loser is told who won.
2. Every new document has its threshold, and snapshot and timestamp are among them.
3. Devices of every channel rehearse the result with their own code.
4. Files go out from the bottom to the top, each whole and synced; the timestamp last, in one rename. A publication that
   is cut off anywhere before is no publication, and can be repeated.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from securesystemslib.signer import Signer
from tuf.api.metadata import Metadata, Targets

from bundle.errors import AirweightsError, MetadataExpired
from bundle.fleet import FLEET_TARGET
from bundle.rollout import Rollout
from bundle.trust.role_names import FLEET_ROLE, rollout_role, rollout_target
from packager.errors import BelowThreshold, PublishConflict
from packager.repository import tuf_documents
from packager.repository.client_check import ClientCheck, ClientCheckResult
from packager.repository.layout import RepositoryLayout, last_publisher, record_publisher, write_file
from packager.repository.published import (
    TIMESTAMP_FILE,
    Document,
    PublishedDocuments,
    check_signatures,
    delegator_of,
    effective_document,
)
from packager.repository.staging import LAST_ROLES, Staging


@dataclass(frozen=True, slots=True)
class PublishReport:
    """What went out.

    Attributes:
        timestamp_version: of the publication.
        roles: version of every document that is new.
        rehearsed: what a device of each channel does with it.
    """

    timestamp_version: int
    roles: Mapping[str, int]
    client_checks: tuple[ClientCheckResult, ...]

    def as_json(self) -> dict[str, object]:
        """For `--json`."""
        return {
            "timestamp_version": self.timestamp_version,
            "roles": dict(self.roles),
            "channels": [
                {"family": r.family, "channel": r.channel, "version": r.version, "refusal": r.refusal}
                for r in self.client_checks
            ],
        }


def publish(
    layout: RepositoryLayout,
    published: PublishedDocuments,
    staging: Staging,
    *,
    check_clients: bool,
    is_renewal: bool = False,
) -> PublishReport:
    """All rules.

    Args:
        layout, published, staging: of the repository.
        rehearse: False only to publish what devices must refuse.
        is_renewal: nothing changes but freshness; then a role that has expired holds up nothing, and is reported.

    Raises:
        PublishConflict, BelowThreshold, and what a device would raise.
    """
    if staging.base not in (-1, published.timestamp_version):
        raise PublishConflict(
            f"this was signed on top of timestamp {staging.base}, and {published.timestamp_version} is out:"
            f" {last_publisher(layout)}",
            hint="sign again: `packager repo sign` builds on what is out now",
        )
    check_complete(published, staging.documents)
    _check_all_signed(staging)
    files = files_of(staging)
    with ClientCheck(layout, files) as rehearsal:
        rehearsed = _check_clients(rehearsal, published, staging, is_renewal=is_renewal) if check_clients else ()
        write_files(layout, files)
        if check_clients:
            rehearsal.save_state()
    version = staging.documents["timestamp"].signed.version
    record_publisher(layout, version)
    return PublishReport(version, {role: doc.signed.version for role, doc in staging.documents.items()}, rehearsed)


def stage_renewal(
    layout: RepositoryLayout,
    published: PublishedDocuments,
    signers: Sequence[Signer],
    *,
    ahead: int = 1,
    pack_valid_s: int | None = None,
) -> Staging:
    """Snapshot, timestamp, and the rollout roles whose keys are at hand, renewed; nothing of the staging folder.

    Args:
        layout, published: of the repository.
        signers: at hand.
        ahead: by how much the documents are newer than the published ones.
        pack_valid_s: for an offline pack (packager.repository.offline_pack).
    """
    drafted = Staging(layout, is_blank=True, ahead=ahead, pack_valid_s=pack_valid_s)
    drafted.base = published.timestamp_version
    held = {signer.public_key.keyid for signer in signers}
    now_s = int(time.time())
    for role, delegation in tuf_documents.delegated_roles(published.targets).items():
        if tuf_documents.kind_of(role) == "rollout" and len(held & set(delegation.keyids)) >= delegation.threshold:
            drafted.renew_rollout(role, published.role(role), now_s)
    drafted.sign(published, signers, now_s, is_renewal=True)
    return drafted


def stage_rollout_change(
    layout: RepositoryLayout, published: PublishedDocuments, rollout: Rollout, signers: Sequence[Signer]
) -> Staging:
    """One channel's rollout, its role, snapshot and timestamp; nothing of the staging folder."""
    drafted = Staging(layout, is_blank=True)
    drafted.base = published.timestamp_version
    role, name = rollout_role(rollout.family), rollout_target(rollout.family, rollout.channel)
    now_s, data = int(time.time()), rollout.as_bytes()
    before = published.role(role)
    listed = {**before.targets, name: tuf_documents.target_file(name, data)}
    drafted.targets[name] = data
    drafted.documents[role] = Metadata[Targets](tuf_documents.next_targets(before, role, listed, now_s))
    drafted.sign(published, signers, now_s)
    return drafted


def check_complete(published: PublishedDocuments, documents: Mapping[str, Document]) -> None:
    """Rule 2. Raises BelowThreshold, naming the role and what is missing."""
    for role, document in documents.items():
        state = check_signatures(published, documents, role, document)
        if state.missing_signatures:
            keys = ", ".join(f"{key.keytype} {keyid[:16]}…" for keyid, key in sorted(state.unsigned_keys.items()))
            which = "any" if state.missing_signatures < len(state.unsigned_keys) else "each"
            raise BelowThreshold(
                f"{role} {state.version} is signed by {len(state.signed_key_ids)} keys, "
                f"{state.missing_signatures} more must sign",
                hint=f"`packager repo sign` with {which} of: {keys}",
            )
    for role in LAST_ROLES:
        if role not in documents:
            keyids = delegator_of(published, documents, role).get_delegated_role(role).keyids
            raise BelowThreshold(
                f"{role} is not signed yet",
                hint=f"`packager repo sign` with its keys: {', '.join(k[:16] for k in keyids)}",
            )


def _check_all_signed(staging: Staging) -> None:
    # what was staged after the last `sign` is in no document; publishing now would forget it
    listed = {
        name: target
        for document in staging.documents.values()
        if isinstance(document.signed, Targets)
        for name, target in document.signed.targets.items()
    }
    for name, data in staging.targets.items():
        if listed.get(name) != tuf_documents.target_file(name, data):
            raise BelowThreshold(f"{name} was staged after the last signature", hint="sign again: `packager repo sign`")
    for name in staging.withdrawn:
        if name in listed:
            raise BelowThreshold(f"{name} was withdrawn after the last signature", hint="sign again")


def files_of(staging: Staging) -> dict[str, bytes]:
    """Path below `published/` → bytes, in the order of rule 4."""
    out: dict[str, bytes] = {}
    for name, data in staging.targets.items():
        out[f"targets/{tuf_documents.target_path(tuf_documents.target_file(name, data))}"] = data
    for role in sorted(staging.documents, key=lambda role: (role == "root", role in LAST_ROLES, role == "timestamp")):
        document = staging.documents[role]
        name = TIMESTAMP_FILE if role == "timestamp" else f"{document.signed.version}.{role}.json"
        out[f"metadata/{name}"] = tuf_documents.serialize(document)
    return out


def write_files(layout: RepositoryLayout, files: Mapping[str, bytes]) -> None:
    """Rule 4."""
    last = f"metadata/{TIMESTAMP_FILE}"
    for relative, data in files.items():
        if relative != last:
            write_file(layout.published / relative, data)
    write_file(layout.published / last, files[last])


def _check_clients(
    client_check: ClientCheck, published: PublishedDocuments, staging: Staging, *, is_renewal: bool
) -> tuple[ClientCheckResult, ...]:
    drafted = staging.documents
    fleet = effective_document(published, drafted, FLEET_ROLE)
    has_fleet = fleet is not None and FLEET_TARGET in fleet.signed.targets
    try:
        client_check.check_metadata(has_fleet=has_fleet)
    except MetadataExpired:
        # what is online is renewed first, what is offline after it: neither waits for the other
        if not is_renewal:
            raise
    concerns_all = bool({"root", "targets", FLEET_ROLE} & set(drafted))
    targets = effective_document(published, drafted, "targets")
    assert targets is not None
    out = []
    for family in tuf_documents.families_of(targets.signed) if has_fleet else ():
        rollouts = effective_document(published, drafted, rollout_role(family))
        names = sorted(rollouts.signed.targets) if rollouts is not None else []
        for channel in (name.rpartition("/")[2].removesuffix(".json") for name in names):
            try:
                out.append(client_check.check_channel(family, channel))
            except AirweightsError as error:
                # another family's trouble (an expired role) must not hold up this publication
                is_its_own = concerns_all or bool(set(tuf_documents.family_roles(family)) & set(drafted))
                if is_its_own and not (is_renewal and isinstance(error, MetadataExpired)):
                    raise
                out.append(ClientCheckResult(family, channel, None, error.message))
    return tuple(out)
