"""Find the worker processes of a running daemon."""

from pathlib import Path

from tests.support.publisher import DeviceUnderTest


def list_worker_pids(device: DeviceUnderTest) -> list[int]:
    assert device.daemon is not None
    tasks = Path(f"/proc/{device.daemon.pid}/task").iterdir()
    return [int(pid) for task in tasks for pid in (task / "children").read_text().split()]
