"""The server of `apps.sock`, over which applications borrow files, watch swaps and send verdicts.

Rules:
- The socket is not the control socket: no client can update, pause or roll back here. Rights are by family
  (device_agent.apps.access); a family that a client may not read is as unknown to it as one that does not exist.
- The agent's own workers are refused: one that an attacker controls borrows nothing.
- One thread accepts, each connection has a thread of its own. There are at most MAX_CONNECTIONS, and at most
  MAX_CONNECTIONS_PER_USER of one user; a connection beyond is closed at once.
- A connection that sends anything but a request is closed. A request must arrive within REQUEST_TIMEOUT_S of its first
  byte; between requests a connection may be idle, because what it borrowed is counted while it is open.
- A client that does not read its replies or events for SEND_TIMEOUT_S is closed, so that a hanging application holds
  nothing up.
- Every request is logged with the client's process and user.
"""

import contextlib
import logging
import os
import select
import socket
import threading
from collections.abc import Callable, Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Any, Final, assert_never

from bundle.errors import AirweightsError, Bug
from bundle.files import BundleFile
from bundle.variant import Variant
from device_agent.apps.access import ClientProcess, FamilyAccess
from device_agent.apps.lender import FileLender
from device_agent.apps.protocol import (
    MAX_FILES_PER_MESSAGE,
    MAX_REQUEST_BYTES,
    ListRequest,
    OpenRequest,
    VerdictRequest,
    WatchRequest,
    parse_request,
    release_fields,
)
from device_agent.errors import AddressUnavailable, FileUnknown, NotAllowed, NothingServed, ReleaseReplaced
from device_agent.policy.app_verdicts import AppVerdict, AppVerdicts
from device_agent.policy.journal_records import BundleRecord
from device_agent.process.channel import ChannelClosed, receive_message, send_message
from device_agent.process.unix_socket import UnixListener
from device_agent.process.worker_process import is_worker

logger = logging.getLogger(__name__)

MAX_CONNECTIONS: Final = 128
MAX_CONNECTIONS_PER_USER: Final = 64
REQUEST_TIMEOUT_S: Final = 5.0
SEND_TIMEOUT_S: Final = 5.0


class AppFamily:
    """The view that applications have of one family.

    The supervisor's main thread calls `changed` and `set_access`; any thread calls the rest.

    Args:
        name: name of the family.
        access: the rights of applications.
        lender: lends the files.
        serving: returns the serving bundle and its generation number, or None.
    """

    def __init__(
        self,
        name: str,
        access: FamilyAccess,
        lender: FileLender,
        serving: Callable[[], tuple[BundleRecord, int] | None],
    ) -> None:
        self.name, self.access, self.lender, self.serving = name, access, lender, serving
        self.verdicts = AppVerdicts(access.expected_judges())
        self._watchers: set[socket.socket] = set()
        self._lock = threading.Lock()

    def set_access(self, access: FamilyAccess) -> None:
        """Replace the rights of applications. Files that are borrowed already stay open."""
        self.access = access
        self.verdicts.judges = access.expected_judges()

    def changed(self) -> None:
        """Wake the watching connections: another generation serves, or none."""
        found = self.serving()
        self.verdicts.begin(0 if found is None else found[1])
        with self._lock:
            for watcher in self._watchers:
                with contextlib.suppress(OSError):  # a byte is waiting already
                    watcher.send(b"\0", socket.MSG_DONTWAIT)

    def add_watcher(self, watcher: socket.socket) -> None:
        """Send a byte to `watcher` at each change, until `remove_watcher`."""
        with self._lock:
            self._watchers.add(watcher)

    def remove_watcher(self, watcher: socket.socket) -> None:
        """Send nothing more to `watcher`."""
        with self._lock:
            self._watchers.discard(watcher)

    def require_serving(self) -> tuple[BundleRecord, int]:
        """Return the serving bundle and its generation number.

        Raises:
            NothingServed: no release of the family serves.
        """
        found = self.serving()
        if found is None:
            raise NothingServed(f"family {self.name!r} serves no release", hint="run `device-agent update` first")
        return found


