"""Push a publication to a store: everything that it names first, the timestamp last.

Theory of operation. As in a folder (packager.repository.publishing), a publication is the replacement of
`timestamp.json`. Devices see the old publication before it, and the new one after it, wherever the push is interrupted.
In a store, other publishers are not locked out, so `push` compares instead:

1. Read the store's timestamp and list its files. If the store's publication is neither this folder's own nor an earlier
   one of it, another publisher was first: PublishConflict.
2. Send the files that the publication needs and the store lacks, in the order of packager.remote.upload. A document
   that exists with other bytes was written by another publisher, who may still swap: PublishConflict.
3. Swap the timestamp, if it is still the one of step 1. Of two publishers one wins; the other one reads who it was.
4. Replace the compressed timestamp, unless a newer one is there, and record the publication.

Rules:
- A file counts as present only if the store's publication names it, or if it is younger than FRESH_S. Any other file
  may be garbage that is being collected, so it is sent again; garbage collection leaves young files alone.
- A push that took longer than FRESH_S lists the files again before the swap.
- An unchanged repository costs one listing, the timestamp, and its copy.
"""

import hashlib
import json
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from enum import Enum
from typing import Final

from packager.errors import PublishConflict, RepositoryDamaged, RepositoryMissing
from packager.remote.publications import (
    PUBLICATIONS,
    describe_publisher,
    record_publication,
    record_publisher,
    save_snapshots,
)
from packager.remote.upload import COMPRESSED_TIMESTAMP, TIMESTAMP, TIMESTAMPS, UploadFile, list_upload_files
from packager.repository.garbage_collection import paths_in_use
from packager.repository.layout import RepositoryLayout, write_file
from packager.stores.errors import StoreOtherRepository
from packager.stores.store import SHORT_LIVED, Store, StoredContent, StoredFile

FRESH_S: Final = 900.0
CONNECTIONS: Final = 16
MAX_TIMESTAMP_TRIES: Final = 20
FIRST_ROOT: Final = "metadata/1.root.json"
OnProgress = Callable[[int, int], None]  # bytes done, bytes in all


class _Action(Enum):
    NONE = 0  # the store has the file
    CREATE = 1
    PUT = 2


@dataclass(frozen=True, slots=True)
class Timestamps:
    """The timestamp of a publication.

    Attributes:
        data: the timestamp.
        compressed: its compressed copy; None if there is none.
    """

    data: bytes
    compressed: bytes | None

    @property
    def version(self) -> int:
        """Version of the timestamp."""
        return versions_of(self.data)[0]

    @property
    def snapshot_version(self) -> int:
        """Version of the snapshot that it names."""
        return versions_of(self.data)[1]


@dataclass(frozen=True, slots=True)
class PushReport:
    """The result of a push.

    Attributes:
        url: the store.
        timestamp_version: version of the pushed timestamp.
        replaced_version: version of the timestamp that the store had; 0 if it had none.
        sent: paths of the files that were sent, or would be, the timestamp included.
        sent_bytes: their size.
        present: number of files that the store had already.
        is_dry_run: nothing was sent.
    """

    url: str
    timestamp_version: int
    replaced_version: int
    sent: tuple[str, ...]
    sent_bytes: int
    present: int
    is_dry_run: bool

    def as_json(self) -> dict[str, object]:
        """Return the JSON object for `--json`."""
        return {
            "url": self.url,
            "timestamp_version": self.timestamp_version,
            "replaced_version": self.replaced_version,
            "sent": list(self.sent),
            "sent_bytes": self.sent_bytes,
            "present": self.present,
            "dry_run": self.is_dry_run,
        }


def read_timestamps(layout: RepositoryLayout) -> Timestamps:
    """Return the timestamp of a folder's publication.

    Raises:
        RepositoryMissing: nothing is published.
    """
    try:
        data = (layout.published / TIMESTAMP).read_bytes()
    except FileNotFoundError as error:
        raise RepositoryMissing(f"nothing is published in {layout.root}") from error
    compressed = layout.published / COMPRESSED_TIMESTAMP
    return Timestamps(data, compressed.read_bytes() if compressed.is_file() else None)


