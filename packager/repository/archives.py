"""Create the cheaper copies of published documents (bundle.trust.document_source).

    metadata/timestamp.awz                       the timestamp, compressed
    metadata/archives/<family>/<snapshot>-<base>.awz  a family's documents that snapshot BASE does not have; 0: all
    metadata/archives/<family>/<snapshot>-<base>-<cohort>.awz  the same, with the content envelopes of one cohort
    metadata/roots/<N>.awz                            roots 2 to N, if there is more than one

Rules:
- A family's documents are snapshot, targets, `fleet`, its two roles, the fleet document, its rollouts and plans, the
  manifests that the rollouts name, and the content shards of these releases as far as they are within MAX_SHARDS_BYTES
  together.
- From three cohorts on, the shards are too large for all devices. Then each cohort has archives of its own, in which a
  shard has this cohort's record only; with more than MAX_COHORTS_WITH_ARCHIVES, none has.
- The bases are the snapshots 1, 2, 4 and 8 publications ago. The timestamp lists them, so they are fixed when it is
  signed. `snapshots.json` records the documents of recent snapshots; without it, only complete archives are created.
- No device depends on these files: publishing never fails because of one.
"""

import json
import logging
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tuf.api.metadata import Metadata, Targets, Timestamp

from bundle.archive import (
    MAX_ARCHIVE_BYTES,
    MAX_CONTENT_BYTES,
    MAX_ROOTS_BYTES,
    MAX_ROOTS_CONTENT_BYTES,
    compress_document,
    encode_archive,
)
from bundle.envelope_shard import encode_shard, find_envelope
from bundle.errors import DownloadFailed, Refused
from bundle.fleet import FLEET_TARGET, Cohort, parse_fleet
from bundle.repository_paths import (
    METADATA_FOLDER,
    TARGETS_FOLDER,
    content_shard_path,
    envelope_name,
    family_archive_path,
    roots_archive_path,
)
from bundle.rollout import Rollout, parse_rollout
from bundle.trust.role_names import (
    COPIES_FIELD,
    FLEET_ROLE,
    is_plan_target,
    release_role,
    release_target,
    rollout_role,
)
from packager.repository import tuf_documents
from packager.repository.layout import RepositoryLayout, write_file
from packager.repository.published import PublishedDocuments

logger = logging.getLogger(__name__)

BASE_DISTANCES: Final = (1, 2, 4, 8)
MAX_RECORDED_SNAPSHOTS: Final = max(BASE_DISTANCES) + 1
MAX_SHARDS_BYTES: Final = 2560  # two envelopes; a device asks for its own if there are more
MAX_COHORTS_IN_ONE_ARCHIVE: Final = 2
MAX_COHORTS_WITH_ARCHIVES: Final = 32  # some 2 MB of archives for a publication
COMPRESSED_TIMESTAMP: Final = f"{METADATA_FOLDER}/timestamp.awz"


@dataclass(frozen=True, slots=True)
class RecordedSnapshot:
    """A published snapshot, with the documents of its families.

    Attributes:
        version: version of the snapshot.
        bases: versions of the earlier snapshots that its archives start from, 0 for complete archives.
        paths: family → paths of its documents, below `published/`.
    """

    version: int
    bases: tuple[int, ...]
    paths: Mapping[str, frozenset[str]]

    def as_json(self) -> dict[str, object]:
        """Return the entry in `snapshots.json`."""
        paths = {family: sorted(paths) for family, paths in self.paths.items()}
        return {"version": self.version, "bases": list(self.bases), "paths": paths}


def copies_field(layout: RepositoryLayout, snapshot: int, root: int, fleet: bytes) -> dict[str, object]:
    """Return the timestamp's field that says which archives exist.

    Args:
        layout: the repository's paths.
        snapshot: version of the snapshot that the timestamp names.
        root: version of the newest root.
        fleet: the fleet document of the snapshot, or b"" if it has none.
    """
    field: dict[str, object] = {"root": root, "bases": list(_bases_of(read_recorded(layout), snapshot))}
    return field | ({"cohorts": True} if _cohorts_with_archives(fleet) else {})