class AppServer:
    """Server of the applications' socket.

    Args:
        path: path of the socket; one that a crashed daemon left is replaced.
        families: returns the open families by name; any thread calls it.

    Raises:
        AddressUnavailable: the socket cannot be created, or another server or a file is at its path.
    """

    def __init__(self, path: Path, families: Callable[[], Mapping[str, AppFamily]]) -> None:
        self._families = families
        self._numbers = count(1)
        self._users: dict[int, int] = {}  # open connections by user
        self._lock = threading.Lock()
        try:
            # any user may connect; rights are checked by the peer's credentials
            self._listener = UnixListener(path, 0o666, self._serve, name="apps", admit=self._admit_connection)
        except OSError as error:
            raise AddressUnavailable(
                f"cannot listen on the applications' socket {path}: {error}", hint="check `serve.apps_socket`"
            ) from error

    def close(self) -> None:
        """Remove the socket, stop listening, and close the lent files of the agent."""
        self._listener.close()
        for family in self._families().values():
            family.lender.close()

    def _admit_connection(self, connection: socket.socket) -> bool:
        process = ClientProcess.of(connection)
        is_admitted = not is_worker(process.pid) and self._admit(process)
        if not is_admitted:
            logger.warning("application refused", extra={"client_pid": process.pid, "client_uid": process.uid})
        return is_admitted

    def _admit(self, client: ClientProcess) -> bool:
        with self._lock:
            own = self._users.get(client.uid, 0)
            if own >= MAX_CONNECTIONS_PER_USER or sum(self._users.values()) >= MAX_CONNECTIONS:
                return False
            self._users[client.uid] = own + 1
            return True

    def _serve(self, connection: socket.socket) -> None:
        client = ClientProcess.of(connection)
        number = next(self._numbers)
        try:
            with connection:
                self._serve_requests(connection, client, number)
        except (ChannelClosed, OSError) as error:
            logger.info("application disconnected: %s", error, extra={"client_pid": client.pid})
        finally:
            for family in self._families().values():
                family.lender.give_back(number)
            with self._lock:
                self._users[client.uid] -= 1
                if not self._users[client.uid]:
                    del self._users[client.uid]

    def _serve_requests(self, connection: socket.socket, client: ClientProcess, number: int) -> None:
        wake, waker = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        watched: AppFamily | None = None
        with wake, waker:
            try:
                while True:
                    for readable in _wait_readable(connection, wake):
                        if readable is wake:
                            wake.recv(4096)
                            if watched is not None:
                                _send(connection, _event(watched))
                            continue
                        connection.settimeout(REQUEST_TIMEOUT_S)
                        request = receive_message(connection, MAX_REQUEST_BYTES)
                        request.close()
                        found = self._reply(connection, request.value, client, number)
                        if found is not None and watched is None:
                            watched = found
                            watched.add_watcher(waker)
            finally:
                if watched is not None:
                    watched.remove_watcher(waker)

    def _reply(
        self, connection: socket.socket, value: Mapping[str, Any], client: ClientProcess, number: int
    ) -> AppFamily | None:
        """Answer one request; return the family to watch, if it asks for that."""
        try:
            request = parse_request(value)
            family = self._families().get(request.family)
            if family is None or not family.access.may_read(client):
                raise NotAllowed(
                    f"user {client.uid} may not read family {request.family!r}, or this device does not follow it",
                    hint=f"the device's owner can list it in apps.{request.family}.readers",
                )
            fields = {"family": request.family, "client_pid": client.pid, "client_uid": client.uid}
            logger.info("application request: %s", value["command"], extra=fields)
            match request:
                case ListRequest():
                    bundle, generation = family.require_serving()
                    variant = bundle.parse_manifest()[1]
                    _send_files(connection, release_fields(bundle, generation), variant, variant.files, [])
                case OpenRequest():
                    self._lend(connection, family, request, client, number)
                case WatchRequest():
                    _send(connection, {"ok": _event(family)})
                    return family
                case VerdictRequest():
                    _send(connection, {"ok": _judge(family, request, client)})
                case _:
                    assert_never(request)
        except AirweightsError as error:
            _send(connection, {"error": error.as_dict()})
        except (ChannelClosed, OSError):
            raise
        except Exception as error:
            logger.exception("application request %r failed", value.get("command"))
            _send(connection, {"error": Bug(f"{type(error).__name__}: {error}").as_dict()})
        return None

    def _lend(
        self, connection: socket.socket, family: AppFamily, request: OpenRequest, client: ClientProcess, number: int
    ) -> None:
        while True:
            bundle, generation = family.require_serving()
            try:
                variant, files, fds = _borrow(family, bundle, request, client, number)
                break
            except AirweightsError:
                now = family.serving()
                if now is None or now[1] == generation:
                    raise  # else a swap came between, and the bundle may be deleted: the one that serves now is lent
        try:
            _send_files(connection, release_fields(bundle, generation), variant, files, fds)
        finally:
            for fd in fds:
                os.close(fd)


