"""The packager's private folder: plain bundles (bases of later patches) and content keys.

    private/                                     mode 0700, beside the published files, never served
        bundles/FAMILY/BUNDLE-DIGEST/            a plain bundle
        releases/FAMILY/COUNTER/VARIANT.json     mode 0600: version, bundle digest, content key
        builds/FAMILY/COUNTER.json               mode 0600: how the release was built (packager.attestation)

- A plain bundle is named by its digest and never changes. It is verified against that name when it is opened.
- A release's records are written before it is signed, so that the key of a published blob is never lost. A counter with
  records is not used again, even if its release was never published or was withdrawn.
- Files are written under a temporary name in the same folder, synced, and renamed.
"""

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bundle import strict_json
from bundle.errors import Refused
from bundle.files import BundleDigest, BundleDirectory, bundle_digest
from bundle.frames import KEY_BYTES, Secret
from bundle.manifest import Manifest
from bundle.strict_json import NAME_PATTERN, SHA256_HEX_PATTERN, VERSION_PATTERN, StrictObject
from packager.errors import PublishConflict, WorkspaceDamaged
from packager.models.model_package import open_package

PRIVATE_FOLDER: Final = "private"
RELEASE_LOCK: Final = ".releasing"
MAX_RECORD_BYTES: Final = 4096


@dataclass(frozen=True, slots=True)
class StoredVariant:
    """The stored record of one variant of a release.

    Attributes:
        family, counter, version: name the release.
        variant: name of the variant.
        bundle: digest of its plain bundle.
        content_key: the key, KEY_BYTES long, that encrypts its blobs.
    """

    family: str
    counter: int
    version: str
    variant: str
    bundle: BundleDigest
    content_key: Secret