def push(
    layout: RepositoryLayout,
    store: Store,
    timestamps: Timestamps,
    *,
    is_dry_run: bool = False,
    on_progress: OnProgress | None = None,
) -> PushReport:
    """Send a publication to a store.

    Args:
        layout: paths of the repository; all files but the timestamp are read from there.
        store: the store.
        timestamps: the timestamp of the publication.
        is_dry_run: send nothing.
        on_progress: called with (bytes done, bytes in all).

    Raises:
        PublishConflict: the store has another publication, or another publisher is about to replace it.
        StoreOtherRepository: the store has another repository.
        RepositoryDamaged: a file of the publication is neither in the folder nor in the store.
        AirweightsError: the store failed (packager.stores.errors).
    """
    started_s = time.monotonic()
    before = store.read(TIMESTAMP)
    known = _check_successor(layout, store, timestamps, before)
    listed = store.list_files()
    needed = paths_in_use(layout, timestamps.snapshot_version) - set(TIMESTAMPS)
    files = list(list_upload_files(layout, needed))
    missing = needed - {file.path for file in files} - set(listed)
    missing = {path for path in missing if not path.startswith("metadata/archives/")}
    if missing:
        raise RepositoryDamaged(f"published file {layout.published / min(missing)} is missing, and not in {store.url}")
    actions = {file: _choose_action(store, file, listed.get(file.path), known) for file in files}
    to_send = {file: action for file, action in actions.items() if action is not _Action.NONE}
    is_current = before is not None and before.data == timestamps.data
    stamps = [] if is_current else [TIMESTAMP]
    if timestamps.compressed is not None and not (is_current and _has_copy(store, timestamps, listed)):
        stamps.append(COMPRESSED_TIMESTAMP)
    report = PushReport(
        url=store.url,
        timestamp_version=timestamps.version,
        replaced_version=0 if before is None else versions_of(before.data)[0],
        sent=(*(file.path for file in to_send), *stamps),
        sent_bytes=sum(file.size for file in to_send) + (0 if is_current else len(timestamps.data)),
        present=len(files) - len(to_send),
        is_dry_run=is_dry_run,
    )
    if is_dry_run:
        return report
    if not is_current:
        store.check_conditional_puts()
        record_publisher(store, timestamps.data)
        if before is not None:
            record_publication(store, versions_of(before.data)[1])
    _send(store, to_send, on_progress)
    if not is_current:
        if time.monotonic() - started_s > FRESH_S:
            _check_all_there(store, needed)
        _swap_timestamp(store, timestamps.data, before)
    if stamps:
        _replace_copy(store, timestamps)
    if stamps or not _has_record(listed):
        record_publication(store, timestamps.snapshot_version)
        save_snapshots(store, layout)
    record_push(layout, store.url, timestamps.data)
    return report


def _check_successor(
    layout: RepositoryLayout, store: Store, timestamps: Timestamps, before: StoredContent | None
) -> set[str]:
    """Return the paths that the store's publication names, after checking that this one may follow it."""
    if before is None:
        return set()
    version, snapshot_version, digest = versions_of(before.data)
    if before.data != timestamps.data:
        first = store.read(FIRST_ROOT)
        if first is not None and first.data != (layout.published / FIRST_ROOT).read_bytes():
            raise StoreOtherRepository(f"{store.url}: {FIRST_ROOT} is that of another repository")
    snapshot = layout.metadata / f"{snapshot_version}.snapshot.json"
    is_here = snapshot.is_file() and hashlib.sha256(snapshot.read_bytes()).hexdigest() == digest
    was_pushed = pushed_digest(layout, store.url) == hashlib.sha256(before.data).hexdigest()
    is_newer = version >= timestamps.version and before.data != timestamps.data
    if is_newer or not (is_here or was_pushed):
        raise PublishConflict(
            f"{store.url} has timestamp {version}, published {describe_publisher(store, before.data)},"
            f" and this one is timestamp {timestamps.version}, which does not follow it",
            hint=f"run `packager repo pull {store.url}`, then sign and publish again",
        )
    return paths_in_use(layout, snapshot_version) if is_here else set()


def _choose_action(store: Store, file: UploadFile, stored: StoredFile | None, known: set[str]) -> _Action:
    """Return how a file is sent, if at all; `known` are the paths that the store's publication names."""
    may_replace = file.is_named_by_digest or file.is_mutable
    if stored is None:
        return _Action.PUT if may_replace else _Action.CREATE
    is_same = stored.size == file.size and not (file.is_mutable and file.modified_s > stored.modified_s)
    is_young = time.time() - stored.modified_s < FRESH_S
    if file.path in known or may_replace:
        return _Action.NONE if is_same and (file.path in known or is_young) else _Action.PUT
    found = store.read(file.path)
    if found is None:
        return _Action.CREATE
    _check_same(store, file, found)
    return _Action.NONE if is_young else _Action.PUT


def _check_same(store: Store, file: UploadFile, found: StoredContent) -> None:
    if found.data != file.local.read_bytes():
        raise PublishConflict(
            f"{store.url}/{file.path}: another publisher wrote this file with other content, and is publishing now or"
            " was interrupted",
            hint=f"run `packager repo pull {store.url}`, then sign and publish again",
        )


