"""Delete published files that devices no longer need.

Theory of operation. A publication is in use while devices may see its timestamp: the newest one always, an older one
until the grace period after its successor, because caches serve it and a device may be in the middle of a check. The
time is that of the succeeding publication (packager.repository.layout), not the age of a file: what was published years
ago may have fallen out of use a minute ago. What the snapshot of a publication in use names stays, and what that names.

- All roots stay forever: a device that was offline for years reads each of them in turn.
- Every listed release stays with all its patches and envelopes, so late devices and devices that keep an older release
  can still update. To let go of a release, withdraw it.
- A file that no publication has named yet stays while it is younger than the grace period: a release stores its blobs
  before its manifest.
- The shards of cohort envelopes stay for the epochs and numbers of shards that a publication in use names, and for
  later ones.
- Each file has a reason, which `--dry-run` prints.
"""

import json
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import Metadata, Snapshot, Targets, Timestamp

from bundle.errors import AirweightsError
from bundle.fleet import FLEET_TARGET, Cohort, parse_fleet
from bundle.manifest import Manifest, parse_manifest
from bundle.repository_paths import roots_archive_path
from bundle.trust.role_names import is_plan_target
from packager.repository.layout import RepositoryLayout, publication_times
from packager.repository.tuf_documents import target_path

GRACE_S: Final = 86_400
SNAPSHOT_SUFFIX: Final = ".snapshot.json"
UNUSED: Final = "no listed release and no publication of the grace period names it"


@dataclass(frozen=True, slots=True)
class FileDecision:
    """One file, whether it stays, and why.

    Attributes:
        path: path below `published/`.
        is_kept: the file stays.
        reason: sentence for people.
        size: bytes of the file.
    """

    path: str
    is_kept: bool
    reason: str
    size: int

    def as_json(self) -> dict[str, object]:
        """Return the file's row for `--json`."""
        return {"path": self.path, "kept": self.is_kept, "reason": self.reason, "bytes": self.size}


@dataclass(frozen=True, slots=True)
class GarbageReport:
    """The decision on each file.

    Attributes:
        decisions: every published file, sorted by path.
        is_dry_run: nothing was deleted.
    """

    decisions: tuple[FileDecision, ...]
    is_dry_run: bool

    @property
    def removed(self) -> tuple[str, ...]:
        """Paths below `published/` of the files that were deleted, or would be."""
        return tuple(decision.path for decision in self.decisions if not decision.is_kept)

    @property
    def freed_bytes(self) -> int:
        """Total size of the files that were deleted, or would be."""
        return sum(decision.size for decision in self.decisions if not decision.is_kept)

    def as_json(self) -> dict[str, object]:
        """Return the JSON object for `--json`; it lists every file only after a dry run."""
        files = [decision.as_json() for decision in self.decisions] if self.is_dry_run else []
        return {
            "removed": list(self.removed),
            "freed_bytes": self.freed_bytes,
            "dry_run": self.is_dry_run,
            "files": files,
        }


def collect_garbage(
    layout: RepositoryLayout,
    releases: Sequence[Manifest],
    cohorts: Mapping[str, Cohort],
    *,
    dry_run: bool,
    grace_s: int | None = None,
) -> GarbageReport:
    """Delete the files below `published/` that nothing needs.

    Args:
        layout: the repository's paths; the caller has locked it.
        releases: every release that is listed or staged.
        cohorts: name → cohort with its current epoch, staged ones included.
        dry_run: report the files to delete, but delete nothing.
        grace_s: keep what fell out of use less than this many seconds ago; None for GRACE_S.
    """
    report = plan_garbage(layout, _local_files(layout), releases, cohorts, dry_run=dry_run, grace_s=grace_s)
    if not dry_run:
        for name in report.removed:
            (layout.published / name).unlink()
    return report


