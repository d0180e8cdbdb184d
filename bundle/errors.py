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
2. The message is one line: what was found, what was expected, where. The hint, if there is one, says what to do.
3. A subclass sets `reason` and inherits its kind's exit code; nothing else decides an exit code.
4. Foreign exceptions are translated where they enter, with `raise ... from`.
"""

from collections.abc import Iterator
from typing import ClassVar


class AirweightsError(Exception):
    """Base of all errors.

    Args:
        message: one line, no trailing period needed; found, expected, where.
        hint: one line a person can act on, or None.
    """

    reason: ClassVar[str] = "error"
    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def as_dict(self) -> dict[str, str | int | None]:
        """The error object that `--json` prints on stderr."""
        return {"reason": self.reason, "message": self.message, "hint": self.hint, "exit_code": self.exit_code}


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


class InvalidUsage(Invalid):
    """An option or argument that the command does not take."""

    reason = "invalid-usage"


class OsFailure(Unavailable):
    """The operating system refused: no permission, an error of the medium, no such file where one was promised."""

    reason = "os-failure"


class Malformed(Refused):
    """A document that is not of its schema: unknown version, unknown or missing field, duplicate key, trailing byte."""

    reason = "malformed"


class TooLarge(Refused):
    """Something is longer than its limit; the limit is named in the message."""

    reason = "too-large"


class DigestMismatch(Refused):
    """Bytes whose SHA-256 or length is not the signed one."""

    reason = "digest-mismatch"


class NotAuthentic(Refused):
    """Ciphertext that does not open: wrong key and changed bytes are never told apart."""

    reason = "not-authentic"


class KeyCommitmentMismatch(Refused):
    """A content key that is not the one the manifest commits to."""

    reason = "key-commitment-mismatch"


class PatchRefused(Refused):
    """A patch that cannot be applied; the subclasses say why."""

    reason = "patch-refused"


class WrongBase(PatchRefused):
    """The patch was made for a base with other files than the one at hand."""

    reason = "wrong-base"


class PatchVersionUnsupported(PatchRefused):
    """Not a patch, or one of a version that this decoder does not know."""

    reason = "patch-version-unsupported"


class PatchFeatureUnsupported(PatchRefused):
    """The patch needs a decoder feature that is not here: an unknown one, or a library that is not installed."""

    reason = "patch-feature-unsupported"


class PatchTruncated(PatchRefused):
    """The patch ends before its END frame."""

    reason = "patch-truncated"


class PatchCorrupt(PatchRefused):
    """A checksum does not hold, a payload does not decode, or a field has no meaning."""

    reason = "patch-corrupt"


class PatchRangeInvalid(PatchRefused):
    """A range lies outside its file table, overlaps another one in the target, or leaves a hole there."""

    reason = "patch-range-invalid"


class PatchLimitExceeded(PatchRefused):
    """The patch asks for more memory than the decoder's limits, or than its own header announces."""

    reason = "patch-limit-exceeded"


class PatchTargetMismatch(PatchRefused):
    """A file was rebuilt to the end and its SHA-256 is not the table's."""

    reason = "patch-target-mismatch"


class DownloadFailed(Unavailable):
    """A transfer that failed: no connection, an error of the server, cut short, too slow."""

    reason = "download-failed"


class NotFound(DownloadFailed):
    """The server says that there is no such file (404, and 403 from stores that hide which files they have)."""

    reason = "not-found"


class MetadataExpired(Unavailable):
    """Signed metadata that is past its expiry: a stale mirror, a publisher who stopped, or somebody who replays."""

    reason = "metadata-expired"


class NoRollout(Unavailable):
    """The repository has no rollout for this family and channel."""

    reason = "no-rollout"


class CheckInProgress(Unavailable):
    """Another check of the same device is running."""

    reason = "check-in-progress"


class TrustStateLost(Unavailable):
    """Both memory slots are lost, and what is offered is not fresh online metadata."""

    reason = "trust-state-lost"


class UntrustedMetadata(Refused):
    """Metadata that too few of its role's keys signed, or that contradicts the metadata above it."""

    reason = "untrusted-metadata"


class RollbackRefused(Refused):
    """Something older than what was already accepted: metadata, a release, the floor."""

    reason = "rollback-refused"


class ReleaseMismatch(Refused):
    """The rollout and the manifest, which two roles sign, do not agree."""

    reason = "release-mismatch"


class CounterReused(ReleaseMismatch):
    """A counter that is already known for a release with other content."""

    reason = "counter-reused"


class WrongChannel(Refused):
    """The release is not made for the channel that offers it."""

    reason = "wrong-channel"


class ReleaseWithdrawn(Refused):
    """The rollout names a release that its release role does not list: withdrawn, or never released."""

    reason = "release-withdrawn"


class AgentTooOld(Refused):
    """The release asks for a newer agent."""

    reason = "agent-too-old"


class OfflinePackRefused(Refused):
    """Metadata of an offline pack that comes from a server, or a pack that lives longer than root allows."""

    reason = "offline-pack-refused"


class EnrollmentRefused(Refused):
    """An enrollment request that does not prove its keys, or contradicts what is registered."""

    reason = "enrollment-refused"


def subclasses(root: type[AirweightsError] = AirweightsError) -> Iterator[type[AirweightsError]]:
    """Every loaded class below `root`, depth first."""
    for child in root.__subclasses__():
        yield child
        yield from subclasses(child)