def _has_copy(store: Store, timestamps: Timestamps, listed: Mapping[str, StoredFile]) -> bool:
    """Return whether the store has the compressed copy of its timestamp; a copy written later is not read."""
    copy, stamp = listed.get(COMPRESSED_TIMESTAMP), listed.get(TIMESTAMP)
    if copy is None or stamp is None or copy.size != len(timestamps.compressed or b""):
        return False
    found = None if copy.modified_s > stamp.modified_s else store.read(COMPRESSED_TIMESTAMP)
    return found is None or found.data == timestamps.compressed


def _has_record(listed: Mapping[str, StoredFile]) -> bool:
    record, stamp = listed.get(PUBLICATIONS), listed.get(TIMESTAMP)
    return record is not None and stamp is not None and record.modified_s >= stamp.modified_s


def _send(store: Store, files: Mapping[UploadFile, _Action], on_progress: OnProgress | None) -> None:
    done_bytes, total_bytes = 0, sum(file.size for file in files)
    with ThreadPoolExecutor(CONNECTIONS, thread_name_prefix="push") as pool:
        for group in sorted({file.group for file in files}):
            tasks = [
                (one, pool.submit(_send_file, store, one, how)) for one, how in files.items() if one.group == group
            ]
            try:
                for file, task in tasks:
                    task.result()
                    done_bytes += file.size
                    if on_progress is not None:
                        on_progress(done_bytes, total_bytes)
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise


def _send_file(store: Store, file: UploadFile, action: _Action) -> None:
    if action is _Action.PUT:
        store.put(file.path, file.local, file.cache_control)
    elif not store.create(file.path, file.local, file.cache_control):
        found = store.read(file.path)  # ours, if the answer to an earlier attempt was lost
        if found is None:
            raise PublishConflict(f"{store.url}/{file.path} was deleted during the push", hint="run the command again")
        _check_same(store, file, found)


def _check_all_there(store: Store, needed: set[str]) -> None:
    listed = store.list_files()
    for path in sorted(needed):
        if path not in listed and not path.startswith("metadata/archives/"):
            raise PublishConflict(f"{store.url}/{path} was deleted during the push", hint="run the command again")


def _swap_timestamp(store: Store, data: bytes, before: StoredContent | None) -> None:
    if store.swap(TIMESTAMP, data, None if before is None else before.version, SHORT_LIVED):
        return
    found = store.read(TIMESTAMP)
    if found is not None and found.data == data:
        return  # ours: the answer to an earlier attempt was lost
    version = "none" if found is None else str(versions_of(found.data)[0])
    who = "" if found is None else f", published {describe_publisher(store, found.data)}"
    raise PublishConflict(
        f"{store.url}: another publisher was first: the store has timestamp {version}{who}",
        hint="check what was published, and repeat the change if it still applies",
    )


def _replace_copy(store: Store, timestamps: Timestamps) -> None:
    """Replace the compressed timestamp unless the store has gone on meanwhile."""
    for _ in range(MAX_TIMESTAMP_TRIES if timestamps.compressed is not None else 0):
        copy, stamp = store.read(COMPRESSED_TIMESTAMP), store.read(TIMESTAMP)
        if stamp is None or stamp.data != timestamps.data:
            return  # the next publisher replaces it
        if copy is not None and copy.data == timestamps.compressed:
            return
        data, version = timestamps.compressed or b"", None if copy is None else copy.version
        if store.swap(COMPRESSED_TIMESTAMP, data, version, SHORT_LIVED):
            return


def pushed_digest(layout: RepositoryLayout, url: str) -> str:
    """Return the SHA-256 of the timestamp that this folder last pushed to or pulled from a URL, or "".

    Args:
        layout: the repository's paths.
        url: the store.
    """
    try:
        return str(json.loads(layout.pushes.read_bytes()).get(url, ""))
    except (OSError, ValueError, AttributeError):
        return ""


def record_push(layout: RepositoryLayout, url: str, timestamp: bytes) -> None:
    """Remember the timestamp that a store has from this folder, or that this folder has from the store.

    Args:
        layout: the repository's paths.
        url: the store.
        timestamp: the bytes of the timestamp.
    """
    try:
        pushes = dict(json.loads(layout.pushes.read_bytes()))
    except (OSError, ValueError, TypeError):
        pushes = {}
    digest = hashlib.sha256(timestamp).hexdigest()
    if pushes.get(url) != digest:
        write_file(layout.pushes, json.dumps({**pushes, url: digest}).encode())


def versions_of(timestamp: bytes) -> tuple[int, int, str]:
    """Return the version of a timestamp, and version and SHA-256 of its snapshot."""
    try:
        signed = json.loads(timestamp)["signed"]
        meta = signed["meta"]["snapshot.json"]
        return int(signed["version"]), int(meta["version"]), str(meta["hashes"]["sha256"])
    except (ValueError, KeyError, TypeError) as error:
        raise RepositoryDamaged("the timestamp in the store is not one of a repository") from error
