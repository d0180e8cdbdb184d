"""The documents of a check: the repository's single files, or cheaper copies of them.

Theory of operation. tuf asks for single files by URL. `DocumentSource` answers with a copy if it has one:

    timestamp   nothing, if another family of the device requested it a moment ago; else a conditional request; on "304
                Not Modified" the stored timestamp, else `timestamp.awz`
    root        nothing, if the timestamp is unchanged and root was walked within ROOT_WALK_INTERVAL_S of the same boot;
                `roots/<N>.awz` with all roots, if the timestamp says that more than one is new
    the rest    the archive of the family (bundle.archive) with everything that changed since the stored snapshot: the
                one of the device's cohort, or the one of all devices

Rules:
1. Every copy is verified exactly as the single file: tuf verifies signatures, versions and expiry of a stored timestamp
   again. The members of an archive must be those that timestamp and snapshot name, by digest; otherwise the archive is
   dropped, with its own reason in the log, and the single files are downloaded.
2. A copy decides nothing. If a check with copies fails in a way that a wrong copy could cause (COPY_ERRORS), it is
   repeated once with `use_copies=False`: an unconditional request for each single file.
3. The fields that choose a copy are read from the timestamp before it is verified. A wrong one costs a request.
4. Root is walked before a timestamp that was not stored already is trusted, and whenever `walk_root` asks for it; then
   it is walked before the timestamp is requested.
5. Validators belong to one URL. They are stored after the metadata was verified, beside tuf's cache; like the cache,
   they are not trusted.
"""

import hashlib
import json
import logging
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final, TypeVar

from tuf.api.metadata import Timestamp

from bundle import strict_json
from bundle.archive import (
    MAX_ARCHIVE_BYTES,
    MAX_ROOTS_BYTES,
    MAX_ROOTS_CONTENT_BYTES,
    decode_archive,
    decompress_document,
)
from bundle.errors import (
    ArchiveMismatch,
    DigestMismatch,
    Malformed,
    MetadataExpired,
    NotFound,
    Refused,
    RollbackRefused,
    TooLarge,
    UnexpectedNotModified,
    UntrustedMetadata,
)
from bundle.repository_paths import (
    METADATA_FOLDER,
    SHARDS_FOLDER,
    TARGETS_FOLDER,
    family_archive_path,
    roots_archive_path,
)
from bundle.trust.archive_members import check_members
from bundle.trust.clock import ClockFacts
from bundle.trust.role_names import COPIES_FIELD
from bundle.trust.updater import MAX_TIMESTAMP_BYTES, Fetch
from bundle.trust.validators import (
    COMPRESSED_TIMESTAMP_NAME,
    STATE_NAME,
    TIMESTAMP_NAME,
    Download,
    FetchIfChanged,
    SourceState,
    Validators,
    read_source_state,
)

logger = logging.getLogger(__name__)

Result = TypeVar("Result")

ROOT_WALK_INTERVAL_S: Final = 24 * 3600
MAX_VERSION: Final = 2**53
COPY_ERRORS: Final = (
    DigestMismatch,
    Malformed,
    MetadataExpired,
    NotFound,
    RollbackRefused,
    TooLarge,
    UnexpectedNotModified,
    UntrustedMetadata,
)


