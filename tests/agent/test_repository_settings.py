"""Every setting of `[repository]` takes effect in the fetcher that reads it; credentials go to their origin alone."""

import contextlib
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import pytest

from bundle.errors import AirweightsError, DownloadFailed
from device_agent.config.config import Config, parse_config
from device_agent.config.repository import RepositorySettings
from device_agent.errors import (
    ConfigInvalid,
    ProxyFailed,
    RedirectRefused,
    RepositoryAuthRequired,
    ServerTooSlow,
    TlsFailed,
    TokenRealmRefused,
)
from device_agent.process.jail import JailPolicy
from device_agent.process.worker_process import WorkerProcess
from device_agent.runtime import front_handle, model_handle, probe_runner
from device_agent.workers.worker_processes import WorkerProcesses
from tests.support.certificates import Certificates, create_certificates
from tests.support.faulty_http_server import Site, respond_with_status, serve_folder
from tests.support.fetcher_process import configure_fetcher, get, start_fetcher

DOCUMENT = b'{"a": "document"}'
SECRET = "s3cret-v4lue"  # of the test


@dataclass
class Place:
    """Servers of one folder, and a folder for credential files."""

    folder: Path
    site: Site
    other: Site
    certificates: Certificates

    def secret_file(self, text: str) -> Path:
        path = self.folder / f"secret-{len(list(self.folder.iterdir()))}"
        path.write_text(text)
        return path

    @contextlib.contextmanager
    def tls(self, *, wants_client: bool = False) -> Iterator[Site]:
        with serve_folder(self.site.folder, self.certificates.server_context(wants_client=wants_client)) as site:
            yield site


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return create_certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture
def place(tmp_path: Path, certificates: Certificates) -> Iterator[Place]:
    served, secrets = tmp_path / "served", tmp_path / "secrets"
    served.mkdir()
    secrets.mkdir()
    (served / "a.json").write_bytes(DOCUMENT)
    with serve_folder(served) as site, serve_folder(served) as other:
        yield Place(secrets, site, other, certificates)


def _sent_headers(place: Place, url: str | None = None, **settings: Any) -> dict[str, str]:
    with start_fetcher(place.site.url, **settings) as child:
        assert get(child, f"{url or place.site.url}/a.json") == DOCUMENT
    return (place.other if url == place.other.url else place.site).requests[-1].headers


def _ca_file(place: Place) -> None:
    with place.tls() as site:
        with start_fetcher(site.url) as child, pytest.raises(TlsFailed, match="not trusted") as refused:
            get(child, f"{site.url}/a.json")
        assert "ca_file" in str(refused.value.hint)
        with start_fetcher(site.url, ca_file=place.certificates.ca) as child:
            assert get(child, f"{site.url}/a.json") == DOCUMENT


def _system_ca(place: Place) -> None:
    environment = {"SSL_CERT_FILE": str(place.certificates.ca)}
    other = create_certificates(place.folder / "other")
    with place.tls() as site:
        with start_fetcher(site.url, environment=environment, ca_file=other.ca) as child:
            assert get(child, f"{site.url}/a.json") == DOCUMENT
        with (
            start_fetcher(site.url, environment=environment, ca_file=other.ca, system_ca=False) as child,
            pytest.raises(TlsFailed),
        ):
            get(child, f"{site.url}/a.json")


def _client_cert(place: Place) -> None:
    pair: dict[str, Any] = {"client_cert": place.certificates.client, "client_key": place.certificates.client_key}
    with place.tls(wants_client=True) as site:
        with start_fetcher(site.url, ca_file=place.certificates.ca) as child, pytest.raises(TlsFailed) as refused:
            get(child, f"{site.url}/a.json")
        assert "client_cert" in str(refused.value.hint)
        with start_fetcher(site.url, ca_file=place.certificates.ca, **pair) as child:
            assert get(child, f"{site.url}/a.json") == DOCUMENT
        # another origin does not see it
        with start_fetcher(place.site.url, ca_file=place.certificates.ca, **pair) as child, pytest.raises(TlsFailed):
            get(child, f"{site.url}/a.json")


def _client_key(place: Place) -> None:
    with pytest.raises(ConfigInvalid, match=r"client_cert.*does not load with its client_key"):
        with start_fetcher(client_cert=place.certificates.client, client_key=place.certificates.server_key):
            pass


def _token_file(place: Place) -> None:
    token = place.secret_file(f"{SECRET}\n")
    assert _sent_headers(place, token_file=token)["authorization"] == f"Bearer {SECRET}"
    assert "authorization" not in _sent_headers(place, place.other.url, token_file=token)


def _basic_auth_file(place: Place) -> None:
    login = place.secret_file("fleet:pass:word\r\n")
    assert _sent_headers(place, basic_auth_file=login)["authorization"] == "Basic ZmxlZXQ6cGFzczp3b3Jk"


