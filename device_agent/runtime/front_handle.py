"""The front, as the supervisor holds it."""

import os
import select
import socket
import stat
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from bundle.errors import AirweightsError
from device_agent.errors import AddressUnavailable, ConfigInvalid, DrainTimeout
from device_agent.host.meters import ProcessMeter
from device_agent.process.jail import JailPolicy
from device_agent.process.worker_process import WorkerProcess
from device_agent.runtime.model_handle import MAX_BODY_BYTES, ModelProcess
from device_agent.runtime.oip import model_metadata

MODULE: Final = "device_agent.front"
CALL_DEADLINE_S: Final = 10.0
STOP_DEADLINE_S: Final = 15.0  # beyond the server's own grace
BACKLOG_CONNECTIONS: Final = 128
SOCKET_MODE: Final = 0o660


@dataclass(frozen=True, slots=True)
class ServeConfig:
    """Attributes:
    listen: "unix:/path" or "tcp:HOST:PORT", port 0 for a free one.
    families: that must be loaded for `ready`, whether they are yet or not.
    awaited: of these, what served behind the front before this one: its requests wait until it is published again.
    group: that the Unix socket is for besides its owner, or None.
    max_body_bytes: of one request.
    max_kept_bytes: of all request bodies that the front holds at a time.
    max_waiting: requests of a family that wait for its model; beyond: 503.
    max_connections: open ones; beyond: 503.
    wait_s: that a request waits for a model process; beyond: 503.
    answer_deadline_s: that a model may take; beyond: 504.
    jail: of the front's process.
    """

    listen: str
    families: tuple[str, ...] = ()
    awaited: tuple[str, ...] = ()
    group: str | None = None
    max_body_bytes: int = MAX_BODY_BYTES
    max_kept_bytes: int = 4 * MAX_BODY_BYTES
    max_waiting: int = 64
    max_connections: int = 256
    wait_s: float = 10.0
    response_deadline_s: float = 60.0
    jail: JailPolicy = field(default_factory=JailPolicy)