@dataclass(slots=True)
class DocumentSource:
    """The documents of one check, downloaded or copied.

    Attributes:
        cache_dir: directory of the check; tuf's cache is in its folder `tuf`.
        metadata_url: base URL of the metadata files.
        targets_url: base URL of the target files.
        family: the family whose archive is used; "" for none.
        clock: the clock readings of the check.
        fetch_file: downloads a whole file.
        fetch_if_changed: downloads a file conditionally, or None if the transport cannot.
        walk_root: whether root is walked even if the timestamp is unchanged, before it is requested.
        has_timestamp: the stored timestamp was requested a moment ago: it counts as unchanged.
        cohort: the cohort whose archive is asked for first, if the timestamp says that cohorts have some; "" for none.
        use_copies: False to download each single file; always False without conditional requests.
        has_used_copy: whether an answer so far was a copy.
        shards: the members of the archive that are envelope shards, by path.
    """

    cache_dir: Path
    metadata_url: str
    targets_url: str
    family: str
    clock: ClockFacts
    fetch_file: Fetch
    fetch_if_changed: FetchIfChanged | None = None
    walk_root: bool = False
    has_timestamp: bool = False
    cohort: str = ""
    use_copies: bool = True
    has_used_copy: bool = field(default=False, init=False)
    shards: dict[str, bytes] = field(default_factory=dict, init=False)
    _members: dict[str, bytes] = field(default_factory=dict, init=False)
    _timestamp: bytes | None = field(default=None, init=False)
    _is_unchanged: bool = field(default=False, init=False)
    _name: str = field(default=TIMESTAMP_NAME, init=False)
    _validators: Validators = field(default=Validators(), init=False)
    _walked_version: int = field(default=0, init=False)
    _stored: SourceState | None = field(default=None, init=False)
    _newest_root: int = field(default=0, init=False)  # as the unverified timestamp says, 0 if it is not to be used

    def __post_init__(self) -> None:
        self.metadata_url = self.metadata_url.rstrip("/") + "/"
        self.targets_url = self.targets_url.rstrip("/") + "/"
        self.use_copies = self.use_copies and self.fetch_if_changed is not None

    def fetch(self, url: str, max_bytes: int) -> bytes:
        """Return the file at a URL: a copy of it, or downloaded.

        Args:
            url: below `metadata_url` or `targets_url`.
            max_bytes: limit of the file.

        Raises:
            NotFound: the server has no such file.
            DownloadFailed: the transfer failed.
            TooLarge: the file is longer than the limit.
        """
        if url == self.metadata_url + TIMESTAMP_NAME:
            return self._open_timestamp()
        version = self._root_version(url)
        if version is not None:
            return self._fetch_root(url, version, max_bytes)
        path = self._relative_path(url)
        if path in self._members:
            return self._copy(self._members[path], url, max_bytes)
        return self.fetch_file(url, max_bytes)

    def open_archive(self, timestamp: Timestamp) -> None:
        """Download the family's archive, if the snapshot is not that of the family's last check.

        Args:
            timestamp: the verified timestamp.
        """
        meta, copies = timestamp.snapshot_meta, _copies_field(timestamp.unrecognized_fields)
        stored = self._stored.snapshots.get(self.family, 0) if self._stored is not None else 0
        bases = copies.get("bases")
        if not self.use_copies or not self.family or not isinstance(bases, list) or stored == meta.version:
            return
        base = max((base for base in _integers(bases) if base <= stored), default=0)
        for cohort in (self.cohort, "") if copies.get("cohorts") is True and self.cohort else ("",):
            path = family_archive_path(self.family, meta.version, base, cohort)
            members = self._fetch_archive(path, MAX_ARCHIVE_BYTES)
            try:
                check_members(members, timestamp)
            except ArchiveMismatch as error:
                _log_unusable(path, error)
                continue
            if members:
                self.shards = {name: data for name, data in members.items() if name.startswith(SHARDS_FOLDER)}
                self._members |= {name: data for name, data in members.items() if name not in self.shards}
                return

    def save(self, snapshot: int | None = None) -> None:
        """Store the validators of the timestamp and the walk of root. Call it when the metadata is verified.

        Args:
            snapshot: version of the snapshot, when all documents of the family are verified and stored; else None.

        Raises:
            OSError: the file cannot be written.
        """
        cached = self._read_cached("timestamp")
        is_stored = self._timestamp is not None and cached == self._timestamp
        before = self._stored
        snapshots = dict(before.snapshots) if before else {}
        walk = (before.root_version, before.boot_id, before.boot_elapsed_s) if before else (0, "", 0)
        if self._walked_version:
            walk = (self._walked_version, self.clock.boot_id, self.clock.boot_elapsed_s)
        state = SourceState(
            self.metadata_url,
            self._name,
            hashlib.sha256(cached).hexdigest(),
            self._validators if is_stored else Validators(),
            *walk,
            snapshots | ({} if snapshot is None or not self.family else {self.family: snapshot}),
        )
        if state != before:
            partial = self.cache_dir / f"{STATE_NAME}.part"
            partial.write_bytes(strict_json.encode(state.as_json()))
            partial.replace(self.cache_dir / STATE_NAME)
            self._stored = state

    # timestamp

    def _open_timestamp(self) -> bytes:
        if self._timestamp is None:
            self._stored = read_source_state(self.cache_dir / STATE_NAME, self.metadata_url)
            self._timestamp = self._find_timestamp() if self.use_copies else self._fetch_timestamp(TIMESTAMP_NAME)
            self._is_unchanged |= self._timestamp == self._read_cached("timestamp")
            copies = _copies_field(_signed_part(self._timestamp)) if self.use_copies else {}
            self._newest_root = max(_integers([copies.get("root")]), default=0)
        return self._timestamp

    def _find_timestamp(self) -> bytes:
        cached, stored = self._read_cached("timestamp"), self._stored
        name = COMPRESSED_TIMESTAMP_NAME
        if stored is not None and stored.sha256 == hashlib.sha256(cached).hexdigest():
            name = stored.name
            if self.has_timestamp:
                self._name, self._validators = name, stored.validators
                self._is_unchanged = self.has_used_copy = True
                return cached
            if stored.validators != Validators() and self.fetch_if_changed is not None:
                download = self._fetch_conditionally(name, stored.validators)
                if download is not None and download.data is None:
                    self._name, self._validators = name, stored.validators
                    self._is_unchanged = self.has_used_copy = True
                    return cached
                if download is not None and download.data is not None:
                    return self._decode_timestamp(name, download.data, download.validators)
        if name == COMPRESSED_TIMESTAMP_NAME:
            try:
                return self._fetch_timestamp(name)
            except NotFound:
                logger.debug("no compressed timestamp at %s", self.metadata_url)
        return self._fetch_timestamp(TIMESTAMP_NAME)

    def _fetch_conditionally(self, name: str, validators: Validators) -> Download | None:
        assert self.fetch_if_changed is not None
        try:
            return self.fetch_if_changed(self.metadata_url + name, MAX_TIMESTAMP_BYTES, validators)
        except NotFound:
            return None  # it may have moved to the other name

    def _fetch_timestamp(self, name: str) -> bytes:
        url = self.metadata_url + name
        if self.fetch_if_changed is None:
            return self._decode_timestamp(name, self.fetch_file(url, MAX_TIMESTAMP_BYTES), Validators())
        download = self.fetch_if_changed(url, MAX_TIMESTAMP_BYTES, Validators())
        if download.data is None:
            raise UnexpectedNotModified(f"{url}: HTTP 304, but nothing was asked about")
        return self._decode_timestamp(name, download.data, download.validators)

    def _decode_timestamp(self, name: str, data: bytes, validators: Validators) -> bytes:
        if name == COMPRESSED_TIMESTAMP_NAME:
            try:
                data = decompress_document(data, MAX_TIMESTAMP_BYTES)
            except Refused as error:
                _log_unusable(f"{METADATA_FOLDER}/{name}", error)
                return self._fetch_timestamp(TIMESTAMP_NAME)
            self.has_used_copy = True
        self._name, self._validators = name, validators
        return data

    # root

    def _fetch_root(self, url: str, version: int, max_bytes: int) -> bytes:
        if self.use_copies and not self.walk_root:
            self._open_timestamp()
            if self._is_unchanged and self._is_walked(version - 1):
                raise NotFound(f"{url}: root was walked less than {ROOT_WALK_INTERVAL_S // 3600} h ago")
            path = f"{METADATA_FOLDER}/{version}.root.json"
            if path not in self._members and self._newest_root > version:
                roots_path, self._newest_root = roots_archive_path(self._newest_root), 0
                self._members |= self._fetch_archive(roots_path, MAX_ROOTS_BYTES, MAX_ROOTS_CONTENT_BYTES)
            if path in self._members:
                return self._copy(self._members[path], url, max_bytes)
        try:
            return self.fetch_file(url, max_bytes)
        except NotFound:
            self._walked_version = version - 1
            raise

    def _is_walked(self, version: int) -> bool:
        stored, clock = self._stored, self.clock
        if stored is None or stored.root_version != version or stored.boot_id != clock.boot_id:
            return False
        return 0 <= clock.boot_elapsed_s - stored.boot_elapsed_s < ROOT_WALK_INTERVAL_S

    def _root_version(self, url: str) -> int | None:
        name = url.removeprefix(self.metadata_url)
        number = name.removesuffix(".root.json")
        return int(number) if name != url and number != name and number.isdecimal() and len(number) < 16 else None

    # archives

    def _fetch_archive(self, path: str, max_bytes: int, max_content_bytes: int | None = None) -> dict[str, bytes]:
        url = self.metadata_url + path.removeprefix(f"{METADATA_FOLDER}/")
        try:
            stored = self.fetch_file(url, max_bytes)
            return decode_archive(stored) if max_content_bytes is None else decode_archive(stored, max_content_bytes)
        except NotFound:
            logger.debug("no archive %s", path)
        except Refused as error:
            _log_unusable(path, error)
        return {}

    def _copy(self, data: bytes, url: str, max_bytes: int) -> bytes:
        if len(data) > max_bytes:
            raise TooLarge(f"{url}: {len(data)} bytes in the archive, at most {max_bytes} are allowed")
        self.has_used_copy = True
        return data

    def _relative_path(self, url: str) -> str:
        for base, folder in ((self.metadata_url, METADATA_FOLDER), (self.targets_url, TARGETS_FOLDER)):
            if url.startswith(base):
                return f"{folder}/{url.removeprefix(base)}"
        return ""

    def _read_cached(self, role: str) -> bytes:
        try:
            return (self.cache_dir / "tuf" / f"{role}.json").read_bytes()
        except OSError:
            return b""


