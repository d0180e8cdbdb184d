"""Journal records beside attempts: bundles, pointers, quarantine, persistent state, TPM counter.

Rules:
- `BundleRecord.manifest` contains the canonical bytes of the signed manifest that the verifier accepted. It is the only
  source for a bundle's files, its health contract and its patches.
- The pointer `active` names a bundle that was verified and healthy. It changes only when COMMITTING ends or when a
  rollback ends.
"""

from dataclasses import dataclass

from bundle.files import BundleDigest
from bundle.manifest import Manifest, parse_manifest
from bundle.requirements import Runtime
from bundle.strict_json import JSON, NAME_PATTERN, SHA256_HEX_PATTERN, VERSION_PATTERN, StrictObject
from bundle.variant import Variant
from device_agent.errors import StoreDamaged
from device_agent.policy.followed_rollout import FollowedRollout, parse_followed


@dataclass(frozen=True, slots=True)
class BundleRecord:
    """One bundle of a verified release. It is recorded when the release is found, before any download.

    Attributes:
        digest: digest of the bundle.
        family: family of the release.
        version: version of the release.
        counter: counter of the release.
        counter_epoch: epoch of the delegation that signed the counter.
        variant: name of the variant.
        manifest: canonical bytes of the signed manifest, as text.
    """

    digest: BundleDigest
    family: str
    version: str
    counter: int
    counter_epoch: int
    variant: str
    manifest: str

    @classmethod
    def from_manifest(cls, manifest: Manifest, variant: str, counter_epoch: int) -> "BundleRecord":
        """Create the record of one variant.

        Args:
            manifest: verified manifest of the release.
            variant: name of the variant.
            counter_epoch: epoch of the delegation that signed the counter.

        Raises:
            StoreDamaged: the manifest has no such variant.
        """
        found = manifest.variant(variant)
        if found is None:
            raise StoreDamaged(f"release {manifest.version} has no variant {variant!r}")
        text = manifest.as_bytes().decode()
        return cls(found.digest, manifest.family, manifest.version, manifest.counter, counter_epoch, variant, text)

    def parse_manifest(self) -> tuple[Manifest, Variant]:
        """Parse the manifest, and return it with the variant of this bundle.

        Raises:
            StoreDamaged: the manifest does not describe this bundle.
        """
        manifest = parse_manifest(self.manifest.encode())
        variant = manifest.variant(self.variant)
        if variant is None or variant.digest != self.digest:
            raise StoreDamaged(f"the manifest recorded for bundle {self.digest[:16]} describes another bundle")
        return manifest, variant

    def runtime(self) -> Runtime:
        """Return the runtime that the bundle is made for.

        Raises:
            StoreDamaged: the manifest does not describe this bundle.
        """
        return self.parse_manifest()[1].runtime

    def is_run_by_agent(self) -> bool:
        """Return whether the agent runs the models of this bundle, in a model process.

        Raises:
            StoreDamaged: the manifest does not describe this bundle.
        """
        return self.runtime().is_run_by_agent

    def release_digest(self) -> str:
        """Return the digest of the release: that of its manifest without patches."""
        return parse_manifest(self.manifest.encode()).digest_without_patches()

    def as_json(self) -> dict[str, JSON]:
        """Return the journal record."""
        return {
            "digest": self.digest,
            "family": self.family,
            "version": self.version,
            "counter": self.counter,
            "counter_epoch": self.counter_epoch,
            "variant": self.variant,
            "manifest": self.manifest,
        }

    @classmethod
    def parse(cls, fields: StrictObject) -> "BundleRecord":
        """Parse the output of `as_json`.

        Raises:
            Malformed: a field is missing, unknown or out of range.
        """
        manifest = fields.value("manifest")
        out = cls(
            digest=BundleDigest(fields.text("digest", SHA256_HEX_PATTERN)),
            family=fields.text("family", NAME_PATTERN),
            version=fields.text("version", VERSION_PATTERN),
            counter=fields.integer("counter"),
            counter_epoch=fields.integer("counter_epoch"),
            variant=fields.text("variant", NAME_PATTERN),
            manifest=manifest if isinstance(manifest, str) else "",
        )
        fields.reject_unknown()
        return out


@dataclass(frozen=True, slots=True)
class BundlePointers:
    """The digests of the active, the previous and the candidate bundle; None if there is none."""

    active: BundleDigest | None = None
    previous: BundleDigest | None = None
    candidate: BundleDigest | None = None

    def digests(self) -> frozenset[BundleDigest]:
        """Return the bundles that the garbage collection must keep."""
        return frozenset(digest for digest in (self.active, self.previous, self.candidate) if digest is not None)

    def as_json(self) -> dict[str, JSON]:
        """Return the journal record."""
        return {"active": self.active, "previous": self.previous, "candidate": self.candidate}

    @classmethod
    def parse(cls, fields: StrictObject) -> "BundlePointers":
        """Parse the output of `as_json`.

        Raises:
            Malformed: a field is missing, unknown or out of range.
        """
        active, previous, candidate = (_optional_digest(fields, name) for name in ("active", "previous", "candidate"))
        fields.reject_unknown()
        return cls(active, previous, candidate)


