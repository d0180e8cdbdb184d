"""A worker process from the inside: import, enter the jail, serve calls, end with the supervisor.

Life of a worker:
1. It is started as `python -m device_agent.X --channel N`. The first message is the jail policy.
2. It imports everything that it needs. Later imports fail, because the jail closes the files that modules are in.
3. It enters the jail. The first reply is the jail's status.
4. It serves calls, one at a time. Before the reply or error of a call it can send any number of events, and requests
   that it waits for.
5. It ends when the channel closes. A thread waits for that, so that it works even while native code runs.

Messages (framing: device_agent.process.channel):
    supervisor to worker  {"call": OPERATION, ...}
    worker to supervisor  {"ok": {...}} or {"error": {...}}; before that {"event": {...}} or {"request": {...}}
    supervisor to worker  {"ok": {...}} or {"error": {...}}, the reply to a request
"""

import contextlib
import ctypes
import logging
import os
import select
import signal
import socket
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Protocol

from bundle.errors import AirweightsError, Bug
from bundle.rendering import LineFormatter
from device_agent.errors import WorkerFailed, error_from_dict
from device_agent.process.channel import ChannelClosed, JsonObject, Message, receive_message, send_message
from device_agent.process.jail import JailPolicy, JailStatus, enter_jail
from device_agent.process.throttle import Throttle

logger = logging.getLogger(__name__)

CHANNEL_OPTION: Final = "--channel"
HELD_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)  # of terminals and service managers


class SupervisorChannel:
    """The worker's end of the channel to its supervisor."""

    def __init__(self, channel: socket.socket) -> None:
        self._channel = channel

    def fileno(self) -> int:
        """Return the socket's descriptor, for poll and asyncio."""
        return self._channel.fileno()

    def receive(self) -> Message:
        """Wait for the next call.

        Raises:
            ChannelClosed: the supervisor ended or closed the channel.
        """
        return receive_message(self._channel)

    def reply(self, value: Mapping[str, Any], fds: Sequence[int] = ()) -> None:
        """Send the result of the current call.

        Args:
            value: the result.
            fds: descriptors to duplicate into the supervisor; they stay open in this process.
        """
        send_message(self._channel, {"ok": value}, fds)

    def reply_error(self, error: AirweightsError) -> None:
        """Send the error of the current call."""
        send_message(self._channel, {"error": error.as_dict()})

    def send_event(self, value: Mapping[str, Any]) -> None:
        """Send an event before the result, for example progress."""
        send_message(self._channel, {"event": value})

    def request(self, value: Mapping[str, Any], fds: Sequence[int] = ()) -> Message:
        """Send a request to the supervisor during a call and wait for the reply.

        Args:
            value: the request's fields.
            fds: descriptors to duplicate into the supervisor; they stay open in this process.

        Returns:
            The reply; the caller owns its descriptors.

        Raises:
            AirweightsError: the supervisor's handler raised it.
            ChannelClosed: the supervisor ended.
        """
        send_message(self._channel, {"request": value}, fds)
        reply = receive_message(self._channel)
        if "ok" not in reply.value:
            reply.close()
            raise error_from_dict(reply.value.get("error"))
        return Message(reply.value["ok"], reply.fds)


class Handler(Protocol):
    """Handles one operation and returns its result.

    A handler owns the descriptors of the call. If it returns a `Message`, its descriptors are sent and then closed.
    """

    def __call__(self, supervisor: SupervisorChannel, message: Message, /) -> JsonObject | Message: ...


def start_worker(
    prepare: Callable[[Throttle, JailPolicy], object] = lambda _throttle, _policy: None,
) -> tuple[SupervisorChannel, JailStatus]:
    """Run steps 1 to 3 of a worker's life: receive the policy, import, enter the jail.

    Args:
        prepare: performs the slow imports; it can call `Throttle.wait` between them. If it returns a policy, that one
            applies.

    Raises:
        SystemExit: 2 if the program was started without a channel; 0 if the supervisor ended; 1 if the worker cannot be
            confined (the error was sent to the supervisor).
    """
    arguments = sys.argv[1:]
    if len(arguments) != 2 or arguments[0] != CHANNEL_OPTION or not arguments[1].isdecimal():
        print("error: device-agent starts this program itself; do not run it directly", file=sys.stderr)
        raise SystemExit(2)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(LineFormatter("%(levelname)s %(name)s %(message)s"))
    logging.basicConfig(handlers=[handler], level=logging.WARNING)
    # they were blocked since the start of this process; those that arrived meanwhile are dropped
    for number in HELD_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, HELD_SIGNALS)
    channel = socket.socket(fileno=int(arguments[1]))
    os.set_inheritable(channel.fileno(), False)
    supervisor = SupervisorChannel(channel)
    try:
        policy = JailPolicy.parse(supervisor.receive().value)
        prepared = prepare(Throttle(is_paced=policy.is_paced), policy)
        policy = prepared if isinstance(prepared, JailPolicy) else policy
        with contextlib.suppress(OSError):  # glibc opens this when a thread ends, and then the jail forbids it
            ctypes.CDLL("libgcc_s.so.1")
        os.umask(0o077)
        status = enter_jail(policy)
        _exit_with_supervisor(channel.fileno())
        supervisor.reply(status.as_json())
    except AirweightsError as error:
        supervisor.reply_error(error)
        raise SystemExit(1) from error
    except ChannelClosed as error:
        raise SystemExit(0) from error
    return supervisor, status


def serve_calls(supervisor: SupervisorChannel, handlers: Mapping[str, Handler]) -> None:
    """Run step 4 of a worker's life: handle calls until the channel closes.

    An error in a handler does not end the worker. An exception other than AirweightsError is sent as WorkerFailed.

    Args:
        supervisor: the channel.
        handlers: the handler of each operation, by its name.
    """
    while True:
        try:
            message = supervisor.receive()
        except ChannelClosed:
            return
        handle_call(supervisor, message, handlers)


def handle_call(supervisor: SupervisorChannel, message: Message, handlers: Mapping[str, Handler]) -> None:
    """Handle one received call; for a worker that has an event loop of its own.

    Args:
        supervisor: the channel for the reply.
        message: the call.
        handlers: the handler of each operation, by its name.

    Raises:
        ChannelClosed: the supervisor ended.
    """
    operation = message.value.get("call")
    handler = handlers.get(operation) if isinstance(operation, str) else None
    if handler is None:
        message.close()
        supervisor.reply_error(Bug(f"unknown operation {operation!r}, this worker has {', '.join(sorted(handlers))}"))
        return
    try:
        result = handler(supervisor, message)
        if isinstance(result, Message):
            try:
                supervisor.reply(result.value, result.fds)
            finally:
                result.close()
        else:
            supervisor.reply(result)
    except AirweightsError as error:
        supervisor.reply_error(error)
    except ChannelClosed:
        raise
    except Exception as error:
        logger.exception("call %s", operation)
        supervisor.reply_error(
            WorkerFailed(f"{type(error).__name__} in {operation!r}: {' '.join(str(error).split())[:500]}")
        )


def _exit_with_supervisor(fd: int) -> None:
    def wait() -> None:
        poll = select.poll()
        poll.register(fd, select.POLLRDHUP | select.POLLHUP)
        poll.poll()
        os._exit(0)

    # not PR_SET_PDEATHSIG: it fires when the *thread* of the supervisor that started this worker ends
    threading.Thread(target=wait, name="supervisor", daemon=True).start()
