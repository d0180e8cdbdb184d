"""A worker for the tests of the jail: it tries the attacks of a hostile model."""

import ctypes
import errno
import fcntl
import os
import socket
import sys
import termios
import threading
import time
from collections.abc import Callable
from pathlib import Path

from bundle.errors import AirweightsError
from device_agent.daemon.control_socket import call_daemon
from device_agent.errors import DeviceLocked
from device_agent.process.channel import JsonObject, Message
from device_agent.process.worker import SupervisorChannel, serve_calls, start_worker


def _outcome(attempt: Callable[[], object]) -> str:
    try:
        return f"did: {attempt()}"
    except OSError as error:
        return type(error).__name__


def attempts(_supervisor: SupervisorChannel, message: Message) -> JsonObject:
    """Return the result of each attempt: "did: ..." or the name of the exception."""
    tries: dict[str, Callable[[], object]] = {
        "inet": lambda: socket.socket(socket.AF_INET, socket.SOCK_STREAM),
        "unix": lambda: socket.socket(socket.AF_UNIX, socket.SOCK_STREAM),
        "pair": lambda: len(socket.socketpair()),
        "fork": os.fork,
        "exec": lambda: os.execv("/bin/true", ["true"]),
        "thread": lambda: threading.Thread(target=lambda: None).start(),
        "passwd": lambda: Path("/etc/passwd").read_text()[:4],
        "create": lambda: Path("/tmp/airweights-inmate").write_text("x"),
        "readable": lambda: Path(str(message.value["readable"])).read_text(),
        "kill-parent": lambda: os.kill(int(message.value["supervisor"]), 0),
        "ptrace": lambda: _call(101, 16, int(message.value["supervisor"])),
        "memfd": lambda: Path(f"/proc/self/fd/{message.fds[0]}").read_text(),
    }
    return {"uid": os.geteuid(), **{name: _outcome(attempt) for name, attempt in tries.items()}}


def _call(number: int, *arguments: int) -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    if (result := int(libc.syscall(number, *arguments, 0, 0))) < 0:
        raise OSError(ctypes.get_errno(), "system call")
    return result


def fail(supervisor: SupervisorChannel, message: Message) -> JsonObject:
    """Fail in the way that the call names."""
    match message.value["how"]:
        case "busy":
            raise DeviceLocked("found 1, expected 0", hint="wait")
        case "foreign":
            raise KeyError("no such thing")
        case "crash":
            ctypes.string_at(0)
        case "exit":
            os._exit(3)
        case "nonsense":
            supervisor.send_event("done")  # type: ignore[arg-type]  # as a compromised worker could
        case _:
            time.sleep(1000)
    return {}


def talk(supervisor: SupervisorChannel, message: Message) -> Message:
    """Send two events and a request; return a result with a descriptor."""
    supervisor.send_event({"done": 1})
    supervisor.send_event({"done": 2})
    reply = supervisor.request({"what": "double", "n": message.value["n"]})
    fd = os.memfd_create("answer")
    os.write(fd, str(reply.value["n"]).encode())
    return Message({"length": reply.value["n"]}, (fd,))


def environment(_supervisor: SupervisorChannel, _message: Message) -> JsonObject:
    """Return the environment and the arguments, which other processes cannot read."""
    return {"environment": dict(os.environ), "arguments": sys.orig_argv}


def control(_supervisor: SupervisorChannel, message: Message) -> JsonObject:
    """Send a request to the control socket that the call names; return the reply or the reason of its error."""
    try:
        return call_daemon(Path(str(message.value["path"])), "stop")
    except AirweightsError as error:
        return {"reason": error.reason}


def control_device(_supervisor: SupervisorChannel, message: Message) -> JsonObject:
    """Open a device node for reading and writing, and control it; return the name of the error of each."""
    try:
        fd = os.open(str(message.value["path"]), os.O_RDWR)
    except OSError as error:
        return {"open": errno.errorcode[error.errno or 0], "ioctl": ""}
    try:
        fcntl.ioctl(fd, termios.TIOCGWINSZ, b"x" * 8)
    except OSError as error:
        return {"open": "", "ioctl": errno.errorcode[error.errno or 0]}
    return {"open": "", "ioctl": ""}


def list_folder(_supervisor: SupervisorChannel, message: Message) -> JsonObject:
    """List a folder."""
    return {"listed": _outcome(lambda: len(list(Path(str(message.value["path"])).iterdir())))}


if __name__ == "__main__":
    serve_calls(
        start_worker()[0],
        {
            "attempts": attempts,
            "control": control,
            "device": control_device,
            "environment": environment,
            "fail": fail,
            "list": list_folder,
            "talk": talk,
        },
    )
