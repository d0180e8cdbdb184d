"""A publisher of metadata with real keys and a real repository, and the trust check of a device.

Key files and the first repository are created once per test run and copied, since scrypt and ML-DSA are slow.
"""

import hashlib
import os
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from securesystemslib.signer import Signer

from bundle.acceptance import VerifiedRelease
from bundle.contract import Contract, Health, TensorSpec
from bundle.errors import NotFound
from bundle.files import BundleFile
from bundle.frames import Secret
from bundle.manifest import Manifest
from bundle.requirements import Requirements, Runtime
from bundle.rollout import Rollout
from bundle.trust.check import CheckRequest, check
from bundle.trust.clock import ClockFacts
from bundle.trust.trust_state import TrustStateStore
from bundle.trust.updater import Fetch
from bundle.variant import ModelEntry, PatchEntry, Quantization, Variant
from keys.signers import load_folder_signers
from packager.repository.creation import create_repository_with_new_keys
from packager.repository.published import PublishedDocuments
from packager.repository.publishing import PublishReport
from packager.repository.repository import Repository
from packager.repository.staging import Staging

FAMILY = "vision"
CHANNEL = "stable"
PASSPHRASE = Secret(b"a passphrase for tests")
NOW_S = int(time.time())


@dataclass(slots=True)
class MetadataPublisher:
    """A repository and the keys of all its roles.

    Attributes:
        folder: contains `repository/` and `keys/`.
        signers: the keys that `publish` signs with; a test may change the list.
        all_signers: the keys of all key files, sorted by file name; tests do not change it.
    """

    folder: Path
    signers: list[Signer]
    all_signers: tuple[Signer, ...] = ()

    def __post_init__(self) -> None:
        self.all_signers = tuple(self.signers)

    @property
    def keys(self) -> Path:
        return self.folder / "keys"

    @property
    def repository(self) -> Repository:
        return Repository.open(self.folder / "repository")

    @property
    def published(self) -> Path:
        return self.repository.published

    def signers_of(self, *roles: str) -> list[Signer]:
        """Return the signers whose key file is named for one of the roles."""
        files = sorted(self.keys.glob("*.key"))
        return [
            s
            for file, s in zip(files, self.all_signers, strict=True)
            if file.name.startswith(tuple(f"{r}-" for r in roles))
        ]

    def make_manifest(
        self, version: str, counter: int, *, min_counter: int = 0, channels: Sequence[str] = (CHANNEL,)
    ) -> Manifest:
        """Create the manifest of a release with one variant, and store its blob."""
        blob = self.folder / "blob"
        blob.write_bytes(f"{version} {counter}".encode() * 10)
        name = self.repository.put_blob(blob)
        plain = BundleFile("model.onnx", "model", 4, hashlib.sha256(version.encode()).hexdigest())
        variant = Variant(
            runtime=Runtime(),
            requires=Requirements(),
            at_rest="sealed",
            files=(plain,),
            models=(ModelEntry("model", plain.path, None, Contract((), (TensorSpec("y", "float32", (1,)),))),),
            patches=(PatchEntry(None, "zstd", (), name, blob.stat().st_size, 10, 1000),),
            key_commitment="1" * 64,
            health=Health(),
            quantization=Quantization(),
        )
        created = "2026-01-01T00:00:00Z"
        return Manifest(
            FAMILY, version, counter, min_counter, tuple(channels), "0.1.0", created, (), (("fp32", variant),)
        )

    def release(self, version: str, counter: int, *, min_counter: int = 0) -> Manifest:
        """Publish a release and its rollout on the channel."""
        manifest = self.make_manifest(version, counter, min_counter=min_counter)
        self.repository.stage_manifest(manifest)
        self.repository.stage_rollout(make_rollout(manifest))
        self.publish()
        return manifest

    def publish(self, *, check_clients: bool = True) -> PublishReport:
        """Sign with `signers` and publish. Without the client check, metadata that devices refuse can be published."""
        assert self.repository.sign(self.signers).is_complete
        return self.repository.publish(check_clients=check_clients)

    def forge_target(self, name: str, data: bytes) -> None:
        """Stage a target without any check, as an attacker with the keys of its role would."""
        Staging(self.repository.layout).put_target(name, data)

    def repository_document(self, role: str) -> bytes:
        """Return the published file of a role's document."""
        return PublishedDocuments(self.repository.layout).files[role][1]

    def copy_published(self, name: str) -> Path:
        """Copy the published files, and return the copy's folder."""
        return Path(shutil.copytree(self.published, self.folder / name))


