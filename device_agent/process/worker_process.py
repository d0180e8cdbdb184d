"""Child processes, as the supervisor sees them: start, call, stop.

Rules:
1. A child is `python -m MODULE` with one Unix socket and nothing else of ours: no other descriptor, no variable of the
   environment beyond ENVIRONMENT, no secret in its arguments.
2. `Child.start` returns once the child has imported what it needs and sits in its jail.
3. One call at a time, under a lock, with a deadline on the clock that does not jump; past it the child is killed and
   reaped, and the call raises ChildTimeout. A child that dies or breaks the protocol raises ChildDied with how it
   ended and its last words.
4. What the child raised is raised here (device_agent.process.channel rule 3). But a child handles bytes that somebody
   else
   wrote: what it calls a bug, and an answer that has no form, is its own end (ChildFailed) and never the supervisor's.
5. stderr goes to the log, line by line, bounded; the last lines are kept for the message of rule 3.
6. A child at rest costs no wake-up. In a long call, who has to see to other things is called every IDLE_S.
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
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Final

from bundle.errors import AirweightsError, Bug
from device_agent.errors import WorkerCrashed, WorkerFailed, WorkerTimeout, error_from_dict
from device_agent.process import channel
from device_agent.process.channel import ChannelClosed, JsonObject, Message
from device_agent.process.jail import JailPolicy, JailStatus
from device_agent.process.worker import CHANNEL_OPTION

logger = logging.getLogger(__name__)

START_DEADLINE_S: Final = 60.0  # imports from a cold SD card; 0.4 s on the machine of the measurements
STOP_GRACE_S: Final = 5.0
IDLE_INTERVAL_S: Final = 0.5
MAX_LINE_BYTES: Final = 2000
MAX_LINES_LOGGED: Final = 1000  # of one child's life: a broken model must not fill a disk with its log
STDERR_TAIL_LINES: Final = 5
INHERITED_VARIABLES: Final = (
    *("PATH", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "VIRTUAL_ENV", "PYTHONPATH", "PYTHONHOME", "LD_LIBRARY_PATH"),
    *(
        "SSL_CERT_FILE",
        "SSL_CERT_DIR",
        "HTTP_PROXY",
        "HTTPS_PROXY",
        "NO_PROXY",
        "http_proxy",
        "https_proxy",
        "no_proxy",
    ),
)
# one thread and few arenas: a second thread before the jail would escape Landlock, and arenas cost resident memory
FIXED_VARIABLES: Final = {
    "ORT_DISABLE_TELEMETRY": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
    "MALLOC_ARENA_MAX": "2",
    "PYTHONFAULTHANDLER": "1",
}

OnEvent = Callable[[JsonObject], None]
OnRequest = Callable[[Message], tuple[Mapping[str, Any], Sequence[int]]]


class WorkerProcess:
    """One running child. Made by `start`; use as a context manager or call `stop`."""

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

    @classmethod
    def start(
        cls,
        module: str,
        policy: JailPolicy,
        *,
        environment: Mapping[str, str] | None = None,
        deadline_s: float = START_DEADLINE_S,
    ) -> "WorkerProcess":
        """Start `python -m MODULE` and wait until it is in its jail.

        Args:
            module: for example "device_agent.workers.probe".
            policy: of its jail.
            environment: further variables, for example a proxy.
            deadline_s: from start to the first reply.

        Raises:
            ChildDied, ChildTimeout, JailUnavailable.
        """
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", module, CHANNEL_OPTION, str(theirs.fileno())],
                pass_fds=(theirs.fileno(),),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                cwd="/",
                env=_worker_environment(environment or {}),
            )
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        if policy.nice:
            # from here and not in the child: what a module imports at its top comes before its first message
            os.setpriority(os.PRIO_PROCESS, process.pid, min(os.getpriority(os.PRIO_PROCESS, 0) + policy.nice, 19))
        worker = cls(module.rpartition(".")[2], process, ours)
        try:
            worker.jail = JailStatus.parse(worker._exchange(policy.as_json(), (), deadline_s, None, None).value)
        except BaseException:
            worker.kill()
            raise
        if not worker.jail.is_confined:
            logger.warning("child %s runs unjailed: %s", worker.name, worker.jail)
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
            operation: a handler of the child.
            request: further fields.
            fds: duplicated into the child; the caller still owns them.
            deadline_s: for all of it, questions included.
            on_event: called for each event on the way.
            on_request: answers the child's questions: `(value, fds)`; it owns the question's descriptors. What it
            raises of
                AirweightsError goes to the child.
            on_idle: called every IDLE_S in which the child says nothing; it must not call this child.

        Returns:
            the result; the caller owns its descriptors.

        Raises:
            AirweightsError: the child's own, ChildDied, ChildFailed or ChildTimeout.
        """
        return self._exchange({"call": operation, **(request or {})}, fds, deadline_s, on_event, on_request, on_idle)

    def is_alive(self) -> bool:
        """It has not ended."""
        return self._process.poll() is None

    def fileno(self) -> int:
        """A pidfd: readable once the child has ended, for select and asyncio."""
        return self._pidfd

    def memory_bytes(self, field: str = "VmRSS") -> int:
        """A line of /proc/PID/status, in bytes: VmRSS now, VmHWM at its highest. 0 for a child that has ended."""
        with contextlib.suppress(OSError, ValueError, IndexError):
            with open(f"/proc/{self.pid}/status", encoding="ascii") as status:
                for line in status:
                    if line.startswith(field + ":"):
                        return int(line.split()[1]) * 1024
        return 0

    def cpu_s(self) -> float:
        """Seconds of processor time so far; 0 for a child that has ended."""
        with contextlib.suppress(OSError, ValueError, IndexError):
            with open(f"/proc/{self.pid}/stat", encoding="ascii") as stat:
                fields = stat.read().rpartition(")")[2].split()
            return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
        return 0.0

    def set_nice(self, nice: int) -> None:
        """Niceness of all its threads. Raises PermissionError where it is not this process's to lower."""
        for task in Path(f"/proc/{self.pid}/task").iterdir():
            with contextlib.suppress(ProcessLookupError):
                os.setpriority(os.PRIO_PROCESS, int(task.name), nice)

    def stop(self, grace_s: float = STOP_GRACE_S) -> None:
        """Close the channel, which ends the child; kill it past the grace. Any number of times, from any thread."""
        with contextlib.suppress(OSError):
            self._channel.shutdown(socket.SHUT_RDWR)
        try:
            self._process.wait(grace_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._close_descriptors()

    def kill(self) -> None:
        """End it now and reap it. Any number of times, from any thread."""
        self._process.kill()
        self._process.wait()
        with contextlib.suppress(OSError):
            self._channel.shutdown(socket.SHUT_RDWR)
        self._close_descriptors()

    def describe_exit(self) -> str:
        """How it ended, for a message: an exit code or a signal, and its last words."""
        code = self._process.poll()
        if code is None:
            how = "still runs"
        elif code < 0:
            how = f"ended by {signal.Signals(-code).name if -code in set(signal.Signals) else -code}"
        else:
            how = f"ended with exit code {code}"
        words = " | ".join(self._stderr_tail)
        return f"{how}: {words[-600:]}" if words else how

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
        with self._lock:
            try:
                self._set_timeout(deadline)
                channel.send_message(self._channel, request, fds)
                while True:
                    if on_idle is not None:
                        self._wait_until_readable(deadline, on_idle)
                    self._set_timeout(deadline)
                    message = channel.receive_message(self._channel)
                    if "event" in message.value:
                        message.close()
                        if on_event is not None:
                            with parse_reply(self.name):
                                on_event(message.value["event"])
                    elif "request" in message.value:
                        answer, answer_fds = self._handle_request(message, on_request)
                        self._set_timeout(deadline)
                        channel.send_message(self._channel, answer, answer_fds)
                        for fd in answer_fds:
                            os.close(fd)
                    elif isinstance(message.value.get("ok"), dict):
                        return Message(message.value["ok"], message.fds)
                    else:
                        message.close()
                        raise self._parse_error(message.value.get("error"))
            except TimeoutError as error:
                self._terminate()
                raise WorkerTimeout(
                    f"{self.name} did not answer {request.get('call', 'its start')!r} within {deadline_s:g} s"
                ) from error
            except (ChannelClosed, OSError) as error:
                self._terminate()
                raise WorkerCrashed(
                    f"{self.name} did not answer {request.get('call', 'its start')!r}, it "
                    f"{self.describe_exit()} ({error})"
                ) from error

    def _parse_error(self, error: object) -> AirweightsError:
        found = error_from_dict(error)
        return WorkerFailed(f"{self.name}: {found.message}") if isinstance(found, Bug) else found

    def _handle_request(self, message: Message, on_request: OnRequest | None) -> tuple[JsonObject, Sequence[int]]:
        if on_request is None:
            message.close()
            return {"error": Bug(f"{self.name} asked a question and nobody listens").as_dict()}, ()
        try:
            with parse_reply(self.name):
                value, fds = on_request(Message(message.value["request"], message.fds))
        except AirweightsError as error:
            return {"error": error.as_dict()}, ()
        return {"ok": value}, fds

    def _wait_until_readable(self, deadline: float, on_idle: Callable[[], None]) -> None:
        poll = select.poll()
        poll.register(self._channel, select.POLLIN)
        while not poll.poll(IDLE_INTERVAL_S * 1000) and time.monotonic() < deadline:
            on_idle()

    def _set_timeout(self, deadline: float) -> None:
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        self._channel.settimeout(left)

    def _terminate(self) -> None:
        # a channel that broke is of no use: whatever the child is at, it ends
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(0.2)  # one that died by itself leaves its own exit code, not our SIGKILL
        self._process.kill()
        self._process.wait()
        self._log_thread.join(1.0)  # a grandchild could hold stderr open

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
                    log.warning("further lines are dropped")


@contextlib.contextmanager
def parse_reply(name: str) -> Iterator[None]:
    """Around whatever takes a child's message apart: one without the form that was agreed raises ChildFailed."""
    try:
        yield
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise WorkerFailed(f"{name} sent what is no answer ({type(error).__name__}: {str(error)[:200]})") from error


def _worker_environment(extra: Mapping[str, str]) -> dict[str, str]:
    kept = {name: os.environ[name] for name in INHERITED_VARIABLES if name in os.environ}
    return {**kept, **FIXED_VARIABLES, **extra}
