"""Errors of the device agent; docs/errors.md is generated from these classes.

Choose the kind (bundle.errors) by how the caller must react, and the class by the cause. The class name is the reason
in CamelCase. A worker sends an error as its reason, message and hint; the supervisor converts it to the same class.
"""

import contextlib
import errno
import re
from typing import Final

from bundle.errors import KINDS, AirweightsError, Bug, DownloadFailed, Invalid, Refused, Unavailable, Unfit, subclasses
from bundle.errors import InvalidUsage as InvalidUsage
from bundle.errors import OsFailure as OsFailure

REASON_PATTERN: Final = re.compile(r"[a-z0-9][a-z0-9-]{0,63}")
MAX_MESSAGE_CHARACTERS: Final = 2000  # length of an error that a worker sends
_CLASSES_OF_UNLOADED_REASONS: Final[dict[tuple[type[AirweightsError], str], type[AirweightsError]]] = {}


class ConfigInvalid(Invalid):
    """A setting is missing, unknown or out of range. Fix the configuration file."""

    reason = "config-invalid"


class MqttMissing(Invalid):
    """`reports.url` names an MQTT broker, and paho-mqtt is not installed. Install the extra `mqtt`."""

    reason = "mqtt-missing"


class IdentityInvalid(Invalid):
    """A key file is missing, damaged or readable by others. Restore it, or enroll the device again."""

    reason = "identity-invalid"


class NotInitialized(Invalid):
    """The device directory does not exist yet. Run `device-agent init` first."""

    reason = "not-initialized"


class AlreadyInitialized(Invalid):
    """The device directory already has an identity. Remove the directory to start over."""

    reason = "already-initialized"


class AlreadyEnrolled(Invalid):
    """The device is enrolled, so its label is registered. Keep the label, or enroll a new identity."""

    reason = "already-enrolled"


class IdentityCopied(Invalid):
    """The device directory was copied from another machine. Create an identity for this one."""

    reason = "identity-copied"


class AdapterMissing(Invalid):
    """No adapter is stored, or no release is active. Attach an adapter after the first update."""

    reason = "adapter-missing"


class NothingToBenchmark(Invalid):
    """The store has no bundle that `bench` could run. Run `device-agent update` first."""

    reason = "nothing-to-benchmark"


class NothingToRollBack(Invalid):
    """The device has no previous release. Let it install a second release before a rollback."""

    reason = "nothing-to-roll-back"


class RequestInvalid(Invalid):
    """An inference request has a wrong name, shape, dtype, size or JSON. Fix the client."""

    reason = "request-invalid"


class InputsRejected(RequestInvalid):
    """The model cannot run on the inputs of a request. Check their shapes and values."""

    reason = "inputs-rejected"


class FileUnknown(Invalid):
    """The release has no such file, or several of that name. See `device-agent files list`."""

    reason = "file-unknown"


class ProgramMissing(Invalid):
    """The program of `files exec` cannot be started. Correct its name, or install it."""

    reason = "program-missing"


class ExportNotInMemory(Invalid):
    """`serve.export` names a folder on a disk. Name one on tmpfs or ramfs, below /run."""

    reason = "export-not-in-memory"


class ExportFolderForeign(Invalid):
    """The folder of `serve.export` is another user's, or holds other files. Name one of its own."""

    reason = "export-folder-foreign"


class NotAllowed(Refused):
    """The user, group or unit may not read or judge the family. The owner lists it in `apps.FAMILY`."""

    reason = "not-allowed"


class LendLimitReached(Refused):
    """The process holds files of too many releases. Close the connections that borrowed older ones."""

    reason = "lend-limit-reached"


class ReleaseReplaced(Refused):
    """The verdict is on a release that no longer serves. Borrow the files of the serving release."""

    reason = "release-replaced"


class BundleQuarantined(Refused):
    """The bundle failed here before with this runtime. Publish a new release or clear the quarantine."""

    reason = "bundle-quarantined"


class CrashLoop(Refused):
    """The agent crashed repeatedly while it tried this bundle. Check the model for crashes."""

    reason = "crash-loop"


class BelowRollbackFloor(Refused):
    """The previous release is below the rollback floor. Publish a release with a higher counter instead."""

    reason = "below-rollback-floor"


class StoreDamaged(Refused):
    """A sealed bundle or adapter is missing or damaged. Let the next update download the bundle again."""

    reason = "store-damaged"


