"""Received bytes by kind: everything that a device receives, heads of the responses included."""

from dataclasses import dataclass, field
from enum import StrEnum

from bundle.strict_json import JSON, StrictObject


class DownloadKind(StrEnum):
    """The kinds of received bytes.

    METADATA: signed documents, their archives, and responses without a file. ENVELOPE: envelopes. PATCH: blobs that
    need a base. FULL: blobs that need none. WASTED: bytes of failed transfers that cannot be resumed, and bytes that
    were received again.
    """

    METADATA = "metadata"
    ENVELOPE = "envelope"
    PATCH = "patch"
    FULL = "full"
    WASTED = "wasted"


@dataclass(frozen=True, slots=True)
class DownloadBytes:
    """Received bytes by kind (DownloadKind)."""

    metadata: int = 0
    envelope: int = 0
    patch: int = 0
    full: int = 0
    wasted: int = 0

    @property
    def total(self) -> int:
        """The sum of all kinds."""
        return self.metadata + self.envelope + self.patch + self.full + self.wasted

    def plus(self, other: "DownloadBytes") -> "DownloadBytes":
        """Return the sum by kind."""
        return DownloadBytes(**{kind: getattr(self, kind) + getattr(other, kind) for kind in DownloadKind})

    def as_json(self) -> dict[str, JSON]:
        """Return the object `downloaded`: kind → bytes."""
        return {kind.value: getattr(self, kind) for kind in DownloadKind}

    @classmethod
    def parse(cls, fields: StrictObject) -> "DownloadBytes":
        """Parse the output of `as_json`.

        Raises:
            Malformed: a field is missing, unknown or out of range.
        """
        found = cls(**{kind.value: fields.integer(kind.value) for kind in DownloadKind})
        fields.reject_unknown()
        return found


@dataclass(slots=True)
class ReceivedCount:
    """A running count of received bytes by kind."""

    by_kind: dict[DownloadKind, int] = field(default_factory=lambda: dict.fromkeys(DownloadKind, 0))

    @property
    def total(self) -> int:
        """The sum of all kinds."""
        return sum(self.by_kind.values())

    def add(self, kind: DownloadKind, count: int) -> None:
        """Add bytes of one kind to the count.

        Args:
            kind: what they are.
            count: number of bytes.
        """
        self.by_kind[kind] += count

    def snapshot(self) -> DownloadBytes:
        """Return the count so far."""
        return DownloadBytes(**{kind.value: count for kind, count in self.by_kind.items()})
