"""Other ways to bring a model to a device: HTTP with gzip, zstd with one signature, tufup.

Every way is `publish(model, version)` and `poll()`, which brings the newest version to the device or finds that
nothing is new. The result is compared with the published file, byte for byte; that of zstd when
it is published. Plain HTTP is the least that a client can do: one conditional request for one file. The zstd way asks
for a small document with an Ed25519 signature of its own, then for a patch from the version that the device has, or for
the whole file. tufup is python-tuf with bsdiff4 patches, its own defaults and its own Python; its version is pinned.
"""

import base64
import gzip
import hashlib
import json
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Final, Protocol

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from benchmarks.patch_codecs import BUILDERS
from benchmarks.published_pairs import CACHE

TUFUP_LIMIT_S: Final = 1200  # bsdiff4 takes longer for some pairs of 90 MB
TUFUP: Final = ("tufup==0.10.0", "tuf==4.0.0", "bsdiff4==1.2.6")


class Peer(Protocol):
    """One way to publish and to fetch.

    Attributes:
        site: folder that the server serves.
    """

    site: Path

    def publish(self, model: Path, version: str) -> None:
        """Publish the model as the newest version."""

    def poll(self, url: str, count: int) -> None:
        """Ask the server `count` times for news, and fetch what is new."""


class _ConditionalClient:
    """Fetch files, and remember their ETags."""

    def __init__(self) -> None:
        self._tags: dict[str, str] = {}

    def fetch(self, url: str) -> bytes | None:
        """Return the body, or None if it is the one of the last fetch."""
        tag = self._tags.get(url)
        request = urllib.request.Request(url, headers={"If-None-Match": tag} if tag else {})
        try:
            with urllib.request.urlopen(request, timeout=60) as response:
                self._tags[url] = response.headers["ETag"]
                body: bytes = response.read()
                return body
        except urllib.error.HTTPError as error:
            if error.code == 304:
                return None
            raise


class PlainHttp:
    """Plain HTTP: the whole file, compressed by gzip -9, unsigned."""

    def __init__(self, folder: Path) -> None:
        self.site = folder / "site"
        self.site.mkdir(parents=True)
        self._client = _ConditionalClient()
        self._published = b""

    def publish(self, model: Path, version: str) -> None:
        self._published = model.read_bytes()
        (self.site / "model.onnx.gz").write_bytes(gzip.compress(self._published, 9, mtime=0))

    def poll(self, url: str, count: int) -> None:
        for _ in range(count):
            body = self._client.fetch(f"{url}/model.onnx.gz")
            _compare(body is None or gzip.decompress(body) == self._published, "gzip")


class SignedZstd:
    """A document with one Ed25519 signature, and a patch by zstd."""

    def __init__(self, folder: Path) -> None:
        self.site = folder / "site"
        self.site.mkdir(parents=True)
        self._folder = folder
        self._client = _ConditionalClient()
        self._key = Ed25519PrivateKey.generate()
        self._old: Path | None = None  # the model before the published one
        self._new: Path | None = None
        self._has = ""  # digest of the device's model

    def publish(self, model: Path, version: str) -> None:
        self._old, self._new = self._new, model
        scratch = self._folder / "restored"
        digest = _digest(model)
        ways = [("zstd_full", model, self.site / digest)]
        if self._old is not None:
            ways.append(("zstd_patch", self._old, self.site / f"{_digest(self._old)}-{digest}"))
        for codec, base, blob in ways:
            encode, apply = BUILDERS[codec](base, model, blob, scratch)
            encode()
            apply()
            _compare(scratch.read_bytes() == model.read_bytes(), codec)
        document = {"version": version, "sha256": digest, "size": model.stat().st_size}
        (self.site / "latest.json").write_bytes(data := json.dumps(document).encode())
        (self.site / "latest.sig").write_bytes(base64.b64encode(self._key.sign(data)))

    def poll(self, url: str, count: int) -> None:
        for _ in range(count):
            data = self._client.fetch(f"{url}/latest.json")
            if data is None:
                continue
            signature = self._client.fetch(f"{url}/latest.sig")
            self._key.public_key().verify(base64.b64decode(signature or b""), data)
            digest = json.loads(data)["sha256"]
            self._client.fetch(f"{url}/{self._has}-{digest}" if self._has else f"{url}/{digest}")
            self._has = digest


class Tufup:
    """The package tufup, in a virtual environment of its own in the cache."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True)
        self.site = folder / "repo"
        self._has = "0.0.0"
        self._newest = ""
        self._model = Path()

    def publish(self, model: Path, version: str) -> None:
        self._newest, self._model = version, model
        self._run("publish", str(self._folder), str(model), version)

    def poll(self, url: str, count: int) -> None:
        found = self._run("install", str(self._folder), url, self._has, str(count)).split()
        _compare(found[-1] == self._newest, "tufup")
        self._has = self._newest
        extracted = self._folder / "device" / "extracted" / "model.onnx"
        _compare(extracted.read_bytes() == self._model.read_bytes(), "tufup")

    def _run(self, *words: str) -> str:
        script = Path(__file__).with_name("tufup_steps.py")
        command = [str(tufup_python()), "-P", str(script), *words]
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, check=False, cwd=self._folder, timeout=TUFUP_LIMIT_S
            )
        except subprocess.TimeoutExpired as error:
            raise RuntimeError(f"tufup {words[0]} did not end within {TUFUP_LIMIT_S} s") from error
        if done.returncode:
            raise RuntimeError(f"tufup {words[0]} failed: {done.stderr[-500:]}")
        return done.stdout


def tufup_python() -> Path:
    """Return the Python of the virtual environment with tufup; create it if there is none.

    Raises:
        RuntimeError: pip cannot install it.
    """
    folder = CACHE.parent / TUFUP[0].replace("==", "-")
    python = folder / "bin" / "python"
    marker = folder / "complete"
    if not marker.exists():
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        install = [str(python), "-m", "pip", "install", "--quiet", "--only-binary=:all:", *TUFUP]
        done = subprocess.run(install, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"pip could not install {TUFUP[0]}\n{done.stderr[-500:]}")
        marker.touch()
    return python


def _digest(model: Path) -> str:
    return hashlib.sha256(model.read_bytes()).hexdigest()


def _compare(is_equal: bool, way: str) -> None:
    if not is_equal:
        raise RuntimeError(f"{way}: the device does not have the published model")
