"""Errors of all packages; docs/errors.md is generated from these classes and their subclasses.

A class is a cause: its name is its `reason` in CamelCase, and `reason` is its stable name in logs, `--json`, device
reports and tests. Its kind (`KINDS`) is how the caller must react, and only the kind sets the exit code. The first
sentence of its docstring says what was found, the next ones what to do; without them the kind's sentence applies. An
error's message is one line (what was found, what was expected, where), its hint is one imperative line. Errors of other
libraries are translated where they enter, with `raise ... from`.
"""

import re
from collections.abc import Iterator
from typing import ClassVar, Final

SENTENCE_END: Final = re.compile(r"(?<=[.?!])\s+(?=[A-Z`])")


class AirweightsError(Exception):
    """Base class of all errors of this software.

    Args:
        message: one line without a final period: what was found, what was expected, and where.
        hint: one imperative line for a person, or None.
    """

    reason: ClassVar[str] = "error"
    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def as_dict(self) -> dict[str, str | int | None]:
        """Return the error object that `--json` prints to stderr (docs/schemas/error.json)."""
        return {"reason": self.reason, "message": self.message, "hint": self.hint, "exit_code": self.exit_code}


class Invalid(AirweightsError):
    """The input is invalid. Fix the command, file or configuration, then try again."""

    reason = "invalid"
    exit_code = 2


class Refused(AirweightsError):
    """Received bytes are wrong or not allowed. Do not retry the same bytes; find out where they came from."""

    reason = "refused"
    exit_code = 3


class Unavailable(AirweightsError):
    """A resource is unavailable: network, disk or lock. Retry later; the agent retries updates by itself."""

    reason = "unavailable"
    exit_code = 4


class Unfit(AirweightsError):
    """A model failed an accuracy gate or a health check. Fix the model; the current one stays active."""

    reason = "unfit"
    exit_code = 5


class Bug(AirweightsError):
    """An internal rule of this software was broken. Report it, with AIRWEIGHTS_TRACEBACK=1 set."""

    reason = "bug"
    exit_code = 70


KINDS: tuple[type[AirweightsError], ...] = (Invalid, Refused, Unavailable, Unfit, Bug)


class InvalidUsage(Invalid):
    """The command does not accept an option or argument. Run the command with --help."""

    reason = "invalid-usage"


class FileNotRegular(Invalid):
    """The path is a FIFO, a device or a socket, and reading it may never end. Name a regular file."""

    reason = "file-not-regular"


class TextEncodingUnsupported(Invalid):
    """A text file is UTF-16, as some Windows editors write it. Save the file as UTF-8."""

    reason = "text-encoding-unsupported"


class FolderUnsafe(Invalid):
    """Other users could replace what is written into the folder. Choose your own folder, mode 700."""

    reason = "folder-unsafe"


class MemoryExhausted(Unavailable):
    """The command needs more memory than it may use. Use smaller files, or a machine with more memory."""

    reason = "memory-exhausted"


class OsFailure(Unavailable):
    """The operating system refused an operation: no permission, full disk, missing file. Check the path."""

    reason = "os-failure"


class Malformed(Refused):
    """A document does not follow its schema: unknown version, unknown or missing field, duplicate key."""

    reason = "malformed"


class TooLarge(Refused):
    """A file or document is longer than its limit, which the message names."""

    reason = "too-large"


class DigestMismatch(Refused):
    """A file does not have the signed length and SHA-256. Fetch it again from another mirror."""

    reason = "digest-mismatch"


class ArchiveMalformed(Malformed):
    """An archive or compressed document breaks its format. The device uses the single files."""

    reason = "archive-malformed"


class ArchiveMismatch(DigestMismatch):
    """An archive has other files than the metadata names; the device uses the single files instead."""

    reason = "archive-mismatch"


class ArchiveTooLarge(TooLarge):
    """An archive exceeds a limit when it is decompressed; the device uses the single files instead."""

    reason = "archive-too-large"


class ArchiveTruncated(Malformed):
    """An archive or compressed document ends early; the device uses the single files instead."""

    reason = "archive-truncated"


class ShardMalformed(Malformed):
    """An envelope shard breaks its format. The device asks the next mirror."""

    reason = "shard-malformed"


class ShardMismatch(DigestMismatch):
    """A record of an envelope shard has another name than in the index. The device asks the next mirror."""

    reason = "shard-mismatch"


class ShardTooLarge(TooLarge):
    """An envelope shard is larger than 512 KiB, or says so. The device asks the next mirror."""

    reason = "shard-too-large"


class ShardTruncated(Malformed):
    """An envelope shard ends early. The device asks the next mirror."""

    reason = "shard-truncated"


class ShardUnsorted(Malformed):
    """The names of an envelope shard are not in ascending order. The device asks the next mirror."""

    reason = "shard-unsorted"


class NotAuthentic(Refused):
    """Ciphertext does not decrypt: a wrong key and changed bytes are never distinguished."""

    reason = "not-authentic"


class KeyCommitmentMismatch(Refused):
    """A content key is not the one that the manifest commits to."""

    reason = "key-commitment-mismatch"


class PatchRefused(Refused):
    """A patch cannot be applied. Do not retry it; another patch or the full download may still work."""

    reason = "patch-refused"


