"""Every way in which this software says no, and the exit code of each.

    AirweightsError
    ├── Invalid       2   the caller's own input is wrong: a file, an option, a configuration; mend it and try again
    ├── Refused       3   somebody's bytes are wrong: never retry the same bytes
    ├── Unavailable   4   network, disk, lock: retry with backoff
    ├── Unfit         5   the model fails a gate or a health check: keep the old one
    └── Bug          70   an illegal transition or a broken promise of our own: stop loudly

Rules:
1. A class is a cause. `reason` is its stable name in logs, `--json`, device reports and tests; once released it never
   changes.
2. The message is one line: what was found, what was expected, where. The remedy, if there is one, says what to do.
3. A subclass sets `reason` and inherits its kind's exit code; nothing else decides an exit code.
4. Foreign exceptions are translated where they enter, with `raise ... from`.
"""

from collections.abc import Iterator
from typing import ClassVar


class AirweightsError(Exception):
    """Base of all errors.

    Args:
        message: one line, no trailing period needed; found, expected, where.
        remedy: one line a person can act on, or None.
    """

    reason: ClassVar[str] = "error"
    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *, remedy: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy

    def as_dict(self) -> dict[str, str | int | None]:
        """The error object that `--json` prints on stderr."""
        return {"reason": self.reason, "message": self.message, "hint": self.remedy, "exit_code": self.exit_code}


class Invalid(AirweightsError):
    """The caller's own input is wrong."""

    reason = "invalid"
    exit_code = 2


class Refused(AirweightsError):
    """Bytes that came from elsewhere are wrong, or not allowed here."""

    reason = "refused"
    exit_code = 3


class Unavailable(AirweightsError):
    """Something that may be there later is not there now."""

    reason = "unavailable"
    exit_code = 4


class Unfit(AirweightsError):
    """A model does not pass a gate or a health check."""

    reason = "unfit"
    exit_code = 5


class Bug(AirweightsError):
    """This software broke its own rule."""

    reason = "bug"
    exit_code = 70


KINDS: tuple[type[AirweightsError], ...] = (Invalid, Refused, Unavailable, Unfit, Bug)


class UsageInvalid(Invalid):
    """An option or argument that the command does not take."""

    reason = "usage"


class SystemUnavailable(Unavailable):
    """The operating system refused: no permission, an error of the medium, no such file where one was promised."""

    reason = "system"


class MalformedRefused(Refused):
    """A document that is not of its schema: unknown version, unknown or missing field, duplicate key, trailing byte."""

    reason = "malformed"


class TooLargeRefused(Refused):
    """Something is longer than its limit; the limit is named in the message."""

    reason = "too-large"


class DigestMismatchRefused(Refused):
    """Bytes whose SHA-256 or length is not the signed one."""

    reason = "digest-mismatch"


class NotAuthenticRefused(Refused):
    """Ciphertext that does not open: wrong key and changed bytes are never told apart."""

    reason = "not-authentic"


class KeyCommitmentRefused(Refused):
    """A content key that is not the one the manifest commits to."""

    reason = "key-commitment"


class PatchRefused(Refused):
    """A patch that can not be applied; the subclasses say why."""

    reason = "patch"


class WrongBaseRefused(PatchRefused):
    """The patch was made for a base with other files than the one at hand."""

    reason = "wrong-base"


class PatchVersionRefused(PatchRefused):
    """Not a patch, or one of a version that this decoder does not know."""

    reason = "patch-version"


class PatchFeatureRefused(PatchRefused):
    """The patch needs a decoder feature that is not here: an unknown one, or a library that is not installed."""

    reason = "patch-feature"


class PatchTruncatedRefused(PatchRefused):
    """The patch ends before its END frame."""

    reason = "patch-truncated"


class PatchCorruptRefused(PatchRefused):
    """A checksum does not hold, a payload does not decode, or a field has no meaning."""

    reason = "patch-corrupt"


class PatchRangeRefused(PatchRefused):
    """A range lies outside its file table, overlaps another one in the target, or leaves a hole there."""

    reason = "patch-range"


class PatchLimitRefused(PatchRefused):
    """The patch asks for more memory than the decoder's limits, or than its own header announces."""

    reason = "patch-limit"


class PatchTargetRefused(PatchRefused):
    """A file was rebuilt to the end and its SHA-256 is not the table's."""

    reason = "patch-target"


class FetchUnavailable(Unavailable):
    """A transfer that failed: no connection, an error of the server, cut short, too slow."""

    reason = "fetch"


class NotFoundUnavailable(FetchUnavailable):
    """The server says that there is no such file (404, and 403 from stores that hide which files they have)."""

    reason = "not-found"


class MetadataExpiredUnavailable(Unavailable):
    """Signed metadata that is past its expiry: a stale mirror, a publisher who stopped, or somebody who replays."""

    reason = "metadata-expired"


class NoRolloutUnavailable(Unavailable):
    """The repository has no rollout for this family and channel."""

    reason = "no-rollout"


class CheckBusyUnavailable(Unavailable):
    """Another check of the same device is running."""

    reason = "check-busy"


class TrustMemoryLostUnavailable(Unavailable):
    """Both memory slots are lost, and what is offered is not fresh online metadata."""

    reason = "trust-memory-lost"


class UntrustedMetadataRefused(Refused):
    """Metadata that too few of its role's keys signed, or that contradicts the metadata above it."""

    reason = "untrusted-metadata"


class RollbackRefused(Refused):
    """Something older than what was already accepted: metadata, a release, the floor."""

    reason = "rollback-refused"


class ReleaseMismatchRefused(Refused):
    """The rollout and the manifest, which two roles sign, do not agree."""

    reason = "release-mismatch"


class CounterReusedRefused(ReleaseMismatchRefused):
    """A counter that is already known for a release with other content."""

    reason = "counter-reused"


class ChannelRefused(Refused):
    """The release is not made for the channel that offers it."""

    reason = "not-in-channel"


class WithdrawnRefused(Refused):
    """The rollout names a release that its release role does not list: withdrawn, or never released."""

    reason = "withdrawn"


class AgentTooOldRefused(Refused):
    """The release asks for a newer agent."""

    reason = "agent-too-old"


class PackOnlineRefused(Refused):
    """Metadata of an offline pack that comes from a server, or a pack that lives longer than root allows."""

    reason = "pack-online"


class EnrolmentRefused(Refused):
    """An enrolment request that does not prove its keys, or contradicts what is registered."""

    reason = "enrolment"


def subclasses(root: type[AirweightsError] = AirweightsError) -> Iterator[type[AirweightsError]]:
    """Every loaded class below `root`, depth first."""
    for child in root.__subclasses__():
        yield child
        yield from subclasses(child)