def make_rollout(manifest: Manifest, channel: str = CHANNEL) -> Rollout:
    """Return a rollout of a release to all devices of the channel."""
    return Rollout(FAMILY, channel, manifest.version, manifest.counter, manifest.digest_without_patches())


def set_percent(publisher: MetadataPublisher, percent_bp: int) -> None:
    """Publish another share in the folder."""
    rollout = publisher.repository.published_rollout(FAMILY, CHANNEL)
    assert rollout is not None
    publisher.repository.publish_rollout(replace(rollout, percent_bp=percent_bp), rollout, publisher.signers)


def build_publisher(folder: Path, *, classical: bool = False, families: Sequence[str] = (FAMILY,)) -> MetadataPublisher:
    """Create key files of all roles, a repository and its first publication."""
    repository = folder / "repository"
    create_repository_with_new_keys(repository, folder / "keys", PASSPHRASE, families, classical=classical)
    return MetadataPublisher(folder, load_folder_signers(folder / "keys", PASSPHRASE))


def copy_publisher(publisher: MetadataPublisher, folder: Path) -> MetadataPublisher:
    """Copy a publisher's keys and repository into another folder."""
    shutil.copytree(publisher.folder, folder, symlinks=True, dirs_exist_ok=True)
    return MetadataPublisher(folder, list(publisher.signers))


@dataclass(slots=True)
class CheckClient:
    """The trust check of a device: its folder, its first root, and its configuration."""

    folder: Path
    root: bytes
    family: str = FAMILY
    channel: str = CHANNEL
    agent_version: str = "0.1.0"
    clock: ClockFacts = field(default_factory=lambda: ClockFacts(NOW_S, True, 0, 1000, "boot"))

    @property
    def trust_states(self) -> TrustStateStore:
        return TrustStateStore(self.folder / "slots")

    @property
    def cache(self) -> Path:
        return self.folder / "cache" / "tuf"

    def with_time(self, now_s: int, *, synchronized: bool = True) -> "CheckClient":
        """Return the same device with another clock."""
        return replace(self, clock=replace(self.clock, now_s=now_s, is_synchronized=synchronized))

    def check(self, source: Path | str, fetch: Fetch | None = None) -> VerifiedRelease:
        """Run the device's trust check against a folder or a URL."""
        base = source.as_uri() if isinstance(source, Path) else source
        request = CheckRequest(
            cache_dir=self.folder / "cache",
            bootstrap_root=self.root,
            metadata_url=f"{base}/metadata",
            targets_url=f"{base}/targets",
            family=self.family,
            channel=self.channel,
            clock=self.clock,
            agent_version=self.agent_version,
        )
        return check(request, fetch or fetch_file, self.trust_states)


def create_client(publisher: MetadataPublisher, name: str = "device") -> CheckClient:
    """Create a device that has seen nothing but the first root."""
    return CheckClient(publisher.folder / name, (publisher.published / "metadata" / "1.root.json").read_bytes())


def fetch_file(url: str, max_bytes: int) -> bytes:
    """Read a `file:` URL; a `Fetch`."""
    path = Path(url.removeprefix("file://"))
    try:
        with path.open("rb") as file:
            return file.read(max_bytes + 1)
    except FileNotFoundError as error:
        raise NotFound(f"{url} is not there") from error


def replace_file(path: str, data: bytes, inner: Fetch = fetch_file) -> Fetch:
    """Return a fetcher whose mirror serves other bytes for one path."""

    def fetch(url: str, max_bytes: int) -> bytes:
        return data[: max_bytes + 1] if url.endswith(path) else inner(url, max_bytes)

    return fetch


def start_server(folder: Path) -> tuple[str, Callable[[], None]]:
    """Start a real HTTP server on loopback; return its URL and a function that stops it."""
    import threading
    from functools import partial
    from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            """Do not log."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=os.fspath(folder)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()

    def stop() -> None:
        server.shutdown()
        server.server_close()
        thread.join()

    return f"http://127.0.0.1:{server.server_port}", stop


def fetch_http(url: str, max_bytes: int) -> bytes:
    """Read an HTTP URL with urllib3, as the agent does; a `Fetch`."""
    import urllib3

    from bundle.errors import DownloadFailed, TooLarge

    response = urllib3.request("GET", url, preload_content=False, retries=False, timeout=60)
    try:
        if response.status in (403, 404):
            raise NotFound(f"{url}: {response.status}")
        if response.status != 200:
            raise DownloadFailed(f"{url}: {response.status}")
        data = response.read(max_bytes + 1)
    finally:
        response.release_conn()
    if len(data) > max_bytes:
        raise TooLarge(f"{url}: more than {max_bytes} bytes")
    return data
