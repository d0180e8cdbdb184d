"""What the journal remembers between attempts: bundles, pointers, quarantine and a few facts.

Rules:
1. `Holding.manifest` is the signed manifest's canonical bytes, as the verifier passed them: what a bundle is, how it is
   held to its health contract, and which patches lead to it, is read from there and from nowhere else.
2. `active` is a bundle that was verified and was healthy. It changes only when COMMITTING ends, when a rollback ends,
   or when the active bundle is damaged and the previous one takes its place (`degraded`).
"""

from dataclasses import dataclass

from bundle.files import BundleDigest
from bundle.manifest import Manifest, Variant, parse_manifest
from bundle.strict_json import JSON, NAME_PATTERN, SHA256_HEX_PATTERN, VERSION_PATTERN, StrictObject
from device_agent.errors import StoreDamaged


@dataclass(frozen=True, slots=True)
class BundleRecord:
    """One bundle of a release that this device has verified.

    Attributes:
        digest: of the bundle.
        family, version, counter, variant: of the release.
        counter_epoch: of the delegation under which the counter was signed.
        manifest: rule 1, as text.
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
        """The holding of one variant. Raises StoreDamagedRefused where the manifest has no such variant."""
        found = manifest.variant(variant)
        if found is None:
            raise StoreDamaged(f"release {manifest.version} has no variant {variant!r}")
        text = manifest.as_bytes().decode()
        return cls(found.digest, manifest.family, manifest.version, manifest.counter, counter_epoch, variant, text)

    def parse_manifest(self) -> tuple[Manifest, Variant]:
        """The manifest and this bundle's variant. Raises StoreDamagedRefused where they are not this bundle's."""
        manifest = parse_manifest(self.manifest.encode())
        variant = manifest.variant(self.variant)
        if variant is None or variant.digest != self.digest:
            raise StoreDamaged(f"the manifest kept for bundle {self.digest[:16]} is of another bundle")
        return manifest, variant

    def release_digest(self) -> str:
        """Of the release: the digest of its manifest without patches."""
        return parse_manifest(self.manifest.encode()).digest_without_patches()

    def as_json(self) -> dict[str, JSON]:
        """The journal's record."""
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
        """Inverse of `as_json`. Raises MalformedRefused."""
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
    """Which bundles have a part to play; None where there is none."""

    active: BundleDigest | None = None
    previous: BundleDigest | None = None
    candidate: BundleDigest | None = None

    def digests(self) -> frozenset[BundleDigest]:
        """The bundles that must not be collected."""
        return frozenset(digest for digest in (self.active, self.previous, self.candidate) if digest is not None)

    def as_json(self) -> dict[str, JSON]:
        """The journal's record."""
        return {"active": self.active, "previous": self.previous, "candidate": self.candidate}

    @classmethod
    def parse(cls, fields: StrictObject) -> "BundlePointers":
        """Inverse of `as_json`. Raises MalformedRefused."""
        active, previous, candidate = (_optional_digest(fields, name) for name in ("active", "previous", "candidate"))
        fields.reject_unknown()
        return cls(active, previous, candidate)


@dataclass(frozen=True, slots=True)
class QuarantineRecord:
    """A bundle that failed here, under one runtime version.

    Attributes:
        counter: of its release; a higher one clears the quarantine.
        reason: stable reason of the failure.
        since_ms: Unix milliseconds.
    """

    digest: BundleDigest
    runtime: str
    counter: int
    reason: str
    since_ms: int

    def as_json(self) -> dict[str, JSON]:
        """The journal's record."""
        return {
            "digest": self.digest,
            "runtime": self.runtime,
            "counter": self.counter,
            "reason": self.reason,
            "since_ms": self.since_ms,
        }

    @classmethod
    def parse(cls, fields: StrictObject) -> "QuarantineRecord":
        """Inverse of `as_json`. Raises MalformedRefused."""
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
    """What else survives a restart.

    Attributes:
        paused: an operator has paused updates.
        floor_epoch, floor_counter: lowest release still accepted, as the last check knew it.
        checked_ms: Unix milliseconds of the last check that succeeded, 0 for never.
        fresh_until_ms: expiry of the metadata that it saw.
        offered: version that the channel ran then.
        damaged: sealed bundles that did not open; they count as not held until they are made anew.
        last_error: reason of the last check that failed since, or "".
    """

    is_paused: bool = False
    floor_epoch: int = 0
    floor_counter: int = 0
    checked_ms: int = 0
    metadata_expires_ms: int = 0
    offered_release: str | None = None
    damaged_bundles: tuple[BundleDigest, ...] = ()
    last_error: str = ""

    def as_json(self) -> dict[str, JSON]:
        """The journal's record."""
        return {
            "paused": self.is_paused,
            "floor_epoch": self.floor_epoch,
            "floor_counter": self.floor_counter,
            "checked_ms": self.checked_ms,
            "fresh_until_ms": self.metadata_expires_ms,
            "offered": self.offered_release,
            "damaged": list(self.damaged_bundles),
            "last_error": self.last_error,
        }

    @classmethod
    def parse(cls, fields: StrictObject) -> "PersistentState":
        """Inverse of `as_json`. Raises MalformedRefused."""
        out = cls(
            is_paused=fields.flag("paused"),
            floor_epoch=fields.integer("floor_epoch"),
            floor_counter=fields.integer("floor_counter"),
            checked_ms=fields.integer("checked_ms"),
            metadata_expires_ms=fields.integer("fresh_until_ms"),
            offered_release=fields.optional_text("offered", VERSION_PATTERN),
            damaged_bundles=tuple(BundleDigest(d) for d in fields.texts("damaged", SHA256_HEX_PATTERN)),
            last_error=fields.text("last_error"),
        )
        fields.reject_unknown()
        return out


@dataclass(frozen=True, slots=True)
class TpmCounterRecord:
    """What a TPM's counter had to be when the floor rose last: a copy of the disk from before says less than the TPM.

    Attributes:
        counter: recorded before the TPM's is raised to it; 0 where there is no TPM.
        is_unproven: the TPM's was higher when it was last looked at, and no check has proven the floor anew since.
    """

    counter: int = 0
    is_unproven: bool = False

    def as_json(self) -> dict[str, JSON]:
        """The journal's record."""
        return {"counter": self.counter, "is_unproven": self.is_unproven}

    @classmethod
    def parse(cls, fields: StrictObject) -> "TpmCounterRecord":
        """Inverse of `as_json`. Raises MalformedRefused."""
        out = cls(fields.integer("counter"), fields.flag("is_unproven"))
        fields.reject_unknown()
        return out


def _optional_digest(fields: StrictObject, name: str) -> BundleDigest | None:
    value = fields.optional_text(name, SHA256_HEX_PATTERN)
    return None if value is None else BundleDigest(value)
