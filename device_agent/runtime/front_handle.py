"""The supervisor's handle of the front: start it, publish generations to it, read its counters."""

import os
import select
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from bundle.errors import AirweightsError
from device_agent.errors import DrainTimeout
from device_agent.host.meters import ProcessMeter
from device_agent.process.jail import JailPolicy
from device_agent.process.worker_process import WorkerProcess
from device_agent.runtime.front_counters import RepeatStats, ShadowStats, WindowStats
from device_agent.runtime.listening_socket import listen_on
from device_agent.runtime.model_handle import MAX_BODY_BYTES, ModelProcess
from device_agent.runtime.oip import PLATFORMS, max_request_bytes, model_metadata
from device_agent.runtime.wire import KEPT_BODIES

MODULE: Final = "device_agent.front"
CALL_DEADLINE_S: Final = 30.0  # a machine without free memory can keep a process waiting for seconds
STOP_DEADLINE_S: Final = 15.0  # longer than the server's SHUTDOWN_GRACE_S
RESERVED_OPEN_FILES: Final = 256  # of the front, beside its connections: channels, meters, bodies in memory files


@dataclass(frozen=True, slots=True)
class ServeConfig:
    """Limits and addresses of the front.

    Attributes:
        listen: "unix:/path", "tcp:HOST:PORT" (port 0 chooses a free one), or "systemd".
        families: families that must be loaded for the endpoint to be ready.
        awaited: those of them that an earlier front served; their requests wait until they are published again.
        group: group that a Unix socket belongs to, or None for the daemon's.
        mode: permissions of a Unix socket.
        allowed_hosts: names that a request's Host may have besides those of this machine.
        allowed_origins: origins of web pages that may send requests.
        max_body_bytes: largest request body; the contract of a model can allow less.
        max_kept_bytes: largest sum of all request bodies and unread responses in memory.
        max_waiting: requests of a family that may wait for its model; more are rejected with 503.
        max_connections: connections with a request; more are rejected with 503. Idle connections give way.
        wait_s: seconds that a request may wait for a model process; then it is rejected with 503.
        response_deadline_s: seconds that a model may take for a request; then the request fails with 504.
        jail: policy of the front's process.
    """

    listen: str
    families: tuple[str, ...] = ()
    awaited: tuple[str, ...] = ()
    group: str | None = None
    mode: int = 0o660
    allowed_hosts: tuple[str, ...] = ()
    allowed_origins: tuple[str, ...] = ()
    max_body_bytes: int = MAX_BODY_BYTES
    max_kept_bytes: int = KEPT_BODIES * MAX_BODY_BYTES
    max_waiting: int = 1024
    max_connections: int = 1024
    wait_s: float = 10.0
    response_deadline_s: float = 60.0
    jail: JailPolicy = field(default_factory=JailPolicy)


