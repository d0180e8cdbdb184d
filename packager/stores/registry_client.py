"""A client of OCI registries (distribution specification 1.1), over urllib3: blobs, manifests, tags.

Rules:
1. Credentials are those of Docker: the file `config.json` in $DOCKER_CONFIG or ~/.docker, or AIRWEIGHTS_REGISTRY_AUTH
   as USER:PASSWORD. They go to the registry, and to the realm of its tokens if that is a host of the same domain.
2. A request is sent without credentials first. A registry that answers 401 says whether it wants them (Basic), or a
   token (Bearer), which is requested with the credentials, if there are any.
3. A request that fails for a reason that may pass is repeated MAX_TRIES times.
4. A blob is sent in one request, and only if the registry does not have it.
"""

import base64
import hashlib
import json
import os
import re
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlencode, urljoin, urlsplit

from bundle.errors import AirweightsError
from bundle.registry_paths import MANIFEST_TYPE, MAX_MANIFEST_BYTES
from bundle.version import VERSION
from packager.stores.errors import (
    RegistryDeletesDisabled,
    StoreAccessDenied,
    StoreCredentialsMissing,
    StoreCredentialsRefused,
    StoreRejected,
    StoreUnavailable,
    StoreUrlInvalid,
)

URL_PATTERN: Final = re.compile(
    r"(oci|oci\+http)://([A-Za-z0-9.-]+(?::[0-9]{1,5})?)/([a-z0-9]+(?:[._-]+[a-z0-9]+)*(?:/[a-z0-9]+(?:[._-]+[a-z0-9]+)*)*)/?"
)
AUTH_VARIABLE: Final = "AIRWEIGHTS_REGISTRY_AUTH"
TOKEN_PATTERN: Final = re.compile(r"[\x21-\x7e]+")  # what a header field can carry
UNREADABLE: Final = (ValueError, LookupError, TypeError, AttributeError, RecursionError)  # JSON of another form
CHALLENGE_PATTERN: Final = re.compile(r'([a-z]+)="([^"]*)"')
MAX_TRIES: Final = 5
FIRST_PAUSE_S: Final = 0.2
TIMEOUT_S: Final = 60.0
MAX_REDIRECTS: Final = 5
REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})
CHUNK_BYTES: Final = 1 << 20
MAX_ERROR_BYTES: Final = 1 << 16
PASSING_STATUSES: Final = frozenset({408, 425, 429, 500, 502, 503, 504})
CREDENTIAL_HINT: Final = f"run `docker login`, or set {AUTH_VARIABLE} to USER:PASSWORD"


