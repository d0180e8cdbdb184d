"""A collector process that can be killed at any moment: `python -m tests.support.fleet_collector URL BATCHES`.

It takes the files of a folder, one batch each, and renames a file when its batch is committed. What was renamed was
answered; a batch that was cut off is taken again by whoever comes next.
"""

import sys
from pathlib import Path

from fleet.database import Database
from fleet.ingest import ingest
from tests.support.device_reports import REPOSITORY

DONE = ".done"


def main(url: str, folder: Path, names: list[str]) -> None:
    """Take batches in the order of their names."""
    database = Database(url, REPOSITORY)
    for name in names:
        path = folder / name
        if path.exists():
            ingest(database, path.read_bytes().splitlines())
            path.rename(path.with_suffix(DONE))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3:])
