"""Progress of a search whose number of trials is not known in advance.

The total is what is planned so far: a repair adds its trials when it begins, so that the share can fall once. The unit
is one candidate that is built and judged.
"""

from dataclasses import dataclass

from bundle.console import Progress


def _ignore(_done: int, _total: int) -> None:
    """Take the progress, and do nothing with it."""


@dataclass(slots=True)
class SearchProgress:
    """Counts the planned and the finished units, and reports them.

    Attributes:
        report: receives (done, total).
        done: finished units.
        total: planned units.
    """

    report: Progress = _ignore
    done: int = 0
    total: int = 0

    def plan(self, units: int) -> None:
        """Add units that will follow."""
        self.total += units
        self.report(self.done, self.total)

    def step(self) -> None:
        """Report one finished unit; an unplanned one raises the total."""
        self.done += 1
        self.total = max(self.total, self.done + 1)  # `finish` alone ends it
        self.report(self.done, self.total)

    def finish(self) -> None:
        """Report that everything is done."""
        self.done = self.total = max(self.total, 1)
        self.report(self.done, self.total)
