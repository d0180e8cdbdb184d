"""An attacker with a mirror of a repository and some of its keys, who signs and publishes forged metadata."""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from securesystemslib.signer import Signer
from tuf.api.metadata import Metadata, Targets

from bundle.manifest import Manifest
from bundle.rollout import Rollout
from bundle.trust.role_names import release_role, release_target, rollout_role, rollout_target
from packager.repository import tuf_documents
from packager.repository.layout import RepositoryLayout
from packager.repository.published import PublishedDocuments
from tests.support.metadata_publisher import NOW_S, MetadataPublisher

VERSIONS_AHEAD = 100  # how much higher the attacker's versions are than the publisher's


@dataclass
class Attacker:
    """An attacker who controls a mirror.

    Attributes:
        publisher: the honest publisher.
        signers: the stolen keys, which sign everything.
        mirror: the attacker's copy of the published files.
        changed_documents: the changed metadata by role; `publish` signs it.
    """

    publisher: MetadataPublisher
    signers: Sequence[Signer]
    mirror: Path
    changed_documents: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def from_publisher(cls, publisher: MetadataPublisher, *roles: str, each: int = 9) -> "Attacker":
        """Create an attacker with up to `each` keys of every role in `roles`."""
        signers = [signer for role in roles for signer in publisher.signers_of(role)[:each]]
        mirror = publisher.folder / f"attacker-{len(list(publisher.folder.glob('attacker-*')))}"
        shutil.copytree(publisher.published, mirror)
        return cls(publisher, signers, mirror)

    @property
    def published(self) -> PublishedDocuments:
        return PublishedDocuments(RepositoryLayout(self.publisher.repository.root))

    def list_target(self, role: str, name: str, data: bytes) -> None:
        """List a target with this content in a role's metadata."""
        targets: Targets = self.changed_documents.get(role) or self.published.role(role)
        target = tuf_documents.target_file(name, data)
        place = self.mirror / "targets" / tuf_documents.target_path(target)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(data)
        self.changed_documents[role] = tuf_documents.next_targets(
            targets, role, {**targets.targets, name: target}, NOW_S
        )

    def release(self, manifest: Manifest) -> None:
        self.list_target(
            release_role(manifest.family), release_target(manifest.family, manifest.version), manifest.as_bytes()
        )

    def roll_out(self, rollout: Rollout) -> None:
        self.list_target(
            rollout_role(rollout.family), rollout_target(rollout.family, rollout.channel), rollout.as_bytes()
        )

    def publish(self, *, signed_at_s: Mapping[str, int] | None = None) -> Path:
        """Sign the changed metadata, a snapshot and a timestamp with the stolen keys, and return the mirror.

        Args:
            signed_at_s: signing times by role, Unix seconds; only `timestamp` is used.
        """
        files = {
            role: entry for role, entry in self.published.files.items() if role not in ("root", "snapshot", "timestamp")
        }
        for role, signed in self.changed_documents.items():
            if role == "root":
                self._write(role, signed)
            else:
                files[role] = self._write(role, signed)
        snapshot = tuf_documents.new_snapshot(
            self.published.documents["snapshot"].signed.version + VERSIONS_AHEAD, files, NOW_S
        )
        number, data = self._write("snapshot", snapshot)
        stamp_s = (signed_at_s or {}).get("timestamp", NOW_S)
        timestamp = tuf_documents.new_timestamp(
            self.published.timestamp_version + VERSIONS_AHEAD, (number, data), stamp_s
        )
        _, stamped = self._write("timestamp", timestamp)
        (self.mirror / "metadata" / "timestamp.json").write_bytes(stamped)
        return self.mirror

    def _write(self, role: str, signed: Any) -> tuple[int, bytes]:
        document: Metadata[Any] = Metadata(signed)
        for signer in self.signers:
            document.sign(signer, append=True)
        data = document.to_bytes()
        (self.mirror / "metadata" / f"{signed.version}.{role}.json").write_bytes(data)
        return signed.version, data