class ControlPeerRefused(Refused):
    """A worker or another user used the control socket. Run the command as the agent's user."""

    reason = "control-peer-refused"


class CohortKeyMismatch(Refused):
    """A cohort key differs from the fleet document's. Seal the cohort's key to the device again."""

    reason = "cohort-key-mismatch"


class NoVariant(Refused):
    """No variant of the release fits this device. Publish a variant that meets the device's limits."""

    reason = "no-variant"


class RuntimeMissing(Refused):
    """The release needs a runtime that is not installed. Install it, or publish another variant."""

    reason = "runtime-missing"


class ProviderMissing(Refused):
    """The release needs a missing execution provider. Install it, or publish a variant for the CPU."""

    reason = "provider-missing"


class PlainNotAllowed(Refused):
    """The release is stored plain, and the owner does not allow that. Set `allow_plain` of the family."""

    reason = "plain-not-allowed"


class TpmUnavailable(Unavailable):
    """The TPM is missing or does not respond. Check its device node and permissions."""

    reason = "tpm-unavailable"


class TpmPolicyMismatch(Unavailable):
    """The TPM's PCRs changed, so it does not unseal the keys. Restore the boot state or enroll again."""

    reason = "tpm-policy-mismatch"


class DeviceTokenUnavailable(Unavailable):
    """The PKCS#11 token is missing or does not respond. Check its module, label and PIN."""

    reason = "device-token-unavailable"


class NoSpace(Unavailable):
    """The file system has too little free space for the update. Free space on the device."""

    reason = "no-space"


class OutOfMemory(Unavailable):
    """The candidate does not fit into memory, even without the running model. Publish a smaller variant."""

    reason = "out-of-memory"


class MeteredLimitExceeded(Unavailable):
    """The download exceeds the metered limit. Wait for an unmetered connection or raise the limit."""

    reason = "metered-limit-exceeded"


class RollbackFloorUnproven(Unavailable):
    """The TPM counter is ahead of the journal: the disk may be an old copy. Update from the network."""

    reason = "rollback-floor-unproven"


class NoPatchPath(Unavailable):
    """No published patch leads to the release from the stored bundles. Publish a full download."""

    reason = "no-patch-path"


class EnvelopeMissing(Unavailable):
    """No envelope for this device is published. Enroll the device and seal the release to its cohort."""

    reason = "envelope-missing"


class NotEnrolled(EnvelopeMissing):
    """The device is not enrolled in its cohort. Run `device-agent enroll`, then `packager device enroll`."""

    reason = "not-enrolled"


class NothingServed(Unavailable):
    """No release of the family is active. Run `device-agent update` first."""

    reason = "nothing-served"


class NotEligible(Unavailable):
    """The rollout does not include this device now. Wait, or change its cohorts, window or percentage."""

    reason = "not-eligible"


class DeviceLocked(Unavailable):
    """Another process uses the device directory. Wait for it to end, or stop it.

    Attributes:
        is_daemon: the other process is the daemon, which starts or ends.
    """

    reason = "device-locked"

    def __init__(self, message: str, *, hint: str | None = None, is_daemon: bool = False) -> None:
        super().__init__(message, hint=hint)
        self.is_daemon = is_daemon


class UpdatesPaused(Unavailable):
    """An operator paused updates. Run `device-agent resume`."""

    reason = "updates-paused"


class DaemonNotRunning(Unavailable):
    """No daemon responds on the control socket. Start it with `device-agent run`."""

    reason = "daemon-not-running"


class JournalUnreadable(Unavailable):
    """The journal cannot be opened or written. Check the disk, its free space and the file's permissions."""

    reason = "journal-unreadable"


class JournalTooNew(JournalUnreadable):
    """A newer agent wrote the journal. Install an agent that is at least as new."""

    reason = "journal-too-new"


class ServerTooSlow(DownloadFailed):
    """A transfer stalled or was too slow; its progress is kept. Check the network."""

    reason = "server-too-slow"


class ConnectionFailed(DownloadFailed):
    """The server's name does not resolve, or no address accepts a connection. Check network, DNS and URL."""

    reason = "connection-failed"


class ProxyFailed(DownloadFailed):
    """The proxy cannot be reached, or refuses the request. Check `repository.proxy`."""

    reason = "proxy-failed"