class Workspace:
    """The private folder of one repository.

    Args:
        root: the repository's folder; `private/` is created below it when something is stored.
    """

    def __init__(self, root: Path) -> None:
        self.folder = root / PRIVATE_FOLDER

    @contextmanager
    def build_folder(self) -> Iterator[Path]:
        """Create a temporary folder on the same file system, and delete it at the end."""
        self._create_folder(self.folder)
        with tempfile.TemporaryDirectory(prefix=".building-", dir=self.folder) as folder:
            yield Path(folder)

    @contextmanager
    def lock_release(self) -> Iterator[None]:
        """Hold the lock for creating a release; the kernel releases it when the process ends.

        Two releases at a time would take the same counter, and the second would overwrite the keys of the first.

        Raises:
            PublishConflict: another process creates a release.
        """
        self._create_folder(self.folder)
        descriptor = os.open(self.folder / RELEASE_LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise PublishConflict(
                    f"another process is creating a release in {self.folder.parent}",
                    hint="try again when it has finished",
                ) from error
            yield
        finally:
            os.close(descriptor)

    def store_variant(self, directory: BundleDirectory, stored: StoredVariant) -> None:
        """Move a plain bundle into the workspace and write its record.

        Args:
            directory: the plain bundle, in a folder on the same file system; moved unless it is stored already.
            stored: the record.
        """
        path = self._bundle_path(stored.family, stored.bundle)
        if not path.exists():
            self._create_folder(path.parent)
            directory.root.rename(path)
        record = {"version": stored.version, "bundle": stored.bundle, "content_key": stored.content_key.value.hex()}
        self._write(self._record_path(stored.family, stored.counter, stored.variant), strict_json.encode({**record}))

    def store_build_record(self, family: str, counter: int, record: bytes) -> None:
        """Store the build record of a release.

        Args:
            family: name of the family.
            counter: counter of the release.
            record: `BuildRecord.as_bytes`.
        """
        self._write(self._build_record_path(family, counter), record)

    def find_build_record(self, family: str, counter: int) -> bytes | None:
        """Return the build record of a release, or None.

        Args:
            family: name of the family.
            counter: counter of the release.
        """
        try:
            return self._build_record_path(family, counter).read_bytes()
        except FileNotFoundError:
            return None

    def find_variant(self, family: str, counter: int, variant: str) -> StoredVariant | None:
        """Return the record of a variant, or None.

        Args:
            family: name of the family.
            counter: counter of the release.
            variant: name of the variant.

        Raises:
            WorkspaceDamaged: the record is damaged.
        """
        path = self._record_path(family, counter, variant)
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            return None
        try:
            fields = StrictObject(strict_json.decode(data, what=str(path), max_bytes=MAX_RECORD_BYTES), str(path))
            stored = StoredVariant(
                family,
                counter,
                fields.text("version", VERSION_PATTERN),
                variant,
                BundleDigest(fields.text("bundle", SHA256_HEX_PATTERN)),
                Secret(bytes.fromhex(fields.text("content_key", SHA256_HEX_PATTERN))),
            )
            fields.reject_unknown()
        except Refused as error:
            raise WorkspaceDamaged(error.message, hint=f"restore {path} from a backup") from error
        assert len(stored.content_key.value) == KEY_BYTES
        return stored

    def highest_counter(self, family: str) -> int:
        """Return the highest counter of a family that has records; 0 if there is none."""
        folder = self.folder / "releases" / family
        return max((int(path.name) for path in folder.glob("*") if path.name.isdecimal()), default=0)

    def open_bundle(self, family: str, digest: BundleDigest) -> BundleDirectory | None:
        """Open a stored plain bundle and verify its digest; return None if it is not stored.

        Args:
            family: name of the family.
            digest: the bundle's digest.

        Raises:
            WorkspaceDamaged: the bundle has another digest.
        """
        path = self._bundle_path(family, digest)
        if not path.is_dir():
            return None
        directory = open_package(path)
        found = bundle_digest(directory.files)
        if found != digest:
            raise WorkspaceDamaged(
                f"stored bundle {path} has digest {found}, expected {digest}", hint=f"restore {path} from a backup"
            )
        return directory

    def delete_bundles(
        self, family: str, listed: frozenset[BundleDigest], *, dry_run: bool = False
    ) -> tuple[BundleDigest, ...]:
        """Delete a family's plain bundles that are not in `listed`; records and keys stay.

        Args:
            family: name of the family.
            listed: digests of the bundles to keep.
            dry_run: report the files to delete, but delete nothing.

        Returns:
            The digests of the deleted bundles, sorted.
        """
        folder = self.folder / "bundles" / family
        deleted = []
        for path in sorted(folder.iterdir()) if folder.is_dir() else []:
            if path.name not in listed:
                if not dry_run:
                    shutil.rmtree(path)
                deleted.append(BundleDigest(path.name))
        return tuple(deleted)

    def delete_unlisted_bundles(
        self, listed: Mapping[str, Sequence[Manifest]], *, dry_run: bool = False
    ) -> tuple[BundleDigest, ...]:
        """Delete the plain bundles that no listed release contains; records and keys stay.

        Args:
            listed: family → manifests of its listed releases; families that are missing here are not touched.
            dry_run: report the files to delete, but delete nothing.

        Returns:
            The digests of the deleted bundles.
        """
        deleted: list[BundleDigest] = []
        for family, releases in listed.items():
            keep = frozenset(variant.digest for manifest in releases for _, variant in manifest.variants)
            deleted += self.delete_bundles(family, keep, dry_run=dry_run)
        return tuple(deleted)

    def _bundle_path(self, family: str, digest: BundleDigest) -> Path:
        assert NAME_PATTERN.fullmatch(family)
        return self.folder / "bundles" / family / digest

    def _record_path(self, family: str, counter: int, variant: str) -> Path:
        assert NAME_PATTERN.fullmatch(family)
        assert NAME_PATTERN.fullmatch(variant)
        return self.folder / "releases" / family / str(counter) / f"{variant}.json"

    def _build_record_path(self, family: str, counter: int) -> Path:
        assert NAME_PATTERN.fullmatch(family)
        return self.folder / "builds" / family / f"{counter}.json"

    def _create_folder(self, folder: Path) -> None:
        self.folder.mkdir(mode=0o700, exist_ok=True)
        self.folder.chmod(0o700)
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    def _write(self, path: Path, data: bytes) -> None:
        self._create_folder(path.parent)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)  # mkstemp gives 0600
        partial = Path(name)
        try:
            with os.fdopen(handle, "wb") as stream:
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)


__all__ = ["PRIVATE_FOLDER", "StoredVariant", "Workspace"]