def create_copies(
    layout: RepositoryLayout, published: PublishedDocuments, files: Mapping[str, bytes]
) -> tuple[dict[str, bytes], tuple[RecordedSnapshot, ...]]:
    """Create the copies for a publication.

    Args:
        layout: the repository's paths.
        published: the published state, as devices see it now.
        files: path below `published/` → bytes, for each file that the publication adds or replaces.

    Returns:
        Path below `published/` → bytes of each copy, and the recorded snapshots, the new one included.
    """
    timestamp_bytes = files[f"{METADATA_FOLDER}/timestamp.json"]
    timestamp = Metadata[Timestamp].from_bytes(timestamp_bytes).signed
    copies = {COMPRESSED_TIMESTAMP: compress_document(timestamp_bytes)}
    copies |= _create_roots_archive(layout, files, published)
    recorded = read_recorded(layout)
    version = timestamp.snapshot_meta.version
    if COPIES_FIELD not in timestamp.unrecognized_fields or any(each.version == version for each in recorded):
        return copies, recorded  # the archives of this snapshot exist already
    view = _PublicationView(layout, published, files)
    bases = _bases_of(recorded, version)
    by_version = {each.version: each.paths for each in recorded}
    paths: dict[str, frozenset[str]] = {}
    for family in view.families():
        documents, shards = view.documents_of(family), view.shards_of(family)
        paths[family] = frozenset(documents).union(*shards.values())
        for base in bases:
            known = by_version[base].get(family, frozenset()) if base else frozenset()
            for cohort, members in shards.items():
                changed = {path: data for path, data in (documents | members).items() if path not in known}
                archive = encode_archive(changed)
                if len(archive) <= MAX_ARCHIVE_BYTES and sum(map(len, changed.values())) < MAX_CONTENT_BYTES // 2:
                    copies[family_archive_path(family, version, base, cohort)] = archive
    return copies, (*recorded, RecordedSnapshot(version, bases, paths))[-MAX_RECORDED_SNAPSHOTS:]


