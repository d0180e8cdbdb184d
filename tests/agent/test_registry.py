"""A device updates from an OCI registry or an object store with the same bytes as over HTTP."""

import contextlib
import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from bundle.errors import RollbackRefused
from device_agent.config.repository import RepositorySettings, origin_of
from device_agent.errors import RepositoryAuthRequired, TokenRealmRefused
from device_agent.policy.attempt import Outcome
from device_agent.workers.registry_files import parse_registry_url
from device_agent.workers.registry_login import is_own_domain
from packager.remote.push import push, read_timestamps
from packager.remote.push_registry import push_to_registry
from packager.repository.repository import Repository
from packager.stores.open_store import open_store
from packager.stores.registry_client import AUTH_VARIABLE, RegistryClient
from tests.support.cutting_proxy import CuttingProxy, start_cutting_proxy
from tests.support.faulty_http_server import serve_folder
from tests.support.fetcher_process import start_fetcher
from tests.support.publisher import DeviceUnderTest, Publisher
from tests.support.registry_server import LOGIN, needs_registry, start_registry, start_token_server
from tests.support.s3_server import PUBLISHER, S3Server, needs_s3

CUT_BYTES = 64 * 1024


@pytest.fixture(scope="module")
def proxy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CuttingProxy]:
    """A proxy in front of an open registry."""
    with start_registry(tmp_path_factory.mktemp("registry")) as host, start_cutting_proxy(f"http://{host}") as found:
        yield found


def push_to(publisher: Publisher, url: str) -> None:
    layout = Repository.open(publisher.published.parent).layout
    if url.startswith("oci"):
        push_to_registry(layout, RegistryClient(url), read_timestamps(layout))
    else:
        push(layout, open_store(url), read_timestamps(layout))


def registry_url(proxy: CuttingProxy, folder: Path) -> str:
    proxy.pass_all()
    name = "".join(letter if letter.isalnum() else "-" for letter in folder.name.lower()).strip("-")
    return f"oci+http://{proxy.url.removeprefix('http://')}/models/x{name}"


@needs_registry
def test_an_update_over_a_registry_is_that_over_http(
    installed: DeviceUnderTest, publisher: Publisher, proxy: CuttingProxy, tmp_path: Path
) -> None:
    publisher.offer("1.1.0")
    other = installed.copy(tmp_path / "other", "")
    with serve_folder(publisher.published) as site:
        over_http = installed.update(repository_url=site.url)
    url = registry_url(proxy, tmp_path)
    push_to(publisher, url)
    over_registry = other.update(repository_url=url)
    assert (over_http.outcome, over_registry.outcome) == (Outcome.STAGED, Outcome.STAGED)
    assert over_registry.attempt.target == over_http.attempt.target
    # what is unchanged is not sent again, and another URL is no obstacle
    proxy.pass_all()
    other.update(repository_url=url)
    answers = {one.rpartition("/")[2]: status for one, status in zip(proxy.requests, proxy.statuses, strict=True)}
    assert answers == {"timestamp.awz": 304, "2.root.json": 404}
    with serve_folder(publisher.published) as site:
        assert other.update(repository_url=site.url).outcome is not Outcome.REFUSED


@needs_registry
def test_a_device_moves_from_http_to_a_registry_and_back(
    installed: DeviceUnderTest, publisher: Publisher, proxy: CuttingProxy, tmp_path: Path
) -> None:
    """What a place has that was not pushed to is older than what the device knows, and is refused as a rollback."""
    url = registry_url(proxy, tmp_path)
    push_to(publisher, url)
    with serve_folder(publisher.published) as site:
        publisher.offer("1.1.0")
        assert installed.update(repository_url=site.url).attempt.release == "1.1.0"
        behind = installed.update(repository_url=url)
        assert (behind.outcome, behind.reason) == (Outcome.REFUSED, RollbackRefused.reason), behind
        push_to(publisher, url)
        moved = installed.update(repository_url=url)
        assert moved.outcome not in (Outcome.REFUSED, Outcome.UNAVAILABLE), moved
        publisher.offer("1.0.0")
        push_to(publisher, url)
        assert installed.update(repository_url=url).outcome not in (Outcome.REFUSED, Outcome.UNAVAILABLE)
        back = installed.update(repository_url=site.url)
        assert back.outcome not in (Outcome.REFUSED, Outcome.UNAVAILABLE), back


@needs_registry
@pytest.mark.parametrize("has_login", [True, False])
def test_a_closed_registry(
    installed: DeviceUnderTest,
    publisher: Publisher,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    has_login: bool,
) -> None:
    publisher.offer("1.1.0")
    monkeypatch.setenv(AUTH_VARIABLE, LOGIN)
    (tmp_path / "login").write_text(LOGIN)
    settings = RepositorySettings(basic_auth_file=tmp_path / "login") if has_login else RepositorySettings()
    (tmp_path / "registry").mkdir()
    with start_registry(tmp_path / "registry", is_closed=True) as host:
        push_to(publisher, f"oci+http://{host}/models/kws")
        result = installed.update(repository_url=f"oci+http://{host}/models/kws", repository=settings)
    assert result.outcome is (Outcome.STAGED if has_login else Outcome.UNAVAILABLE)
    assert result.reason == ("" if has_login else RepositoryAuthRequired.reason)


