"""What can go wrong on a device.

AirweightsError
├── Invalid
│   ├── ConfigInvalid           config-invalid          a setting is missing, unknown or out of its range
│   ├── UsageInvalid            usage                   an option or argument of the command line is wrong
│   ├── IdentityInvalid         identity-invalid        a key file is missing, damaged or readable by others
│   ├── NotInitialized          not-initialized         the device directory has not been made yet
│   ├── AlreadyInitialized      already-initialized     it has, and a second identity would orphan the first
│   ├── NoAdapter               no-adapter              no adapter is held
│   ├── NothingToMeasure        nothing-to-measure      no bundle is held that `bench` could run
│   ├── NothingToRollBack       nothing-to-roll-back    no previous release is held
│   └── RequestInvalid          request-invalid         an inference request that is the client's mistake
├── Refused
│   ├── QuarantinedRefused      quarantined             this bundle failed here before, under this runtime
│   ├── KilledInTrialRefused    killed-in-trial         the agent died three times while it tried this bundle
│   ├── BelowFloorRefused       below-floor             an operator asked for a release below the floor
│   ├── StoreDamagedRefused     store-damaged           a sealed bundle is missing, or is not the one it is named for
│   ├── CohortKeyRefused        cohort-key              an unsealed cohort key is not the one that the fleet signs
│   └── NoVariantRefused        no-variant              no variant of the release fits this device
├── Unavailable
│   ├── TpmUnavailable          tpm-unavailable         the TPM that holds the identity does not answer
│   ├── TpmPolicyUnavailable    tpm-policy              the PCRs are not what they were when the identity was sealed
│   ├── DeviceTokenUnavailable  device-token-unavailable nor does the token
│   ├── FloorUnprovenUnavailable floor-unproven         the TPM has seen a higher floor than this disk remembers
│   ├── NoSpaceUnavailable      no-space                the store's file system is too full for the plan
│   ├── NoMemoryUnavailable     no-memory               the candidate does not fit into memory, even alone
│   ├── MeteredUnavailable      metered-limit           the cheapest path costs more than the metered limit
│   ├── NoPathUnavailable       no-path                 no published patch leads here from what is held
│   ├── EnvelopeUnavailable     envelope-missing        no envelope for this device or cohort is published
│   ├── NotEligibleUnavailable  not-eligible            percent, cohort, window or halt say: not now
│   ├── BusyUnavailable         busy                    another process holds the device directory
│   ├── PausedUnavailable       paused                  an operator has paused updates
│   ├── DaemonUnavailable       daemon-down             nobody answers on the control socket
│   ├── JournalUnavailable      journal                 the state database does not open
│   ├── SlowUnavailable         too-slow-server         a transfer below the configured rate; what came is kept
│   │   └── JournalDamaged      journal-damaged         its bytes are not as they were written; it is made anew
│   ├── StoppedUnavailable      stopped                 the agent is asked to stop in the middle of something
│   ├── SystemUnavailable       system                  the operating system refuses: a full disk, an I/O error
│   ├── ChildDied               child-died              a child process ended in the middle of a call
│   │   └── ChildFailed         child-failed            it raised, or sent, what is no answer of ours
│   ├── ChildTimeout            child-timeout           a child did not answer in time and was killed
│   ├── ListenUnavailable       listen                  the endpoint's address is taken or not allowed
│   ├── DrainUnavailable        drain                   a retired generation still has requests
│   └── JailUnavailable         jail-unavailable        the kernel cannot confine a child, and the settings ask for it
├── Unfit
│   ├── PatcherDiedUnfit        patcher-died            the patcher died over this bundle again and again
│   ├── ProbeInconclusiveUnfit  probe-inconclusive      neither pass nor fail: the old one stays, nothing is marked
│   ├── ProbationUnfit          probation-failed        errors, NaN, latency or a crash under live requests
│   ├── ProbationInconclusiveUnfit probation-inconclusive too few requests to tell, and the contract says to go back
│   ├── ShadowUnfit             shadow-failed           its answers to live requests are not the running model's
│   ├── AdapterUnfit            adapter-unfit           a personal adapter does not fit the release
│   ├── BenchUnfit              bench-failed            a bundle does not answer the requests that `bench` sends
│   ├── OperatorUnfit           operator-rollback       an operator sent the device back
│   ├── ModelUnfit              model-does-not-load     onnxruntime does not make a session of the model
│   ├── ContractUnfit           contract-mismatch       the model's inputs or outputs are not the manifest's
│   ├── ModelProcessUnfit       model-process-died      the model's process died or hung while it loaded
│   └── InferenceUnfit          inference-failed        the model failed on inputs that its contract allows
└── Bug
    └── IllegalTransitionBug    illegal-transition      the state machine's table has no such key
"""

