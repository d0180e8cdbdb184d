"""Create an offline pack: a folder, for example on a USB stick, that serves a `file:` URL.

- A pack contains the repository's metadata, the targets of the chosen families, and the blobs and envelopes of the
  releases that their channels run now. It contains nothing that the online repository does not serve.
- Its timestamp, snapshot and rollouts are signed again, marked as a pack's, and valid for the requested time, at most
  as long as root allows. Devices accept them from a `file:` URL only.
- The pack takes one version number of each renewed document, and the online repository publishes the next. So a device
  that used the pack finds newer metadata online, and a device refuses a pack that is older than what it has seen.
- Before the pack is moved to its place, the device's own code checks it for every channel.
"""

import shutil
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from securesystemslib.signer import Signer

from bundle.errors import NotFound
from bundle.manifest import Manifest
from bundle.repository_paths import content_shard_path
from bundle.trust.check import CheckRequest, check
from bundle.trust.clock import ClockFacts
from bundle.trust.role_names import PACK_MAX_DAYS_FIELD, rollout_role
from bundle.trust.trust_state import TrustStateStore
from packager.errors import FamilyUnknown, OutputExists, StagingInvalid
from packager.repository import tuf_documents
from packager.repository.client_check import NEWEST_AGENT_VERSION
from packager.repository.layout import lock_repository
from packager.repository.published import TIMESTAMP_FILE, PublishedDocuments
from packager.repository.publishing import check_complete, files_of, publish, stage_renewal
from packager.repository.repository import Repository
from packager.repository.staging import Staging


@dataclass(frozen=True, slots=True)
class PackReport:
    """The contents of a pack.

    Attributes:
        releases: (family, channel, version) of each rollout.
        files: number of files.
        size: their total size in bytes.
        valid_days: days until its metadata expires.
        timestamp_version: version of the pack's timestamp; the online repository has the next one.
    """

    releases: tuple[tuple[str, str, str], ...]
    files: int
    size: int
    valid_days: int
    timestamp_version: int

    def as_json(self) -> dict[str, object]:
        """Return the JSON object for `--json`."""
        rows = [{"family": f, "channel": c, "version": v} for f, c, v in self.releases]
        return {
            "releases": rows,
            "files": self.files,
            "size": self.size,
            "valid_days": self.valid_days,
            "timestamp_version": self.timestamp_version,
        }


def create_pack(
    repository: Repository, out: Path, families: Sequence[str], valid_days: int, signers: Sequence[Signer]
) -> PackReport:
    """Create a pack, and publish renewed metadata online.

    Args:
        repository: a published repository whose online metadata can be refreshed.
        out: the folder to create.
        families: the families to include; empty for all.
        valid_days: days until the pack's metadata expires.
        signers: the signers of snapshot, timestamp and the families' rollout roles.

    Raises:
        OutputExists: the folder exists.
        FamilyUnknown: a family is not delegated.
        StagingInvalid: root does not allow that many days, or the signers of a rollout role are missing.
        BelowThreshold: the signers of snapshot or timestamp are missing.
        AirweightsError: a device would raise this error when it checks the pack.
    """
    if out.exists():
        raise OutputExists(f"{out} exists already", hint="name a folder that does not exist")
    known = repository.families()
    for family in families:
        if family not in known:
            raise FamilyUnknown(f"family {family!r} is not delegated, delegated families: {', '.join(known)}")
    layout = repository.layout
    with lock_repository(layout):
        published = PublishedDocuments(layout)
        limit = published.root.unrecognized_fields.get(PACK_MAX_DAYS_FIELD, 0)
        if not 1 <= valid_days <= limit:
            raise StagingInvalid(
                f"the pack would be valid for {valid_days} days, expected 1 to {limit}, which root allows"
            )
        packed = stage_renewal(layout, published, signers, pack_valid_s=valid_days * tuf_documents.DAY_S)
        check_complete(published, packed.documents)
        for family in families or known:
            if rollout_role(family) not in packed.documents:
                raise StagingInvalid(
                    f"the keys of {rollout_role(family)} are missing, so the pack's rollouts cannot be signed",
                    hint=f"give the keys of {rollout_role(family)} with --keys or --key",
                )
        online = stage_renewal(layout, published, signers, ahead=2)
        check_complete(published, online.documents)
        partial = Path(tempfile.mkdtemp(prefix=".pack-", dir=out.parent))
        try:
            releases = _copy_contents(repository, published, packed, partial, families or known)
            _check_pack(repository, partial, releases)
            publish(layout, published, online, check_clients=True)
            partial.replace(out)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
    files = [path for path in out.rglob("*") if path.is_file()]
    version = packed.documents["timestamp"].signed.version
    return PackReport(releases, len(files), sum(path.stat().st_size for path in files), valid_days, version)


