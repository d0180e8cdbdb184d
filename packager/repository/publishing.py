"""Check signed documents and publish them.

Theory of operation. A publication is the rename of `timestamp.json`: the timestamp names the snapshot, the snapshot
names every other document but the roots, and a document names its targets, each by version and digest. Before that
rename, devices see the old publication, whatever else was written; after it, they see all of the new one. Only a new
root is found without the timestamp, by its number: it is written just before. `publish` therefore does, in order:

1. Refuse a conflict: the documents must build on the published timestamp. If another publisher was first, the error
   names it.
2. Refuse incomplete signatures: each new document has its threshold, and snapshot and timestamp are among them.
3. Refuse unsigned changes: each staged target and each withdrawal is contained in a signed document.
4. Run the client check: a device of every channel checks the result (packager.repository.client_check).
5. Write the files, each one atomically and synced: target files, documents of type targets, snapshot, root, archives
   (packager.repository.archives), then the timestamp, and last its compressed copy. A publication that is interrupted
   before the timestamp can be repeated. With a store (`send`), its publication comes before the folder's.
6. Save the client check's state, and record who published.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from securesystemslib.signer import Signer
from tuf.api.metadata import Metadata, Targets

from bundle.errors import AirweightsError, MetadataExpired
from bundle.fleet import FLEET_TARGET
from bundle.rollout import Rollout
from bundle.trust.role_names import FLEET_ROLE, rollout_role, rollout_target
from packager.errors import BelowThreshold, PublishConflict
from packager.repository import tuf_documents
from packager.repository.archives import (
    COMPRESSED_TIMESTAMP,
    advance_modified_s,
    create_copies,
    modified_s,
    write_copies,
    write_recorded,
    write_timestamp_copy,
)
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

# of a role's validity: `repo refresh` leaves it while more is left; above DUE_SHARE, at which `repo status` warns
RENEWAL_SHARE: Final = 0.3
Send = Callable[[bytes, bytes], None]


@dataclass(frozen=True, slots=True)
class PublishReport:
    """The result of a publication.

    Attributes:
        timestamp_version: version of the publication's timestamp.
        roles: role → version, for each new document.
        client_checks: reaction of the devices of each channel; empty if the check was skipped.
    """

    timestamp_version: int
    roles: Mapping[str, int]
    client_checks: tuple[ClientCheckResult, ...]

    def as_json(self) -> dict[str, object]:
        """Return the JSON object for `--json`."""
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
    send: Send | None = None,
) -> PublishReport:
    """Publish signed documents, after checking them as a device of every channel would.

    Args:
        layout: the repository's paths; the caller has locked it.
        published: the published state, as devices see it now.
        staging: the documents and targets to publish.
        check_clients: run the client check; False only for tests and drills that publish releases to be refused.
        is_renewal: only versions and expiries change. Then an expired role does not stop the publication; it is
            reported as the channel's refusal.
        send: publishes to a store (packager.remote), before the folder's own timestamp is written; called with the
            timestamp and its compressed copy. If it fails, the folder keeps its publication.

    Raises:
        PublishConflict: the documents do not build on the published timestamp.
        BelowThreshold: a signature is missing, or something was staged after the last signature.
        AirweightsError: the client check failed with the error that a device would raise.
    """
    if staging.base not in (-1, published.timestamp_version):
        raise PublishConflict(
            f"these changes were signed on top of timestamp {staging.base}, but timestamp"
            f" {published.timestamp_version} is published: {last_publisher(layout)}",
            hint="sign again with `packager repo sign`, which builds on the published timestamp",
        )
    check_complete(published, staging.documents)
    _check_all_signed(staging)
    files = files_of(staging)
    copies, recorded = create_copies(layout, published, files)
    with ClientCheck(layout, {**files, **copies}) as client_check:
        results = _check_clients(client_check, published, staging, is_renewal=is_renewal) if check_clients else ()
        write_files(layout, files, copies, send)
        write_recorded(layout, recorded)
        if check_clients:
            client_check.save_state()
    version = staging.documents["timestamp"].signed.version
    record_publisher(layout, version, staging.documents["snapshot"].signed.version)
    new = {role: doc for role, doc in staging.documents.items() if doc is not published.documents.get(role)}
    return PublishReport(version, {role: doc.signed.version for role, doc in new.items()}, results)


def stage_renewal(
    layout: RepositoryLayout,
    published: PublishedDocuments,
    signers: Sequence[Signer],
    *,
    ahead: int = 1,
    pack_valid_s: int | None = None,
    is_due_only: bool = False,
) -> Staging:
    """Renew timestamp, snapshot and the rollout roles that `signers` can sign.

    Args:
        layout: the repository's paths.
        published: the published state, as devices see it now.
        signers: the signers of snapshot and timestamp, and of any rollout roles.
        ahead: difference of the new versions to the published ones.
        pack_valid_s: validity in seconds, for an offline pack (packager.repository.offline_pack); None otherwise.
        is_due_only: leave a snapshot or rollout role out while it has RENEWAL_SHARE of its validity left, so that
            devices download the timestamp only.

    Returns:
        The signed documents, never written to `staging/`.
    """
    renewal = Staging(layout, is_blank=True, ahead=ahead, pack_valid_s=pack_valid_s)
    renewal.base = published.timestamp_version
    key_ids = {signer.public_key.keyid for signer in signers}
    now_s = int(time.time())
    for role, delegation in tuf_documents.delegated_roles(published.targets).items():
        is_signable = len(key_ids & set(delegation.keyids)) >= delegation.threshold
        if tuf_documents.kind_of(role) != "rollout" or not is_signable:
            continue
        if not (is_due_only and _is_valid_for_long(published, role, now_s)):
            renewal.renew_rollout(role, published.role(role), now_s)
    if is_due_only and _is_valid_for_long(published, "snapshot", now_s):
        renewal.keep_snapshot(published)
    renewal.sign(published, signers, now_s, is_renewal=True)
    return renewal


def _is_valid_for_long(published: PublishedDocuments, role: str, now_s: int) -> bool:
    document = published.documents[role]
    left_s = document.signed.expires.timestamp() - now_s
    life_s = tuf_documents.EXPIRY_DAYS[tuf_documents.kind_of(role)] * tuf_documents.DAY_S
    is_signed = not check_signatures(published, {}, role, document).missing_signatures
    is_same_file = tuf_documents.serialize(document) == published.files[role][1]
    return left_s >= life_s * RENEWAL_SHARE and is_signed and is_same_file


def stage_rollout_change(
    layout: RepositoryLayout, published: PublishedDocuments, rollout: Rollout, signers: Sequence[Signer]
) -> Staging:
    """Create and sign the documents of one channel's new rollout, outside of the staging folder.

    Args:
        layout: the repository's paths.
        published: the published state, as devices see it now.
        rollout: the channel's new rollout.
        signers: the signers of the family's rollout role, snapshot and timestamp.

    Returns:
        The signed documents, never written to `staging/`.
    """
    change = Staging(layout, is_blank=True)
    change.base = published.timestamp_version
    role, name = rollout_role(rollout.family), rollout_target(rollout.family, rollout.channel)
    now_s, data = int(time.time()), rollout.as_bytes()
    before = published.role(role)
    listed = {**before.targets, name: tuf_documents.target_file(name, data)}
    change.targets[name] = data
    document = tuf_documents.next_targets(before, role, listed, now_s)
    document.version = change.free_version(role, document.version)
    change.documents[role] = Metadata[Targets](document)
    change.sign(published, signers, now_s)
    return change


def check_complete(published: PublishedDocuments, documents: Mapping[str, Document]) -> None:
    """Check that every document has its threshold, and that snapshot and timestamp are among them.

    Args:
        published: the published state, as devices see it now.
        documents: role → new document.

    Raises:
        BelowThreshold: names the role, the number of missing signatures, and the keys that may sign.
    """
    for role, document in documents.items():
        state = check_signatures(published, documents, role, document)
        if state.missing_signatures:
            keys = ", ".join(f"{key.keytype} {keyid[:16]}…" for keyid, key in sorted(state.unsigned_keys.items()))
            which = "any" if state.missing_signatures < len(state.unsigned_keys) else "each"
            raise BelowThreshold(
                f"{role} version {state.version} has {len(state.signed_key_ids)} valid signatures, "
                f"{state.missing_signatures} more must sign",
                hint=f"run `packager repo sign` with {which} of these keys: {keys}",
            )
    for role in LAST_ROLES:
        if role not in documents:
            keyids = delegator_of(published, documents, role).get_delegated_role(role).keyids
            raise BelowThreshold(
                f"{role} is not signed yet",
                hint=f"run `packager repo sign` with its keys: {', '.join(f'{keyid[:16]}…' for keyid in keyids)}",
            )


def _check_all_signed(staging: Staging) -> None:
    # changes that were staged after the last `sign` are in no document: publishing now would lose them
    listed = {
        name: target
        for document in staging.documents.values()
        if isinstance(document.signed, Targets)
        for name, target in document.signed.targets.items()
    }
    for name, data in staging.targets.items():
        if listed.get(name) != tuf_documents.target_file(name, data):
            raise BelowThreshold(
                f"{name} was staged after the last signature", hint="sign again with `packager repo sign`"
            )
    for name in staging.withdrawn:
        if name in listed:
            raise BelowThreshold(
                f"{name} was withdrawn after the last signature", hint="sign again with `packager repo sign`"
            )


def files_of(staging: Staging) -> dict[str, bytes]:
    """Return path below `published/` → bytes, in the order of publication."""
    out: dict[str, bytes] = {}
    for name, data in staging.targets.items():
        out[f"targets/{tuf_documents.target_path(tuf_documents.target_file(name, data))}"] = data
    for role in sorted(staging.documents, key=lambda role: (role == "root", role in LAST_ROLES, role == "timestamp")):
        document = staging.documents[role]
        name = TIMESTAMP_FILE if role == "timestamp" else f"{document.signed.version}.{role}.json"
        out[f"metadata/{name}"] = tuf_documents.serialize(document)
    return out


def write_files(
    layout: RepositoryLayout, files: Mapping[str, bytes], copies: Mapping[str, bytes], send: Send | None = None
) -> None:
    """Write files below `published/`, in their order; the timestamp and then its compressed copy last.

    Args:
        layout: the repository's paths.
        files: path below `published/` → bytes; the timestamp's file must be among them.
        copies: path below `published/` → bytes of the copies.
        send: called when all but the timestamps is written.
    """
    timestamp = f"metadata/{TIMESTAMP_FILE}"
    for relative, data in files.items():
        if relative != timestamp:
            write_file(layout.published / relative, data)
    write_copies(layout, copies)
    if send is not None:
        send(files[timestamp], copies[COMPRESSED_TIMESTAMP])
    path = layout.published / timestamp
    before_s = modified_s(path)
    write_file(path, files[timestamp])
    advance_modified_s(path, before_s)
    write_timestamp_copy(layout, copies[COMPRESSED_TIMESTAMP])


def _check_clients(
    client_check: ClientCheck, published: PublishedDocuments, staging: Staging, *, is_renewal: bool
) -> tuple[ClientCheckResult, ...]:
    documents = staging.documents
    fleet = effective_document(published, documents, FLEET_ROLE)
    has_fleet = fleet is not None and FLEET_TARGET in fleet.signed.targets
    try:
        client_check.check_metadata(has_fleet=has_fleet)
    except MetadataExpired:
        # an expired offline role must not stop the renewal of the online roles
        if not is_renewal:
            raise
    concerns_all = bool({"root", "targets", FLEET_ROLE} & set(documents))
    targets = effective_document(published, documents, "targets")
    assert targets is not None
    out = []
    for family in tuf_documents.families_of(targets.signed) if has_fleet else ():
        rollouts = effective_document(published, documents, rollout_role(family))
        names = sorted(rollouts.signed.targets) if rollouts is not None else []
        for channel in (name.rpartition("/")[2].removesuffix(".json") for name in names):
            try:
                out.append(client_check.check_channel(family, channel))
            except AirweightsError as error:
                # a problem in another family, such as an expired role, must not stop this publication
                is_concerned = concerns_all or bool(set(tuf_documents.family_roles(family)) & set(documents))
                if is_concerned and not (is_renewal and isinstance(error, MetadataExpired)):
                    raise
                out.append(ClientCheckResult(family, channel, None, error.message))
    return tuple(out)