import contextlib
import errno
import re
from typing import Final

from bundle.errors import KINDS, AirweightsError, Bug, DownloadFailed, Invalid, Refused, Unavailable, Unfit, subclasses
from bundle.errors import InvalidUsage as InvalidUsage
from bundle.errors import OsFailure as OsFailure

REASON_PATTERN: Final = re.compile(r"[a-z0-9][a-z0-9-]{0,63}")
_UNKNOWN_REASON_CLASSES: Final[dict[tuple[type[AirweightsError], str], type[AirweightsError]]] = {}


class ConfigInvalid(Invalid):
    """A setting is missing, unknown or out of its range."""

    reason = "config-invalid"


class IdentityInvalid(Invalid):
    """A key file is missing, damaged or readable by others."""

    reason = "identity-invalid"


class NotInitialized(Invalid):
    """The device directory has not been made yet."""

    reason = "not-initialized"


class AlreadyInitialized(Invalid):
    """The device directory has an identity, which a second one would orphan."""

    reason = "already-initialized"


class AdapterMissing(Invalid):
    """No adapter is held."""

    reason = "adapter-missing"


class NothingToBenchmark(Invalid):
    """No bundle is held that `bench` could run."""

    reason = "nothing-to-benchmark"


class NothingToRollBack(Invalid):
    """No previous release is held."""

    reason = "nothing-to-roll-back"


class RequestInvalid(Invalid):
    """An inference request that is the client's mistake: a name, shape, dtype, size or JSON that is wrong."""

    reason = "request-invalid"


class BundleQuarantined(Refused):
    """This bundle failed here before, under this runtime."""

    reason = "bundle-quarantined"


class CrashLoop(Refused):
    """The agent died again and again while it tried this bundle."""

    reason = "crash-loop"


class BelowRollbackFloor(Refused):
    """An operator asked for a release below the floor."""

    reason = "below-rollback-floor"


class StoreDamaged(Refused):
    """A sealed bundle is missing, or is not the one it is named for."""

    reason = "store-damaged"


class CohortKeyMismatch(Refused):
    """An unsealed cohort key is not the one that the fleet document signs."""

    reason = "cohort-key-mismatch"


class NoVariant(Refused):
    """No variant of the release fits this device."""

    reason = "no-variant"


class TpmUnavailable(Unavailable):
    """The TPM that holds the identity is not there, or does not answer."""

    reason = "tpm-unavailable"


class TpmPolicyMismatch(Unavailable):
    """The TPM does not unseal the identity: the PCRs are not what they were when it was sealed."""

    reason = "tpm-policy-mismatch"


class DeviceTokenUnavailable(Unavailable):
    """The PKCS#11 token that holds the identity's key is not there, or does not answer."""

    reason = "device-token-unavailable"


class NoSpace(Unavailable):
    """The store's file system is too full for the plan."""

    reason = "no-space"


class OutOfMemory(Unavailable):
    """The candidate does not fit into memory, even alone."""

    reason = "out-of-memory"


class MeteredLimitExceeded(Unavailable):
    """The cheapest path costs more than the metered limit."""

    reason = "metered-limit-exceeded"


class RollbackFloorUnproven(Unavailable):
    """The TPM has seen a higher floor than this disk remembers: only metadata from the network is believed now."""

    reason = "rollback-floor-unproven"


class NoPatchPath(Unavailable):
    """No published patch leads to the release from what is held."""

    reason = "no-patch-path"


class EnvelopeMissing(Unavailable):
    """No envelope for this device or cohort is published."""

    reason = "envelope-missing"


class NotEligible(Unavailable):
    """Percent, cohort, window or halt say: not now."""

    reason = "not-eligible"


class DeviceLocked(Unavailable):
    """Another process holds the device directory."""

    reason = "device-locked"


class UpdatesPaused(Unavailable):
    """An operator has paused updates."""

    reason = "updates-paused"


class DaemonNotRunning(Unavailable):
    """Nobody answers on the control socket."""

    reason = "daemon-not-running"


class JournalUnreadable(Unavailable):
    """The state database does not open."""

    reason = "journal-unreadable"


class ServerTooSlow(DownloadFailed):
    """A transfer below the configured rate; what came is kept."""

    reason = "server-too-slow"


