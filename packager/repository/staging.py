"""The staging folder: staged changes, and how they become signed documents.

    staging/targets/NAME           new target files
    staging/withdrawn.json         names of the targets to withdraw
    staging/metadata/ROLE.json     documents that are being signed
    staging/base.json              version of the published timestamp that the documents build on

- `prepare` keeps a staged document whose content would not change, so that its signatures stay valid. Any change of the
  content creates a new document without signatures.
- Snapshot and timestamp are created last, when all other documents are signed, since they contain their digests.
- If the predecessor of a staged document is still the published one, the document keeps its signatures, even if other
  roles were published since: a daily refresh does not discard signatures. Otherwise it is created again.
"""

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from securesystemslib.signer import Signer
from tuf.api.metadata import Metadata, Signed, Snapshot, TargetFile, Targets, Timestamp

from bundle.fleet import FLEET_TARGET
from bundle.trust.role_names import COPIES_FIELD, FLEET_ROLE, PACK_FIELD
from packager.errors import RepositoryDamaged
from packager.repository import tuf_documents
from packager.repository.archives import copies_field
from packager.repository.layout import RepositoryLayout, write_file
from packager.repository.published import (
    Document,
    PublishedDocuments,
    RoleSignatures,
    check_signatures,
    effective_document,
    parse_document,
    roles_below,
    sign_document,
)

LAST_ROLES: Final = ("snapshot", "timestamp")
UNSTAGE_HINT: Final = "discard the staged changes with `packager repo unstage`, and stage them again"


@dataclass(frozen=True, slots=True)
class SignReport:
    """The signatures of the staged documents after signing.

    Attributes:
        roles: the valid and the missing signatures of each staged document.
        is_complete: every document has its threshold, timestamp included, so that the changes can be published.
        unused: key ids of the given signers that no staged document lists.
    """

    roles: tuple[RoleSignatures, ...]
    is_complete: bool
    unused: tuple[str, ...]

    def as_json(self) -> dict[str, object]:
        """Return the JSON object for `--json`."""
        return {
            "complete": self.is_complete,
            "roles": [
                {
                    "role": role.role,
                    "version": role.version,
                    "signed": list(role.signed_key_ids),
                    "missing": role.missing_signatures,
                    "may_sign": sorted(role.unsigned_keys),
                }
                for role in self.roles
            ],
            "unused_keys": list(self.unused),
        }


