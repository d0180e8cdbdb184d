"""Format the results of the commands as text."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from bundle.errors import AirweightsError, action_of, subclasses
from bundle.providers import CPU
from device_agent.policy.attempt import Outcome, UpdateResult
from device_agent.policy.download_bytes import DownloadBytes
from device_agent.policy.journal_records import QuarantineRecord
from device_agent.policy.status_report import BundleStatus, FamilyStatus, StatusReport
from device_agent.policy.update_history import UpdateHistory

if TYPE_CHECKING:
    from device_agent.update.preview import Plan


def status_lines(report: StatusReport) -> list[str]:
    """Format the status of the device: one paragraph per family, with empty lines between them."""
    lines = _family_status_lines(report.first)
    for family, status in report.further:
        lines.append("")
        if isinstance(status, AirweightsError):
            lines.append(f"{family}: {status.reason}: {status.message}")
        else:
            lines += _family_status_lines(status)
    return lines


def result_text(result: UpdateResult) -> str:
    """Format the result of one attempt as one line."""
    attempt = result.attempt
    parts = [result.outcome_text, attempt.release or "", attempt.variant or ""]
    if result.outcome is Outcome.UPDATED and result.detail:
        parts.append(f"(probation: {result.detail})")
    elif result.reason:
        parts.append(f"({result.reason}: {result.detail})")
    if attempt.downloaded.total:
        parts.append(f"{attempt.downloaded.total} bytes downloaded ({_kinds_text(attempt.downloaded)})")
    if attempt.full_bytes:
        parts.append(f"full download {attempt.full_bytes} bytes")
    return " ".join(part for part in parts if part)


def result_lines(result: UpdateResult) -> list[str]:
    """Format the result of one attempt, with what to do if it was refused, unavailable or unfit."""
    error = next((each for each in subclasses() if each.reason == result.reason), None)
    return [result_text(result), *([] if error is None else [f"hint: {action_of(error)}"])]


def _kinds_text(downloaded: DownloadBytes) -> str:
    return ", ".join(f"{kind} {count}" for kind, count in downloaded.as_json().items() if count)


def history_lines(history: UpdateHistory) -> list[str]:
    """Format past attempts, one per line."""
    return [result_text(result) for result in history.results] or ["no update attempt yet"]


def quarantine_lines(rows: Sequence[QuarantineRecord]) -> list[str]:
    """Format the quarantined bundles, one per line."""
    return [
        f"{row.digest[:16]} since {_time_text(row.since_ms)}: {row.reason} (ONNX Runtime {row.runtime})" for row in rows
    ] or ["no bundle is quarantined"]


def plan_lines(plan: "Plan", *, with_reasons: bool) -> list[str]:
    """Format the plan of one family.

    Args:
        plan: preview of an update of the family.
        with_reasons: whether to add the facts of the device, and why each variant is chosen or not.
    """
    lines = [f"release {plan.release}, installed: {plan.installed or 'none'}"]
    if with_reasons:
        device = plan.device
        runtime = f"onnxruntime {device.runtime} ({', '.join(device.providers)})"
        lines.append(f"device: {device.arch}, {runtime}, {device.memory_bytes // 2**20} MiB of memory available")
        for variant in plan.variants:
            mark = "->" if variant.name == plan.chosen else "  "
            size = f"{variant.uncompressed_bytes} bytes uncompressed"
            lines.append(f"{mark} {variant.name}: {size}; {variant.explanation}")
    else:
        lines.append(f"variant: {plan.chosen or 'none'}")
    if plan.path is not None:
        steps = ", ".join(f"{step.codec} from {step.base[:16] if step.base else 'no base'}" for step in plan.path.steps)
        sizes = f"download {plan.path.fetch_bytes} bytes, full download {plan.path.full_download_bytes} bytes"
        lines.append(f"path: {steps or 'no patch needed'}; {sizes}")
        if with_reasons and plan.path.download.total:
            kinds = ", ".join(f"{kind} {size}" for kind, size in plan.path.download.as_json().items() if size)
            lines.append(f"an update receives {plan.path.download.total} bytes: {kinds}")
    lines.append(f"an update now: {plan.outcome}" + (f" ({plan.reason}: {plan.detail})" if plan.reason else ""))
    return lines


def _family_status_lines(status: FamilyStatus) -> list[str]:
    lines = [
        f"{status.family} on channel {status.channel}: {_bundle_text(status.active)}",
        f"previous: {_bundle_text(status.previous)}",
        f"state: {status.state}" + (", paused" if status.is_paused else ""),
        _serving_text(status),
    ]
    if status.is_identity_copied:
        lines.append("identity copied: it was created on another machine; two devices may have one identity")
    if status.no_update_reason is not None:
        lines.append(f"no updates: {status.no_update_reason}")
    if status.probation is not None:
        lines.append(f"probation of {status.probation.text}")
    if status.needs_restart:
        lines.append(f"restart the daemon to change {', '.join(status.needs_restart)}")
    if status.is_degraded:
        lines.append("degraded: the previous release serves, because the active bundle is damaged")
    if status.stale_since_ms:
        since = _time_text(status.stale_since_ms)
        lines.append(f"stale since {since}: the metadata has expired, no new release is activated")
    if status.key_storage != "file":
        lines.append(f"key storage: {status.key_storage}")
    if status.is_rollback_floor_unproven:
        lines.append(
            "rollback floor unproven: the TPM counter is ahead of the device's records;"
            " offline packs are refused until a check over the network"
        )
    if not status.is_clock_synchronized:
        lines.append("clock suspect: it is not synchronized")
    elif status.is_clock_suspect:
        lines.append("clock suspect: it is behind the time of the last check")
    if status.is_unjailed:
        lines.append("unjailed: the kernel does not confine the agent's workers")
    if status.is_memory_swappable:
        lines.append("memory swappable: the kernel does not let the agent lock models into memory")
    if status.export is not None:
        lines.append(status.export.as_line())
    lines += [f"jail of {worker} lacks: {', '.join(names)}" for worker, names in status.missing_restrictions]
    if status.last_update is not None:
        last = status.last_update
        reason = f"probation: {last.detail}" if last.outcome is Outcome.UPDATED and last.detail else last.reason
        lines.append(f"last update: {last.outcome_text} {last.attempt.release or ''} {reason}".rstrip())
        if last.outcome is Outcome.WAITING and last.detail:
            lines.append(f"waiting: {last.detail}")
    lines += [f"quarantined: {row.digest[:16]} ({row.reason})" for row in status.quarantine]
    return lines


def _serving_text(status: FamilyStatus) -> str:
    serving = status.serving
    if serving is None:
        return (
            "not serving: no model is loaded" if status.is_daemon_running else "not serving: the daemon is not running"
        )
    if not serving.pid:
        return f"lending {serving.release} to applications"
    if serving.is_alive:
        on = "" if serving.provider in ("", CPU) else f" on {serving.provider}"
        return f"serving {serving.release}{on} at {status.address} (process {serving.pid})"
    restart = "restarting it" if status.next_restart_s is None else f"next restart in {status.next_restart_s} s"
    return f"not serving: the model process of {serving.release} keeps crashing; {restart}"


def _bundle_text(bundle: BundleStatus | None) -> str:
    return "none" if bundle is None else f"{bundle.release} ({bundle.variant})"


def _time_text(unix_ms: int) -> str:
    return f"{datetime.fromtimestamp(unix_ms / 1000, UTC):%Y-%m-%dT%H:%M:%SZ}"