def _headers(place: Place) -> None:
    assert _sent_headers(place, headers=(("X-Api-Key", SECRET),))["x-api-key"] == SECRET
    assert "x-api-key" not in _sent_headers(place, place.other.url, headers=(("X-Api-Key", SECRET),))


def _headers_file(place: Place) -> None:
    lines = place.secret_file(f"# keys\r\nX-Api-Key: {SECRET}\r\n\r\nX-Tenant: kws\r\n")
    sent = _sent_headers(place, headers_file=lines)
    assert (sent["x-api-key"], sent["x-tenant"]) == (SECRET, "kws")


def _send_credentials_to(place: Place) -> None:
    sent = _sent_headers(
        place,
        place.other.url,
        token_file=place.secret_file(SECRET),
        send_credentials_to=(place.other.url,),
    )
    assert sent["authorization"] == f"Bearer {SECRET}"


def _proxy(place: Place) -> None:
    assert _sent_headers(place, place.other.url)["host"] == place.other.url.removeprefix("http://")
    with start_fetcher(place.site.url, proxy=place.site.url, environment={"http_proxy": "http://127.0.0.1:1"}) as child:
        assert get(child, "http://models.corp.example/a.json") == DOCUMENT
    assert place.site.requests[-1].headers["host"] == "models.corp.example"
    with start_fetcher(place.site.url, proxy="none", environment={"http_proxy": "http://127.0.0.1:1"}) as child:
        assert get(child, f"{place.site.url}/a.json") == DOCUMENT


def _proxy_auth_file(place: Place) -> None:
    settings: dict[str, Any] = {"proxy": place.site.url, "proxy_auth_file": place.secret_file("me:word")}
    with start_fetcher("http://models.corp.example", **settings) as child:
        assert get(child, "http://models.corp.example/a.json") == DOCUMENT
    assert place.site.requests[-1].headers["proxy-authorization"] == "Basic bWU6d29yZA=="


def _no_proxy(place: Place) -> None:
    refused = {"http_proxy": "http://127.0.0.1:1", "NO_PROXY": "nothing.example"}
    with start_fetcher(place.site.url, environment=refused, no_proxy=("127.0.0.0/8",)) as child:
        assert get(child, f"{place.site.url}/a.json") == DOCUMENT
    with start_fetcher(place.site.url, environment=refused) as child, pytest.raises(ProxyFailed):
        get(child, f"{place.site.url}/a.json")


def _allow_redirects_to(place: Place) -> None:
    # the repository is known by its name alone: it is behind the proxy
    place.site.faults = [respond_with_status(302, {"Location": f"{place.other.url}/a.json"})]
    behind: dict[str, Any] = {"proxy": place.site.url, "no_proxy": ("127.0.0.1",)}
    with start_fetcher(place.site.url, **behind) as child, pytest.raises(RedirectRefused, match="loopback address"):
        get(child, "http://models.corp.example/a.json")
    for rule in ("127.0.0.0/8", place.other.url.removeprefix("http://")):
        with start_fetcher(place.site.url, **behind, allow_redirects_to=(rule,)) as child:
            assert get(child, "http://models.corp.example/a.json") == DOCUMENT


def _first_byte_s(place: Place) -> None:
    with _silent_server() as url, start_fetcher(url, first_byte_s=1) as child:
        before = time.monotonic()
        with pytest.raises(ServerTooSlow, match="no byte of the body in 1 s"):
            get(child, f"{url}/a.json")
        assert 0.9 < time.monotonic() - before < 30


def _stall_window_s(place: Place) -> None:
    with _silent_server(b'HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\n{"') as url:
        with start_fetcher(url, stall_window_s=1, first_byte_s=600) as child:
            with pytest.raises(ServerTooSlow, match="bytes in 1 s, less than 34"):
                get(child, f"{url}/a.json")


def _token_realm(place: Place) -> None:
    challenge = f'Bearer realm="{place.other.url}/token",service="test"'
    place.site.faults = [respond_with_status(401, {"WWW-Authenticate": challenge})]
    (place.site.folder / "v2" / "kws" / "manifests").mkdir(parents=True)
    (place.site.folder / "v2" / "kws" / "manifests" / "timestamp.json").write_bytes(DOCUMENT)
    url = place.site.url.replace("http://", "oci+http://") + "/kws"
    login: dict[str, Any] = {"basic_auth_file": place.secret_file("device:password")}
    for realm, error in (("", RepositoryAuthRequired), ("auth.example.com", TokenRealmRefused)):
        with start_fetcher(url, token_realm=realm, **login) as child, pytest.raises(error):
            get(child, f"{url}/metadata/timestamp.json")