@needs_registry
@pytest.mark.parametrize("is_open", [True, False], ids=["open", "closed"])
def test_a_registry_with_tokens_gets_credentials_only_if_it_needs_them(
    installed: DeviceUnderTest, publisher: Publisher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_open: bool
) -> None:
    publisher.offer("1.1.0")
    monkeypatch.setenv(AUTH_VARIABLE, LOGIN)
    (tmp_path / "login").write_text(LOGIN)
    for name in ("registry", "tokens"):
        (tmp_path / name).mkdir()
    with start_token_server(tmp_path / "tokens") as tokens:
        with start_registry(tmp_path / "registry", tokens=tokens) as host:
            url = f"oci+http://{host}/models/kws"
            push_to(publisher, url)
            tokens.is_open = is_open
            tokens.logins.clear()
            settings = RepositorySettings(basic_auth_file=tmp_path / "login")
            result = installed.update(repository_url=url, repository=settings)
            assert result.outcome is Outcome.STAGED
            assert any(tokens.logins) is not is_open
            # another realm is asked without credentials, and never with them
            tokens.logins.clear()
            elsewhere = replace(settings, token_realm="auth.example.com")
            refused = installed.update(repository_url=url, repository=elsewhere)
            assert not any(tokens.logins)
            assert (refused.reason == TokenRealmRefused.reason) is not is_open


@pytest.mark.parametrize(
    ("host", "registry", "is_own"),
    [
        ("registry.example.com", "registry.example.com", True),
        ("auth.example.com", "registry.example.com", True),
        ("auth.docker.io", "registry-1.docker.io", True),
        ("example.com", "registry.example.com", True),
        ("token.example.com", "example.com", True),
        ("other.com", "example.com", False),
        ("evil.co.uk", "models.co.uk", False),
        ("badexample.com", "registry.example.com", False),
        ("example.com.evil.net", "registry.example.com", False),
        ("10.0.0.2", "10.0.0.1", False),
        ("localhost", "127.0.0.1", False),
    ],
)
def test_which_hosts_belong_to_a_registry(host: str, registry: str, is_own: bool) -> None:
    assert is_own_domain(host, registry) is is_own


def test_urls_of_registries() -> None:
    file = parse_registry_url("oci://registry.example.com:5000/a/b/metadata/timestamp.json")
    assert (file.base, file.path) == ("https://registry.example.com:5000/v2/a/b", "metadata/timestamp.json")
    assert origin_of("oci://Registry.example.com/a") == "https://registry.example.com:443"
    assert origin_of("oci+http://127.0.0.1:5000/a") == "http://127.0.0.1:5000"


def fetch_blob(url: str, data: bytes, spool: Path) -> int:
    """Download a blob with the device's fetcher; return how many bytes were received."""
    with start_fetcher(url) as child, spool.open("w+b") as part:
        request = {
            **{"url": url, "sha256": sha256(data).hexdigest(), "size": len(data), "min_rate_bytes_s": 0},
            **{"max_rate_bytes_s": None, "backoff_ms": 1, "budget_bytes": None},
        }
        reply = child.call("blob", request, (part.fileno(),), deadline_s=60)
        return int(reply.value["received"])


@needs_registry
def test_a_download_from_a_registry_is_resumed_after_every_64_kib(proxy: CuttingProxy, tmp_path: Path) -> None:
    data = os.urandom(10 * CUT_BYTES + 1)
    url, digest = registry_url(proxy, tmp_path), sha256(data).hexdigest()
    RegistryClient(url).put_blob(f"sha256:{digest}", data)
    proxy.pass_all()
    proxy.body_bytes = CUT_BYTES
    try:
        received = fetch_blob(f"{url}/blobs/{digest[:2]}/{digest}", data, tmp_path / "part")
    finally:
        proxy.body_bytes = None
    assert (tmp_path / "part").read_bytes()[: len(data)] == data
    assert received == len(data)
    assert len(proxy.requests) == 11


@needs_s3
def test_a_device_behind_a_redirect_to_presigned_urls(
    installed: DeviceUnderTest,
    publisher: Publisher,
    s3_server: S3Server,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A server of the user's checks a token, and redirects to URLs that expire; the token does not follow."""
    import obstore
    from obstore.store import S3Store

    for name, value in s3_server.environment().items():
        monkeypatch.setenv(name, value)
    publisher.offer("1.1.0")
    push_to(publisher, "s3://models/presigned")
    (tmp_path / "token").write_text("a-token-of-the-device")
    with start_cutting_proxy(s3_server.endpoint) as proxy:
        store = S3Store(
            "models",
            prefix="presigned",
            endpoint=proxy.url,
            access_key_id=PUBLISHER[0],
            secret_access_key=PUBLISHER[1],
            client_options={"allow_http": True},
        )
        with serve_presigned(lambda path: obstore.sign(store, "GET", path, timedelta(minutes=5))) as site:
            settings = RepositorySettings(token_file=tmp_path / "token")
            result = installed.update(repository_url=site, repository=settings)
        assert result.outcome is Outcome.STAGED
        assert all("X-Amz-Signature" in one for one in proxy.requests)
        assert not any("authorization" in fields for fields in proxy.fields)
        proxy.body_bytes = 300
        blob = next((publisher.published / "blobs").glob("*/*"))
        url = obstore.sign(store, "GET", f"blobs/{blob.parent.name}/{blob.name}", timedelta(minutes=5))
        fetch_blob(url, blob.read_bytes(), tmp_path / "part")


@contextlib.contextmanager
def serve_presigned(sign: Callable[[str], str]) -> Iterator[str]:
    """Start a server that redirects each path to a signed URL, for requests with the token."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            is_known = self.headers.get("Authorization") == "Bearer a-token-of-the-device"
            self.send_response(302 if is_known else 401)
            if is_known:
                self.send_header("Location", sign(self.path.lstrip("/")))
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            """Print nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
