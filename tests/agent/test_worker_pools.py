"""The pools of workers of a daemon: a stop ends all of them, and what is left behind is closed."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from device_agent.config.config import Config
from device_agent.daemon.worker_pools import WorkerPools
from device_agent.errors import AgentStopping, WorkerFailed
from device_agent.policy.journal_records import PersistentState
from device_agent.process.channel import Message
from device_agent.process.replies import parse_reply
from device_agent.storage.bundle_store import BundleStore
from device_agent.storage.device_directory import DeviceDirectory
from device_agent.workers.worker_pool import WorkerPool


def test_a_stop_ends_the_pools_of_all_threads_and_those_that_are_opened_later(tmp_path: Path) -> None:
    config, device, store = (
        Config(tmp_path, "http://127.0.0.1:9", "kws"),
        DeviceDirectory(tmp_path),
        BundleStore(tmp_path),
    )
    pools = WorkerPools()

    def open_pool(_: int) -> WorkerPool:
        return pools.open(config, device, store)

    with ThreadPoolExecutor(16) as threads:
        opened = list(threads.map(open_pool, range(400)))
    pools.interrupt()
    for pool in (*opened, open_pool(0)):
        with pytest.raises(AgentStopping):
            pool.check_channel(PersistentState(), ())


def test_a_malformed_reply_leaves_no_descriptor_open() -> None:
    kept, closed = (Message({}, (os.memfd_create("reply"),)) for _ in range(2))
    with pytest.raises(WorkerFailed), parse_reply("patcher", closed):
        closed.value["paths"]
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(closed.fds[0])
    with parse_reply("patcher", kept):
        pass
    kept.close()
