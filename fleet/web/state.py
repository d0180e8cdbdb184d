"""The state of one server: the store, the repository as it was last read, and counts of this process."""

import asyncio
from dataclasses import dataclass, field
from typing import Final

from fleet.database import Database
from fleet.device_index import fill_devices
from fleet.rate_limit import TokenBuckets
from fleet.site import ReadSite, Site
from fleet.web.login import Login

REFRESH_S: Final = 3.0  # with the follower's interval, a halt is on the page within 10 seconds


@dataclass(slots=True)
class ServerState:
    """The state of one server.

    Attributes:
        database: the store.
        read_site: reads the facts of the repository.
        login: who may see single devices.
        site: the facts as they were last read.
        problem: one line about the last refresh that failed, or "".
        buckets: limits the lines of each sender and device.
        lines: lines since the start: new, known, refused.
        writing: one batch at a time is written.
        bodies_bytes: bytes of the bodies that are being received or stored.
    """

    database: Database
    read_site: ReadSite
    login: Login
    site: Site
    problem: str = ""
    buckets: TokenBuckets = field(default_factory=TokenBuckets)
    lines: dict[str, int] = field(default_factory=lambda: {"new": 0, "known": 0, "refused": 0})
    writing: asyncio.Lock = field(default_factory=asyncio.Lock)
    bodies_bytes: int = 0

    def refresh(self) -> None:
        """Read the repository again, and fill the table of devices if the registry changed."""
        self.site = self.read_site()
        fill_devices(self.database, self.site.registry, self.site.registry_digest)
        self.problem = ""

    def count(self, new: int, known: int, refused: int) -> None:
        """Add to the counts of this process.

        Args:
            new: lines that were stored.
            known: lines that were stored before.
            refused: lines that were refused.
        """
        for name, lines in (("new", new), ("known", known), ("refused", refused)):
            self.lines[name] += lines
