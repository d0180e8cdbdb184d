"""A worker process from the supervisor's side: start, call, stop.

Rules:
1. A worker is `python -m MODULE` with one Unix socket. It inherits a few environment variables
   (device_agent.process.inheritance), no other descriptor, and no secret in its arguments. It has a session of its own,
   and HELD_SIGNALS do not reach it: only the supervisor ends it, also if a signal was sent to the whole process group
   or control group.
2. `WorkerProcess.start` returns after the worker has imported its modules and entered its jail.
3. Calls are made one at a time, under a lock, with a deadline on the monotonic clock. If the deadline passes, the
   worker is killed and reaped, and the call raises WorkerTimeout. If the worker ends or breaks the protocol, the call
   raises WorkerCrashed with the exit code or signal and the last lines of its stderr.
4. An AirweightsError that the worker reports is raised in the supervisor (device_agent.process.channel rule 3). But a
   worker handles untrusted bytes, so neither a Bug that it reports nor a malformed reply counts as a bug of the
   supervisor: both are raised as WorkerFailed.
5. Each line of the worker's stderr is logged, up to MAX_LINES_LOGGED lines. The last STDERR_TAIL_LINES are kept for
   the message of WorkerCrashed.
6. An idle worker causes no wake-ups. During a start or call, the caller's `on_idle` runs every IDLE_INTERVAL_S. If it
   raises an error, the worker is killed, and the call raises that error.
"""

import contextlib
import logging
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Final
from weakref import WeakValueDictionary

from bundle.errors import AirweightsError, Bug
from device_agent.errors import WorkerCrashed, WorkerFailed, WorkerTimeout, error_from_dict
from device_agent.process import channel
from device_agent.process.channel import ChannelClosed, JsonObject, Message
from device_agent.process.inheritance import hold_signals, worker_environment
from device_agent.process.jail import JailPolicy, JailStatus
from device_agent.process.replies import parse_reply
from device_agent.process.worker import CHANNEL_OPTION

logger = logging.getLogger(__name__)

START_DEADLINE_S: Final = 60.0  # imports can come from a cold SD card; 0.4 s on the benchmark machine
STOP_GRACE_S: Final = 5.0
IDLE_INTERVAL_S: Final = 0.5
MAX_LINE_BYTES: Final = 2000
MAX_LINES_LOGGED: Final = 1000  # per worker: a broken model must not fill the disk with its log
STDERR_TAIL_LINES: Final = 5
OnEvent = Callable[[JsonObject], None]
OnRequest = Callable[[Message], tuple[Mapping[str, Any], Sequence[int]]]