class ProxyAuthRequired(ProxyFailed):
    """The proxy wants a user name and password: it responded with 407. Set `repository.proxy_auth_file`."""

    reason = "proxy-auth-required"


class RepositoryAuthRequired(DownloadFailed):
    """The server wants other credentials: it responded with 401. Set `repository.token_file`."""

    reason = "repository-auth-required"


class CollectorSilent(DownloadFailed):
    """No collector answered through the broker. Check `packager fleet serve --mqtt` and the access list."""

    reason = "collector-silent"


class TlsFailed(DownloadFailed):
    """No TLS connection with a trusted certificate. Check `repository.ca_file` and the clock."""

    reason = "tls-failed"


class TokenRealmRefused(DownloadFailed):
    """A registry names a token server that may not get the credentials. Check it, then set `token_realm`."""

    reason = "token-realm-refused"


class RedirectRefused(DownloadFailed):
    """A redirect is malformed or not allowed. Check `repository.allow_redirects_to`."""

    reason = "redirect-refused"


class RepositoryNotReached(DownloadFailed):
    """A web page came in place of a file: a login page, or another server. Open the URL in a browser."""

    reason = "repository-not-reached"


class UpdateInterrupted(Unavailable):
    """An operator's pause or rollback ended the update before the candidate served."""

    reason = "update-interrupted"


class AgentStopping(Unavailable):
    """The agent is stopping, so the operation was not finished. Repeat it after the restart."""

    reason = "agent-stopping"


class JournalDamaged(JournalUnreadable):
    """The journal's bytes are damaged. Restart the agent, which rebuilds it, and check the disk."""

    reason = "journal-damaged"


class WorkerCrashed(Unavailable):
    """A worker process crashed during a call. Look for its last lines in the log."""

    reason = "worker-crashed"


class WorkerFailed(WorkerCrashed):
    """A worker process sent an unexpected error or a malformed response. Report the log lines as a bug."""

    reason = "worker-failed"


class WorkerTimeout(Unavailable):
    """A worker process did not respond in time and was killed. Check the load of the device."""

    reason = "worker-timeout"


class AddressUnavailable(Unavailable):
    """An address is in use or not allowed. Change `serve.listen` or `serve.apps_socket`, or free it."""

    reason = "address-unavailable"


class DrainTimeout(Unavailable):
    """A retired generation still has open requests. Check for clients whose requests do not end."""

    reason = "drain-timeout"


class JailUnavailable(Unavailable):
    """The kernel cannot jail a worker, as configured. Update the kernel or set `allow_unjailed`."""

    reason = "jail-unavailable"


class PatcherCrashed(Unfit):
    """The patcher crashed repeatedly on the same bundle. Publish the release with other patches."""

    reason = "patcher-crashed"


class TooMuchMemory(Unfit):
    """The candidate's peak memory exceeds the limit of its health contract. Publish a smaller variant."""

    reason = "too-much-memory"


class NotFaster(NotEligible):
    """Another variant than the active one was expected to be better, and is not. The next attempt
    follows at once, with the active variant.
    """

    reason = "not-faster"


class TooSlow(Unfit):
    """The candidate's median latency exceeds the limit of its health contract. Publish a faster variant."""

    reason = "too-slow"


class MemoryLeak(Unfit):
    """The candidate's memory grows with every run. Look for an operator or runtime version that leaks."""

    reason = "memory-leak"


class NanOutput(Unfit):
    """The candidate has NaN or infinity in an output of a golden input. Fix the model."""

    reason = "nan-output"


class EndpointRefuses(Unfit):
    """The endpoint cannot answer a golden input as a request. Change the model's inputs or outputs."""

    reason = "endpoint-refuses"


class ProbeCrashed(Unfit):
    """The probe process crashed or sent a malformed response. Run the model on a device of this kind."""

    reason = "probe-crashed"


class ProbeTimeout(Unfit):
    """The probe exceeded the deadline of the health contract. Publish a faster variant or extend it."""

    reason = "probe-timeout"


class CandidateMalformed(Unfit):
    """The candidate's files are malformed. Build and publish the release again."""

    reason = "candidate-malformed"


class ProbeInconclusive(Unfit):
    """The probe could not judge the candidate. Wait: the next update probes it again."""

    reason = "probe-inconclusive"


class ProbationFailed(Unfit):
    """The candidate failed under live requests: errors, NaN, latency or a crash. Fix the model."""

    reason = "probation-failed"


