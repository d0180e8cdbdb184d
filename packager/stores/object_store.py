"""Object stores: S3 and its compatible stores, Google Cloud Storage and Azure, through obstore.

Rules:
1. Credentials and endpoints come from the environment, in the variables that each provider's tools use. They are never
   part of a URL, a message or a log.
2. `create` and `swap` are conditional puts (If-None-Match, If-Match; generations in Google Cloud Storage). A store that
   ignores a condition would let two publishers mix, and some compatible stores do: `check_conditional_puts` tries it on
   a file of its own.
3. A failed request is repeated a few times by obstore. Then it is an error whose reason says what to mend.
4. Files above MULTIPART_BYTES are sent in parts. Only files that their digest names are so large, and the ETag of such
   a file is no digest.
"""

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from bundle.errors import AirweightsError
from packager.errors import RepositoryDamaged
from packager.stores.errors import (
    ConditionalPutsMissing,
    StoreAccessDenied,
    StoreBucketMissing,
    StoreClockSkewed,
    StoreCredentialsExpired,
    StoreCredentialsMissing,
    StoreCredentialsRefused,
    StoreLibraryMissing,
    StoreUnavailable,
    StoreUrlInvalid,
)
from packager.stores.store import PRIVATE, StoredContent, StoredFile

if TYPE_CHECKING:
    from obstore.store import ObjectStore as ObstoreStore

MULTIPART_BYTES: Final = 16 * 1024 * 1024
PROBE: Final = "publisher/conditional-put"
VERSION_FIELDS: Final = {"s3": "e_tag", "gs": "version", "az": "e_tag"}  # what obstore compares in a conditional put
NEVER_STORED: Final = {"e_tag": '"00000000000000000000000000000000"', "version": "1"}
MAX_RETRIES: Final = 4
FIRST_PAUSE_S: Final = 0.2
MAX_PAUSE_S: Final = 5.0
RETRY_TIMEOUT_S: Final = 60.0
CODE_PATTERN: Final = re.compile(r"<Code>([A-Za-z0-9]+)</Code>")
STATUS_PATTERN: Final = re.compile(r"status code: ([0-9]{3})")
BUCKET_PATTERN: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,253}")
EXPIRED_CODES: Final = frozenset({"ExpiredToken", "TokenRefreshRequired", "ExpiredTokenException"})
UNKNOWN_CODES: Final = frozenset(
    {"InvalidAccessKeyId", "SignatureDoesNotMatch", "InvalidToken", "AuthenticationFailed"}
)
# variables with an endpoint, such as that of an emulator
ENDPOINT_VARIABLES: Final = {
    "s3": ("AWS_ENDPOINT_URL",),
    "gs": ("GOOGLE_BASE_URL",),
    "az": ("AZURE_STORAGE_ENDPOINT", "AZURE_ENDPOINT"),
}
CREDENTIAL_HINTS: Final = {
    "s3": "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, and AWS_SESSION_TOKEN for temporary ones",
    "gs": "set GOOGLE_APPLICATION_CREDENTIALS or GOOGLE_SERVICE_ACCOUNT to a service account's file",
    "az": "set AZURE_STORAGE_ACCOUNT_NAME, and AZURE_STORAGE_ACCOUNT_KEY or AZURE_STORAGE_SAS_KEY",
}
# one of these must be set; the last ones are how a machine of the provider says that it has an identity
CREDENTIAL_VARIABLES: Final = {
    "s3": (
        *("AWS_ACCESS_KEY_ID", "AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI"),
        *("AWS_CONTAINER_CREDENTIALS_FULL_URI", "AWS_METADATA_ENDPOINT", "AWS_SKIP_SIGNATURE"),
    ),
    "gs": (
        *("GOOGLE_APPLICATION_CREDENTIALS", "GOOGLE_SERVICE_ACCOUNT", "GOOGLE_SERVICE_ACCOUNT_PATH"),
        *("GOOGLE_SERVICE_ACCOUNT_KEY", "GOOGLE_BEARER_TOKEN"),
    ),
    "az": (
        *("AZURE_STORAGE_ACCOUNT_KEY", "AZURE_STORAGE_SAS_KEY", "AZURE_CLIENT_ID", "AZURE_FEDERATED_TOKEN_FILE"),
        *("AZURE_STORAGE_TOKEN", "AZURE_SKIP_SIGNATURE", "AZURE_STORAGE_SAS_TOKEN"),
    ),
}


