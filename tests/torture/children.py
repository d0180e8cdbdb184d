"""One child is killed at one of its own calls, while the supervisor lives: the real processes, in their jails."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final
from unittest import mock

from device_agent.agent import Agent
from device_agent.config import load_config
from device_agent.device import DeviceDirectory
from device_agent.errands import Errands
from device_agent.facts import device_facts, runtime_version
from device_agent.recovery import open_journal, recover
from device_agent.store import Store
from device_agent.update import run_update
from tests.torture.alone import NoProber
from tests.torture.cases import Site, look, spread
from tests.torture.rows import Row, inject, without_strace

# not openat: a child's own imports make hundreds of them before its first call
CALLS: Final = ("write", "pwrite64", "rename", "fsync", "fdatasync", "unlink", "mkdir", "ftruncate", "symlink")
MODULES: Final = ("fetcher", "verifier", "patcher")
MAX_CALLS: Final = 12  # of one name that is tried in one child; most are made less often, and then nothing is killed


def child_killed(site: Site, limit: int | None) -> Row:
    """Each of MODULES at each of CALLS: the update ends as unavailable, and the next one completes."""
    row = Row("a child alone is killed at a system call")
    why = without_strace()
    if why is not None:
        row.skipped = why
        return row
    points = [(f"{module}:{call}", n + 1) for n in range(MAX_CALLS) for module in MODULES for call in CALLS]
    exhausted: set[str] = set()
    for point, number in spread(points, limit):
        if point in exhausted:
            continue
        module, call = point.split(":")
        config = site.copy()
        with _traced(module, inject(call, f"signal=KILL:when={number}")):
            outcome = _update(config)
        if outcome in ("staged", "updated"):
            exhausted.add(point)  # it makes no more calls of this name
            continue
        row.points += 1
        if outcome != "unavailable":
            row.bad.append(f"{point} {number}: {outcome}")
        elif wrong := look(config):
            row.bad.append(f"{point} {number}: {wrong}")
    return row


@contextmanager
def _traced(module: str, tracer: list[str]) -> Iterator[None]:
    """Children of one module are started below a tracer."""
    real = subprocess.Popen

    def popen(words: list[str], **how: Any) -> Any:
        return real([*tracer, *words] if f"device_agent.{module}" in words else words, **how)

    with mock.patch("subprocess.Popen", popen):
        yield


def _update(config_path: Path) -> str:
    config = load_config(config_path)
    device = DeviceDirectory(config.directory)
    store = Store(device.root)

    def errands() -> Errands:
        return Errands(config, device, store)

    journal = open_journal(device, store, errands)
    try:
        recover(journal, runtime_version())
        agent = Agent(
            config=config,
            device=device,
            identity=device.public_identity(),
            store=store,
            journal=journal,
            prober=NoProber(),  # type: ignore[arg-type]  # nothing of it is killed here
            facts=device_facts,
            errands=errands,
        )
        return run_update(agent, "operator").outcome.value
    finally:
        journal.close()
