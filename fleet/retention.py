"""Delete old lines. The daily sums, the standings and the state of each log stay.

After a line is deleted, its log still says that it came, so that a repeat is known and counts nothing.
"""

from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import delete

from fleet.database import Database
from fleet.tables import FORK, REPORT, VITAL

DAY_S: Final = 86_400
REPORT_DAYS: Final = 400
VITAL_DAYS: Final = 45  # a vital replaces the one before it; a census needs the last weeks


@dataclass(frozen=True, slots=True)
class Forgotten:
    """The numbers of deleted lines."""

    reports: int
    vitals: int
    forks: int

    def as_json(self) -> dict[str, Any]:
        """Return the JSON object of `fleet forget --json`."""
        return {"reports": self.reports, "vitals": self.vitals, "forks": self.forks}


def forget(
    database: Database, now_s: int, *, report_days: int = REPORT_DAYS, vital_days: int = VITAL_DAYS
) -> Forgotten:
    """Delete the lines that were received before a number of days.

    Args:
        database: the store.
        now_s: the time, Unix seconds.
        report_days: age of reports and contradicting lines, in days.
        vital_days: age of vitals, in days.

    Raises:
        FleetStoreUnavailable: the store cannot be written.
    """
    with database.write() as connection:
        counts = []
        for table, days in ((REPORT, report_days), (VITAL, min(vital_days, report_days)), (FORK, report_days)):
            found = connection.execute(delete(table).where(table.c.received_s < now_s - days * DAY_S))
            counts.append(found.rowcount)
    return Forgotten(*counts)