class ObjectStore:
    """A bucket, below a prefix, as a store (packager.stores.store).

    Args:
        url: `s3://BUCKET/PREFIX`, or the same with `gs:` or `az:`.

    Raises:
        StoreUrlInvalid: the URL has no bucket, or has a query or credentials.
        StoreLibraryMissing: obstore is not installed.
        StoreCredentialsMissing: the environment names no credentials.
    """

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        if not BUCKET_PATTERN.fullmatch(parts.netloc) or parts.query or parts.fragment:
            raise StoreUrlInvalid(
                f"found {parts.scheme}://{parts.netloc.rpartition('@')[2]}…, expected {parts.scheme}://BUCKET/PREFIX",
                hint="credentials and endpoint come from the environment, not from the URL",
            )
        self.url = url.rstrip("/")
        self._kind, self._bucket = parts.scheme, parts.netloc
        if not any(os.environ.get(name) for name in CREDENTIAL_VARIABLES[self._kind]):
            raise StoreCredentialsMissing(
                f"{self.url}: found no credentials in the environment", hint=CREDENTIAL_HINTS[self._kind]
            )
        self._store = _connect(self._kind, parts.netloc, parts.path.strip("/"))

    def list_files(self) -> Mapping[str, StoredFile]:
        """Return path → file, for every file below the prefix; one request for each thousand."""
        import obstore

        found = {}
        with self._reporting("list"):
            for page in obstore.list(self._store, chunk_size=1000):
                for row in page:
                    found[row["path"]] = StoredFile(row["path"], row["size"], row["last_modified"].timestamp())
        return found

    def read(self, path: str) -> StoredContent | None:
        """Return a file's content, or None if there is no such file."""
        import obstore

        try:
            with self._reporting(path):
                result = obstore.get(self._store, path)
                version = result.meta[VERSION_FIELDS[self._kind]]
                return StoredContent(bytes(result.bytes()), version or "")
        except RepositoryDamaged:
            return None

    def download(self, path: str, target: Path) -> None:
        """Write a file's content to a local file.

        Args:
            path: path below the prefix.
            target: the local file to write.

        Raises:
            RepositoryDamaged: there is no such file.
        """
        import obstore

        with self._reporting(path), target.open("wb") as out:
            for chunk in obstore.get(self._store, path):
                out.write(chunk)

    def put(self, path: str, source: bytes | Path, cache_control: str) -> None:
        """Write a file, whether it exists or not.

        Args:
            path: path below the prefix.
            source: the bytes, or the file with them.
            cache_control: value of `Cache-Control` that the store sends with it.
        """
        self._put(path, source, cache_control, "overwrite")

    def create(self, path: str, source: bytes | Path, cache_control: str) -> bool:
        """Write a file unless it exists; return whether it was written.

        Args:
            path: path below the prefix.
            source: the bytes, or the file with them.
            cache_control: value of `Cache-Control` that the store sends with it.
        """
        return self._put(path, source, cache_control, "create")

    def swap(self, path: str, data: bytes, expected: str | None, cache_control: str) -> bool:
        """Replace a file if it still has a version; return whether it was replaced.

        Args:
            path: path below the prefix.
            data: the new bytes.
            expected: the version that `read` returned; None if there must be no such file.
            cache_control: value of `Cache-Control` that the store sends with it.
        """
        mode = "create" if expected is None else {VERSION_FIELDS[self._kind]: expected}
        return self._put(path, data, cache_control, mode)

    def delete(self, paths: list[str]) -> None:
        """Delete files; those that do not exist are ignored."""
        import obstore

        # S3 ignores what does not exist; the others end there, and the rest is deleted file by file
        try:
            if paths:
                with self._reporting(paths[0]):
                    obstore.delete(self._store, paths)
        except RepositoryDamaged:
            for path in paths:
                with suppress(RepositoryDamaged), self._reporting(path):
                    obstore.delete(self._store, path)

    def check_conditional_puts(self) -> None:
        """Try on a file of its own that `create` and `swap` compare.

        Raises:
            ConditionalPutsMissing: the store replaces a file that it must not.
        """
        self.create(PROBE, b"1", PRIVATE)
        ignores_none = self.create(PROBE, b"2", PRIVATE)
        ignores_match = self.swap(PROBE, b"3", NEVER_STORED[VERSION_FIELDS[self._kind]], PRIVATE)
        if ignores_none or ignores_match:
            name = "If-None-Match" if ignores_none else "If-Match"
            raise ConditionalPutsMissing(
                f"{self.url}: the store ignores {name}: two publishers at the same time could mix their files",
                hint="use a store with conditional puts, or push to it from one place only with `file:` and a mirror",
            )

    def _put(self, path: str, source: bytes | Path, cache_control: str, mode: Any) -> bool:
        import obstore
        from obstore.exceptions import AlreadyExistsError, NotSupportedError, PreconditionError

        is_large = mode == "overwrite" and isinstance(source, Path) and source.stat().st_size > MULTIPART_BYTES
        attributes = {"Cache-Control": cache_control, "Content-Type": _content_type(path)}
        data = source if is_large or isinstance(source, bytes) else source.read_bytes()
        with self._reporting(path):
            try:
                obstore.put(self._store, path, data, attributes=attributes, mode=mode, use_multipart=is_large)
            except (AlreadyExistsError, PreconditionError):
                return False
            except (NotImplementedError, NotSupportedError) as error:
                raise ConditionalPutsMissing(f"{self.url}/{path}: {_first_line(error)}") from error
            except FileNotFoundError as error:  # a put needs no file, so the bucket is missing
                raise StoreBucketMissing(f"{self.url}: there is no bucket {self._bucket!r}") from error
        return True

    @contextmanager
    def _reporting(self, path: str) -> Iterator[None]:
        from obstore.exceptions import BaseError

        try:
            yield
        except (BaseError, FileNotFoundError, OSError) as error:
            raise self._translate(error, path) from error

    def _translate(self, error: Exception, path: str) -> AirweightsError:
        text = str(error)
        code = next(iter(CODE_PATTERN.findall(text)), "")
        status = next(iter(STATUS_PATTERN.findall(text)), "")
        where = f"{self.url}/{path}"
        if code in ("NoSuchBucket", "ContainerNotFound"):
            return StoreBucketMissing(f"{self.url}: there is no bucket {self._bucket!r}")
        if isinstance(error, FileNotFoundError):
            return RepositoryDamaged(f"{where} is missing")
        if code in EXPIRED_CODES:
            return StoreCredentialsExpired(f"{where}: {code}", hint="get new temporary credentials")
        if code == "RequestTimeTooSkewed":
            return StoreClockSkewed(f"{where}: {code}", hint="compare this machine's clock with a time server")
        if code in UNKNOWN_CODES:
            return StoreCredentialsRefused(f"{where}: {code}", hint=CREDENTIAL_HINTS[self._kind])
        if status in ("401", "403") or code == "AccessDenied":
            return StoreAccessDenied(
                f"{where}: {code or f'HTTP {status}'}: the credentials are not for this bucket, or not for this action",
                hint="pushing needs permission to list, get, put and delete below the prefix",
            )
        if code in ("NotImplemented", "MethodNotAllowed") or status == "501":
            return ConditionalPutsMissing(f"{where}: the store refuses a conditional put: {code or status}")
        return StoreUnavailable(f"{where}: {code or (f'HTTP {status}' if status else _first_line(error))}")