class FrontHandle:
    """The front's process. Create it with `start`.

    Attributes:
        address: "unix:/path" or "http://HOST:PORT".
    """

    def __init__(self, worker: WorkerProcess, address: str, unix_path: Path | None) -> None:
        self._worker = worker
        self.address = address
        self._unix_path = unix_path

    @classmethod
    def start(cls, config: ServeConfig) -> "FrontHandle":
        """Start the front. Until the first `publish` the endpoint is not ready.

        Raises:
            ConfigInvalid: `listen` is malformed.
            AddressUnavailable: the address is in use or not allowed.
            Unavailable: the process cannot be started or confined.
        """
        listener, address, unix_path = listen_on(config.listen, config.group, config.mode)
        with listener:
            open_files = config.max_connections + RESERVED_OPEN_FILES
            worker = WorkerProcess.start(MODULE, replace(config.jail, worker="front", open_files=open_files))
            limits = {name: getattr(config, name) for name in _LIMIT_FIELDS}
            try:
                meter = ProcessMeter.open()
                try:
                    fds = (listener.fileno(), meter.statm, meter.stat)
                    request = {
                        "limits": limits,
                        **{name: getattr(config, name) for name in _ACCESS_FIELDS},
                        "families": config.families,
                        "awaited": config.awaited,
                    }
                    worker.call("serve", request, fds, deadline_s=CALL_DEADLINE_S)
                finally:
                    meter.close()
            except BaseException:
                worker.kill()
                raise
        return cls(worker, address, unix_path)

    def publish(self, family: str, process: ModelProcess, meta: Mapping[str, Any] | None = None) -> float:
        """Send the family's requests to a process from now on.

        If the front knows the generation already, its counters continue. If the process is another one, after a crash,
        waiting requests are sent to the new one.

        Args:
            family: name of the family.
            process: a live model process.
            meta: further fields for the model metadata.

        Returns:
            Duration of the switch within the front, in seconds.

        Raises:
            WorkerCrashed, WorkerTimeout: the front is gone; start another one and publish again.
        """
        spec = process.spec
        request = {
            "family": family,
            "generation": spec.generation,
            "version": spec.version,
            "process": _process_name(process),
            "models": [
                {
                    "name": name,
                    "meta": {
                        "platform": PLATFORMS[process.runtime],
                        **model_metadata(contract, spec.variant),
                        **(meta or {}),
                    },
                    "max_body_bytes": max_request_bytes(contract, spec.max_body_bytes),
                }
                for name, contract in spec.served_models
            ],
        }
        with ExitStack() as stack:
            fds = [process.channel]
            with suppress(OSError):  # the process has just ended; the front notices that itself
                meter = ProcessMeter.open(process.pid)
                stack.callback(meter.close)
                fds += [meter.statm, meter.stat]
            reply = self._worker.call("publish", request, fds, deadline_s=CALL_DEADLINE_S)
        return float(reply.value["publish_ns"]) / 1e9

    def retire(self, family: str, generation: int, timeout_s: float) -> None:
        """Stop sending requests to a generation and wait for its open ones. Then its process can be stopped.

        Args:
            family: name of the family.
            generation: number of the generation; an unknown one counts as drained.
            timeout_s: seconds to wait.

        Raises:
            DrainTimeout: requests are still open; stopping the process sends them to another one.
            WorkerCrashed, WorkerTimeout: the front is gone.
        """
        drained, theirs = os.pipe()
        try:
            try:
                self._worker.call(
                    "retire", {"family": family, "generation": generation}, (theirs,), deadline_s=CALL_DEADLINE_S
                )
            finally:
                os.close(theirs)
            # the pipe's end is reached when the front has closed it, or has crashed
            if not select.select([drained], [], [], timeout_s)[0]:
                raise DrainTimeout(f"generation {generation} of {family!r} has requests after {timeout_s:g} s")
        finally:
            os.close(drained)

    def set_shadow(self, family: str, process: ModelProcess, share_ppm: int, limit_ppm: int) -> None:
        """Mirror a share of the live requests to a candidate.

        Publishing the candidate, or setting another one, ends that.

        Args:
            family: name of the family.
            process: a live process that is not published; lower its priority first (`ModelProcess.set_background`).
            share_ppm: share of the requests, in parts per million; 0 ends shadow mode.
            limit_ppm: relative RMS difference up to which outputs agree, in parts per million.

        Raises:
            WorkerCrashed, WorkerTimeout: the front is gone.
        """
        request = {
            "family": family,
            "process": _process_name(process),
            "share_ppm": share_ppm,
            "limit_ppm": limit_ppm,
            "models": [name for name, _ in process.spec.served_models],
        }
        self._worker.call("shadow", request, (process.channel,), deadline_s=CALL_DEADLINE_S)

    def shadow_stats(self, family: str) -> ShadowStats:
        """Return the counters of the candidate in shadow mode; all zero if there is none.

        Raises:
            WorkerCrashed, WorkerTimeout: the front is gone.
        """
        return ShadowStats(**self._worker.call("shadow-counters", {"family": family}, deadline_s=CALL_DEADLINE_S).value)

    def set_repeats(
        self, family: str, generation: int | None, slow_us: int | None = None, latency_percent: int = 100
    ) -> None:
        """Check the bad responses of a generation from now on, or end that.

        Args:
            family: name of the family.
            generation: number of the generation, which may be published later; None ends the checks.
            slow_us: microseconds in the model process above which a response is checked for latency; None for never.
            latency_percent: allowed latency, in percent of that of the previous release on the same input.

        Raises:
            WorkerCrashed, WorkerTimeout: the front is gone.
        """
        request = {
            "family": family,
            "generation": generation,
            "slow_us": slow_us,
            "latency_percent": latency_percent,
        }
        self._worker.call("repeats", request, deadline_s=CALL_DEADLINE_S)

    def set_repeat_process(self, family: str, process: ModelProcess | None) -> None:
        """Repeat requests in a separate process of the previous release.

        Args:
            family: name of the family.
            process: a live process that is not published; None drops the kept requests.

        Raises:
            WorkerCrashed, WorkerTimeout: the front is gone.
        """
        fds = () if process is None else (process.channel,)
        request = {"family": family, "is_stopping": False}
        self._worker.call("repeat-process", request, fds, deadline_s=CALL_DEADLINE_S)

    def expect_stop(self, family: str) -> None:
        """Announce that the process of the checked generation will be stopped, which is no crash.

        Raises:
            WorkerCrashed, WorkerTimeout: the front is gone.
        """
        request = {"family": family, "is_stopping": True}
        self._worker.call("repeat-process", request, deadline_s=CALL_DEADLINE_S)

    def repeat_stats(self, family: str) -> RepeatStats | None:
        """Start the next repeat if one is due, and return the counters; None if `set_repeats` was not called.

        Raises:
            WorkerCrashed, WorkerTimeout: the front is gone.
        """
        value = self._worker.call("repeat-counters", {"family": family}, deadline_s=CALL_DEADLINE_S).value
        return RepeatStats(**value) if value else None

    def window(self, family: str, generation: int) -> WindowStats:
        """Return the counters of a generation; all zero if it is not loaded.

        Args:
            family: name of the family.
            generation: number of the generation.

        Raises:
            WorkerCrashed, WorkerTimeout: the front is gone.
        """
        request = {"family": family, "generation": generation}
        return WindowStats(**self._worker.call("window", request, deadline_s=CALL_DEADLINE_S).value)

    def set_access(self, allowed_hosts: Sequence[str], allowed_origins: Sequence[str]) -> None:
        """Replace the rules for the Host and Origin of requests (device_agent.front.access).

        Args:
            allowed_hosts: as in ServeConfig.
            allowed_origins: as in ServeConfig.

        Raises:
            WorkerCrashed, WorkerTimeout: the front is gone.
        """
        request = {"allowed_hosts": allowed_hosts, "allowed_origins": allowed_origins}
        self._worker.call("access", request, deadline_s=CALL_DEADLINE_S)

    def push_metrics(self, text: str) -> None:
        """Replace the supervisor's part of `/metrics`.

        Args:
            text: metrics in Prometheus' text format.

        Raises:
            WorkerCrashed, WorkerTimeout: the front is gone.
        """
        self._worker.call("metrics", {"text": text}, deadline_s=CALL_DEADLINE_S)

    def state(self) -> dict[str, Any]:
        """Return the loaded generations and the numbers of waiting requests.

        Returns:
            {"families": {FAMILY: {"current", "ready", "generations", "waiting", "refused"}}, "connections": COUNT}.
        """
        return self._worker.call("state", deadline_s=CALL_DEADLINE_S).value

    def facts(self) -> dict[str, Any]:
        """Return the front's loaded modules and its user id: {"modules": [...], "uid": ...}."""
        return self._worker.call("facts", deadline_s=CALL_DEADLINE_S).value

    @property
    def pid(self) -> int:
        """Process id of the front."""
        return self._worker.pid

    def is_alive(self) -> bool:
        """Return whether the front is still running."""
        return self._worker.is_alive()

    def fileno(self) -> int:
        """Return a pidfd that becomes readable when the front ends."""
        return self._worker.fileno()

    def resident_bytes(self) -> int:
        """Return the front's resident memory, in bytes; 0 after it has ended."""
        return self._worker.memory_bytes("VmRSS")

    def stop(self) -> None:
        """Stop accepting requests, complete the open ones, and end the front. Can be called repeatedly."""
        if self._unix_path is not None:
            self._unix_path.unlink(missing_ok=True)  # first: no client connects that would not be served
        if self._worker.is_alive():
            with suppress(AirweightsError):
                self._worker.call("stop", deadline_s=STOP_DEADLINE_S)
        self._worker.stop()


def _process_name(process: ModelProcess) -> str:
    return f"{process.pid}-{id(process)}"


_LIMIT_FIELDS: Final = (
    *("max_body_bytes", "max_kept_bytes", "max_waiting", "max_connections", "wait_s", "response_deadline_s"),
)

_ACCESS_FIELDS: Final = ("allowed_hosts", "allowed_origins")
