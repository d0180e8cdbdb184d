"""A running collector: a real server on a free port of loopback, in a thread."""

import contextlib
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.error import HTTPError

from bundle.rollout import Rollout
from fleet.database import Database
from fleet.follower_look import FollowerLook
from fleet.site import Site
from fleet.web.server import create_server, listen, open_server
from tests.support.device_reports import REPOSITORY
from tests.support.fleet_devices import SigningDevice, open_store, write_registry


class Reply:
    """Status, headers and body of a response."""

    def __init__(self, status: int, headers: Any, body: bytes) -> None:
        self.status, self.headers, self.body = status, headers, body

    @property
    def text(self) -> str:
        """Return the body as text."""
        return self.body.decode()


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None


class FleetServer:
    """A running collector.

    Args:
        url: its base URL.
        database: its store.
    """

    def __init__(self, url: str, database: Database) -> None:
        self.url, self.database = url, database
        self._opener = urllib.request.build_opener(_NoRedirect(), urllib.request.ProxyHandler({}))

    def request(self, path: str, data: bytes | None = None, **headers: str) -> Reply:
        """Send a request, and return the response, whatever its status.

        Args:
            path: path and query.
            data: body of a POST, or None for a GET.
            headers: header names with `_` for `-`.
        """
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        request = urllib.request.Request(self.url + path, data, named)
        try:
            with self._opener.open(request, timeout=120) as response:
                return Reply(response.status, response.headers, response.read())
        except HTTPError as error:
            return Reply(error.code, error.headers, error.read())


@contextlib.contextmanager
def run_fleet_server(
    folder: Path,
    devices: list[SigningDevice],
    rollouts: tuple[Rollout, ...] = (),
    *,
    token: str | None = None,
    trusted_header: str | None = None,
    store: str | None = None,
    looks: tuple[FollowerLook, ...] = (),
) -> Iterator[FleetServer]:
    """Run a collector that knows some devices.

    Args:
        folder: gets its registry and store.
        devices: the registered devices.
        rollouts: the rollouts of the repository.
        token: token of the operators, or None.
        trusted_header: header of the reverse proxy, or None.
        store: URL of the store, or None for a file in `folder`.
        looks: the follower's looks.
    """
    database = open_store(folder, devices, store)
    registry = folder / "registry.jsonl"
    digest = write_registry(registry, [device.registered() for device in devices])
    with serve_site(database, registry, digest, rollouts, looks, token=token, trusted_header=trusted_header) as server:
        yield server


@contextlib.contextmanager
def serve_site(
    database: Database,
    registry: Path,
    digest: str,
    rollouts: tuple[Rollout, ...] = (),
    looks: tuple[FollowerLook, ...] = (),
    **login: str | None,
) -> Iterator[FleetServer]:
    """Run a collector on a store.

    Args:
        database: the store.
        registry: the registry file.
        digest: its digest.
        rollouts: the rollouts of the repository.
        looks: the follower's looks.
        login: `token` or `trusted_header` of the operators.
    """
    site = Site(REPOSITORY, registry, digest, rollouts, looks)
    state = open_server(database, lambda: site, "127.0.0.1", **login)
    sock = listen("127.0.0.1", 0)
    server = create_server(state)
    thread = threading.Thread(target=server.run, args=([sock],))
    thread.start()
    try:
        yield FleetServer(f"http://127.0.0.1:{sock.getsockname()[1]}", database)
    finally:
        server.should_exit = True
        thread.join(60)
        assert not thread.is_alive()
