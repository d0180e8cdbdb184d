"""An OCI registry as a store that is only read: to pull, inspect and verify the mirror that it has.

Rules:
- The files are those in the index of `p-N` (packager.remote.push_registry), where N is the version of the registry's
  timestamp. `publication` may already be the next one, of a push that has not written its timestamp yet.
- What the index says is not trusted: documents are verified by their signatures, blobs and targets by their digests.
- Nothing is written: a registry has no compare-and-swap, so it is never a master copy.
"""

import base64
import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from bundle.registry_paths import place_of
from packager.errors import RepositoryDamaged
from packager.remote.push import CONNECTIONS, versions_of
from packager.remote.upload import TIMESTAMP
from packager.stores.open_store import is_registry_url, open_store
from packager.stores.registry_client import RegistryClient, digest_of
from packager.stores.store import ReadableStore, StoredContent, StoredFile

INDEX_FORMAT: Final = "airweights.registry-index/1"
MAX_INDEX_BYTES: Final = 64 << 20
MAX_DOCUMENT_BYTES: Final = 64 << 20


@dataclass(frozen=True, slots=True)
class PublicationIndex:
    """The index of a manifest `p-N`: the files of a publication.

    Attributes:
        files: path → digest and size.
        pushed_s: when it was pushed, in Unix seconds.
    """

    files: Mapping[str, tuple[str, int]]
    pushed_s: int

    def encode(self) -> bytes:
        """Return the bytes of the index, which are the first layer of the manifest."""
        files = {path: [digest, size] for path, (digest, size) in sorted(self.files.items())}
        return json.dumps({"format": INDEX_FORMAT, "pushed_s": self.pushed_s, "files": files}).encode()


def read_index(client: RegistryClient, tag: str) -> PublicationIndex | None:
    """Return the index of a publication, or None if the registry has no such tag.

    Args:
        client: the registry.
        tag: `p-N`.

    Raises:
        RepositoryDamaged: the tag names something else.
    """
    manifest = client.read_manifest(tag)
    if manifest is None:
        return None
    try:
        digest = str(manifest["layers"][0]["digest"])
        data = client.read_blob(digest, MAX_INDEX_BYTES)
        if data is None or digest_of(data) != digest:
            raise RepositoryDamaged(f"{client.url}: the index of {tag} is missing or damaged")
        document = json.loads(data)
        if document["format"] != INDEX_FORMAT:
            raise ValueError
        rows = {str(path): (str(row[0]), int(row[1])) for path, row in document["files"].items()}
        return PublicationIndex(rows, int(document["pushed_s"]))
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise RepositoryDamaged(f"{client.url}: {tag} is not the list of a publication's files") from error


def read_inline(client: RegistryClient, path: str) -> bytes | None:
    """Return a small file that is in the manifest of its tag; None if there is none.

    Args:
        client: the registry.
        path: path below the repository.
    """
    manifest = client.read_manifest(place_of(path).tag)
    return None if manifest is None else _inline_data(manifest)


def _inline_data(manifest: dict[str, Any]) -> bytes | None:
    try:
        return base64.b64decode(manifest["layers"][0]["data"], validate=True)
    except (LookupError, TypeError, ValueError):
        return None


class RegistryStore:
    """A registry as a store that is only read (packager.stores.store).

    Args:
        url: `oci://REGISTRY/NAME`, or `oci+http:` for a registry without TLS.

    Attributes:
        client: the registry.

    Raises:
        StoreUrlInvalid: the URL has another form.
    """

    def __init__(self, url: str) -> None:
        self.client = RegistryClient(url)
        self.url = self.client.url

    def list_files(self) -> Mapping[str, StoredFile]:
        """Return path → file, for every file of the publication that devices see."""
        timestamp = self.read(TIMESTAMP)
        if timestamp is None:
            return {}
        tag = f"p-{versions_of(timestamp.data)[0]}"
        index = read_index(self.client, tag)
        if index is None:
            raise RepositoryDamaged(
                f"{self.url}: the tag {tag} is missing", hint="push again; let no rule of the registry delete tags"
            )
        return {path: StoredFile(path, size, index.pushed_s) for path, (_, size) in index.files.items()}

    def read(self, path: str) -> StoredContent | None:
        """Return a file's content, or None if there is no such file."""
        digest, place = place_of(path).digest, place_of(path)
        if place.tag:
            manifest = self.client.read_manifest(place.tag)
            if manifest is None:
                return None
            if (data := _inline_data(manifest)) is not None:
                return StoredContent(data, digest_of(data))
            digest = self._layer_digest(manifest, path)
        found = self.client.read_blob(digest, MAX_DOCUMENT_BYTES)
        return None if found is None else StoredContent(found, digest)

    def download(self, path: str, target: Path) -> None:
        """Write a file's content to a local file.

        Args:
            path: path below the URL.
            target: the local file to write.

        Raises:
            RepositoryDamaged: there is no such file.
        """
        if (digest := place_of(path).digest) == "":
            content = self.read(path)
            if content is None:
                raise RepositoryDamaged(f"{self.url}/{path} is missing")
            target.write_bytes(content.data)
        elif not self.client.download_blob(digest, target):
            raise RepositoryDamaged(f"{self.url}/{path} is missing")

    def find_missing(self, sizes: Mapping[str, int | None]) -> str | None:
        """Return the first problem with files that the registry must have, or None.

        Args:
            sizes: path → its size in bytes; None for any.
        """
        with ThreadPoolExecutor(CONNECTIONS, thread_name_prefix="verify") as pool:
            return next(
                (problem for problem in pool.map(self._problem, *zip(*sizes.items(), strict=True)) if problem), None
            )

    def _problem(self, path: str, size: int | None) -> str | None:
        place = place_of(path)
        manifest = self.client.read_manifest(place.tag) if place.tag else None
        digest = place.digest if manifest is None else self._layer_digest(manifest, path)
        found = self.client.blob_size(digest) if digest else None
        if found is None:
            return f"{self.url}/{path} is missing"
        return None if size in (None, found) else f"{self.url}/{path} has {found} bytes, {size} are signed"

    def _layer_digest(self, manifest: dict[str, Any], path: str) -> str:
        try:
            (layer,) = manifest["layers"]
            return str(layer["digest"])
        except (ValueError, LookupError, TypeError) as error:
            raise RepositoryDamaged(f"{self.url}: the tag of {path} names something else") from error


def open_readable_store(url: str) -> ReadableStore:
    """Return the store of a URL, or the registry; only its form and the environment are checked.

    Args:
        url: as for `packager.stores.open_store`, or `oci://REGISTRY/NAME`.

    Raises:
        StoreUrlInvalid: the URL has another form.
        StoreLibraryMissing: a library is not installed.
        StoreCredentialsMissing: the environment names no credentials.
    """
    return RegistryStore(url) if is_registry_url(url) else open_store(url)
