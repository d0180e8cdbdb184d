"""What a child process sees of its supervisor, and how it lives: import, enter the jail, answer calls, end with it.

The order of a child's life:
1. `python -m device_agent.X --channel N`; the first message is the jail policy.
2. Its imports. Nothing may be imported later: the jail closes the files that modules are in.
3. `enter_jail`; the status is the first reply.
4. Calls, one at a time: a reply, an error, and before them any number of events, and questions that wait for an answer.
5. The channel closes: the child ends. A thread that sleeps on the channel sees to it even while native code runs.

Messages (device_agent.process.channel): {"call": OP, ...} → {"ok": {...}} | {"error": {...}}; on the way {"event":
{...}} and
{"ask": {...}} ← {"ok": {...}} | {"error": {...}}.
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
from device_agent.errors import WorkerFailed, error_from_dict
from device_agent.process.channel import ChannelClosed, JsonObject, Message, receive_message, send_message
from device_agent.process.jail import JailPolicy, JailStatus, enter_jail
from device_agent.process.throttle import Throttle

logger = logging.getLogger(__name__)

CHANNEL_OPTION: Final = "--channel"


class SupervisorChannel:
    """The channel to the supervisor."""

    def __init__(self, channel: socket.socket) -> None:
        self._channel = channel

    def fileno(self) -> int:
        """For poll and asyncio."""
        return self._channel.fileno()

    def receive(self) -> Message:
        """The next call. Raises ChannelClosed at the supervisor's end."""
        return receive_message(self._channel)

    def reply(self, value: Mapping[str, Any], fds: Sequence[int] = ()) -> None:
        """The result of the call at hand; `fds` stay open here."""
        send_message(self._channel, {"ok": value}, fds)

    def reply_error(self, error: AirweightsError) -> None:
        """The error of the call at hand."""
        send_message(self._channel, {"error": error.as_dict()})

    def send_event(self, value: Mapping[str, Any]) -> None:
        """Something to know before the result, for example progress."""
        send_message(self._channel, {"event": value})

    def request(self, value: Mapping[str, Any], fds: Sequence[int] = ()) -> Message:
        """A question in the middle of a call.

        Returns:
            the answer's object and descriptors.

        Raises:
            AirweightsError: what the supervisor raised.
            ChannelClosed.
        """
        send_message(self._channel, {"request": value}, fds)
        answer = receive_message(self._channel)
        if "ok" not in answer.value:
            answer.close()
            raise error_from_dict(answer.value.get("error"))
        return Message(answer.value["ok"], answer.fds)


class Handler(Protocol):
    """Answers one operation. It owns the call's descriptors; those of a `Message` it returns are sent and closed."""

    def __call__(self, supervisor: SupervisorChannel, message: Message, /) -> JsonObject | Message: ...


def start_worker(prepare: Callable[[Throttle], object] = lambda _pace: None) -> tuple[SupervisorChannel, JailStatus]:
    """Steps 1 to 3. `prepare` does the heavy imports, at the pace that it is given.

    Raises:
        SystemExit: 2 where nobody passed a channel; 0 where the supervisor is gone; 1 where the jail is refused (the
            supervisor has been told).
    """
    arguments = sys.argv[1:]
    if len(arguments) != 2 or arguments[0] != CHANNEL_OPTION or not arguments[1].isdecimal():
        print("error: this program is a child of device-agent and is not called by hand", file=sys.stderr)
        raise SystemExit(2)
    logging.basicConfig(stream=sys.stderr, format="%(levelname)s %(name)s %(message)s", level=logging.WARNING)
    # Ctrl-C reaches the whole group; the supervisor ends its children in order
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    channel = socket.socket(fileno=int(arguments[1]))
    os.set_inheritable(channel.fileno(), False)
    parent = SupervisorChannel(channel)
    try:
        policy = JailPolicy.parse(parent.receive().value)
        prepare(Throttle(is_paced=policy.is_paced))
        with contextlib.suppress(OSError):  # glibc opens it when a thread ends with the interpreter: too late then
            ctypes.CDLL("libgcc_s.so.1")
        os.umask(0o077)
        status = enter_jail(policy)
        _exit_with_supervisor(channel.fileno())
        parent.reply(status.as_json())
    except AirweightsError as error:
        parent.reply_error(error)
        raise SystemExit(1) from error
    except ChannelClosed as error:
        raise SystemExit(0) from error
    return parent, status


def serve_calls(supervisor: SupervisorChannel, handlers: Mapping[str, Handler]) -> None:
    """Step 4: answer calls by their operation until the channel closes. A handler's Bug and a foreign exception are
    told to the supervisor, as ChildFailed, and the child goes on."""
    while True:
        try:
            message = supervisor.receive()
        except ChannelClosed:
            return
        handle_call(supervisor, message, handlers)


def handle_call(supervisor: SupervisorChannel, message: Message, handlers: Mapping[str, Handler]) -> None:
    """One call of step 4, for a child with an event loop of its own."""
    operation = message.value.get("call")
    handler = handlers.get(operation) if isinstance(operation, str) else None
    if handler is None:
        message.close()
        supervisor.reply_error(Bug(f"this child knows {', '.join(sorted(handlers))}, not {operation!r}"))
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
    def sleep() -> None:
        poll = select.poll()
        poll.register(fd, select.POLLRDHUP | select.POLLHUP)
        poll.poll()
        os._exit(0)

    # PR_SET_PDEATHSIG would fire when the supervisor's *thread* that started us ends
    threading.Thread(target=sleep, name="parent", daemon=True).start()