class WorkerProcess:
    """One running worker. Create it with `start`; use it as a context manager, or call `stop`.

    Attributes:
        name: last part of the module's name; it names the logger and the threads.
        pid: process id.
        jail: the restrictions that are in force in the worker.
    """

    def __init__(self, name: str, process: "subprocess.Popen[bytes]", channel: socket.socket) -> None:
        self.name = name
        self.pid: Final = process.pid
        self.jail = JailStatus()
        self._process = process
        self._channel = channel
        self._lock = threading.RLock()
        self._stderr_tail: deque[str] = deque(maxlen=STDERR_TAIL_LINES)
        self._pidfd = os.pidfd_open(process.pid)
        assert process.stderr is not None
        self._log_thread = threading.Thread(
            target=self._read_log, args=(process.stderr,), name=f"{name}-log", daemon=True
        )
        self._log_thread.start()
        _workers[self.pid] = self

    @classmethod
    def start(
        cls,
        module: str,
        policy: JailPolicy,
        *,
        environment: Mapping[str, str] | None = None,
        deadline_s: float = START_DEADLINE_S,
        on_idle: Callable[[], None] | None = None,
    ) -> "WorkerProcess":
        """Start `python -m MODULE` and wait until it is in its jail.

        Args:
            module: name of the worker's module, for example "device_agent.workers.probe".
            policy: the jail's policy.
            environment: further environment variables, for example a proxy.
            deadline_s: seconds from the start to the first reply.
            on_idle: called every IDLE_INTERVAL_S until the first reply.

        Raises:
            WorkerCrashed: the worker ended before its first reply.
            WorkerTimeout: the deadline passed.
            JailUnavailable: the worker cannot be confined on this machine.
        """
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            with hold_signals():
                process = subprocess.Popen(
                    [sys.executable, "-P", "-m", module, CHANNEL_OPTION, str(theirs.fileno())],
                    pass_fds=(theirs.fileno(),),
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.PIPE,
                    cwd="/",
                    env=worker_environment(environment or {}),
                    start_new_session=True,
                )
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        if policy.nice:
            # set here and not in the worker: the worker's module imports libraries before it receives a message
            os.setpriority(os.PRIO_PROCESS, process.pid, min(os.getpriority(os.PRIO_PROCESS, 0) + policy.nice, 19))
        worker = cls(module.rpartition(".")[2], process, ours)
        try:
            first = worker._exchange(policy.as_json(), (), deadline_s, None, None, on_idle)
            worker.jail = JailStatus.parse(first.value)
        except BaseException:
            worker.kill()
            raise
        _jails[worker.name] = worker.jail
        if not worker.jail.is_confined:
            logger.warning("worker %s runs unjailed: %s", worker.name, worker.jail)
        return worker

    def call(
        self,
        operation: str,
        request: Mapping[str, Any] | None = None,
        fds: Sequence[int] = (),
        *,
        deadline_s: float,
        on_event: OnEvent | None = None,
        on_request: OnRequest | None = None,
        on_idle: Callable[[], None] | None = None,
    ) -> Message:
        """Send a call and wait for its result.

        Args:
            operation: name of the worker's handler.
            request: further fields of the message.
            fds: descriptors to duplicate into the worker; the caller still owns them.
            deadline_s: seconds for the whole call, including the worker's own requests.
            on_event: called with each event that the worker sends before its result.
            on_request: handles a request of the worker and returns `(value, fds)`. It owns the request's descriptors.
                An AirweightsError that it raises is sent to the worker.
            on_idle: called every IDLE_INTERVAL_S. It must not call this worker.

        Returns:
            The result; the caller owns its descriptors.

        Raises:
            WorkerCrashed: the worker ended or broke the protocol.
            WorkerTimeout: the deadline passed; the worker was killed.
            WorkerFailed: the worker reported a Bug, or its message has the wrong form.
            AirweightsError: any other error that the worker reported, or that `on_idle` raised.
        """
        return self._exchange({"call": operation, **(request or {})}, fds, deadline_s, on_event, on_request, on_idle)

    def is_alive(self) -> bool:
        """Return whether the worker is still running."""
        return self._process.poll() is None

    def fileno(self) -> int:
        """Return a pidfd for select and asyncio; it becomes readable when the worker ends."""
        return self._pidfd

    def memory_bytes(self, field: str = "VmRSS") -> int:
        """Return the worker's memory, in bytes; 0 after it has ended.

        Args:
            field: a field of /proc/PID/status: "VmRSS" is the resident memory now, "VmHWM" its maximum so far.
        """
        with contextlib.suppress(OSError, ValueError, IndexError):
            with open(f"/proc/{self.pid}/status", encoding="ascii") as status:
                for line in status:
                    if line.startswith(field + ":"):
                        return int(line.split()[1]) * 1024
        return 0

    def cpu_s(self) -> float:
        """Return the processor time used so far, in seconds; 0 after the worker has ended."""
        with contextlib.suppress(OSError, ValueError, IndexError):
            with open(f"/proc/{self.pid}/stat", encoding="ascii") as stat:
                fields = stat.read().rpartition(")")[2].split()
            return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
        return 0.0

    def set_nice(self, nice: int) -> None:
        """Set the niceness of all threads of the worker; does nothing after it has ended.

        Raises:
            PermissionError: the niceness would be lowered, and this process lacks CAP_SYS_NICE.
        """
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            for task in Path(f"/proc/{self.pid}/task").iterdir():
                with contextlib.suppress(ProcessLookupError):  # a thread that has ended meanwhile
                    os.setpriority(os.PRIO_PROCESS, int(task.name), nice)

    def stop(self, grace_s: float = STOP_GRACE_S) -> None:
        """Close the channel, which makes the worker end; kill it if it has not ended in time.

        Can be called repeatedly and from any thread.

        Args:
            grace_s: seconds to wait before the worker is killed.
        """
        with contextlib.suppress(OSError):
            self._channel.shutdown(socket.SHUT_RDWR)
        try:
            self._process.wait(grace_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._close_descriptors()

    def kill(self) -> None:
        """Kill the worker and reap it. Can be called repeatedly and from any thread."""
        self._process.kill()
        self._process.wait()
        with contextlib.suppress(OSError):
            self._channel.shutdown(socket.SHUT_RDWR)
        self._close_descriptors()

    def describe_exit(self) -> str:
        """Return one line for a message: exit code or signal, and the last lines of stderr."""
        code = self._process.poll()
        if code is None:
            how = "is still running"
        elif code < 0:
            how = f"ended by {signal.Signals(-code).name if -code in set(signal.Signals) else -code}"
        else:
            how = f"ended with exit code {code}"
        tail = " | ".join(self._stderr_tail)
        return f"{how}: {tail[-600:]}" if tail else how

    def __enter__(self) -> "WorkerProcess":
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _exchange(
        self,
        request: Mapping[str, Any],
        fds: Sequence[int],
        deadline_s: float,
        on_event: OnEvent | None,
        on_request: OnRequest | None,
        on_idle: Callable[[], None] | None = None,
    ) -> Message:
        deadline = time.monotonic() + deadline_s
        idle_at = time.monotonic() + IDLE_INTERVAL_S
        with self._lock:
            try:
                self._set_timeout(deadline)
                channel.send_message(self._channel, request, fds)
                while True:
                    if on_idle is not None:
                        idle_at = self._wait_until_readable(deadline, on_idle, idle_at)
                    self._set_timeout(deadline)
                    message = channel.receive_message(self._channel)
                    if "event" in message.value:
                        message.close()
                        if on_event is not None:
                            with parse_reply(self.name):
                                on_event(message.value["event"])
                    elif "request" in message.value:
                        reply, reply_fds = self._handle_request(message, on_request)
                        try:
                            self._set_timeout(deadline)
                            channel.send_message(self._channel, reply, reply_fds)
                        finally:
                            for fd in reply_fds:
                                os.close(fd)
                    elif isinstance(message.value.get("ok"), dict):
                        return Message(message.value["ok"], message.fds)
                    else:
                        message.close()
                        raise self._parse_error(message.value.get("error"))
            except TimeoutError as error:
                self._terminate()
                raise WorkerTimeout(
                    f"{self.name} did not reply to {request.get('call', 'its start')!r} within {deadline_s:g} s"
                ) from error
            except (ChannelClosed, OSError) as error:
                self._terminate()
                raise WorkerCrashed(
                    f"{self.name} did not reply to {request.get('call', 'its start')!r}, it "
                    f"{self.describe_exit()} ({error})"
                ) from error

    def _parse_error(self, error: object) -> AirweightsError:
        found = error_from_dict(error)
        return WorkerFailed(f"{self.name}: {found.message}") if isinstance(found, Bug) else found

    def _handle_request(self, message: Message, on_request: OnRequest | None) -> tuple[JsonObject, Sequence[int]]:
        if on_request is None:
            message.close()
            return {"error": Bug(f"{self.name} sent a request, but this call handles none").as_dict()}, ()
        try:
            with parse_reply(self.name):
                value, fds = on_request(Message(message.value["request"], message.fds))
        except AirweightsError as error:
            return {"error": error.as_dict()}, ()
        return {"ok": value}, fds

    def _wait_until_readable(self, deadline: float, on_idle: Callable[[], None], idle_at: float) -> float:
        """Call `on_idle` when it is due, also between many messages; return when it is due next."""
        poll = select.poll()
        poll.register(self._channel, select.POLLIN)
        while True:
            is_readable = poll.poll(max(0.0, idle_at - time.monotonic()) * 1000)
            now = time.monotonic()
            if now >= idle_at:
                try:
                    on_idle()
                except BaseException:
                    self._terminate()
                    raise
                idle_at = time.monotonic() + IDLE_INTERVAL_S
            if is_readable or now >= deadline:
                return idle_at

    def _set_timeout(self, deadline: float) -> None:
        remaining_s = deadline - time.monotonic()
        if remaining_s <= 0:
            raise TimeoutError
        self._channel.settimeout(remaining_s)

    def _terminate(self) -> None:
        # a broken channel cannot be used again, so the worker is ended
        with contextlib.suppress(subprocess.TimeoutExpired):
            # a worker that crashed keeps its own exit code instead of our SIGKILL; on a busy machine it ends late
            self._process.wait(STOP_GRACE_S if self._is_closed() else 0)
        self._process.kill()
        self._process.wait()
        self._log_thread.join(1.0)  # a process started by the worker could keep stderr open

    def _is_closed(self) -> bool:
        """Return whether an end of the channel is closed, which the kernel does when the worker ends."""
        poll = select.poll()
        with contextlib.suppress(ValueError):  # our own end is
            poll.register(self._channel, select.POLLRDHUP | select.POLLHUP)
        return bool(poll.poll(0))

    def _close_descriptors(self) -> None:
        self._log_thread.join(1.0)
        with self._lock:
            self._channel.close()
            if self._pidfd >= 0:
                os.close(self._pidfd)
                self._pidfd = -1

    def _read_log(self, stderr: IO[bytes]) -> None:
        log = logging.getLogger(f"device_agent.worker.{self.name}")
        with stderr:
            for number, line in enumerate(iter(lambda: stderr.readline(MAX_LINE_BYTES), b"")):
                text = "".join(c if c.isprintable() else " " for c in line.decode("utf-8", "replace")).strip()
                if text:
                    self._stderr_tail.append(text[:300])
                if number < MAX_LINES_LOGGED and text:
                    log.warning("%s", text)
                elif number == MAX_LINES_LOGGED:
                    log.warning("more than %d lines, dropping the rest", MAX_LINES_LOGGED)


# by process id: those that run, and some that have ended; any thread may look one up, and none may iterate
_workers: Final["WeakValueDictionary[int, WorkerProcess]"] = WeakValueDictionary()
_jails: Final[dict[str, JailStatus]] = {}  # of the last worker of each name


def missing_restrictions() -> tuple[tuple[str, tuple[str, ...]], ...]:
    """Return what the jails lack, as (worker, restrictions), of the last worker of each name."""
    return tuple((name, jail.missing) for name, jail in sorted(_jails.items()) if jail.missing)


def is_worker(pid: int) -> bool:
    """Return whether a process is a running worker of this process. Any thread may call it."""
    worker = _workers.get(pid)
    return worker is not None and worker.is_alive()