@dataclass(frozen=True, slots=True)
class QuarantineRecord:
    """A bundle that failed on this device with one version of the runtime.

    Attributes:
        digest: digest of the bundle.
        runtime: version of onnxruntime.
        counter: counter of its release; committing a release with a higher one clears the quarantine.
        reason: stable reason of the failure.
        since_ms: Unix milliseconds of the failure.
    """

    digest: BundleDigest
    runtime: str
    counter: int
    reason: str
    since_ms: int

    def as_json(self) -> dict[str, JSON]:
        """Return the journal record."""
        return {
            "digest": self.digest,
            "runtime": self.runtime,
            "counter": self.counter,
            "reason": self.reason,
            "since_ms": self.since_ms,
        }

    @classmethod
    def parse(cls, fields: StrictObject) -> "QuarantineRecord":
        """Parse the output of `as_json`.

        Raises:
            Malformed: a field is missing, unknown or out of range.
        """
        out = cls(
            digest=BundleDigest(fields.text("digest", SHA256_HEX_PATTERN)),
            runtime=fields.text("runtime"),
            counter=fields.integer("counter"),
            reason=fields.text("reason"),
            since_ms=fields.integer("since_ms"),
        )
        fields.reject_unknown()
        return out


@dataclass(frozen=True, slots=True)
class PersistentState:
    """Facts that survive a restart: pause flag, rollback floor, last check.

    Attributes:
        is_paused: an operator paused updates.
        floor_epoch: epoch of the rollback floor at the last successful check.
        floor_counter: counter of the rollback floor at the last successful check.
        checked_ms: Unix milliseconds of the last successful check; 0 before the first.
        metadata_expires_ms: Unix milliseconds at which the metadata of that check expires.
        offered_release: version that the channel ran at that check, or None.
        damaged_bundles: bundles whose sealed file is damaged; the planner ignores them until they are patched again.
        last_error: reason of the newest failed check after the last successful one, or "".
        followed: the rollout that the channel had at that check, or None before the first.
    """

    is_paused: bool = False
    floor_epoch: int = 0
    floor_counter: int = 0
    checked_ms: int = 0
    metadata_expires_ms: int = 0
    offered_release: str | None = None
    damaged_bundles: tuple[BundleDigest, ...] = ()
    last_error: str = ""
    followed: FollowedRollout | None = None

    def as_json(self) -> dict[str, JSON]:
        """Return the journal record."""
        return {
            "paused": self.is_paused,
            "floor_epoch": self.floor_epoch,
            "floor_counter": self.floor_counter,
            "checked_ms": self.checked_ms,
            "fresh_until_ms": self.metadata_expires_ms,
            "offered": self.offered_release,
            "damaged": list(self.damaged_bundles),
            "last_error": self.last_error,
            "followed": None if self.followed is None else self.followed.as_json(),
        }

    @classmethod
    def parse(cls, fields: StrictObject) -> "PersistentState":
        """Parse the output of `as_json`.

        Raises:
            Malformed: a field is missing, unknown or out of range.
        """
        out = cls(
            is_paused=fields.flag("paused"),
            floor_epoch=fields.integer("floor_epoch"),
            floor_counter=fields.integer("floor_counter"),
            checked_ms=fields.integer("checked_ms"),
            metadata_expires_ms=fields.integer("fresh_until_ms"),
            offered_release=fields.optional_text("offered", VERSION_PATTERN),
            damaged_bundles=tuple(BundleDigest(d) for d in fields.texts("damaged", SHA256_HEX_PATTERN)),
            last_error=fields.text("last_error"),
            followed=parse_followed(fields),
        )
        fields.reject_unknown()
        return out


@dataclass(frozen=True, slots=True)
class TpmCounterRecord:
    """The expected TPM counter. If the TPM's counter is higher, the disk is an old copy or damaged.

    Attributes:
        counter: recorded before the TPM's counter is raised to it; 0 without a TPM.
        is_unproven: the TPM's counter was higher when it was last read, and no check proved the rollback floor since.
    """

    counter: int = 0
    is_unproven: bool = False

    def as_json(self) -> dict[str, JSON]:
        """Return the journal record."""
        return {"counter": self.counter, "is_unproven": self.is_unproven}

    @classmethod
    def parse(cls, fields: StrictObject) -> "TpmCounterRecord":
        """Parse the output of `as_json`.

        Raises:
            Malformed: a field is missing, unknown or out of range.
        """
        out = cls(fields.integer("counter"), fields.flag("is_unproven"))
        fields.reject_unknown()
        return out


@dataclass(frozen=True, slots=True)
class MeteredRecord:
    """The bytes that attempts received for one bundle, which `update.metered_limit_bytes` limits.

    Attributes:
        target: digest of the bundle, or None.
        received_bytes: bytes of all attempts that fetched for it.
    """

    target: BundleDigest | None = None
    received_bytes: int = 0

    def as_json(self) -> dict[str, JSON]:
        """Return the journal record."""
        return {"target": self.target, "received_bytes": self.received_bytes}

    @classmethod
    def parse(cls, fields: StrictObject) -> "MeteredRecord":
        """Parse the output of `as_json`.

        Raises:
            Malformed: a field is missing, unknown or out of range.
        """
        out = cls(_optional_digest(fields, "target"), fields.integer("received_bytes"))
        fields.reject_unknown()
        return out


def _optional_digest(fields: StrictObject, name: str) -> BundleDigest | None:
    value = fields.optional_text(name, SHA256_HEX_PATTERN)
    return None if value is None else BundleDigest(value)
