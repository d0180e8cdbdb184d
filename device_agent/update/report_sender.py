"""Send reports and vitals of a family to the collector.

Sequence:

    read      the unsent reports and the unsent vital from the journal
    sign      by the patcher, which has the key and no network
    send      by the fetcher, which has the network and no key
    record    what the collector has, as its answer says

Rules:
- Nothing is sent twice on purpose: the journal has the position that the last answer named. A batch whose answer was
  lost is sent again; the collector counts each line once.
- A collector that answers nonsense changes no position.
- The journal is the spool: 256 reports and the newest vital of each family wait there while the collector is away.
"""

import logging
import os
import time
from typing import Final

from bundle import strict_json
from bundle.cpu_features import cpu_class, read_cpu_features
from bundle.errors import DownloadFailed, Malformed, TooLarge
from bundle.strict_json import StrictObject
from bundle.vital import Vital
from device_agent.host.device_facts import runtime_version
from device_agent.host.system_clock import read_boot_clock
from device_agent.policy.journal_records import BundleRecord
from device_agent.policy.next_vital import ServedCounts, VitalSources, next_vital
from device_agent.policy.sent_position import SentPosition
from device_agent.policy.served_time import ServedTime
from device_agent.storage.journal import Journal
from device_agent.update.context import UpdateContext
from device_agent.workers.worker_pool import WorkerPool

logger = logging.getLogger(__name__)

MAX_ANSWER_BYTES: Final = 256 * 1024
MIN_AGE_SHARE: Final = 0.75  # of the interval, whose jitter is a fifth
MAX_BATCHES: Final = 8  # in one call: 512 reports are more than a journal has


def make_vital(
    context: UpdateContext, interval_s: int, counts: ServedCounts, *, is_forced: bool, is_paused: bool
) -> bool:
    """Make and record the next vital if it is due, and return whether it was made.

    It is due once an interval, and when the soak time of the plan ends.

    Args:
        context: journal and identity of the family.
        interval_s: seconds between two vitals.
        counts: counts of the daemon since the vital before.
        is_forced: make it even if it is not due.
        is_paused: whether updates of the device are paused.

    Raises:
        JournalUnreadable: the journal cannot be read or written.
    """
    journal, now_ms = context.journal, time.time_ns() // 1_000_000
    newest = journal.newest_vital
    active, served = journal.bundle(journal.pointers.active), journal.record_served_time(*read_boot_clock())
    age_ms = interval_s * 1000 if newest is None else now_ms - newest[1]
    # a clock that was set back makes the vital due, too
    is_due = is_forced or _is_soak_over(newest[0] if newest is not None else None, active, served)
    if not is_due and 0 <= age_ms < MIN_AGE_SHARE * interval_s * 1000:
        return False
    log, reports = journal.open_log(), journal.reports()
    free = os.statvfs(context.config.directory)
    vital = next_vital(
        VitalSources(
            log=log,
            number=newest[0].number + 1 if newest is not None and newest[0].log == log else 1,
            reports=reports[-1].sequence if reports else 0,
            state=journal.state,
            persistent=journal.persistent_state,
            is_paused=is_paused,
            active=active,
            history=journal.history(),
            counts=counts,
            free_bytes=free.f_bavail * free.f_frsize,
            cpu=cpu_class(os.uname().machine, read_cpu_features()),
            runtime=runtime_version(),
            served_days=served.days,
            now_ms=now_ms,
        )
    )
    if vital is not None:
        journal.record_vital(vital)
    return vital is not None


def _is_soak_over(newest: Vital | None, active: BundleRecord | None, served: ServedTime) -> bool:
    """Return whether the soak time is over, and the newest vital does not say so."""
    if active is None or not served.soak_s or served.days < served.soak_days:
        return False
    is_same = newest is not None and (newest.release, newest.counter) == (active.version, active.counter)
    return not is_same or newest is None or newest.served_days < served.soak_days


def send_lines(journal: Journal, workers: WorkerPool, url: str, device_id: str) -> int:
    """Send what the collector does not have, and return the number of sent lines.

    Args:
        journal: journal of the family, open for writing.
        workers: workers of the family.
        url: URL of the collector, or of an MQTT broker.
        device_id: id of the device.

    Raises:
        Unavailable: the collector cannot be reached, or its answer is malformed.
        JournalUnreadable: the journal cannot be read or written.
    """
    sent = 0
    for _ in range(MAX_BATCHES):
        position, reports, vital = journal.unsent_lines()
        if not reports and vital is None:
            break
        lines = workers.patcher.sign_lines(device_id, reports, () if vital is None else (vital,))
        data = b"".join(line + b"\n" for line in lines)
        answer = workers.send_lines(url, device_id, data, MAX_ANSWER_BYTES)
        now = _read_answer(answer, position.log)
        sent += len(lines)
        if now == position:
            # refused lines are not sent again and again; the answer to the next vital names the position anew
            logger.warning("collector took no line", extra={"lines": len(lines)})
            break
        journal.record_sent(now)
    return sent


def _read_answer(answer: bytes, log: str) -> SentPosition:
    """Read the position of a log from an answer; a log that the collector does not know begins at 0.

    Raises:
        DownloadFailed: the answer is not that of a collector.
    """
    try:
        fields = StrictObject(strict_json.decode(answer, what="answer", max_bytes=MAX_ANSWER_BYTES), "answer")
        logs = fields.object("logs")
        if not logs.has(log):
            return SentPosition(log)
        value = logs.value(log)
        return SentPosition.parse(StrictObject({**value, "log": log} if isinstance(value, dict) else None, "answer"))
    except (Malformed, TooLarge) as error:
        raise DownloadFailed(f"the collector's answer: {error.message}") from error
