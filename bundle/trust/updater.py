"""python-tuf's client with our clock, limits, transport and errors.

Only this file uses private parts of python-tuf: `_trusted_set.reference_time` (the time that expiry is judged by), and
`_load_root` and the other steps of a refresh (to know in which step a version was wrong). A test fails if tuf renames
one of them.

Rules:
- The shipped root is always the trust anchor; the cache never is.
- The clock is read after the root walk and before any expiry is judged, because a root can reset the time floor.
- Every file has a maximum length: from the metadata that names it, else from a limit in this file.
- Errors of tuf are translated by the step that raised them.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from io import BytesIO
from pathlib import Path
from typing import IO, Final

from securesystemslib.signer import Key
from tuf.api import exceptions as tuf_errors
from tuf.api.metadata import Metadata, Root, Signed, Snapshot, TargetFile, Targets, Timestamp
from tuf.api.serialization import DeserializationError
from tuf.ngclient import FetcherInterface, Updater, UpdaterConfig

from bundle.errors import (
    AirweightsError,
    DigestMismatch,
    DownloadFailed,
    Malformed,
    MetadataExpired,
    NotFound,
    RollbackRefused,
    TooLarge,
    UntrustedMetadata,
)

Fetch = Callable[[str, int], bytes]
"""Return the whole file at a URL, of at most the given number of bytes.

Raises:
    NotFound: the server responds with 404, or with 403 (AccessDenied).
    DownloadFailed: the transfer failed for another reason.
    TooLarge: the file is longer.
"""

MAX_ROOT_BYTES: Final = 512 * 1024  # room for 30 keys (5.5 kB) and signatures (6.6 kB) of ML-DSA-65
MAX_TIMESTAMP_BYTES: Final = 64 * 1024  # two signatures are 7 kB
MAX_SNAPSHOT_BYTES: Final = 2 * 1024 * 1024  # 200 bytes per role
MAX_TARGETS_BYTES: Final = 8 * 1024 * 1024  # 6,705 bytes per family in targets: 1,200 families (docs/scale.md)
MAX_ROOT_ROTATIONS: Final = 1024
MAX_DELEGATIONS: Final = 32


class _Transport(FetcherInterface):
    """Adapter from our `Fetch` to tuf's fetcher interface."""

    def __init__(self, fetch: Fetch) -> None:
        self._fetch_bytes = fetch

    def _fetch(self, url: str) -> Iterator[bytes]:
        raise NotImplementedError(f"{url}: tuf must fetch through download_bytes, which has a limit")

    @contextmanager
    def download_file(self, url: str, max_length: int) -> Iterator[IO[bytes]]:
        yield BytesIO(self.download_bytes(url, max_length))

    def download_bytes(self, url: str, max_length: int) -> bytes:
        # a length in signed metadata takes the place of tuf's limits, so a stolen online key could name any
        if max_length > MAX_TARGETS_BYTES:
            raise TooLarge(f"{url}: found a signed length of {max_length} bytes, expected at most {MAX_TARGETS_BYTES}")
        try:
            data = self._fetch_bytes(url, max_length)
        except NotFound as error:
            # tuf ends the root walk at this class and code; in other steps `translate_errors` translates it back
            raise tuf_errors.DownloadHTTPError(error.message, 404) from error
        if len(data) > max_length:
            raise TooLarge(f"{url}: found {len(data)} bytes, at most {max_length} are allowed")
        return data