EFFECTS: dict[str, Callable[[Place], None]] = {
    "ca_file": _ca_file,
    "system_ca": _system_ca,
    "client_cert": _client_cert,
    "client_key": _client_key,
    "token_file": _token_file,
    "basic_auth_file": _basic_auth_file,
    "headers": _headers,
    "headers_file": _headers_file,
    "send_credentials_to": _send_credentials_to,
    "token_realm": _token_realm,
    "proxy": _proxy,
    "proxy_auth_file": _proxy_auth_file,
    "no_proxy": _no_proxy,
    "allow_redirects_to": _allow_redirects_to,
    "first_byte_s": _first_byte_s,
    "stall_window_s": _stall_window_s,
}


@contextlib.contextmanager
def _silent_server(start: bytes = b"") -> Iterator[str]:
    """Accept connections and send only `start` to each."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        opened: list[socket.socket] = []

        def accept() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = server.accept()
                    connection.sendall(start)
                    opened.append(connection)

        thread = threading.Thread(target=accept)
        thread.start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}"
        server.shutdown(socket.SHUT_RDWR)
        thread.join()
        for connection in opened:
            connection.close()


@pytest.mark.parametrize("key", [field.name for field in fields(RepositorySettings)])
def test_a_setting_takes_effect(place: Place, key: str) -> None:
    EFFECTS[key](place)


def test_a_token_is_read_again_when_its_file_changes(place: Place) -> None:
    token = place.secret_file("first")
    with start_fetcher(place.site.url, token_file=token) as child:
        access = configure_fetcher(child, place.site.url, token_file=token)
        get(child, f"{place.site.url}/a.json")
        renewed = place.folder / "renewed"
        renewed.write_text("second")
        renewed.rename(token)
        assert access.is_changed()
        access.send_if_changed(lambda request, fds: child.call("configure", request, fds, deadline_s=60).close(), int)
        get(child, f"{place.site.url}/a.json")
        assert not access.is_changed()
    assert [seen.headers["authorization"] for seen in place.site.requests] == ["Bearer first", "Bearer second"]


def test_credentials_do_not_follow_a_redirect_to_another_origin(place: Place) -> None:
    place.site.faults = [respond_with_status(307, {"Location": f"{place.other.url}/a.json?X-Signature={SECRET}"})]
    with start_fetcher(place.site.url, token_file=place.secret_file(SECRET), headers=(("X-Key", SECRET),)) as child:
        assert get(child, f"{place.site.url}/a.json") == DOCUMENT
    assert "authorization" in place.site.requests[0].headers
    assert not {"authorization", "x-key"} & place.other.requests[0].headers.keys()


def test_the_query_of_a_presigned_url_is_not_printed(place: Place) -> None:
    place.site.faults = [respond_with_status(307, {"Location": f"{place.other.url}/a.json?X-Signature={SECRET}"})]
    place.other.faults = [respond_with_status(500)]
    with start_fetcher(place.site.url) as child, pytest.raises(DownloadFailed, match="HTTP 500") as failed:
        get(child, f"{place.site.url}/a.json")
    assert SECRET not in str(failed.value)


@pytest.mark.parametrize("status", [401])
def test_a_server_that_wants_credentials_is_named(place: Place, status: int) -> None:
    place.site.faults = [respond_with_status(status)]
    with start_fetcher(place.site.url) as child, pytest.raises(RepositoryAuthRequired, match="wants credentials"):
        get(child, f"{place.site.url}/a.json")
    token = place.secret_file(SECRET)
    with (
        start_fetcher(place.site.url, token_file=token) as child,
        pytest.raises(RepositoryAuthRequired, match="does not accept the configured credentials"),
    ):
        get(child, f"{place.site.url}/a.json")


@pytest.mark.parametrize(
    ("key", "content", "message"),
    [
        ("token_file", "", "has no bytes"),
        ("token_file", "two words", "one token"),
        ("basic_auth_file", "no colon", "USER:PASSWORD"),
        ("headers_file", "nothing", "line 1 has no colon"),
        ("headers_file", "Host: example.com", "set by the agent"),
        ("ca_file", "not a certificate", "no certificate"),
    ],
)
def test_a_malformed_file_is_refused_by_name_and_without_its_content(
    place: Place, key: str, content: str, message: str
) -> None:
    with pytest.raises(ConfigInvalid, match=f"repository.{key}: .*{message}") as refused:
        with start_fetcher(**dict[str, Any]({key: place.secret_file(content)})):
            pass
    assert not content or content not in str(refused.value)


def test_a_missing_file_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ConfigInvalid, match=r"repository\.token_file: .*nothing: No such file"):
        with start_fetcher(token_file=tmp_path / "nothing"):
            pass


@pytest.mark.parametrize(
    "line",
    [
        f'repository_url = "https://fleet:{SECRET}@models.example.com"',
        f'repository_url = "https://{SECRET}@models.example.com/x?y"',
        f'repository_url = "https://models.example.com/kws?token={SECRET}"',
        f'repository_url = "https://models.example.com"\nmirrors = ["https://fleet:{SECRET}@mirror.example.com"]',
        f'repository_url = "https://m.example.com"\n[repository]\nproxy = "http://fleet:{SECRET}@proxy:3128"',
        f'repository_url = "https://m.example.com"\n[repository]\nheaders = {{ "X-Key" = "{SECRET}\\u0007" }}',
        f'repository_url = "https://m.example.com"\n[repository]\nheaders = {{ Host = "{SECRET}" }}',
        f'repository_url = "https://m.example.com"\n[repository]\nheaders = ["{SECRET}"]',
    ],
)
def test_credentials_in_the_configuration_are_refused_and_not_printed(line: str) -> None:
    text = f'directory = "/d"\nfamily = "kws"\n{line}\n'
    with pytest.raises(ConfigInvalid) as refused:
        parse_config(text.encode(), where="config.toml", folder=Path("/"))
    assert SECRET not in f"{refused.value} {refused.value.hint}"


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ('client_cert = "c.pem"', "belong together"),
        ('token_file = "t"\nbasic_auth_file = "b"', "expected one of them"),
        ("system_ca = false", "no server could be trusted"),
        ('proxy = "socks5://127.0.0.1:1080"', "http://HOST:PORT or none"),
        ('proxy = "http://proxy:99999"', "repository.proxy is .*:99999', expected a port from 1 to 65535"),
        ('send_credentials_to = ["https://m:0"]', "send_credentials_to is .*:0', expected a port from 1 to 65535"),
        ('send_credentials_to = ["https://m/path"]', "expected origins such as"),
        ('token_file = "t"\nheaders = { Authorization = "x" }', "Authorization"),
        ('headers = { If-Modified-Since = "x" }', "set by the agent itself"),
        ('headers = { if-none-match = "x" }', "set by the agent itself"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(lines: str, message: str) -> None:
    text = f'directory = "/d"\nfamily = "kws"\nrepository_url = "https://m.example.com"\n[repository]\n{lines}\n'
    with pytest.raises(ConfigInvalid, match=message):
        parse_config(text.encode(), where="config.toml", folder=Path("/"))


def test_a_variable_that_names_no_certificates_is_logged(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    environment = {"SSL_CERT_FILE": str(place.folder / "nothing")}
    with place.tls() as site, start_fetcher(site.url, environment=environment) as child, pytest.raises(TlsFailed):
        get(child, f"{site.url}/a.json")
    assert f"SSL_CERT_FILE names {place.folder}/nothing, which has no readable certificate" in caplog.text


WORKERS = ("fetcher", "verifier", "patcher", "key_opener")
SITE_CUSTOMIZE = """
import json, os, sys
from pathlib import Path
module = sys.orig_argv[sys.orig_argv.index("-m") + 1]
Path(__file__).with_name(module + ".json").write_text(json.dumps(dict(os.environ)))
"""  # each interpreter runs it at its start, before the jail


def test_only_the_fetcher_sees_the_variables_of_proxies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sitecustomize.py").write_text(SITE_CUSTOMIZE)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    proxies = dict.fromkeys(("http_proxy", "HTTPS_PROXY", "all_proxy"), f"http://fleet:{SECRET}@127.0.0.1:1")
    for name, value in proxies.items():
        monkeypatch.setenv(name, value)
    # no such library: the key opener ends early, but with the environment of a token's library
    config = Config(tmp_path, "http://127.0.0.1:1", "kws", key_storage="pkcs11:t?module=/no.so&pin-file=/no")
    processes = WorkerProcesses(config, tmp_path, None)
    try:
        for worker in WORKERS:
            with pytest.raises(AirweightsError):
                processes.call(worker, "no-such-operation", {}, deadline_s=60)
    finally:
        processes.close()
    for module in (model_handle.MODULE, front_handle.MODULE, probe_runner.MODULE):
        with contextlib.suppress(AirweightsError):  # whether its jail fits does not matter here
            WorkerProcess.start(module, JailPolicy()).stop()
    seen = {file.stem: json.loads(file.read_text()) for file in tmp_path.glob("*.json")}
    fetcher = seen.pop("device_agent.workers.fetcher")
    assert {name: fetcher.get(name) for name in proxies} == proxies
    modules = {f"device_agent.workers.{worker}" for worker in WORKERS[1:]}
    assert set(seen) == {*modules, model_handle.MODULE, front_handle.MODULE, probe_runner.MODULE}
    assert [module for module, environment in seen.items() if SECRET in str(environment)] == []