def _connect(kind: str, bucket: str, prefix: str) -> "ObstoreStore":
    try:
        from obstore.exceptions import BaseError
        from obstore.store import AzureStore, GCSStore, S3Store
    except ImportError as error:
        raise StoreLibraryMissing(
            f"{kind}: needs obstore, which is not installed", hint="pip install 'airweights[s3]'"
        ) from error
    retries: Any = {
        "max_retries": MAX_RETRIES,
        "backoff": {
            "init_backoff": timedelta(seconds=FIRST_PAUSE_S),
            "max_backoff": timedelta(seconds=MAX_PAUSE_S),
            "base": 2,
        },
        "retry_timeout": timedelta(seconds=RETRY_TIMEOUT_S),
    }
    endpoint = next((value for name in ENDPOINT_VARIABLES[kind] if (value := os.environ.get(name))), "")
    options: Any = {"allow_http": endpoint.startswith("http:"), "connect_timeout": "10s", "timeout": "60s"}
    try:
        if kind == "gs":
            given: Any = {"base_url": endpoint} if endpoint else {}  # obstore does not read it from the environment
            return GCSStore(bucket, prefix=prefix or None, retry_config=retries, client_options=options, **given)
        if kind == "az":
            return AzureStore(bucket, prefix=prefix or None, retry_config=retries, client_options=options)
        return S3Store(bucket, prefix=prefix or None, retry_config=retries, client_options=options)
    except (BaseError, ValueError) as error:
        if any(word in str(error).lower() for word in ("credential", "service account")):
            raise StoreCredentialsMissing(
                f"{kind}://{bucket}/{prefix}: {_first_line(error)}", hint=CREDENTIAL_HINTS[kind]
            ) from error
        raise StoreUrlInvalid(f"{kind}://{bucket}/{prefix}: {_first_line(error)}") from error


def _content_type(path: str) -> str:
    return "application/json" if path.endswith(".json") else "application/octet-stream"


def _first_line(error: Exception) -> str:
    # obstore appends its internal state; the sentence before it has what happened
    return str(error).partition("\n")[0].rpartition(" - ")[2][:200]
