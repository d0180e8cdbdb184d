"""A repository whose master copy is a store: for machines without a disk of their own.

Theory of operation. The publication is pulled into a temporary folder: metadata and targets, no blobs and no envelopes.
The ordinary commands work on that folder. What they publish is pushed to the store by compare-and-swap, before the
folder's own timestamp is written: if another publisher was first, nothing changes, and the error names it.

Rules:
- A command that signs needs the trusted first root: `--root FILE`, else $PACKAGER_ROOT (packager.remote.pull, rule 1).
- The device registry, plain bundles, content keys and staged changes are not in the store. What needs them, such as a
  release, needs a folder.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from bundle.local_files import read_local_file
from bundle.repository_paths import blob_path
from bundle.trust.updater import MAX_ROOT_BYTES
from packager.errors import InvalidUsage, PublishConflict, RepositoryDamaged
from packager.remote.publications import PUBLISHERS, RECORDS, read_publications, record_publication
from packager.remote.pull import pull_documents
from packager.remote.push import OnProgress, Timestamps, push, read_timestamps, versions_of
from packager.remote.registry_store import RegistryStore, open_readable_store
from packager.remote.upload import TIMESTAMP
from packager.repository.garbage_collection import GarbageReport, paths_in_use, plan_garbage
from packager.repository.layout import write_publications
from packager.repository.repository import Repository
from packager.stores.open_store import open_store
from packager.stores.store import ReadableStore, Store

MIN_GRACE_S: Final = 3600  # longer than a push may rely on a file that no publication names
ROOT_HINT: Final = "name the 1.root.json that devices were given: --root FILE, or $PACKAGER_ROOT"
MAX_DELETED_AT_ONCE: Final = 1000
MIN_PUBLISHER_AGE_S: Final = 30 * 86_400  # so long, the publisher of a timestamp is known


@contextmanager
def open_repository(repo: Path | str, root: Path | None = None, *, is_signing: bool = False) -> Iterator[Repository]:
    """Open a repository's folder, or pull one from a store into a temporary folder.

    Args:
        repo: the folder, or the URL of a store.
        root: file of the trusted first root; None if there is none.
        is_signing: the command signs, so a store needs `root`.

    Raises:
        RepositoryMissing: there is no repository.
        InvalidUsage: a command that signs has no trusted root.
        FileNotRegular: the trusted root is a FIFO, a device or a socket.
        TooLarge: the trusted root is longer than MAX_ROOT_BYTES.
        AirweightsError: the store failed, or its publication is not to be trusted.
    """
    if isinstance(repo, Path):
        yield Repository.open(repo)
        return
    if is_signing and root is None:
        raise InvalidUsage(f"{repo}: a command that signs needs the trusted root", hint=ROOT_HINT)
    store = open_store(repo) if is_signing else open_readable_store(repo)
    with TemporaryDirectory(prefix="airweights-repository-") as folder:
        repository = Repository(Path(folder))
        pull_documents(store, repository.layout, None if root is None else read_local_file(root, MAX_ROOT_BYTES))
        if not isinstance(store, RegistryStore):
            publish_to(repository, open_store(repo))
        yield repository


class PulledRepository:
    """A repository that is pulled again when its store has changed; use it in a `with` block.

    Args:
        url: URL of the store.
        root: file of the trusted first root; None if there is none.
        is_signing: changes are signed and published.
    """

    def __init__(self, url: str, root: Path | None, *, is_signing: bool) -> None:
        self._url, self._root, self._is_signing = url, root, is_signing
        self._stack = ExitStack()
        self._repository: Repository | None = None

    def __enter__(self) -> "PulledRepository":
        return self

    def __exit__(self, *_: object) -> None:
        self.forget()

    def refresh(self) -> Repository:
        """Return the repository as the store has it now.

        Raises:
            AirweightsError: as `open_repository`.
        """
        if self._repository is not None:
            found = open_readable_store(self._url).read(TIMESTAMP)
            if found is not None and found.data == read_timestamps(self._repository.layout).data:
                return self._repository
        self.forget()
        self._repository = self._stack.enter_context(
            open_repository(self._url, self._root, is_signing=self._is_signing)
        )
        return self._repository

    def forget(self) -> None:
        """Delete the pulled copy: a publication that failed may have left documents in it."""
        self._repository = None
        self._stack.close()


def publish_to(repository: Repository, store: Store, on_progress: OnProgress | None = None) -> None:
    """Let a repository publish to a store first.

    Args:
        repository: the repository.
        store: the store.
        on_progress: called with (bytes done, bytes in all).
    """

    def send(timestamp: bytes, compressed: bytes) -> None:
        push(repository.layout, store, Timestamps(timestamp, compressed), on_progress=on_progress)

    repository.send = send


def collect_store_garbage(repository: Repository, store: Store, *, dry_run: bool, grace_s: int) -> GarbageReport:
    """Delete the files of a store that devices no longer need.

    Args:
        repository: the pulled repository.
        store: its store.
        dry_run: delete nothing.
        grace_s: keep what fell out of use less than this many seconds ago.

    Raises:
        InvalidUsage: the grace period is shorter than MIN_GRACE_S.
    """
    if grace_s < MIN_GRACE_S:
        raise InvalidUsage(
            f"--grace-hours: found {grace_s // 3600}, expected at least {MIN_GRACE_S // 3600} for a store",
            hint="another publisher may be sending files that no publication names yet",
        )
    layout = repository.layout
    if not dry_run:
        record_publication(store, versions_of(read_timestamps(layout).data)[1])
        write_publications(layout, read_publications(store))
    listed = [(file.path, file.size, file.modified_s) for file in store.list_files().values()]
    releases = [manifest for family in repository.families() for manifest in repository.releases(family)]
    cohorts = {cohort.name: cohort for cohort in repository.fleet().cohorts}
    report = plan_garbage(
        layout,
        [row for row in listed if not row[0].startswith(RECORDS)],
        releases,
        cohorts,
        dry_run=dry_run,
        grace_s=max(grace_s, MIN_GRACE_S),
    )
    if not dry_run:
        old = [
            path for path, _, modified_s in listed if path.startswith(PUBLISHERS) and modified_s < _cutoff_s(grace_s)
        ]
        for batch in _batches([*report.removed, *old]):
            _check_unchanged(repository, store)
            store.delete(batch)
    return report


def _cutoff_s(grace_s: int) -> float:
    return time.time() - max(grace_s, MIN_PUBLISHER_AGE_S)


def _check_unchanged(repository: Repository, store: Store) -> None:
    found = store.read(TIMESTAMP)
    if found is None or found.data != read_timestamps(repository.layout).data:
        raise PublishConflict(
            f"{store.url}: another publisher published meanwhile, so nothing more is deleted", hint="run it again"
        )


def check_store_files(repository: Repository, store: ReadableStore) -> None:
    """Check that a store has every file of its publication, each blob with its signed size.

    Args:
        repository: the pulled repository.
        store: its store, or the registry.

    Raises:
        RepositoryDamaged: a file is missing, or has another size.
    """
    layout, listed = repository.layout, store.list_files()
    sizes: dict[str, int | None] = dict.fromkeys(
        sorted(paths_in_use(layout, versions_of(read_timestamps(layout).data)[1]))
    )
    for family in repository.families():
        for manifest in repository.releases(family):
            for patch in (patch for _, variant in manifest.variants for patch in variant.patches):
                if (path := blob_path(patch.blob)) in sizes:
                    sizes[path] = patch.size
    for path, size in sizes.items():
        if path not in listed:
            raise RepositoryDamaged(f"{store.url}/{path} is missing")
        if size is not None and listed[path].size != size:
            raise RepositoryDamaged(f"{store.url}/{path} has {listed[path].size} bytes, {size} are signed")
    if isinstance(store, RegistryStore) and (problem := store.find_missing(sizes)) is not None:
        raise RepositoryDamaged(problem)


def _batches(paths: Sequence[str]) -> Iterator[list[str]]:
    for start in range(0, len(paths), MAX_DELETED_AT_ONCE):
        yield list(paths[start : start + MAX_DELETED_AT_ONCE])