def _copy_contents(
    repository: Repository, published: PublishedDocuments, packed: Staging, out: Path, families: Sequence[str]
) -> tuple[tuple[str, str, str], ...]:
    source = repository.published
    metadata = list((source / "metadata").glob("*.root.json"))
    metadata += [source / "metadata" / f"{number}.{role}.json" for role, (number, _) in published.files.items()]
    for path in metadata:
        if path.name.split(".", 1)[1] != TIMESTAMP_FILE:
            _copy(source, out, path)
    for relative, data in files_of(packed).items():
        path = out / relative
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    _copy_targets(published, source, out, "fleet")
    for cohort in repository.fleet().cohorts:
        folder = source / "envelopes" / "cohorts" / cohort.name / str(cohort.epoch)
        for path in sorted(folder.glob(f"{cohort.shards}-*")):
            _copy(source, out, path)
    releases = []
    for family in families:
        for role in tuf_documents.family_roles(family):
            _copy_targets(published, source, out, role)
        for rollout in repository.rollouts(family):
            manifest = repository.manifest(family, rollout.version)
            if manifest is not None:
                _copy_release(source, out, manifest)
                releases.append((family, rollout.channel, rollout.version))
    return tuple(releases)


def _copy_release(source: Path, out: Path, manifest: Manifest) -> None:
    for _, variant in manifest.variants:
        for patch in variant.patches:
            _copy(source, out, source / "blobs" / patch.blob[:2] / patch.blob)
    shard = source / content_shard_path(manifest.family, manifest.counter)
    if shard.exists():
        _copy(source, out, shard)


def _copy_targets(published: PublishedDocuments, source: Path, out: Path, role: str) -> None:
    for target in published.role(role).targets.values():
        _copy(source, out, source / "targets" / tuf_documents.target_path(target))


def _copy(source: Path, out: Path, path: Path) -> None:
    copy = out / path.relative_to(source)
    copy.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(path, copy)


def _check_pack(repository: Repository, pack: Path, releases: Sequence[tuple[str, str, str]]) -> None:
    for family, channel, _ in releases:
        with tempfile.TemporaryDirectory(prefix="airweights-pack-") as folder:
            request = CheckRequest(
                cache_dir=Path(folder) / "cache",
                bootstrap_root=(repository.published / "metadata" / "1.root.json").read_bytes(),
                metadata_url=f"file://{pack}/metadata",
                targets_url=f"file://{pack}/targets",
                family=family,
                channel=channel,
                clock=ClockFacts(int(time.time()), is_synchronized=True, build_time_s=0, boot_elapsed_s=0),
                agent_version=NEWEST_AGENT_VERSION,
            )
            check(request, _read_url, TrustStateStore(Path(folder) / "slots"))


def _read_url(url: str, max_bytes: int) -> bytes:
    try:
        with Path(url.removeprefix("file://")).open("rb") as file:
            return file.read(max_bytes + 1)
    except FileNotFoundError as error:
        raise NotFound(f"{url} is not in the pack") from error
