"""What a repository no longer needs.

Rules:
1. Every root stays forever: a device that was offline for years walks them all.
2. Of other metadata the published version stays, and what is younger than the grace period: a device may be in the
   middle of a check.
3. Blobs, manifests, rollouts, fleet documents and content envelopes that nothing listed names go, after the grace
   period: a release in the making puts its blobs before its manifest.
4. Cohort envelopes of past epochs go.
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
    """What was, or would be, removed: paths below `published/`, sorted, and their bytes."""

    removed: tuple[str, ...]
    freed_bytes: int
    is_dry_run: bool

    def as_json(self) -> dict[str, object]:
        """For `--json`."""
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
    """All rules.

    Args:
        layout, published: of the repository.
        releases: all that are listed or staged.
        epochs: cohort → current epoch.
        dry_run: only say what would go.
        grace_s: instead of GRACE_S.
    """
    before = time.time() - (GRACE_S if grace_s is None else grace_s)
    wanted = _referenced_paths(published, releases)
    doomed = []
    for path in _list_files(layout.published):
        relative = path.relative_to(layout.published)
        if str(relative) in wanted or path.stat().st_mtime > before or _is_root(relative):
            continue
        if relative.parts[0] == "envelopes" and not _is_outdated(relative, releases, epochs):
            continue
        doomed.append(path)
    freed = sum(path.stat().st_size for path in doomed)
    names = tuple(path.relative_to(layout.published).as_posix() for path in doomed)
    if not dry_run:
        for path in doomed:
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
