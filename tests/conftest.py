"""Markers by folder: `process` starts daemons or workers, `slow` takes long; `make test-fast` runs neither."""

from pathlib import Path

import pytest

PROCESS_FOLDERS = frozenset({"agent", "runtime", "demo"})
SLOW_FOLDERS = frozenset({"quantize", "benchmarks", "demo"})


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        folder = Path(item.path).parent.name
        if folder in PROCESS_FOLDERS:
            item.add_marker(pytest.mark.process)
        if folder in SLOW_FOLDERS:
            item.add_marker(pytest.mark.slow)