class AgentStopping(Unavailable):
    """The agent is asked to stop in the middle of something."""

    reason = "agent-stopping"


class JournalDamaged(JournalUnreadable):
    """The state database's bytes are not as they were written."""

    reason = "journal-damaged"


class WorkerCrashed(Unavailable):
    """A child process ended in the middle of a call."""

    reason = "worker-crashed"


class WorkerFailed(WorkerCrashed):
    """A child raised what is no error of ours, or sent what is no answer: it is as good as dead."""

    reason = "worker-failed"


class WorkerTimeout(Unavailable):
    """A child did not answer in time and was killed."""

    reason = "worker-timeout"


class AddressUnavailable(Unavailable):
    """The endpoint's address is taken or not allowed."""

    reason = "address-unavailable"


class DrainTimeout(Unavailable):
    """A retired generation still has requests on lease."""

    reason = "drain-timeout"


class JailUnavailable(Unavailable):
    """The kernel cannot confine a child and the settings do not allow to go on without."""

    reason = "jail-unavailable"


class PatcherCrashed(Unfit):
    """The patcher died over the same bundle again and again."""

    reason = "patcher-crashed"


class ProbeInconclusive(Unfit):
    """The probe could not tell: the old release stays and nothing is marked."""

    reason = "probe-inconclusive"


class ProbationFailed(Unfit):
    """The candidate failed under live requests: errors, NaN, latency or a crash."""

    reason = "probation-failed"


class ShadowFailed(Unfit):
    """The candidate failed in the shadow: errors, NaN, a crash, or answers that are not the running model's."""

    reason = "shadow-failed"


class AdapterIncompatible(Unfit):
    """A personal adapter does not fit the release: its inputs are other ones, or its answers are not what they were."""

    reason = "adapter-incompatible"


class BenchFailed(Unfit):
    """A bundle does not answer the requests that `bench` sends."""

    reason = "bench-failed"


class ProbationInconclusive(Unfit):
    """Too few requests to tell, and the health contract says to go back then."""

    reason = "probation-inconclusive"


class OperatorRollback(Unfit):
    """An operator sent the device back."""

    reason = "operator-rollback"


class ModelDoesNotLoad(Unfit):
    """onnxruntime does not make a session of the model."""

    reason = "model-does-not-load"


class ContractMismatch(Unfit):
    """The model's inputs or outputs are not what the manifest says."""

    reason = "contract-mismatch"


class ModelProcessCrashed(Unfit):
    """The model's process died or hung while it loaded."""

    reason = "model-process-crashed"


class InferenceFailed(Unfit):
    """The model failed on inputs that its contract allows."""

    reason = "inference-failed"


class IllegalTransition(Bug):
    """The state machine's table has no such key."""

    reason = "illegal-transition"


def system_error(error: OSError) -> Unavailable:
    """What the operating system's complaint means here."""
    place = f" ({error.filename})" if error.filename else ""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return NoSpace(f"{error.strerror}{place}", hint="free space on the device")
    return OsFailure(f"{error.strerror or error}{place}")


def error_from_dict(value: object) -> AirweightsError:
    """The exception for an `as_dict()` that a child sent (rule 3); a Bug where it is none."""
    if not isinstance(value, dict):
        return Bug("a child reported an error that has no form")
    reason, message, hint = value.get("reason"), value.get("message"), value.get("hint")
    if not isinstance(reason, str) or not REASON_PATTERN.fullmatch(reason) or not isinstance(message, str):
        return Bug("a child reported an error that has no form")
    hint_text = hint if isinstance(hint, str) else None
    for cls in subclasses():
        if cls.reason == reason:
            with contextlib.suppress(TypeError):  # a class whose constructor takes more than the message
                return cls(message[:2000], hint=hint_text)
    for kind in KINDS:
        if kind.exit_code == value.get("exit_code"):
            return _class_for_unknown_reason(kind, reason)(message[:2000], hint=hint_text)
    return Bug(f"a child reported {reason!r}: {message[:500]}")


def _class_for_unknown_reason(kind: type[AirweightsError], reason: str) -> type[AirweightsError]:
    # cached: a class is never collected while its base lives, and a child may fail for years
    found = _UNKNOWN_REASON_CLASSES.get((kind, reason))
    if found is None:
        found = _UNKNOWN_REASON_CLASSES[kind, reason] = type(f"Foreign{kind.__name__}", (kind,), {"reason": reason})
    return found