class TrustedUpdater(Updater):
    """The TUF client of one check. Use it once, and never from two processes on one cache.

    Args:
        cache_dir: directory of tuf's metadata cache; created if missing. Its content is not trusted.
        bootstrap_root: bytes of the root that the software was shipped with.
        metadata_url: base URL of the metadata files, with or without a trailing slash.
        targets_url: base URL of the target files, with or without a trailing slash.
        fetch: the transport.
        clock: returns the time to judge expiry by, in Unix seconds; called once, with the final root.
        on_timestamp: called with the verified timestamp, before the snapshot is loaded.

    Raises:
        Malformed: the shipped root is not TUF metadata.
        UntrustedMetadata: the shipped root is not signed by its own keys.
    """

    def __init__(
        self,
        cache_dir: Path,
        bootstrap_root: bytes,
        metadata_url: str,
        targets_url: str,
        fetch: Fetch,
        clock: Callable[[Root], int],
        on_timestamp: Callable[[Timestamp], None] = lambda _timestamp: None,
    ) -> None:
        self._clock, self._on_timestamp = clock, on_timestamp
        self._step = "root"
        self.time_s = 0
        cache_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        with translate_errors(self):
            super().__init__(
                metadata_dir=os.fspath(cache_dir),
                metadata_base_url=metadata_url,
                target_dir=None,
                target_base_url=targets_url,
                fetcher=_Transport(fetch),
                config=UpdaterConfig(
                    max_root_rotations=MAX_ROOT_ROTATIONS,
                    max_delegations=MAX_DELEGATIONS,
                    root_max_length=MAX_ROOT_BYTES,
                    timestamp_max_length=MAX_TIMESTAMP_BYTES,
                    snapshot_max_length=MAX_SNAPSHOT_BYTES,
                    targets_max_length=MAX_TARGETS_BYTES,
                ),
                bootstrap=bootstrap_root,
            )

        self.bootstrap_version = self._trusted_set.root.version

    @property
    def root(self) -> Root:
        """The root at the end of the root walk."""
        return self._trusted_set.root

    @property
    def targets(self) -> Targets:
        """The verified document of the targets role."""
        return self._trusted_set.targets

    @property
    def timestamp(self) -> Timestamp:
        """The verified document of the timestamp role."""
        return self._trusted_set.timestamp

    @property
    def snapshot(self) -> Snapshot:
        """The verified document of the snapshot role."""
        return self._trusted_set.snapshot

    def verified_document(self, role: str) -> Signed:
        """Return the verified document of a role that was loaded before."""
        return self._trusted_set[role]

    def load_delegated(self, role: str) -> Targets:
        """Return the verified document of a role that targets delegates to; load it if necessary."""
        return self._load_targets(role, Targets.type)

    def cached_bytes(self, role: str) -> bytes:
        """Return the cached metadata file of a role that was loaded in this check."""
        return self._load_local_metadata(role)

    def signing_keys(self, role: str) -> dict[str, Key]:
        """Return the keys that validly signed a role's verified document, by key id.

        Raises:
            UntrustedMetadata: the cached file is no longer the document that was verified.
        """
        cached: Metadata[Root] = Metadata.from_bytes(self.cached_bytes(role))
        delegator = self.root if role in self.root.roles else self.targets
        if cached.signed != self.verified_document(role):
            raise UntrustedMetadata(f"the cached metadata of {role} changed during the check")
        return delegator.get_verification_result(role, cached.signed_bytes, cached.signatures).signed

    def read_target(self, target: TargetFile, destination: Path, max_bytes: int) -> bytes:
        """Return the verified content of a target, from `destination` if that file matches, else fetched.

        Args:
            target: the target as its role lists it.
            destination: file to read and to write.
            max_bytes: limit on the target's length.

        Raises:
            DigestMismatch: the fetched bytes do not have the listed length and digest.
            DownloadFailed: the transfer failed.
            NotFound: the server has no such file.
            TooLarge: the target is listed with more than `max_bytes`.
        """
        if target.length > max_bytes:
            raise TooLarge(f"{target.path} is {target.length} bytes, at most {max_bytes} are allowed")
        with translate_errors(self):
            path = self.find_cached_target(target, os.fspath(destination))
            data = Path(path or self.download_target(target, os.fspath(destination))).read_bytes()
            target.verify_length_and_hashes(data)
        return data

    def _load_root(self) -> None:
        self._step = "root"
        super()._load_root()
        self.time_s = self._clock(self._trusted_set.root)
        set_reference_time(self, self.time_s)

    def _load_timestamp(self) -> None:
        self._step = "timestamp"
        super()._load_timestamp()
        if self.timestamp.is_expired(self._trusted_set.reference_time):
            # tuf would notice after it has downloaded a snapshot
            raise tuf_errors.ExpiredMetadataError("timestamp.json is expired")
        self._on_timestamp(self.timestamp)

    def _load_snapshot(self) -> None:
        self._step = "snapshot"
        super()._load_snapshot()

    def _load_targets(self, role: str, parent_role: str) -> Targets:
        self._step = role
        return super()._load_targets(role, parent_role)

    @property
    def step(self) -> str:
        """The role that is being loaded, or was loaded last."""
        return self._step


def set_reference_time(updater: Updater, time_s: int) -> None:
    """Set the time that tuf judges expiry by.

    Args:
        updater: a tuf client.
        time_s: the time, in Unix seconds.

    Raises:
        AttributeError: this version of tuf has no such attribute.
    """
    trusted = updater._trusted_set
    if not isinstance(trusted.reference_time, datetime):
        raise AttributeError("tuf's TrustedMetadataSet.reference_time is no longer a datetime")
    trusted.reference_time = datetime.fromtimestamp(time_s, UTC)


@contextmanager
def translate_errors(updater: TrustedUpdater) -> Iterator[None]:
    """Translate errors of tuf into ours, by the step that raised them."""
    try:
        yield
    except AirweightsError:
        raise
    except tuf_errors.ExpiredMetadataError as error:
        raise MetadataExpired(
            f"{error} (checked at Unix time {updater.time_s})",
            hint="ask the publisher to renew it (`packager repo refresh`, or `packager keys role renew ROLE` for root,"
            " targets, fleet and releases); no new release is activated until then",
        ) from error
    except tuf_errors.BadVersionNumberError as error:
        if updater.step in ("timestamp", "snapshot"):
            raise RollbackRefused(f"{updater.step}: {error}") from error
        raise UntrustedMetadata(f"{updater.step}: {error}") from error
    except tuf_errors.LengthOrHashMismatchError as error:
        raise DigestMismatch(f"after {updater.step}: {error}") from error
    except DeserializationError as error:
        raise Malformed(f"{updater.step}: not TUF metadata") from error
    except tuf_errors.RepositoryError as error:
        raise UntrustedMetadata(f"{updater.step}: {error}") from error
    except tuf_errors.DownloadHTTPError as error:
        kind = type(error.__cause__) if isinstance(error.__cause__, NotFound) else NotFound
        raise kind(str(error), hint=getattr(error.__cause__, "hint", None)) from error
    except tuf_errors.DownloadError as error:
        raise DownloadFailed(f"{updater.step}: {error}") from error
