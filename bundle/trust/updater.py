"""python-tuf's client, with our clock, our limits, our transport and our errors.

This is the one file that touches what python-tuf does not promise: `_trusted_set.reference_time` (the time that expiry
is judged by), `_load_root` and the other steps of a refresh (to know in which one a version was wrong). A test fails if
tuf renames any of them.

Rules:
1. The shipped root is always the bootstrap; the cache is never a trust anchor.
2. The clock is asked after the root walk and before anything is judged by time: a root can reset the time floor.
3. Every length is bounded: by the metadata that names the file, else by a limit here.
4. What tuf raises becomes an error of ours, by the step that it happened in.
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
"""(URL, most bytes) → the whole file. Raises NotFoundUnavailable (404, 403), FetchUnavailable, TooLargeRefused."""

MAX_ROOT_BYTES: Final = 512 * 1024  # 5.5 kB a key pair and 6.6 kB a signature pair of ML-DSA-65: 30 of each
MAX_TIMESTAMP_BYTES: Final = 64 * 1024  # two signatures are 7 kB
MAX_SNAPSHOT_BYTES: Final = 2 * 1024 * 1024  # 200 bytes a role
MAX_TARGETS_BYTES: Final = 4 * 1024 * 1024  # 8 kB a family in targets, 200 bytes a release in a release role
MAX_ROOT_ROTATIONS: Final = 1024
MAX_DELEGATIONS: Final = 32


class _Transport(FetcherInterface):
    """Our `Fetch` in the shape that tuf asks for."""

    def __init__(self, fetch: Fetch) -> None:
        self._fetch_bytes = fetch

    def _fetch(self, url: str) -> Iterator[bytes]:
        raise NotImplementedError(f"{url}: only whole files with a limit are fetched")

    @contextmanager
    def download_file(self, url: str, max_length: int) -> Iterator[IO[bytes]]:
        yield BytesIO(self.download_bytes(url, max_length))

    def download_bytes(self, url: str, max_length: int) -> bytes:
        try:
            data = self._fetch_bytes(url, max_length)
        except NotFound as error:
            # tuf ends the root walk at this class and code; elsewhere it is translated back
            raise tuf_errors.DownloadHTTPError(error.message, 404) from error
        if len(data) > max_length:
            raise TooLarge(f"{url}: found more than the {max_length} bytes that are allowed")
        return data


class TrustedUpdater(Updater):
    """One check's client. Not to be used twice, nor by two processes on one cache.

    Args:
        cache_dir: tuf's cache of metadata; made if missing. Not trusted.
        bootstrap_root: bytes of the root that the software was shipped with.
        metadata_url, targets_url: bases, with or without a trailing slash.
        fetch: the transport.
        clock: asked for Unix seconds once, with the final root (rule 2).

    Raises:
        MalformedRefused, UntrustedMetadataRefused: the shipped root itself is not good.
    """

    def __init__(
        self,
        cache_dir: Path,
        bootstrap_root: bytes,
        metadata_url: str,
        targets_url: str,
        fetch: Fetch,
        clock: Callable[[Root], int],
    ) -> None:
        self._clock = clock
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
        """The final root."""
        return self._trusted_set.root

    @property
    def targets(self) -> Targets:
        """The verified top-level targets."""
        return self._trusted_set.targets

    @property
    def timestamp(self) -> Timestamp:
        """The verified timestamp."""
        return self._trusted_set.timestamp

    @property
    def snapshot(self) -> Snapshot:
        """The verified snapshot."""
        return self._trusted_set.snapshot

    def verified_document(self, role: str) -> Signed:
        """The verified document of a role that was loaded."""
        return self._trusted_set[role]

    def load_delegated(self, role: str) -> Targets:
        """The verified document of a role that targets delegates to, loaded if it is not yet."""
        return self._load_targets(role, Targets.type)

    def cached_bytes(self, role: str) -> bytes:
        """The cached file of a role that was loaded in this check."""
        return self._load_local_metadata(role)

    def signing_keys(self, role: str) -> dict[str, Key]:
        """The keys that validly signed the verified document of a top-level or directly delegated role."""
        held: Metadata[Root] = Metadata.from_bytes(self.cached_bytes(role))
        delegator = self.root if role in self.root.roles else self.targets
        if held.signed != self.verified_document(role):
            raise UntrustedMetadata(f"the cached {role} changed while it was read")
        return delegator.get_verification_result(role, held.signed_bytes, held.signatures).signed

    def read_target(self, target: TargetFile, destination: Path, max_bytes: int) -> bytes:
        """The verified content of a target, from `destination` if it is already there, else fetched.

        Raises:
            TooLargeRefused, DigestMismatchRefused, NotFoundUnavailable, FetchUnavailable.
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

    def _load_snapshot(self) -> None:
        self._step = "snapshot"
        super()._load_snapshot()

    def _load_targets(self, role: str, parent_role: str) -> Targets:
        self._step = role
        return super()._load_targets(role, parent_role)

    @property
    def step(self) -> str:
        """The role that is, or was last, being loaded."""
        return self._step


def set_reference_time(updater: Updater, time_s: int) -> None:
    """Set the time that tuf judges expiry by. AttributeError if tuf no longer has it."""
    trusted = updater._trusted_set
    if not isinstance(trusted.reference_time, datetime):
        raise AttributeError("tuf's TrustedMetadataSet.reference_time is no longer a datetime")
    trusted.reference_time = datetime.fromtimestamp(time_s, UTC)


@contextmanager
def translate_errors(updater: TrustedUpdater) -> Iterator[None]:
    """Rule 4."""
    try:
        yield
    except AirweightsError:
        raise
    except tuf_errors.ExpiredMetadataError as error:
        raise MetadataExpired(
            f"{error} (judged at Unix time {updater.time_s})",
            hint="the publisher must renew it (`packager repo refresh`, or `packager keys role renew ROLE` for root,"
            " targets, fleet and releases); until then nothing new is activated",
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
        raise NotFound(str(error)) from error
    except tuf_errors.DownloadError as error:
        raise DownloadFailed(f"{updater.step}: {error}") from error