def run_with_copies(source: DocumentSource, run: Callable[[DocumentSource], Result]) -> Result:
    """Run a check with copies; repeat it with the single files if a wrong copy could be why it failed.

    Args:
        source: the documents of the check.
        run: the check; called with `source`, and at most once more with a source that downloads each single file.

    Raises:
        Refused: the check failed with the single files, or without any copy.
        Unavailable: as for Refused.
    """
    try:
        return run(source)
    except COPY_ERRORS as error:
        if not source.has_used_copy and not isinstance(error, UnexpectedNotModified):
            raise
        logger.warning("check repeated with the single files (%s): %s", error.reason, error.message)
    return run(replace(source, use_copies=False))


def _log_unusable(path: str, error: Refused) -> None:
    logger.warning("%s is not used (%s): %s", path, error.reason, error.message)


def _signed_part(data: bytes) -> dict[str, object]:
    try:
        signed = json.loads(data)["signed"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return {}
    return signed if isinstance(signed, dict) else {}


def _copies_field(fields: dict[str, object]) -> dict[str, object]:
    value = fields.get(COPIES_FIELD)
    return value if isinstance(value, dict) else {}


def _integers(values: object) -> list[int]:
    rows = values if isinstance(values, list) else []
    return [row for row in rows if isinstance(row, int) and not isinstance(row, bool) and 0 < row <= MAX_VERSION]
