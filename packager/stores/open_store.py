"""Open the store that a URL names."""

from pathlib import Path
from typing import Final
from urllib.parse import unquote, urlsplit

from packager.stores.errors import StoreUrlInvalid
from packager.stores.folder_store import FolderStore
from packager.stores.object_store import ObjectStore
from packager.stores.store import Store

OBJECT_SCHEMES: Final = ("s3", "gs", "az")
REGISTRY_SCHEMES: Final = ("oci", "oci+http")


def is_registry_url(url: str) -> bool:
    """Return whether a URL names a registry, which is a mirror only."""
    return urlsplit(url).scheme in REGISTRY_SCHEMES


def open_store(url: str) -> Store:
    """Return the store of a URL; only its form and the environment are checked.

    Args:
        url: `file:///FOLDER`, or `s3:`, `gs:` or `az:` with bucket and prefix.

    Raises:
        StoreUrlInvalid: the URL has another form.
        StoreLibraryMissing: a library is not installed.
        StoreCredentialsMissing: the environment names no credentials.
    """
    parts = urlsplit(url)
    if parts.scheme in OBJECT_SCHEMES:
        return ObjectStore(url)
    if parts.scheme == "file" and not parts.netloc and parts.path.strip("/"):
        return FolderStore(url.rstrip("/"), Path(unquote(parts.path)))
    if parts.scheme in REGISTRY_SCHEMES:
        raise StoreUrlInvalid(
            f"{url}: a registry is a mirror of a publication: it has no compare-and-swap",
            hint="name a folder or an object store as the master copy, and push to the registry",
        )
    raise StoreUrlInvalid(f"found {url.partition('?')[0][:80]!r}, expected a URL such as s3://BUCKET/PREFIX")
