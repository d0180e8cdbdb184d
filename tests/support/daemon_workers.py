"""Find the worker processes of a running daemon."""

from contextlib import suppress
from pathlib import Path

from tests.support.publisher import DeviceUnderTest


def list_worker_pids(device: DeviceUnderTest) -> list[int]:
    assert device.daemon is not None
    pids: list[int] = []
    for task in Path(f"/proc/{device.daemon.pid}/task").iterdir():
        with suppress(FileNotFoundError):  # the thread has just ended
            pids += map(int, (task / "children").read_text().split())
    return pids