class Staging:
    """The staged changes, read once at construction; `save` writes the documents back.

    Args:
        layout: the repository's paths.
        is_blank: start empty instead of reading the folder, for documents that are never written to it.
        ahead: difference of the new versions of snapshot and timestamp to the published ones.
        pack_valid_s: mark snapshot and timestamp as an offline pack's, valid for this many seconds; None otherwise.

    Attributes:
        targets: target name → bytes, for each staged target.
        withdrawn: names of the targets to withdraw.
        documents: role → staged document.
        base: version of the published timestamp that the documents build on; -1 before the first `prepare`.

    Raises:
        RepositoryDamaged: a file of the folder is damaged.
    """

    def __init__(
        self, layout: RepositoryLayout, *, is_blank: bool = False, ahead: int = 1, pack_valid_s: int | None = None
    ) -> None:
        self._ahead, self._pack_valid_s = ahead, pack_valid_s
        self._layout, self._folder = layout, layout.staging
        self.targets: dict[str, bytes] = {}
        self.withdrawn: set[str] = set()
        self.documents: dict[str, Document] = {}
        self.base = -1
        if is_blank:
            return
        self.targets = self._read_targets()
        self.withdrawn = self._read_withdrawn()
        for path in sorted((self._folder / "metadata").glob("*.json")):
            self.documents[path.name.removesuffix(".json")] = parse_document(path.read_bytes(), str(path))
        self.base = self._read_base()

    @property
    def is_empty(self) -> bool:
        """True if there are no staged targets, withdrawals or documents."""
        return not (self.targets or self.withdrawn or self.documents)

    def put_target(self, name: str, data: bytes) -> None:
        """Stage a target file and write it to the folder.

        Args:
            name: name of the target.
            data: its content.
        """
        self.targets[name] = data
        self.withdrawn.discard(name)
        write_file(self._folder / "targets" / name, data)
        self._write_withdrawn()

    def withdraw(self, name: str) -> None:
        """Stage the withdrawal of a target and write it to the folder."""
        self.withdrawn.add(name)
        if self.targets.pop(name, None) is not None:
            (self._folder / "targets" / name).unlink()
        self._write_withdrawn()

    def put_document(self, role: str, document: Document) -> None:
        """Stage a document as it is and write it to the folder.

        Args:
            role: name of the role.
            document: the document, for example a root or targets with other keys.
        """
        self.documents[role] = document
        write_file(self._folder / "metadata" / f"{role}.json", tuf_documents.serialize(document))

    def prepare(self, published: PublishedDocuments, now_s: int) -> None:
        """Create or keep the document of each role that changes, except snapshot and timestamp.

        Args:
            published: the published state, as devices see it now.
            now_s: current time, in Unix seconds.
        """
        if self.base != published.timestamp_version:
            self._drop_outdated(published)
            self.base = published.timestamp_version
        self._prepare_role("targets", published, {}, now_s)
        targets = effective_document(published, self.documents, "targets")
        assert targets is not None
        for role in roles_below(targets.signed):
            changes = {name: data for name, data in self.targets.items() if _role_of(name) == role}
            self._prepare_role(role, published, changes, now_s)

    def sign(
        self, published: PublishedDocuments, signers: Sequence[Signer], now_s: int, *, is_renewal: bool = False
    ) -> SignReport:
        """Sign the documents; once all of them are complete, create and sign snapshot and timestamp.

        Args:
            published: the published state, as devices see it now.
            signers: any signers; each signs the documents of the roles that list it.
            now_s: current time, in Unix seconds.
            is_renewal: create snapshot and timestamp even if there are no other documents.
        """
        used: set[str] = set()
        for role in list(self.documents):
            if role not in LAST_ROLES:
                used |= sign_document(published, self.documents, role, signers)
        if (self.documents or is_renewal) and not self._missing(published):
            used |= self._finish(published, signers, now_s)
        states = tuple(check_signatures(published, self.documents, role, doc) for role, doc in self.documents.items())
        is_complete = "timestamp" in self.documents and not any(state.missing_signatures for state in states)
        unused = tuple(s.public_key.keyid for s in signers if s.public_key.keyid not in used)
        return SignReport(states, is_complete, unused)

    def save(self) -> None:
        """Write the documents and the base to the folder; delete documents that are no longer staged."""
        folder = self._folder / "metadata"
        for path in folder.glob("*.json"):
            if path.name.removesuffix(".json") not in self.documents:
                path.unlink()
        for role, document in self.documents.items():
            write_file(folder / f"{role}.json", tuf_documents.serialize(document))
        write_file(self._folder / "base.json", json.dumps({"timestamp_version": self.base}).encode())

    def discard(self) -> None:
        """Delete the folder with all staged changes."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def _finish(self, published: PublishedDocuments, signers: Sequence[Signer], now_s: int) -> set[str]:
        files = {role: entry for role, entry in published.files.items() if role not in (*LAST_ROLES, "root")}
        for role, document in self.documents.items():
            if role not in (*LAST_ROLES, "root"):
                files[role] = (document.signed.version, tuf_documents.serialize(document))
        before = published.documents.get("snapshot")
        version = self.free_version("snapshot", self._ahead + (0 if before is None else before.signed.version))
        snapshot = tuf_documents.new_snapshot(version, files, now_s)
        staged = self.documents.get("snapshot")
        used: set[str] = set()
        if staged is None or staged is not before or staged.signed.meta != snapshot.meta:
            if staged is None or staged.signed.meta != snapshot.meta or _is_near_expiry(staged, "snapshot", now_s):
                self._mark_as_packed(snapshot, now_s)
                self.documents["snapshot"] = Metadata[Snapshot](snapshot)
            used = sign_document(published, self.documents, "snapshot", signers)
        document = self.documents["snapshot"]
        if check_signatures(published, self.documents, "snapshot", document).missing_signatures:
            self.documents.pop("timestamp", None)
            return used
        named = (document.signed.version, tuf_documents.serialize(document))
        timestamp = tuf_documents.new_timestamp(published.timestamp_version + self._ahead, named, now_s)
        if self._pack_valid_s is None:
            newest_root = self.documents["root"].signed.version if "root" in self.documents else published.root_version
            fleet = self._read_fleet(published)
            copies = copies_field(self._layout, document.signed.version, newest_root, fleet)
            timestamp.unrecognized_fields[COPIES_FIELD] = copies
        staged = self.documents.get("timestamp")
        if (
            staged is None
            or staged.signed.snapshot_meta != timestamp.snapshot_meta
            or _is_near_expiry(staged, "timestamp", now_s)
        ):
            self._mark_as_packed(timestamp, now_s)
            self.documents["timestamp"] = Metadata[Timestamp](timestamp)
        return used | sign_document(published, self.documents, "timestamp", signers)

    def _read_fleet(self, published: PublishedDocuments) -> bytes:
        document = self.documents.get(FLEET_ROLE, published.documents.get(FLEET_ROLE))
        target = (
            document.signed.targets.get(FLEET_TARGET) if document and isinstance(document.signed, Targets) else None
        )
        if target is None:
            return b""
        return self.targets[FLEET_TARGET] if FLEET_TARGET in self.targets else published.target(target)

    def keep_snapshot(self, published: PublishedDocuments) -> None:
        """Let the new timestamp name the published snapshot, unless another document changes."""
        self.documents["snapshot"] = published.documents["snapshot"]

    def renew_rollout(self, role: str, previous: Targets, now_s: int) -> None:
        """Add a rollout role's document with the same targets, a new version and a new expiry.

        Args:
            role: name of the rollout role.
            previous: its published document.
            now_s: current time, in Unix seconds.
        """
        renewed = tuf_documents.next_targets(previous, role, previous.targets, now_s)
        renewed.version = self.free_version(role, previous.version + self._ahead)
        self._mark_as_packed(renewed, now_s)
        self.documents[role] = Metadata[Targets](renewed)

    def free_version(self, role: str, version: int) -> int:
        """Return the first version of a role, from `version` on, of which no document exists.

        Another publisher may have written a document to the store that no publication names, and may still publish it.

        Args:
            role: name of the role.
            version: the lowest version.
        """
        while (self._layout.metadata / f"{version}.{role}.json").exists():
            version += 1
        return version

    def _mark_as_packed(self, signed: Signed, now_s: int) -> None:
        """Set or remove the mark of an offline pack, and its expiry."""
        signed.unrecognized_fields.pop(PACK_FIELD, None)
        if self._pack_valid_s is not None:
            signed.expires = datetime.fromtimestamp(now_s + self._pack_valid_s, UTC)
            signed.unrecognized_fields[PACK_FIELD] = True

    def _prepare_role(self, role: str, published: PublishedDocuments, changes: Mapping[str, bytes], now_s: int) -> None:
        before = published.documents.get(role)
        staged = self.documents.get(role)
        if before is None and staged is None:
            staged = Metadata[Targets](tuf_documents.empty_role(role, now_s))
            self.documents[role] = staged
        listed = before.signed.targets if before is not None else {}
        targets: dict[str, TargetFile] = {name: file for name, file in listed.items() if name not in self.withdrawn}
        targets |= {name: tuf_documents.target_file(name, data) for name, data in changes.items()}
        if staged is not None:
            if staged.signed.targets != targets:
                changed = tuf_documents.next_targets(staged.signed, role, targets, now_s)
                changed.version = staged.signed.version
                self.documents[role] = Metadata[Targets](changed)
            return
        assert before is not None
        lacks_signatures = bool(check_signatures(published, self.documents, role, before).missing_signatures)
        if targets != listed or lacks_signatures:
            changed = tuf_documents.next_targets(before.signed, role, targets, now_s)
            changed.version = self.free_version(role, changed.version)
            self.documents[role] = Metadata[Targets](changed)

    def _drop_outdated(self, published: PublishedDocuments) -> None:
        for role in list(self.documents):
            before = published.documents.get(role)
            next_version = (0 if before is None else before.signed.version) + 1
            if role not in ("root", "targets"):
                next_version = self.free_version(role, next_version)
            is_successor = self.documents[role].signed.version == next_version
            if role in LAST_ROLES or not is_successor:
                del self.documents[role]

    def _missing(self, published: PublishedDocuments) -> int:
        return sum(
            check_signatures(published, self.documents, role, document).missing_signatures
            for role, document in self.documents.items()
            if role not in LAST_ROLES
        )

    def _read_targets(self) -> dict[str, bytes]:
        folder = self._folder / "targets"
        files = sorted(path for path in folder.rglob("*.json") if path.is_file())
        return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}

    def _read_withdrawn(self) -> set[str]:
        try:
            return set(json.loads((self._folder / "withdrawn.json").read_bytes()))
        except FileNotFoundError:
            return set()
        except (ValueError, TypeError) as error:
            raise RepositoryDamaged(
                f"{self._folder / 'withdrawn.json'} is damaged, expected a list of names", hint=UNSTAGE_HINT
            ) from error

    def _write_withdrawn(self) -> None:
        if self.withdrawn or (self._folder / "withdrawn.json").exists():
            write_file(self._folder / "withdrawn.json", json.dumps(sorted(self.withdrawn)).encode())

    def _read_base(self) -> int:
        try:
            return int(json.loads((self._folder / "base.json").read_bytes())["timestamp_version"])
        except FileNotFoundError:
            return -1
        except (ValueError, TypeError, KeyError) as error:
            raise RepositoryDamaged(f"{self._folder / 'base.json'} is damaged", hint=UNSTAGE_HINT) from error


def _is_near_expiry(document: Document, role: str, now_s: int) -> bool:
    # a document that was signed long before its publication would expire soon after it
    life_s = tuf_documents.EXPIRY_DAYS[role] * tuf_documents.DAY_S
    return bool(document.signed.expires.timestamp() - now_s < life_s / 2)


def _role_of(target: str) -> str:
    kind, family, *_ = target.split("/")
    return {"bundles": f"release-{family}", "rollouts": f"rollout-{family}", "fleet": "fleet"}[kind]