def plan_garbage(
    layout: RepositoryLayout,
    files: Iterable[tuple[str, int, float]],
    releases: Sequence[Manifest],
    cohorts: Mapping[str, Cohort],
    *,
    dry_run: bool,
    grace_s: int | None = None,
) -> GarbageReport:
    """Decide which files devices no longer need.

    Args:
        layout: paths of the repository; its metadata and targets are read.
        files: path, size in bytes and Unix time of the last change of each published file, wherever it is stored.
        releases: every release that is listed or staged.
        cohorts: name → cohort with its current epoch, staged ones included.
        dry_run: what the report says about itself.
        grace_s: keep what fell out of use less than this many seconds ago; None for GRACE_S.
    """
    cutoff_s = time.time() - (GRACE_S if grace_s is None else grace_s)
    uses = FileUses(layout, cohorts)
    for manifest in releases:
        uses.add_release(manifest, f"of release {manifest.family} {manifest.version}")
    for version, reason in _publications_in_use(layout, cutoff_s):
        uses.add_publication(version, reason)
    decisions = []
    for path, size, modified_s in sorted(files):
        use = uses.reason(Path(path))
        if use is None and modified_s > cutoff_s:
            use = "newer than the grace period"
        decisions.append(FileDecision(path, use is not None, use or UNUSED, size))
    return GarbageReport(tuple(decisions), dry_run)


def paths_in_use(layout: RepositoryLayout, snapshot_version: int | None = None) -> set[str]:
    """Return the paths below `published/` that a publication names, and all roots.

    Args:
        layout: the repository's paths.
        snapshot_version: snapshot of the publication; None for the current one.
    """
    uses = FileUses(layout, None)
    if snapshot_version is not None:
        uses.add_publication(snapshot_version, "of the publication")
    for version, reason in _publications_in_use(layout, time.time()) if snapshot_version is None else ():
        uses.add_publication(version, reason)
    local = {path for path, _, _ in _local_files(layout) if uses.reason(Path(path)) is not None}
    return uses.named_paths() | local


def _local_files(layout: RepositoryLayout) -> Iterator[tuple[str, int, float]]:
    for path in layout.published.rglob("*"):
        if path.is_file():
            status = path.stat()
            yield path.relative_to(layout.published).as_posix(), status.st_size, status.st_mtime


def _publications_in_use(layout: RepositoryLayout, cutoff_s: float) -> Iterator[tuple[int, str]]:
    """Yield the version of each snapshot that devices may still see, and the reason, the newest first."""
    files = {}
    for path in layout.metadata.glob(f"*{SNAPSHOT_SUFFIX}"):
        number = path.name.removesuffix(SNAPSHOT_SUFFIX)
        if number.isdigit():
            files[int(number)] = path
    times, current = publication_times(layout), _current_snapshot(layout)
    successor: int | None = None
    # a snapshot above the current one is of a publication that was interrupted: nothing has replaced the current one
    for version in sorted((one for one in files if current is None or one <= current), reverse=True):
        if successor is None:
            yield version, "of the current publication"
        else:
            # without a record, for example in a copy of the repository, the successor's file has the time
            replaced_s = times.get(successor) or files[successor].stat().st_mtime
            if replaced_s > cutoff_s:
                hours = max(0.0, time.time() - replaced_s) / 3600
                yield version, f"of publication {version}, which was replaced {hours:.1f} hours ago"
        successor = version


def _current_snapshot(layout: RepositoryLayout) -> int | None:
    try:
        timestamp = Metadata[Timestamp].from_bytes((layout.metadata / "timestamp.json").read_bytes())
        return timestamp.signed.snapshot_meta.version
    except (OSError, RepositoryError, json.JSONDecodeError):
        return None