class ShadowFailed(Unfit):
    """The candidate failed in shadow mode. Compare its responses with the old model's."""

    reason = "shadow-failed"


class AdapterIncompatible(Unfit):
    """The personal adapter does not fit the release. Train it again for this release."""

    reason = "adapter-incompatible"


class BenchFailed(Unfit):
    """A bundle does not respond to the requests of `bench`. Look for the model's error in the message."""

    reason = "bench-failed"


class ProbationInconclusive(Unfit):
    """The probation got too few requests. Lower the contract's minimum or choose `commit`."""

    reason = "probation-inconclusive"


class OperatorRollback(Unfit):
    """An operator rolled the device back. Publish a fixed release with a higher counter."""

    reason = "operator-rollback"


class ModelDoesNotLoad(Unfit):
    """The runtime cannot load the model. Check its operators against the device's version."""

    reason = "model-does-not-load"


class ProviderUnused(Unfit):
    """The execution provider runs no part of the model. Publish the model as a variant for the CPU."""

    reason = "provider-unused"


class ProviderUnstable(Unfit):
    """The execution provider fails in some runs of the same inputs. Publish a variant for the CPU, too."""

    reason = "provider-unstable"


class ContractMismatch(Unfit):
    """The model's inputs or outputs are not those of the manifest. Build the bundle again from this model."""

    reason = "contract-mismatch"


class ModelProcessCrashed(Unfit):
    """The model process crashed or hung while loading. Check the model's memory use and operators."""

    reason = "model-process-crashed"


class InferenceFailed(Unfit):
    """The model failed on inputs that its contract allows. Fix the model or its contract."""

    reason = "inference-failed"


class IllegalTransition(Bug):
    """The state machine has no transition for an event. Report it with the log."""

    reason = "illegal-transition"


def system_error(error: OSError) -> Unavailable:
    """Convert an error of the operating system: NoSpace if a disk or quota is full, else OsFailure."""
    location = f" ({error.filename})" if error.filename else ""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return NoSpace(f"{error.strerror}{location}", hint="free space on the device")
    return OsFailure(f"{error.strerror or error}{location}")


def error_from_dict(value: object) -> AirweightsError:
    """Convert an error object that another process sent (`as_dict`) into an exception.

    If the class with this reason is not loaded in this process, the exception has a new class of the same kind.

    Returns:
        The exception; a Bug if the object is malformed or its exit code belongs to no kind.
    """
    if not isinstance(value, dict):
        return Bug(f"a worker sent an error of type {type(value).__name__}, expected an object")
    reason, message, hint = value.get("reason"), value.get("message"), value.get("hint")
    if not isinstance(reason, str) or not REASON_PATTERN.fullmatch(reason) or not isinstance(message, str):
        return Bug("a worker sent an error without a valid reason and message")
    message = message[:MAX_MESSAGE_CHARACTERS]
    hint_text = hint if isinstance(hint, str) else None
    for cls in subclasses():
        if cls.reason == reason:
            with contextlib.suppress(TypeError):  # a class whose constructor takes more than the message
                return cls(message, hint=hint_text)
    for kind in KINDS:
        if kind.exit_code == value.get("exit_code"):
            return _class_for_unloaded_reason(kind, reason)(message, hint=hint_text)
    return Bug(f"a worker sent an error of no known kind, {reason!r}: {message}")


def is_written(error: type[AirweightsError]) -> bool:
    """Return whether the class is written in a module, and not created for a reason that a worker sent."""
    return error not in _CLASSES_OF_UNLOADED_REASONS.values()


def unfit_class(reason: str) -> type[Unfit]:
    """Return the written class of kind Unfit with this reason.

    Raises:
        Bug: no loaded module defines one.
    """
    for cls in subclasses(Unfit):
        if cls.reason == reason and is_written(cls) and issubclass(cls, Unfit):
            return cls
    raise Bug(f"no class of kind unfit has the reason {reason!r}")


def _class_for_unloaded_reason(kind: type[AirweightsError], reason: str) -> type[AirweightsError]:
    # cached: a class lives as long as its base, and a worker can fail again for years
    found = _CLASSES_OF_UNLOADED_REASONS.get((kind, reason))
    if found is None:
        found = type(f"Unloaded{kind.__name__}", (kind,), {"reason": reason})
        _CLASSES_OF_UNLOADED_REASONS[kind, reason] = found
    return found
