"""Find the worker processes of a running daemon."""

from contextlib import suppress
from pathlib import Path

from tests.support.publisher import DeviceUnderTest


def list_worker_pids(device: DeviceUnderTest, module: str = "") -> list[int]:
    """Return the process ids of the daemon's children.

    Args:
        device: its daemon runs.
        module: only of workers of this module, for example "device_agent.front".
    """
    assert device.daemon is not None
    pids: list[int] = []
    for task in Path(f"/proc/{device.daemon.pid}/task").iterdir():
        with suppress(FileNotFoundError, ProcessLookupError):  # the thread has just ended
            pids += map(int, (task / "children").read_text().split())
    return [pid for pid in pids if not module or module.encode() in _read_command_line(pid)]


def _read_command_line(pid: int) -> bytes:
    with suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    return b""  # the process has just ended
