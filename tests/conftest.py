"""Markers by folder: `process` starts daemons or workers, `slow` takes long; `make test-fast` runs neither.

Files that take longest run first, so that no worker of pytest-xdist starts a long file when the others have ended
(`--dist loadfile --no-loadscope-reorder`).
"""

from pathlib import Path

import pytest

PROCESS_FOLDERS = frozenset({"agent", "runtime", "demo"})
SLOW_FOLDERS = frozenset({"quantize", "benchmarks", "demo"})

# seconds on two cores, about, of the files that take more than fifteen
FILE_SECONDS = {
    "test_families": 75,
    "test_killed_in_every_state": 60,
    "test_update": 57,
    "test_torture_sample": 55,
    "test_probe": 47,
    "test_demo": 45,
    "test_daemon": 40,
    "test_update_aware": 33,
    "test_getting_started": 30,
    "test_tpm": 27,
    "test_adapter": 26,
    "test_playbook": 24,
    "test_release": 24,
    "test_before_the_swap": 23,
    "test_models_of_strangers": 21,
    "test_healing": 20,
    "test_typed": 20,
    "test_hostile_releases": 18,
    "test_update_search": 17,
    "test_cli": 17,
    "test_two_publishers": 16,
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        folder = Path(item.path).parent.name
        if folder in PROCESS_FOLDERS:
            item.add_marker(pytest.mark.process)
        if folder in SLOW_FOLDERS:
            item.add_marker(pytest.mark.slow)
    items.sort(key=lambda item: -FILE_SECONDS.get(Path(item.path).stem, 0))  # stable: files stay together