class FileUses:
    """The files in use, each with the first reason that was added.

    Args:
        layout: the repository's paths; its metadata and targets are read.
        cohorts: name → cohort, whose current epoch's shards stay; None for those that publications name.
    """

    def __init__(self, layout: RepositoryLayout, cohorts: Mapping[str, Cohort] | None) -> None:
        self._layout = layout
        self._newest = cohorts
        self._reasons: dict[str, str] = {"metadata/timestamp.json": "the timestamp"}
        self._releases: dict[tuple[str, str], str] = {}
        self._epochs: dict[tuple[str, str, str], str] = {}  # by cohort, epoch and number of shards

    def add_publication(self, snapshot_version: int, reason: str) -> None:
        """Add all that a snapshot names; what is already deleted is left out.

        Args:
            snapshot_version: version of the snapshot.
            reason: why its files are in use.
        """
        name = f"metadata/{snapshot_version}{SNAPSHOT_SUFFIX}"
        self._reasons.setdefault(name, reason)
        snapshot = self._read_metadata(name)
        for file, meta in snapshot.meta.items() if isinstance(snapshot, Snapshot) else ():
            document_name = f"metadata/{meta.version}.{file}"
            self._reasons.setdefault(document_name, reason)
            document = self._read_metadata(document_name)
            if isinstance(document, Targets):
                self._add_targets(document, reason)

    def _add_targets(self, document: Targets, reason: str) -> None:
        for target_name, target in document.targets.items():
            path = f"targets/{target_path(target)}"
            self._reasons.setdefault(path, reason)
            try:
                data = (self._layout.published / path).read_bytes()
                if target_name == FLEET_TARGET:
                    for cohort in parse_fleet(data).cohorts:
                        key = (cohort.name, str(cohort.epoch), str(cohort.shards))
                        self._epochs.setdefault(key, reason)
                elif target_name.startswith("bundles/") and not is_plan_target(target_name):
                    self.add_release(parse_manifest(data), reason)
            except (OSError, AirweightsError):
                continue

    def add_release(self, manifest: Manifest, reason: str) -> None:
        """Add the blobs and content shard of a release.

        Args:
            manifest: the release.
            reason: why its files are in use.
        """
        self._releases.setdefault((manifest.family, str(manifest.counter)), reason)
        for _, variant in manifest.variants:
            for patch in variant.patches:
                self._reasons.setdefault(f"blobs/{patch.blob[:2]}/{patch.blob}", reason)

    def named_paths(self) -> set[str]:
        """Return the metadata, targets and blobs that were added; envelopes have no names of their own."""
        return set(self._reasons)

    def reason(self, relative: Path) -> str | None:
        """Return why a file is in use, or None if it is not."""
        match relative.parts:
            case ("metadata", name) if name.endswith(".root.json"):
                return "roots stay forever"
            case ("metadata", "timestamp.awz"):
                return "the timestamp"  # not among the named paths: it may be missing
            case ("metadata", "archives", _, name):
                # the archives of a snapshot are in use as long as the snapshot is
                return self._reasons.get(f"metadata/{name.partition('-')[0]}{SNAPSHOT_SUFFIX}")
            case ("metadata", "roots", _):
                versions = [int(path.name.split(".")[0]) for path in self._layout.metadata.glob("*.root.json")]
                is_newest = relative.as_posix() == roots_archive_path(max(versions, default=0))
                return "of the newest root" if is_newest else None
            case ("envelopes", "content", family, counter, *_):
                return self._releases.get((family, counter))
            case ("envelopes", "cohorts", cohort, epoch, name):
                shards = name.partition("-")[0]
                if self._newest is not None and epoch.isdigit() and shards.isdigit():
                    newest = self._newest.get(cohort, Cohort(cohort, 0, b"", 0))
                    if (int(epoch), int(shards)) >= (newest.epoch, newest.shards):
                        return f"of cohort {cohort}'s epoch {epoch}"
                return self._epochs.get((cohort, epoch, shards))
            case _:
                return self._reasons.get(relative.as_posix())

    def _read_metadata(self, name: str) -> object:
        try:
            return Metadata.from_bytes((self._layout.published / name).read_bytes()).signed
        except (OSError, RepositoryError, json.JSONDecodeError):
            return None
