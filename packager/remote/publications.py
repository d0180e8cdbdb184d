"""Publication records of a store, beside the published files: who published what and when.

    publisher/publications.json            snapshot version → Unix time of its publication
    publisher/publishers/<SHA-256>.json    who made the timestamp of this digest
    publisher/snapshots.json               the documents of recent snapshots (packager.repository.archives)
    publisher/conditional-put              a file to try conditional puts on

Rules:
- A publisher writes its name before it swaps the timestamp, so the loser of a race can name the winner.
- A publication is recorded after its swap. If a publisher ends between the two, the next one records it before its own
  swap: so a publication is always in the list before it is replaced, and garbage is judged by the list.
- Devices never read these files, and they contain no secret. Names of users and machines are in them: do not make the
  folder `publisher/` public.
"""

import hashlib
import json
import time
from typing import Final

from packager.repository.layout import MAX_PUBLICATION_TIMES, RepositoryLayout, describe_process
from packager.stores.store import PRIVATE, ReadableStore, Store

RECORDS: Final = "publisher/"
PUBLISHERS: Final = "publisher/publishers/"
PUBLICATIONS: Final = "publisher/publications.json"
SNAPSHOTS: Final = "publisher/snapshots.json"
MAX_TRIES: Final = 100


def read_publications(store: ReadableStore) -> dict[int, int]:
    """Return snapshot version → Unix time of its publication, as far as the store has records."""
    found = store.read(PUBLICATIONS)
    return {} if found is None else _parse(found.data)


def record_publication(store: Store, snapshot_version: int) -> None:
    """Add a publication to the store's list, unless it is there already.

    Args:
        store: the store.
        snapshot_version: version of the published snapshot.
    """
    for _ in range(MAX_TRIES):
        found = store.read(PUBLICATIONS)
        times = {} if found is None else _parse(found.data)
        if snapshot_version in times:
            return
        times[snapshot_version] = int(time.time())
        newest = sorted(times.items())[-MAX_PUBLICATION_TIMES:]
        data = json.dumps({str(version): at_s for version, at_s in newest}).encode()
        if store.swap(PUBLICATIONS, data, None if found is None else found.version, PRIVATE):
            return


def record_publisher(store: Store, timestamp: bytes) -> None:
    """Write down that this process made a timestamp.

    Args:
        store: the store.
        timestamp: the bytes of the timestamp.
    """
    record = {"by": describe_process(), "at_s": int(time.time())}
    store.put(_publisher_path(timestamp), json.dumps(record).encode(), PRIVATE)


def describe_publisher(store: ReadableStore, timestamp: bytes) -> str:
    """Return who made a timestamp and when, as text.

    Args:
        store: the store.
        timestamp: the bytes of the timestamp.
    """
    found = store.read(_publisher_path(timestamp))
    try:
        record = json.loads(b"" if found is None else found.data)
        return f"by {record['by']} at Unix time {record['at_s']}"
    except (ValueError, KeyError, TypeError):
        return "by an unknown publisher"


def save_snapshots(store: Store, layout: RepositoryLayout) -> None:
    """Copy the record of recent snapshots to the store.

    Args:
        store: the store.
        layout: the repository's paths.
    """
    if layout.recorded_snapshots.is_file():
        store.put(SNAPSHOTS, layout.recorded_snapshots.read_bytes(), PRIVATE)


def _publisher_path(timestamp: bytes) -> str:
    return f"{PUBLISHERS}{hashlib.sha256(timestamp).hexdigest()}.json"


def _parse(data: bytes) -> dict[int, int]:
    try:
        return {int(version): int(at_s) for version, at_s in json.loads(data).items()}
    except (ValueError, TypeError, AttributeError):
        return {}