def read_recorded(layout: RepositoryLayout) -> tuple[RecordedSnapshot, ...]:
    """Return the recorded snapshots, oldest first; none if the file is missing or damaged."""
    try:
        rows = json.loads(layout.recorded_snapshots.read_bytes())
        return tuple(
            RecordedSnapshot(
                int(row["version"]),
                tuple(int(base) for base in row["bases"]),
                {str(family): frozenset(map(str, paths)) for family, paths in row["paths"].items()},
            )
            for row in rows
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return ()


def write_recorded(layout: RepositoryLayout, recorded: tuple[RecordedSnapshot, ...]) -> None:
    """Write the recorded snapshots, unless they are unchanged.

    Args:
        layout: the repository's paths.
        recorded: the snapshots, oldest first.
    """
    if recorded != read_recorded(layout):
        write_file(layout.recorded_snapshots, json.dumps([each.as_json() for each in recorded]).encode())


def write_copies(layout: RepositoryLayout, copies: Mapping[str, bytes]) -> None:
    """Write the archives; those that cannot be written are left out.

    Args:
        layout: the repository's paths.
        copies: path below `published/` → bytes; the compressed timestamp is skipped.
    """
    for relative, data in copies.items():
        if relative != COMPRESSED_TIMESTAMP:
            try:
                write_file(layout.published / relative, data, is_synced=False)
            except OSError as error:
                logger.warning("%s is not written: %s", relative, error)


def write_timestamp_copy(layout: RepositoryLayout, data: bytes) -> None:
    """Write the compressed timestamp; if it cannot be written, delete the one before.

    Args:
        layout: the repository's paths.
        data: the compressed timestamp.
    """
    path = layout.published / COMPRESSED_TIMESTAMP
    before_s = modified_s(path)
    try:
        write_file(path, data)
        advance_modified_s(path, before_s)
    except OSError as error:
        logger.warning("%s is not written: %s", COMPRESSED_TIMESTAMP, error)
        with suppress(OSError):
            path.unlink()


def modified_s(path: Path) -> int:
    """Return when a file was modified, in whole Unix seconds; 0 if there is none."""
    try:
        return int(path.stat().st_mtime)
    except OSError:
        return 0


def advance_modified_s(path: Path, before_s: int) -> None:
    """Make a replaced file newer than its predecessor, in the whole seconds that web servers use.

    Args:
        path: the file.
        before_s: when its predecessor was modified, in Unix seconds.
    """
    if modified_s(path) <= before_s:
        os.utime(path, (before_s + 1, before_s + 1))


def _bases_of(recorded: tuple[RecordedSnapshot, ...], version: int) -> tuple[int, ...]:
    for each in recorded:
        if each.version == version:
            return each.bases
    earlier = [each.version for each in recorded if each.version < version]
    return (0, *sorted({earlier[-distance] for distance in BASE_DISTANCES if distance <= len(earlier)}))


def _create_roots_archive(
    layout: RepositoryLayout, files: Mapping[str, bytes], published: PublishedDocuments
) -> dict[str, bytes]:
    staged = [path for path in files if path.endswith(".root.json")]
    if not staged:
        return {}
    newest = published.root_version + 1
    roots = {}
    for version in range(2, newest + 1):
        path = f"{METADATA_FOLDER}/{version}.root.json"
        try:
            roots[path] = files[path] if path in files else (layout.published / path).read_bytes()
        except OSError:
            return {}
    archive = encode_archive(roots)
    if len(roots) < 2 or len(archive) > MAX_ROOTS_BYTES or sum(map(len, roots.values())) > MAX_ROOTS_CONTENT_BYTES // 2:
        return {}
    return {roots_archive_path(newest): archive}


class _PublicationView:
    """The documents as devices see them after a publication: staged files over published ones."""

    def __init__(self, layout: RepositoryLayout, published: PublishedDocuments, files: Mapping[str, bytes]) -> None:
        self._layout, self._files = layout, files
        self._documents = {role: (version, data) for role, (version, data) in published.files.items()}
        for path, data in files.items():
            folder, _, name = path.partition("/")
            number, _, rest = name.partition(".")
            if folder == METADATA_FOLDER and number.isdecimal():
                self._documents[rest.removesuffix(".json")] = (int(number), data)

    def families(self) -> tuple[str, ...]:
        targets = self._targets("targets")
        return () if targets is None else tuf_documents.families_of(targets)

    def documents_of(self, family: str) -> dict[str, bytes]:
        """Return path below `published/` → bytes of each document of the family, without shards."""
        out: dict[str, bytes] = {}
        for role in ("snapshot", "targets", FLEET_ROLE, release_role(family), rollout_role(family)):
            if role in self._documents:
                version, data = self._documents[role]
                out[f"{METADATA_FOLDER}/{version}.{role}.json"] = data
        rollouts = self._read_rollouts(family)
        manifests = self._target_paths(release_role(family))
        named = {manifests.get(release_target(family, rollout.version)) for rollout in _parsed(rollouts.values())}
        plans = {path for name, path in manifests.items() if is_plan_target(name)}
        return out | rollouts | self._read_all(named | plans | {self._target_paths(FLEET_ROLE).get(FLEET_TARGET)})

    def shards_of(self, family: str) -> dict[str, dict[str, bytes]]:
        """Return cohort → path → bytes of the content shards in its archive; "" stands for all devices.

        They are those of the newest releases, within MAX_SHARDS_BYTES together.
        """
        counters = sorted({rollout.counter for rollout in _parsed(self._read_rollouts(family).values())}, reverse=True)
        whole = self._read_all(content_shard_path(family, counter) for counter in counters)
        out = {"": _newest(whole)}
        fleet = self._read_all([self._target_paths(FLEET_ROLE).get(FLEET_TARGET)])
        for cohort in _cohorts_with_archives(b"".join(fleet.values())):
            name = envelope_name(cohort.public_key, cohort.epoch)
            own = {}
            for path, data in whole.items():
                with suppress(DownloadFailed, Refused):  # not sealed to this cohort
                    own[path] = encode_shard({name: find_envelope(data, name)})
            out[cohort.name] = _newest(own)
        return out

    def _read_rollouts(self, family: str) -> dict[str, bytes]:
        return self._read_all(self._target_paths(rollout_role(family)).values())

    def _targets(self, role: str) -> Targets | None:
        if role not in self._documents:
            return None
        return Metadata[Targets].from_bytes(self._documents[role][1]).signed

    def _target_paths(self, role: str) -> dict[str, str]:
        """Return name → path below `published/` of each target that a role lists."""
        listed = {} if (signed := self._targets(role)) is None else signed.targets
        return {name: f"{TARGETS_FOLDER}/{tuf_documents.target_path(target)}" for name, target in listed.items()}

    def _read_all(self, paths: Iterable[str | None]) -> dict[str, bytes]:
        """Return path → bytes of the files that exist."""
        out = {}
        for path in paths:
            with suppress(OSError):
                if path is not None:
                    out[path] = self._files.get(path) or (self._layout.published / path).read_bytes()
        return out


def _newest(shards: Mapping[str, bytes]) -> dict[str, bytes]:
    """Return the first shards that have at most MAX_SHARDS_BYTES together."""
    out: dict[str, bytes] = {}
    for path, data in shards.items():
        if sum(map(len, out.values())) + len(data) <= MAX_SHARDS_BYTES:
            out[path] = data
    return out


def _cohorts_with_archives(fleet: bytes) -> tuple[Cohort, ...]:
    """Return the cohorts of a fleet document that have archives of their own."""
    try:
        cohorts = parse_fleet(fleet).cohorts
    except Refused:
        return ()
    return cohorts if MAX_COHORTS_IN_ONE_ARCHIVE < len(cohorts) <= MAX_COHORTS_WITH_ARCHIVES else ()


def _parsed(rollouts: Iterable[bytes]) -> Iterator[Rollout]:
    for data in rollouts:
        try:
            yield parse_rollout(data)
        except Refused:
            continue  # a drill's rollout: devices refuse it too
