"""Delete from a registry what no publication that devices may see names.

Theory of operation. A registry deletes blobs that no manifest names, in its own time. So garbage is a matter of tags: a
publication `p-N` is in use while devices may see its timestamp, that is until the grace period after the push of its
successor. The tag of a file is garbage if a publication that goes names it, and none that stays.

Rules:
1. Tags of files go first, then `p-N`: after an interruption, the next run finds what is left.
2. A tag that no publication names stays: it may belong to a push under way. So do the publications after the timestamp,
   and each root, which devices that were offline read one after the other.
3. Manifests are deleted by digest, which removes all their tags. A manifest that a tag that stays also names is kept.
4. The timestamp is read again before each deletion: if another publication was pushed, the run ends.
"""

import re
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Final

from bundle.registry_paths import place_of
from packager.errors import PublishConflict, RepositoryMissing
from packager.remote.push import CONNECTIONS, FIRST_ROOT, versions_of
from packager.remote.registry_store import PublicationIndex, read_index, read_inline
from packager.remote.upload import ROOT_PATTERN, TIMESTAMP
from packager.repository.garbage_collection import FileDecision, GarbageReport
from packager.stores.errors import StoreOtherRepository
from packager.stores.registry_client import RegistryClient

PUBLICATION_PATTERN: Final = re.compile(r"p-([0-9]{1,18})")
IN_USE: Final = "a publication that devices may see names it"
NO_LONGER: Final = "every publication that names it was replaced before the grace period"


def collect_registry_garbage(
    client: RegistryClient, first_root: bytes, *, dry_run: bool, grace_s: int
) -> GarbageReport:
    """Delete the tags of a registry that devices no longer need.

    Args:
        client: the registry.
        first_root: the repository's first root, as it was verified.
        dry_run: delete nothing.
        grace_s: keep what fell out of use less than this many seconds ago.

    Returns:
        A decision on each file that a publication of the registry names, and on each `p-N`.

    Raises:
        RepositoryMissing: the registry has no publication.
        StoreOtherRepository: the registry has another repository.
        PublishConflict: another publication was pushed meanwhile.
        RegistryDeletesDisabled: the registry does not delete manifests.
    """
    timestamp = read_inline(client, TIMESTAMP)
    if timestamp is None:
        raise RepositoryMissing(f"{client.url} has no {TIMESTAMP}", hint="correct the URL, or push to it first")
    if read_inline(client, FIRST_ROOT) != first_root:
        raise StoreOtherRepository(f"{client.url}: {FIRST_ROOT} is that of another repository")
    tags = client.list_tags()
    indexes = {
        int(found[1]): index
        for tag in tags
        if (found := PUBLICATION_PATTERN.fullmatch(tag)) and (index := read_index(client, tag)) is not None
    }
    kept = publications_in_use(indexes, versions_of(timestamp)[0], time.time() - grace_s)
    kept_paths = {path for version in kept for path in indexes[version].files}
    named = {path: size for index in indexes.values() for path, (_, size) in index.files.items()}
    files = [
        _decide(path, path in kept_paths or bool(ROOT_PATTERN.fullmatch(path)), named[path]) for path in sorted(named)
    ]
    listings = [_decide(f"p-{version}", version in kept, 0) for version in sorted(indexes)]
    report = GarbageReport((*files, *listings), dry_run)
    if not dry_run:
        gone = [place_of(file.path).tag for file in files if not file.is_kept]
        file_tags = [tag for tag in gone if tag in tags]
        ended = [listing.path for listing in listings if not listing.is_kept]
        protected = _digests(client, tags - {*file_tags, *ended})
        for tag in (*file_tags, *ended):
            if read_inline(client, TIMESTAMP) != timestamp:
                raise PublishConflict(
                    f"{client.url}: another publication was pushed meanwhile, so nothing more is deleted",
                    hint="run it again",
                )
            digest = client.manifest_digest(tag)
            if digest is not None and digest not in protected:
                client.delete_manifest(digest)
    return report


def publications_in_use(indexes: dict[int, PublicationIndex], current: int, cutoff_s: float) -> set[int]:
    """Return the timestamp versions of the publications that devices may see.

    Args:
        indexes: timestamp version → what the publication names.
        current: version of the timestamp that the registry has.
        cutoff_s: what was replaced after this Unix time is in use.
    """
    versions = sorted(indexes)
    replaced_s = {version: indexes[successor].pushed_s for version, successor in pairwise(versions)}
    return {version for version in versions if version >= current or replaced_s[version] > cutoff_s}


def _decide(path: str, is_kept: bool, size: int) -> FileDecision:
    return FileDecision(path, is_kept, IN_USE if is_kept else NO_LONGER, size)


def _digests(client: RegistryClient, tags: Iterable[str]) -> set[str]:
    with ThreadPoolExecutor(CONNECTIONS, thread_name_prefix="digests") as pool:
        return {digest for digest in pool.map(client.manifest_digest, sorted(tags)) if digest is not None}
