"""What the packager keeps of each release: the plain bundles, as bases of later patches, and the content keys.

    private/                                     0700, beside the published files and never served
        bundles/<family>/<bundle digest>/        a plain bundle
        releases/<family>/<counter>/<variant>.json   0600: version, bundle digest, content key
        builds/<family>/<counter>.json           0600: how the release was built (packager.attestation)

Rules:
1. A plain bundle is named by its digest and never changed; it is checked against that name when it is opened.
2. A release's records are written before it is signed, so that no published blob has a lost key. A counter that has
   records is not used again, also where its release was never published or was withdrawn.
3. Everything is written under a name beside its place and renamed.
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
    """What is kept of one variant of one release.

    Attributes:
        family, counter, version, variant: of the release.
        bundle: digest of its plain bundle.
        content_key: KEY_BYTES that its blobs are encrypted with.
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
        root: the repository's folder; `private/` is made below it when something is kept.
    """

    def __init__(self, root: Path) -> None:
        self.folder = root / PRIVATE_FOLDER

    @contextmanager
    def build_folder(self) -> Iterator[Path]:
        """A folder for work in progress, on the same file system, gone afterwards."""
        self._create_folder(self.folder)
        with tempfile.TemporaryDirectory(prefix=".building-", dir=self.folder) as place:
            yield Path(place)

    @contextmanager
    def lock_release(self) -> Iterator[None]:
        """One release at a time: two would draw the same counter, and the second would keep its keys over the first's.

        The kernel lets go of it when the process ends. Raises PublishConflict.
        """
        self._create_folder(self.folder)
        descriptor = os.open(self.folder / RELEASE_LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise PublishConflict(
                    f"another release is being made in {self.folder.parent}", hint="try again when it is done"
                ) from error
            yield
        finally:
            os.close(descriptor)

    def store_variant(self, directory: BundleDirectory, stored: StoredVariant) -> None:
        """Take a plain bundle and its record over; the bundle's folder is moved here. Once for each variant."""
        place = self._bundle_path(stored.family, stored.bundle)
        if not place.exists():
            self._create_folder(place.parent)
            directory.root.rename(place)
        record = {"version": stored.version, "bundle": stored.bundle, "content_key": stored.content_key.value.hex()}
        self._write(self._record_path(stored.family, stored.counter, stored.variant), strict_json.encode({**record}))

    def store_build_record(self, family: str, counter: int, record: bytes) -> None:
        """Keep the record of a build."""
        self._write(self._build_record_path(family, counter), record)

    def find_build_record(self, family: str, counter: int) -> bytes | None:
        """The record of a build, or None."""
        try:
            return self._build_record_path(family, counter).read_bytes()
        except FileNotFoundError:
            return None

    def find_variant(self, family: str, counter: int, variant: str) -> StoredVariant | None:
        """What is kept of a variant, or None. Raises WorkspaceRefused for a damaged record."""
        place = self._record_path(family, counter, variant)
        try:
            data = place.read_bytes()
        except FileNotFoundError:
            return None
        try:
            fields = StrictObject(strict_json.decode(data, what=str(place), max_bytes=MAX_RECORD_BYTES), str(place))
            kept = StoredVariant(
                family,
                counter,
                fields.text("version", VERSION_PATTERN),
                variant,
                BundleDigest(fields.text("bundle", SHA256_HEX_PATTERN)),
                Secret(bytes.fromhex(fields.text("content_key", SHA256_HEX_PATTERN))),
            )
            fields.reject_unknown()
        except Refused as error:
            raise WorkspaceDamaged(error.message, hint=f"restore {self.folder} from a copy") from error
        assert len(kept.content_key.value) == KEY_BYTES
        return kept

    def highest_counter(self, family: str) -> int:
        """The highest counter that has records, 0 where there is none."""
        folder = self.folder / "releases" / family
        return max((int(place.name) for place in folder.glob("*") if place.name.isdecimal()), default=0)

    def open_bundle(self, family: str, digest: BundleDigest) -> BundleDirectory | None:
        """A kept plain bundle, or None. Raises WorkspaceRefused where it is not what its name says (rule 1)."""
        place = self._bundle_path(family, digest)
        if not place.is_dir():
            return None
        directory = open_package(place)
        found = bundle_digest(directory.files)
        if found != digest:
            raise WorkspaceDamaged(
                f"kept bundle {place} has digest {found}, expected {digest}", hint=f"restore {place} from a copy"
            )
        return directory

    def delete_bundles(
        self, family: str, listed: frozenset[BundleDigest], *, dry_run: bool = False
    ) -> tuple[BundleDigest, ...]:
        """Remove the plain bundles of a family that are not in `keep`; records and keys stay. Returns their digests."""
        folder = self.folder / "bundles" / family
        gone = []
        for place in sorted(folder.iterdir()) if folder.is_dir() else []:
            if place.name not in listed:
                if not dry_run:
                    shutil.rmtree(place)
                gone.append(BundleDigest(place.name))
        return tuple(gone)

    def delete_unlisted_bundles(
        self, listed: Mapping[str, Sequence[Manifest]], *, dry_run: bool = False
    ) -> tuple[BundleDigest, ...]:
        """`forget` for every family, keeping the bundles of its listed releases."""
        gone: list[BundleDigest] = []
        for family, releases in listed.items():
            keep = frozenset(variant.digest for manifest in releases for _, variant in manifest.variants)
            gone += self.delete_bundles(family, keep, dry_run=dry_run)
        return tuple(gone)

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
