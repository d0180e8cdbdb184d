"""The reports and the vital of a log that the collector has, as its last answer said.

Rules:
- The answer decides, not what was sent: a collector that lost its store gets again what the journal still has.
- Reports that the journal does not have any more are not sent; the gap stays visible at the collector.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from bundle.device_report import DeviceReport
from bundle.errors import Malformed
from bundle.signed_line import LOG_ID_PATTERN
from bundle.strict_json import JSON, StrictObject

if TYPE_CHECKING:
    from bundle.vital import Vital  # not in memory at rest

MAX_RANGES: Final = 8
MAX_BATCH_REPORTS: Final = 64  # some 60 kB of lines in one request


@dataclass(frozen=True, slots=True)
class SentPosition:
    """The part of a log that the collector has.

    Attributes:
        log: the log.
        highest: highest number of a report.
        missing: ranges of missing numbers below it, as (first, last).
        vital: highest number of a vital.
    """

    log: str
    highest: int = 0
    missing: tuple[tuple[int, int], ...] = ()
    vital: int = 0

    def unsent_reports(self, reports: Sequence[DeviceReport]) -> list[DeviceReport]:
        """Return the reports that the collector does not have, oldest first, at most MAX_BATCH_REPORTS."""
        wanted = [
            report
            for report in reports
            if report.log == self.log
            and (report.sequence > self.highest or any(a <= report.sequence <= b for a, b in self.missing))
        ]
        return wanted[:MAX_BATCH_REPORTS]

    def is_vital_unsent(self, vital: "Vital | None") -> bool:
        """Return whether a vital is one that the collector does not have."""
        return vital is not None and vital.log == self.log and vital.number > self.vital

    def as_json(self) -> dict[str, JSON]:
        """Return the journal record."""
        return {
            "log": self.log,
            "highest": self.highest,
            "missing": [list(one) for one in self.missing],
            "vital": self.vital,
        }

    @classmethod
    def parse(cls, fields: StrictObject) -> "SentPosition":
        """Parse the output of `as_json`, or the part of an answer about a log with `log` added.

        Raises:
            Malformed: a field is missing or out of range.
        """
        ranges = fields.value("missing")
        if not isinstance(ranges, list) or len(ranges) > MAX_RANGES:
            raise Malformed(f"{fields.where}.missing: expected at most {MAX_RANGES} ranges")
        missing: list[tuple[int, int]] = []
        for one in ranges:
            match one:
                case [int(first), int(last)] if 0 < first <= last:
                    missing.append((first, last))
                case _:
                    raise Malformed(f"{fields.where}.missing: found {one!r}, expected a first and a last number")
        return cls(
            fields.text("log", LOG_ID_PATTERN), fields.integer("highest"), tuple(missing), fields.integer("vital")
        )