@dataclass(frozen=True, slots=True)
class WindowStats:
    """What a generation did since it became the current one.

    Attributes:
        seconds: since then.
        requests: answered, whatever the answer.
        client_errors: answers 4xx: not the model's fault.
        errors: answers 5xx: inference failed, the process died twice, or it took too long.
        nan: answers with NaN or infinity where inputs and golden answers have none.
        crashes: deaths of its process.
        p50_us, p95_us: microseconds in the model process, of successful requests; None without any.
        total_p50_us, total_p95_us: the same from the request's arrival at the front, its wait included.
        in_flight: requests with the process now.
        oldest_in_flight_s: how long the oldest of them has been there.
    """

    seconds: float = 0.0
    requests: int = 0
    client_errors: int = 0
    errors: int = 0
    nan: int = 0
    crashes: int = 0
    p50_us: int | None = None
    p95_us: int | None = None
    total_p50_us: int | None = None
    total_p95_us: int | None = None
    in_flight: int = 0
    oldest_in_flight_s: float = 0.0

    def as_json(self) -> dict[str, Any]:
        """For `status` and the journal."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class ShadowStats:
    """What a candidate did in the shadow of the live model.

    Attributes:
        compared: requests that both answered.
        agreed: of these, as device_agent.runtime.comparison says.
        errors: requests that failed on the candidate only.
        nan: answers with NaN or infinity that it made.
        worst_ppm: largest relative RMS difference.
        crashes: 1 once its process has died.
    """

    compared: int = 0
    agreed: int = 0
    errors: int = 0
    nan: int = 0
    worst_ppm: int = 0
    crashes: int = 0


class FrontHandle:
    """The inference endpoint's process. Made by `start`.

    Attributes:
        address: "unix:/path" or "http://HOST:PORT".
    """

    def __init__(self, worker: WorkerProcess, address: str, unix_path: Path | None) -> None:
        self._worker = worker
        self.address = address
        self._unix_path = unix_path

    @classmethod
    def start(cls, config: ServeConfig) -> "FrontHandle":
        """Listen and serve; until the first `publish`, requests wait and `ready` is false.

        Raises:
            ConfigInvalid: `listen` is malformed.
            ListenUnavailable: the address is taken or not allowed.
            Unavailable: no process can be started, or no jail.
        """
        listener, address, unix_path = listen_on(config.listen, config.group)
        with listener:
            worker = WorkerProcess.start(MODULE, config.jail)
            limits = {name: getattr(config, name) for name in _LIMIT_FIELDS}
            try:
                meter = ProcessMeter.open()
                try:
                    fds = (listener.fileno(), meter.statm, meter.stat)
                    request = {"limits": limits, "families": config.families, "awaited": config.awaited}
                    worker.call("serve", request, fds, deadline_s=CALL_DEADLINE_S)
                finally:
                    meter.close()
            except BaseException:
                worker.kill()
                raise
        return cls(worker, address, unix_path)

    def publish(self, family: str, process: ModelProcess, meta: Mapping[str, Any] | None = None) -> float:
        """Send the family's requests to a process from now on: one pointer switch.

        A generation that is here already keeps its place and its counters; with a new process behind it (after a
        crash) requests that waited go there.

        Args:
            family: whose.
            process: alive.
            meta: further fields of the model's metadata endpoint.

        Returns:
            seconds that the switch took within the front.

        Raises:
            ChildDied, ChildTimeout: the front is gone; start another and publish again.
        """
        spec = process.spec
        request = {
            "family": family,
            "generation": spec.generation,
            "version": spec.version,
            "process": _process_name(process),
            "meta": {**model_metadata(spec), **(meta or {})},
        }
        with ExitStack() as stack:
            fds = [process.channel]
            with suppress(OSError):  # it has just ended: the front will see that for itself
                meter = ProcessMeter.open(process.pid)
                stack.callback(meter.close)
                fds += [meter.statm, meter.stat]
            reply = self._worker.call("publish", request, fds, deadline_s=CALL_DEADLINE_S)
        return float(reply.value["publish_ns"]) / 1e9

    def retire(self, family: str, generation: int, timeout_s: float) -> None:
        """Give a generation no more requests, and wait until its last one is answered. Then its process can be stopped.

        Raises:
            DrainUnavailable: it still has requests after `timeout_s`; stopping its process sends them elsewhere.
            ChildDied, ChildTimeout: the front is gone.
        """
        drained, theirs = os.pipe()
        try:
            try:
                self._worker.call(
                    "retire", {"family": family, "generation": generation}, (theirs,), deadline_s=CALL_DEADLINE_S
                )
            finally:
                os.close(theirs)
            # readable at its end: the front has closed the pipe, or has died
            if not select.select([drained], [], [], timeout_s)[0]:
                raise DrainTimeout(f"generation {generation} of {family!r} has requests after {timeout_s:g} s")
        finally:
            os.close(drained)

    def set_shadow(self, family: str, process: ModelProcess, share_ppm: int, limit_ppm: int) -> None:
        """Let a candidate hear a share of the live requests. Publishing it, or another shadow, ends that.

        Args:
            family: whose.
            process: alive, not published; make it nice first (`ModelProcess.set_background`).
            share_ppm: of the requests; 0 ends a shadow.
            limit_ppm: relative RMS difference that still agrees.

        Raises:
            ChildDied, ChildTimeout: the front is gone.
        """
        request = {"family": family, "process": _process_name(process), "share_ppm": share_ppm, "limit_ppm": limit_ppm}
        self._worker.call("shadow", request, (process.channel,), deadline_s=CALL_DEADLINE_S)

    def shadow_stats(self, family: str) -> ShadowStats:
        """Counters of the candidate that hears now, all zero without one. Raises ChildDied, ChildTimeout."""
        return ShadowStats(**self._worker.call("shadow-counters", {"family": family}, deadline_s=CALL_DEADLINE_S).value)

    def window(self, family: str, generation: int) -> WindowStats:
        """Counters of a generation; all zero for one that is not loaded. Raises ChildDied, ChildTimeout."""
        request = {"family": family, "generation": generation}
        return WindowStats(**self._worker.call("window", request, deadline_s=CALL_DEADLINE_S).value)

    def push_metrics(self, text: str) -> None:
        """Further metrics for the front's `/metrics`, in Prometheus' text format; they replace what was told before.

        Raises:
            ChildDied, ChildTimeout: the front is gone.
        """
        self._worker.call("metrics", {"text": text}, deadline_s=CALL_DEADLINE_S)

    def state(self) -> dict[str, Any]:
        """{"slots": {family: {current, ready, generations, waiting, refused}}, "connections": n}."""
        return self._worker.call("state", deadline_s=CALL_DEADLINE_S).value

    def facts(self) -> dict[str, Any]:
        """What is loaded into the process: {"modules": [...], "uid": ...}."""
        return self._worker.call("facts", deadline_s=CALL_DEADLINE_S).value

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._worker.pid

    def is_alive(self) -> bool:
        """It has not ended."""
        return self._worker.is_alive()

    def fileno(self) -> int:
        """A pidfd: readable once it has ended."""
        return self._worker.fileno()

    def resident_bytes(self) -> int:
        """VmRSS; 0 once it has ended."""
        return self._worker.memory_bytes("VmRSS")

    def stop(self) -> None:
        """Stop accepting, answer what is here, end; any number of times."""
        if self._worker.is_alive():
            with suppress(AirweightsError):
                self._worker.call("stop", deadline_s=STOP_DEADLINE_S)
        self._worker.stop()
        if self._unix_path is not None:
            self._unix_path.unlink(missing_ok=True)


def _process_name(process: ModelProcess) -> str:
    return f"{process.pid}-{id(process)}"


_LIMIT_FIELDS: Final = (
    *("max_body_bytes", "max_kept_bytes", "max_waiting", "max_connections", "wait_s", "response_deadline_s"),
)


def listen_on(listen: str, group: str | None = None) -> tuple[socket.socket, str, Path | None]:
    """A listening socket for "unix:/path" (mode 0660) or "tcp:HOST:PORT".

    Returns:
        the socket, its address as clients write it, and the path of a Unix socket.

    Raises:
        ConfigInvalid: `listen` is malformed.
        ListenUnavailable: the operating system's reason; a Unix socket on which somebody answers is taken.
    """
    kind, _, rest = listen.partition(":")
    try:
        if kind == "unix" and rest.startswith("/"):
            return _listen_unix(Path(rest), group), f"unix:{rest}", Path(rest)
        host, _, port = rest.rpartition(":")
        if kind == "tcp" and host and port.isdecimal() and int(port) < 2**16:
            return _listen_tcp(host.strip("[]"), int(port))
    except (OSError, LookupError) as error:
        raise AddressUnavailable(f"cannot listen on {listen!r}: {error}") from error
    raise ConfigInvalid(f"listen: found {listen!r}, expected unix:/path or tcp:HOST:PORT")


def _listen_unix(path: Path, group: str | None) -> socket.socket:
    with suppress(FileNotFoundError), socket.socket(socket.AF_UNIX) as probe:
        if stat.S_ISSOCK(path.stat().st_mode):
            try:
                probe.connect(str(path))
            except ConnectionRefusedError:
                path.unlink()  # its server is gone
            else:
                raise FileExistsError("another server answers there")
    listener = socket.socket(socket.AF_UNIX)
    try:
        mask = os.umask(0o777 & ~SOCKET_MODE)
        try:
            listener.bind(str(path))
        finally:
            os.umask(mask)
        if group is not None:
            import shutil

            shutil.chown(path, group=group)
        listener.listen(BACKLOG_CONNECTIONS)
    except BaseException:
        listener.close()
        raise
    return listener


def _listen_tcp(host: str, port: int) -> tuple[socket.socket, str, None]:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.create_server((host, port), family=family, backlog=BACKLOG_CONNECTIONS)
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    shown = f"[{host}]" if family == socket.AF_INET6 else host
    return listener, f"http://{shown}:{listener.getsockname()[1]}", None
