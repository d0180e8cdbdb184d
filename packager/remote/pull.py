"""Pull a publication from a store, and verify it.

Rules:
1. A store is not trusted. The chain of roots is verified from a trusted first root, and every document by its role's
   keys, before anything is built on them. Without a trusted root, anybody who can write to the store could have a
   document of their choice signed.
2. Only freshness is the store's word: it can show an older publication. Devices refuse what is built on it, because its
   versions are too low.
3. Into a folder, a publication is pulled only if it follows the folder's own one, unless `is_replacing`. Files are
   written in the order of a publication, the timestamp last.
4. A document that no publication names yet is pulled, too: the next version of its role must not use its name again.
"""

import hashlib
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from tuf.api.metadata import Metadata, Root

from packager.errors import PublishConflict, RepositoryDamaged, RepositoryMissing
from packager.remote.publications import SNAPSHOTS, describe_publisher, read_publications
from packager.remote.push import CONNECTIONS, FIRST_ROOT, OnProgress, Timestamps, record_push, versions_of
from packager.remote.upload import COMPRESSED_TIMESTAMP, TIMESTAMP, TIMESTAMPS
from packager.repository.garbage_collection import paths_in_use
from packager.repository.layout import RepositoryLayout, make_folder, sync_directory, write_file, write_publications
from packager.repository.published import PublishedDocuments, check_signatures
from packager.stores.errors import PublicationUntrusted, StoreOtherRepository
from packager.stores.store import ReadableStore, StoredFile

DOCUMENT_FOLDERS: Final = ("metadata/", "targets/")


@dataclass(frozen=True, slots=True)
class PullReport:
    """The result of a pull.

    Attributes:
        url: the store.
        timestamp_version: version of the pulled timestamp.
        received: paths of the files that were written, or would be.
        received_bytes: their size.
        present: number of files that the folder had already.
        is_dry_run: nothing was written.
    """

    url: str
    timestamp_version: int
    received: tuple[str, ...]
    received_bytes: int
    present: int
    is_dry_run: bool

    def as_json(self) -> dict[str, object]:
        """Return the JSON object for `--json`."""
        return {
            "url": self.url,
            "timestamp_version": self.timestamp_version,
            "received": list(self.received),
            "received_bytes": self.received_bytes,
            "present": self.present,
            "dry_run": self.is_dry_run,
        }


def pull_documents(store: ReadableStore, layout: RepositoryLayout, trusted_root: bytes | None) -> Timestamps:
    """Pull metadata and targets into an empty repository folder, with the store's records; verify them.

    Args:
        store: the store.
        layout: paths of the folder.
        trusted_root: the first root, as devices were given it; None to verify signatures by the store's own.

    Raises:
        RepositoryMissing: the store has no publication.
        StoreOtherRepository: the first root is not the trusted one.
        PublicationUntrusted: a document lacks signatures.
        RepositoryDamaged: a document is missing, or not the one that is named.
    """
    timestamps = _read_timestamps(store)
    listed = store.list_files()
    _check_paths(listed)
    wanted = [
        file
        for file in listed.values()
        if file.path.startswith(DOCUMENT_FOLDERS) and file.path not in TIMESTAMPS and "/archives/" not in file.path
    ]
    layout.create()
    _download(store, layout.published, wanted, None)
    write_file(layout.published / TIMESTAMP, timestamps.data)
    snapshots = store.read(SNAPSHOTS) if SNAPSHOTS in listed else None
    if snapshots is not None:
        write_file(layout.recorded_snapshots, snapshots.data)
    write_publications(layout, read_publications(store))
    _verify(store, layout, trusted_root)
    record_push(layout, store.url, timestamps.data)
    return timestamps


def pull(
    store: ReadableStore,
    layout: RepositoryLayout,
    trusted_root: bytes | None,
    *,
    is_dry_run: bool = False,
    is_replacing: bool = False,
    on_progress: OnProgress | None = None,
) -> PullReport:
    """Pull a whole publication into a repository's folder, blobs and envelopes included.

    Args:
        store: the store.
        layout: paths of the folder; the caller has locked it.
        trusted_root: the first root, as devices were given it; None for the folder's own, else the store's.
        is_dry_run: write nothing.
        is_replacing: discard the folder's publication if the store's does not follow it.
        on_progress: called with (bytes done, bytes in all).

    Raises:
        PublishConflict: the folder's publication is not an earlier one of the store.
        AirweightsError: as `pull_documents`.
    """
    own_root = layout.published / FIRST_ROOT
    if trusted_root is None and own_root.is_file():
        trusted_root = own_root.read_bytes()
    with TemporaryDirectory(prefix="airweights-pull-") as folder:
        pulled = RepositoryLayout(Path(folder))
        timestamps = pull_documents(store, pulled, trusted_root)
        if not is_replacing:
            _check_follows(store, layout, pulled, timestamps)
        listed = store.list_files()
        _check_paths(listed)
        in_use = paths_in_use(pulled, timestamps.snapshot_version)
        wanted = [
            file
            for file in listed.values()
            if (file.path in in_use or file.path.startswith((*DOCUMENT_FOLDERS, "envelopes/")))
            and file.path not in TIMESTAMPS
        ]
        for path in sorted(in_use - set(listed)):
            if path.startswith(("blobs/", "targets/")):
                raise RepositoryDamaged(f"{store.url}/{path} is missing")
        missing = [file for file in wanted if not _is_local(layout, pulled, file)]
        is_same = (layout.published / TIMESTAMP).is_file() and (
            layout.published / TIMESTAMP
        ).read_bytes() == timestamps.data
        report = PullReport(
            url=store.url,
            timestamp_version=timestamps.version,
            received=(*sorted(file.path for file in missing), *([] if is_same else [TIMESTAMP])),
            received_bytes=sum(file.size for file in missing) + (0 if is_same else len(timestamps.data)),
            present=len(wanted) - len(missing),
            is_dry_run=is_dry_run,
        )
        if not is_dry_run:
            _download(store, layout.published, missing, on_progress)
            for source in (pulled.recorded_snapshots, pulled.publications):
                if source.is_file():
                    write_file(layout.root / source.name, source.read_bytes())
            write_file(layout.published / TIMESTAMP, timestamps.data)
            if timestamps.compressed is not None:
                write_file(layout.published / COMPRESSED_TIMESTAMP, timestamps.compressed)
            record_push(layout, store.url, timestamps.data)
        return report