class WrongBase(PatchRefused):
    """A patch was created for a base bundle with other files. Use a patch from the bundle at hand."""

    reason = "wrong-base"


class PatchVersionUnsupported(PatchRefused):
    """A file is not a patch, or has a format version that this decoder does not know. Update the agent."""

    reason = "patch-version-unsupported"


class PatchFeatureUnsupported(PatchRefused):
    """A patch needs a decoder feature that is unknown or not installed. Update the agent or its libraries."""

    reason = "patch-feature-unsupported"


class PatchTruncated(PatchRefused):
    """A patch ends before its END frame. Fetch it again."""

    reason = "patch-truncated"


class PatchCorrupt(PatchRefused):
    """A patch has a wrong checksum, an undecodable payload or a meaningless field."""

    reason = "patch-corrupt"


class PatchRangeInvalid(PatchRefused):
    """A patch has a range outside of its files, or its target ranges overlap or leave a gap."""

    reason = "patch-range-invalid"


class PatchLimitExceeded(PatchRefused):
    """A patch needs more memory than the decoder allows or the patch header declares."""

    reason = "patch-limit-exceeded"


class PatchTargetMismatch(PatchRefused):
    """A file that the patch rebuilt does not have the SHA-256 of the patch's file table."""

    reason = "patch-target-mismatch"


class DownloadFailed(Unavailable):
    """A download failed: no connection, a server error, or an interrupted transfer. Check network and URL."""

    reason = "download-failed"


class NotFound(DownloadFailed):
    """The server has no such file: it responded with 404. Check the repository URL."""

    reason = "not-found"


class AccessDenied(NotFound):
    """The server refuses access to a file: it responded with 403. Set the credentials that it wants."""

    reason = "access-denied"


class UnexpectedNotModified(DownloadFailed):
    """A server responds with 304 to a request without a condition. Check it, or use another mirror."""

    reason = "unexpected-not-modified"


class MetadataExpired(Unavailable):
    """Signed metadata has expired: outdated mirror, stopped publisher or replay. Renew the metadata."""

    reason = "metadata-expired"


class NoRollout(Unavailable):
    """The repository has no rollout for the family and channel. Check both names, or publish a rollout."""

    reason = "no-rollout"


class CheckInProgress(Unavailable):
    """Another trust check of the same device is running. Retry when it has finished."""

    reason = "check-in-progress"


class TrustStateLost(Unavailable):
    """Both copies of the trust state are lost, and only offline metadata is available. Check online once."""

    reason = "trust-state-lost"


class UntrustedMetadata(Refused):
    """Metadata has too few valid signatures of its role, or contradicts the metadata above it."""

    reason = "untrusted-metadata"


class AnotherRepository(UntrustedMetadata):
    """Another repository is published at the URL than the one this device was made for. Check the URL."""

    reason = "another-repository"


class RollbackRefused(Refused):
    """Metadata or a release is older than one that was accepted before."""

    reason = "rollback-refused"


class ReleaseMismatch(Refused):
    """Rollout and manifest, which two roles sign, disagree. Publish a rollout for the listed release."""

    reason = "release-mismatch"


class CounterReused(ReleaseMismatch):
    """A release has the counter of another known release. Publish the changed release with a new counter."""

    reason = "counter-reused"


class OutsidePlan(Refused):
    """A rollout breaks the signed plan of its channel. Publish one inside the plan, or sign another plan."""

    reason = "outside-plan"


class WrongChannel(Refused):
    """A release is not made for the channel that offers it. Point the channel at a release that lists it."""

    reason = "wrong-channel"


class ReleaseWithdrawn(Refused):
    """A rollout names a release that was withdrawn or never released. Point it at a listed release."""

    reason = "release-withdrawn"


class AgentTooOld(Refused):
    """A release needs a newer agent. Update the agent first."""

    reason = "agent-too-old"


class OfflinePackRefused(Refused):
    """Metadata of an offline pack came from a server or is valid for too long. Create a new pack."""

    reason = "offline-pack-refused"


class EnrollmentRefused(Refused):
    """An enrollment request does not prove its keys, or contradicts the registry. Create a new request."""

    reason = "enrollment-refused"


class GoldenMismatch(Unfit):
    """A model's output is missing or is not the golden one. Fix the model or record new golden outputs."""

    reason = "golden-mismatch"


def kind_of(error: type[AirweightsError]) -> type[AirweightsError]:
    """Return the kind of an error class."""
    return next(kind for kind in KINDS if issubclass(error, kind))


def sentences_of(error: type[AirweightsError]) -> list[str]:
    """Return the sentences of a class's own docstring: what was found, then what to do."""
    paragraph = " ".join((vars(error).get("__doc__") or "").strip().split("\n\n")[0].split())
    return SENTENCE_END.split(paragraph)


def action_of(error: type[AirweightsError]) -> str:
    """Return what to do: the later sentences of the docstring of the class, or else of its kind."""
    return " ".join(sentences_of(error)[1:] or sentences_of(kind_of(error))[1:])


def subclasses(root: type[AirweightsError] = AirweightsError) -> Iterator[type[AirweightsError]]:
    """Yield every loaded subclass of `root`, depth first."""
    for subclass in root.__subclasses__():
        yield subclass
        yield from subclasses(subclass)
