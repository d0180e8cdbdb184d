"""Delete published files that devices no longer need.

- All roots stay forever: a device that was offline for years reads each of them in turn.
- Other metadata stays if it is published now, or younger than the grace period: a device may be in the middle of a
  check.
- Blobs, manifests, rollouts, fleet documents and content envelopes stay if a listed release, rollout or fleet document
  names them, or if they are younger than the grace period: a release stores its blobs before its manifest.
- Cohort envelopes of past epochs are deleted after the grace period.
"""

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tuf.api.metadata import Targets

from bundle.manifest import Manifest
from packager.repository.layout import RepositoryLayout
from packager.repository.published import PublishedDocuments
from packager.repository.tuf_documents import target_path

GRACE_S: Final = 86_400


@dataclass(frozen=True, slots=True)
class GarbageReport:
    """The files that were deleted, or would be.

    Attributes:
        removed: paths below `published/`, sorted.
        freed_bytes: their total size in bytes.
        is_dry_run: nothing was deleted.
    """

    removed: tuple[str, ...]
    freed_bytes: int
    is_dry_run: bool

    def as_json(self) -> dict[str, object]:
        """Return the JSON object for `--json`."""
        return {"removed": list(self.removed), "freed_bytes": self.freed_bytes, "dry_run": self.is_dry_run}


def collect_garbage(
    layout: RepositoryLayout,
    published: PublishedDocuments,
    releases: Sequence[Manifest],
    epochs: Mapping[str, int],
    *,
    dry_run: bool,
    grace_s: int | None = None,
) -> GarbageReport:
    """Delete the files below `published/` that nothing needs.

    Args:
        layout: the repository's paths; the caller has locked it.
        published: the published state, as devices see it now.
        releases: every release that is listed or staged.
        epochs: cohort → current epoch.
        dry_run: report the files to delete, but delete nothing.
        grace_s: keep files younger than this many seconds; None for GRACE_S.
    """
    cutoff_s = time.time() - (GRACE_S if grace_s is None else grace_s)
    referenced = _referenced_paths(published, releases)
    unused = []
    for path in _list_files(layout.published):
        relative = path.relative_to(layout.published)
        if str(relative) in referenced or path.stat().st_mtime > cutoff_s or _is_root(relative):
            continue
        if relative.parts[0] == "envelopes" and not _is_outdated(relative, releases, epochs):
            continue
        unused.append(path)
    freed = sum(path.stat().st_size for path in unused)
    names = tuple(path.relative_to(layout.published).as_posix() for path in unused)
    if not dry_run:
        for path in unused:
            path.unlink()
    return GarbageReport(names, freed, dry_run)


def _referenced_paths(published: PublishedDocuments, releases: Iterable[Manifest]) -> set[str]:
    out = {"metadata/timestamp.json"}
    out |= {f"metadata/{version}.{role}.json" for role, (version, _) in published.files.items()}
    for document in published.documents.values():
        if isinstance(document.signed, Targets):
            out |= {f"targets/{target_path(target)}" for target in document.signed.targets.values()}
    for manifest in releases:
        for _, variant in manifest.variants:
            out |= {f"blobs/{patch.blob[:2]}/{patch.blob}" for patch in variant.patches}
    return out


def _list_files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _is_root(relative: Path) -> bool:
    return relative.parts[0] == "metadata" and relative.name.endswith(".root.json")


def _is_outdated(relative: Path, releases: Sequence[Manifest], epochs: Mapping[str, int]) -> bool:
    match relative.parts:
        case ("envelopes", "content", family, counter, *_):
            return (family, counter) not in {(manifest.family, str(manifest.counter)) for manifest in releases}
        case ("envelopes", "cohorts", cohort, epoch, *_):
            return not epoch.isdigit() or int(epoch) < epochs.get(cohort, 0)
        case _:
            return True