def _read_timestamps(store: ReadableStore) -> Timestamps:
    found = store.read(TIMESTAMP)
    if found is None:
        raise RepositoryMissing(f"{store.url} has no {TIMESTAMP}", hint="correct the URL, or push to it first")
    copy = store.read(COMPRESSED_TIMESTAMP)
    return Timestamps(found.data, None if copy is None else copy.data)


def _verify(store: ReadableStore, layout: RepositoryLayout, trusted_root: bytes | None) -> None:
    published = PublishedDocuments(layout)
    if trusted_root is not None and published.first_root != trusted_root:
        raise StoreOtherRepository(f"{store.url}: {FIRST_ROOT} is not the trusted root")
    before: Root | None = None
    for version in range(1, published.root_version + 1):
        path = layout.metadata / f"{version}.root.json"
        try:
            document = Metadata[Root].from_bytes(path.read_bytes())
        except (OSError, ValueError) as error:
            raise RepositoryDamaged(f"{store.url}: root {version} is missing or damaged") from error
        for signer in [document.signed] if before is None else [before, document.signed]:
            if not signer.get_verification_result("root", document.signed_bytes, document.signatures):
                raise PublicationUntrusted(f"{store.url}: root {version} lacks signatures of root {signer.version}")
        before = document.signed
    for role, document in published.documents.items():
        state = check_signatures(published, {}, role, document)
        if state.missing_signatures:
            raise PublicationUntrusted(
                f"{store.url}: {role} version {state.version} lacks {state.missing_signatures} signatures"
            )


def _check_follows(
    store: ReadableStore, layout: RepositoryLayout, pulled: RepositoryLayout, timestamps: Timestamps
) -> None:
    path = layout.published / TIMESTAMP
    if not path.is_file():
        return
    own = path.read_bytes()
    version, snapshot_version, digest = versions_of(own)
    snapshot = pulled.metadata / f"{snapshot_version}.snapshot.json"
    is_known = snapshot.is_file() and hashlib.sha256(snapshot.read_bytes()).hexdigest() == digest
    if own != timestamps.data and (version >= timestamps.version or not is_known):
        raise PublishConflict(
            f"the folder's timestamp {version} is not part of {store.url}, which has timestamp {timestamps.version},"
            f" published {describe_publisher(store, timestamps.data)}",
            hint="push the folder's publication, or discard it with `packager repo pull --replace`",
        )


def _is_local(layout: RepositoryLayout, pulled: RepositoryLayout, file: StoredFile) -> bool:
    path = layout.published / file.path
    if not path.is_file() or path.stat().st_size != file.size:
        return False
    if file.path.startswith("envelopes/"):
        return path.stat().st_mtime >= file.modified_s
    new = pulled.published / file.path
    return not new.is_file() or new.read_bytes() == path.read_bytes()


def _download(store: ReadableStore, folder: Path, files: Iterable[StoredFile], on_progress: OnProgress | None) -> None:
    wanted = sorted(files, key=lambda file: file.path.endswith((".root.json", ".snapshot.json")))
    done_bytes, total_bytes = 0, sum(file.size for file in wanted)
    with ThreadPoolExecutor(CONNECTIONS, thread_name_prefix="pull") as pool:
        tasks = [pool.submit(_download_file, store, folder / file.path, file.path) for file in wanted]
        try:
            for file, task in zip(wanted, tasks, strict=True):
                task.result()
                done_bytes += file.size
                if on_progress is not None:
                    on_progress(done_bytes, total_bytes)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _download_file(store: ReadableStore, target: Path, path: str) -> None:
    make_folder(target.parent)
    part = target.with_name(f".part-{target.name}")
    try:
        store.download(path, part)
        if path.startswith("blobs/"):
            with part.open("rb") as stream:
                digest = hashlib.file_digest(stream, "sha256").hexdigest()
            if digest != target.name:
                raise RepositoryDamaged(f"{store.url}/{path} has the SHA-256 {digest[:16]}…")
        part.chmod(0o644)
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)
    sync_directory(target.parent)


def _check_paths(files: Mapping[str, StoredFile]) -> None:
    for path in files:
        if any(part in ("", "..") or part.startswith(".") for part in path.split("/")):
            raise RepositoryDamaged(f"the store lists {path!r}, which is no path of a repository")
