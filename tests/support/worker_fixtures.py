"""Workers that tests start: the program of tests.support.jail_probe in a jail."""

from pathlib import Path
from typing import Final

from device_agent.process.jail import JailPolicy
from device_agent.process.worker_process import WorkerProcess

JAIL_PROBE: Final = "tests.support.jail_probe"
PYTHON_PATH: Final = {"PYTHONPATH": str(Path(__file__).parents[2])}


def start_jail_probe(policy: JailPolicy | None = None) -> WorkerProcess:
    """Start a worker that runs tests.support.jail_probe, under the default policy unless another is given."""
    return WorkerProcess.start(JAIL_PROBE, policy or JailPolicy(), environment=PYTHON_PATH)