def _borrow(
    family: AppFamily, bundle: BundleRecord, request: OpenRequest, client: ClientProcess, number: int
) -> tuple[Variant, list[BundleFile], list[int]]:
    variant = bundle.parse_manifest()[1]
    files = [file for file in variant.files if request.wants(file)]
    unknown = sorted(set(request.paths) - {file.path for file in files})
    if unknown or not files:
        what = f"path {unknown[0]!r}" if unknown else f"role {' or '.join(map(repr, request.roles))}"
        raise FileUnknown(
            f"release {bundle.version} of {family.name!r} has no file with {what}", hint="see `device-agent files list`"
        )
    return variant, files, family.lender.borrow(bundle, files, number, client.pid)


def _wait_readable(*sockets: socket.socket) -> list[socket.socket]:
    poll = select.poll()
    for each in sockets:
        poll.register(each, select.POLLIN)
    by_fd = {each.fileno(): each for each in sockets}
    return [by_fd[fd] for fd, _ in poll.poll()]


def _event(family: AppFamily) -> dict[str, Any]:
    found = family.serving()
    if found is None:
        return {"event": "stopped", "family": family.name}
    return {"event": "serving", **release_fields(*found)}


def _judge(family: AppFamily, request: VerdictRequest, client: ClientProcess) -> dict[str, Any]:
    judge = family.access.judge_of(client)
    if judge is None:
        raise NotAllowed(
            f"user {client.uid} may not judge family {family.name!r}",
            hint=f"the device's owner can list it in apps.{family.name}.judges",
        )
    bundle, generation = family.require_serving()
    if request.bundle != bundle.digest:
        raise ReleaseReplaced(
            f"the verdict is on bundle {request.bundle[:16]}, {bundle.digest[:16]} serves now",
            hint="borrow the files of the serving release, and judge these",
        )
    verdict = AppVerdict(judge, request.is_healthy, request.reason, request.latency_us)
    is_counted = family.verdicts.add(generation, verdict)
    logger.info(
        "application verdict",
        extra={"family": family.name, "judge": judge, "is_healthy": verdict.is_healthy, "detail": verdict.reason},
    )
    return {"counted": is_counted}


def _send_files(
    connection: socket.socket,
    release: Mapping[str, Any],
    variant: Variant,
    files: Sequence[BundleFile],
    fds: list[int],
) -> None:
    models = [{"name": model.name, "file": model.file, "golden": model.golden} for model in variant.models]
    for start in range(0, len(files), MAX_FILES_PER_MESSAGE):
        part = files[start : start + MAX_FILES_PER_MESSAGE]
        reply = {**release, "models": models, "files": [file.as_json() for file in part]}
        reply["is_last"] = start + MAX_FILES_PER_MESSAGE >= len(files)
        _send(connection, {"ok": reply}, fds[start : start + MAX_FILES_PER_MESSAGE])


def _send(connection: socket.socket, value: Mapping[str, Any], fds: "list[int] | None" = None) -> None:
    connection.settimeout(SEND_TIMEOUT_S)
    send_message(connection, value, fds or [])