class RegistryClient:
    """One repository name of a registry.

    Args:
        url: `oci://REGISTRY/NAME`, or `oci+http:` for a registry without TLS.

    Attributes:
        url: the URL, for messages.

    Raises:
        StoreUrlInvalid: the URL has another form.
    """

    def __init__(self, url: str) -> None:
        import urllib3

        found = URL_PATTERN.fullmatch(url)
        if found is None or {"metadata", "targets", "blobs", "envelopes"} & set(found[3].split("/")):
            raise StoreUrlInvalid(
                f"found {url.rpartition('@')[2][:80]!r}, expected oci://REGISTRY/NAME with a name in lower case",
                hint="credentials come from the environment, not from the URL",
            )
        self.url = url.rstrip("/")
        self._host, self._name = found[2], found[3]
        self._origin = f"{'http' if found[1] == 'oci+http' else 'https'}://{self._host}"
        self._login = _find_login(self._host)
        self._authorization = ""
        self._pool = urllib3.PoolManager(num_pools=4, maxsize=16, retries=False)

    def read_manifest(self, reference: str) -> dict[str, Any] | None:
        """Return the manifest of a tag, or None if there is none."""
        response = self._request("GET", f"manifests/{reference}", {"Accept": MANIFEST_TYPE})
        if response.status == 404:
            return None
        self._check(response, reference, (200,))
        try:
            manifest = json.loads(response.data[:MAX_MANIFEST_BYTES])
        except UNREADABLE as error:
            raise StoreRejected(f"{self.url}: {reference} is not a manifest") from error
        return manifest if isinstance(manifest, dict) else None

    def list_tags(self) -> set[str]:
        """Return all tags of the repository name."""
        found: set[str] = set()
        path = "tags/list?n=10000"
        while path:
            response = self._request("GET", path, {})
            if response.status == 404:
                return found
            self._check(response, "tags", (200,))
            try:
                found.update(map(str, json.loads(response.data).get("tags") or ()))
            except UNREADABLE as error:
                raise StoreRejected(f"{self.url}: the list of tags is not JSON as registries send it") from error
            link = re.match(r"<([^>]+)>", response.headers.get("Link", ""))
            path = urljoin(f"{self._origin}/v2/{self._name}/tags/list", link[1]) if link else ""
        return found

    def has_blob(self, digest: str) -> bool:
        """Return whether the registry has a blob."""
        response = self._request("HEAD", f"blobs/{digest}", {})
        if response.status == 404:
            return False
        self._check(response, digest, (200,))
        return True

    def blob_size(self, digest: str) -> int | None:
        """Return the size of a blob, or None if the registry does not have it."""
        response = self._request("HEAD", f"blobs/{digest}", {})
        for _ in range(MAX_REDIRECTS):
            if response.status not in REDIRECTS:
                break
            response = self._request("HEAD", urljoin(self._origin, response.headers.get("Location", "")), {})
        if response.status == 404:
            return None
        self._check(response, digest, (200,))
        length = response.headers.get("Content-Length", "")
        return int(length) if length.isascii() and length.isdigit() else 0

    def read_blob(self, digest: str, max_bytes: int) -> bytes | None:
        """Return a small blob, or None if the registry does not have it.

        Args:
            digest: `sha256:…` of its content, which is not compared.
            max_bytes: it must not be longer.

        Raises:
            StoreRejected: it is longer.
        """
        with tempfile.TemporaryDirectory(prefix="airweights-blob-") as folder:
            path = Path(folder, "blob")
            if not self.download_blob(digest, path, max_bytes):
                return None
            return path.read_bytes()

    def download_blob(self, digest: str, target: Path, max_bytes: int | None = None) -> bool:
        """Write a blob to a local file; return False if the registry does not have it.

        A download that breaks is resumed, or repeated if the registry does not serve ranges.

        Args:
            digest: `sha256:…` of its content, which is not compared.
            target: the file to write.
            max_bytes: it must not be longer; None for any length.

        Raises:
            StoreRejected: it is longer.
            StoreUnavailable: the download broke too often.
        """
        from urllib3.exceptions import HTTPError

        with target.open("wb") as out:
            for attempt in range(MAX_TRIES):
                if attempt:
                    time.sleep(FIRST_PAUSE_S * 2 ** (attempt - 1))
                start = out.tell()
                headers = {"Range": f"bytes={start}-"} if start else {}
                response = self._request("GET", f"blobs/{digest}", headers, is_streamed=True)
                for _ in range(MAX_REDIRECTS):
                    if response.status not in REDIRECTS:
                        break
                    location = urljoin(self._origin, response.headers.get("Location", ""))
                    response.release_conn()
                    response = self._request("GET", location, headers, is_streamed=True)
                if response.status == 404:
                    return False
                if response.status not in (200, 206):
                    response.read(MAX_ERROR_BYTES)
                    self._check(response, digest, (200,))
                found = re.match(r"bytes ([0-9]+)-", response.headers.get("Content-Range", ""))
                if start and not (response.status == 206 and found is not None and int(found[1]) == start):
                    out.seek(0)
                    out.truncate()
                try:
                    for chunk in response.stream(CHUNK_BYTES):
                        out.write(chunk)
                        if max_bytes is not None and out.tell() > max_bytes:
                            raise StoreRejected(f"{self.url}: {digest} is longer than {max_bytes} bytes")
                    return True
                except (HTTPError, OSError):
                    continue
                finally:
                    response.close()
        raise StoreUnavailable(f"{self.url}: {digest}: the download broke {MAX_TRIES} times")

    def manifest_digest(self, tag: str) -> str | None:
        """Return the digest of the manifest that a tag names, or None if there is none."""
        response = self._request("GET", f"manifests/{tag}", {"Accept": MANIFEST_TYPE})
        if response.status == 404:
            return None
        self._check(response, tag, (200,))
        return digest_of(response.data)

    def delete_manifest(self, digest: str) -> None:
        """Delete a manifest and all its tags; nothing happens if the registry does not have it.

        Args:
            digest: `sha256:…` of the manifest.

        Raises:
            RegistryDeletesDisabled: the registry does not delete manifests.
        """
        response = self._request("DELETE", f"manifests/{digest}", {})
        if response.status == 404:
            return
        if response.status in (400, 405, 501):
            raise RegistryDeletesDisabled(
                f"{self.url}: the registry does not delete manifests: HTTP {response.status}",
                hint="enable deletion in the registry, or let a rule of the registry delete old tags p-N",
            )
        self._check(response, digest, (200, 202, 204))

    def put_blob(self, digest: str, source: bytes | Path) -> None:
        """Send a blob to the registry.

        Args:
            digest: `sha256:…` of its content.
            source: the bytes, or the file with them.
        """
        for attempt in range(MAX_TRIES):
            response = self._request("POST", "blobs/uploads/", {"Content-Length": "0"})
            self._check(response, digest, (202,))
            location = urljoin(f"{self._origin}/", response.headers.get("Location", ""))
            separator = "&" if "?" in location else "?"
            size = len(source) if isinstance(source, bytes) else source.stat().st_size
            headers = {"Content-Type": "application/octet-stream", "Content-Length": str(size)}
            target = f"{location}{separator}{urlencode({'digest': digest})}"
            try:
                response = self._request("PUT", target, headers, source, is_repeated=False)
                self._check(response, digest, (201,))
                return
            except StoreUnavailable:
                # an upload session cannot be used twice; the blob may have arrived
                if attempt == MAX_TRIES - 1:
                    raise
                if self.has_blob(digest):
                    return

    def put_manifest(self, tag: str, manifest: bytes) -> None:
        """Let a tag name a manifest; its blobs must exist.

        Args:
            tag: the tag.
            manifest: its JSON.

        Raises:
            StoreRejected: the manifest is too long, or the registry does not accept it.
        """
        if len(manifest) > MAX_MANIFEST_BYTES:
            raise StoreRejected(f"{self.url}: the manifest of {tag} has {len(manifest)} bytes, registries accept 4 MiB")
        response = self._request("PUT", f"manifests/{tag}", {"Content-Type": MANIFEST_TYPE}, manifest)
        self._check(response, tag, (201,))

    def _request(
        self,
        method: str,
        path: str,
        headers: Mapping[str, str],
        body: bytes | Path | None = None,
        *,
        is_repeated: bool = True,
        is_streamed: bool = False,
    ) -> Any:
        url = path if path.startswith("http") else f"{self._origin}/v2/{self._name}/{path}"
        is_own = url.startswith(f"{self._origin}/")
        for attempt in range(MAX_TRIES if is_repeated else 1):
            if attempt:
                time.sleep(FIRST_PAUSE_S * 2 ** (attempt - 1))
            authorization = {"Authorization": self._authorization} if is_own and self._authorization else {}
            response = self._send(method, url, {**headers, **authorization}, body, is_streamed=is_streamed)
            if response is not None and response.status == 401 and is_own:
                self._authorization = self._authorize(response.headers.get("WWW-Authenticate", ""))
                fields = {**headers, "Authorization": self._authorization}
                response = self._send(method, url, fields, body, is_streamed=is_streamed)
            if response is not None and response.status not in PASSING_STATUSES:
                return response
        status = "no answer" if response is None else f"HTTP {response.status}"
        raise StoreUnavailable(f"{self.url}: {method} {urlsplit(url).path}: {status}")

    def _send(
        self, method: str, url: str, headers: Mapping[str, str], body: bytes | Path | None, *, is_streamed: bool = False
    ) -> Any:
        from urllib3.exceptions import HTTPError

        fields = {"User-Agent": f"airweights/{VERSION}", **headers}
        try:
            if isinstance(body, Path):
                with body.open("rb") as stream:
                    return self._pool.request(
                        method, url, body=stream, headers=fields, timeout=TIMEOUT_S, redirect=False
                    )
            return self._pool.request(
                method,
                url,
                body=body,
                headers=fields,
                timeout=TIMEOUT_S,
                redirect=False,
                preload_content=not is_streamed,
            )
        except (HTTPError, OSError):
            return None

    def _authorize(self, challenge: str) -> str:
        scheme, _, rest = challenge.partition(" ")
        basic = f"Basic {base64.b64encode(self._login.encode()).decode()}" if self._login else ""
        if scheme.lower() == "basic":
            if not basic:
                raise StoreCredentialsMissing(f"{self.url}: the registry wants credentials", hint=CREDENTIAL_HINT)
            return basic
        fields = dict(CHALLENGE_PATTERN.findall(rest))
        realm = fields.get("realm", "")
        if scheme.lower() != "bearer" or not realm.startswith(("https://", f"{self._origin}/", "http://127.0.0.1")):
            raise StoreRejected(f"{self.url}: the registry wants an authentication that is not supported: {scheme!r}")
        if basic and not is_same_domain(urlsplit(realm).hostname or "", self._host.partition(":")[0]):
            raise StoreRejected(
                f"{self.url}: tokens come from {urlsplit(realm).hostname}, which is not of the registry's domain",
                hint="credentials are sent to hosts of the registry's own domain only",
            )
        query = {"service": fields.get("service", ""), "scope": f"repository:{self._name}:pull,push"}
        response = self._send("GET", f"{realm}?{urlencode(query)}", {"Authorization": basic} if basic else {}, None)
        if response is None or response.status in PASSING_STATUSES:
            raise StoreUnavailable(f"{self.url}: {urlsplit(realm).hostname} gives no token")
        if response.status != 200:
            raise self._refused(f"HTTP {response.status} from {urlsplit(realm).hostname}")
        try:
            answer = json.loads(response.data)
            token = answer.get("token") or answer.get("access_token")
        except UNREADABLE:
            token = None
        if not isinstance(token, str) or not TOKEN_PATTERN.fullmatch(token):
            raise StoreRejected(f"{self.url}: {urlsplit(realm).hostname} answers without a token")
        return f"Bearer {token}"

    def _check(self, response: Any, what: str, expected: tuple[int, ...]) -> None:
        if response.status in expected:
            return
        try:
            code = str(json.loads(response.data)["errors"][0]["code"])
        except UNREADABLE:
            code = ""
        text = f"{self.url}: {what}: HTTP {response.status} {code}".rstrip()
        if response.status == 401:
            raise self._refused(text)
        if response.status == 403 or code == "DENIED":
            raise StoreAccessDenied(text, hint="the credentials need permission to pull and push this name")
        raise StoreRejected(text)

    def _refused(self, text: str) -> AirweightsError:
        if not self._login:
            return StoreCredentialsMissing(text, hint=CREDENTIAL_HINT)
        return StoreCredentialsRefused(text, hint="check user name and password, and whether the token has expired")


def is_same_domain(host: str, registry: str) -> bool:
    """Return whether a host is the registry, or belongs to the same domain.

    Args:
        host: name of the host.
        registry: name of the registry.
    """
    domain = registry.partition(".")[2] if registry.count(".") > 1 else registry
    is_address = re.fullmatch(r"[0-9.]+", registry) is not None
    return host == registry or (not is_address and (host == domain or host.endswith(f".{domain}")))


def digest_of(data: bytes) -> str:
    """Return `sha256:…` of bytes."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def _find_login(host: str) -> str:
    """Return USER:PASSWORD for a registry, or "" if there is none."""
    if login := os.environ.get(AUTH_VARIABLE):
        return login
    folder = Path(os.environ.get("DOCKER_CONFIG") or Path.home() / ".docker")
    try:
        auths = json.loads((folder / "config.json").read_bytes())["auths"]
        entry = auths.get(host) or auths.get(f"https://{host}") or {}
        return base64.b64decode(entry["auth"], validate=True).decode() if "auth" in entry else ""
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return ""
