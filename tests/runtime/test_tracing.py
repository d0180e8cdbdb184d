"""Another process of the agent's user can neither trace the agent nor read its memory, descriptors or core dump."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from torture.escape_run import enter_user_namespace

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def found() -> dict[str, dict[str, str]]:
    """The results of the attempts, by process and attempt."""
    command = [sys.executable, "-m", "tests.support.tracing"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, check=True, preexec_fn=enter_user_namespace)
    value = json.loads(done.stdout)
    assert isinstance(value, dict)
    return value


@pytest.mark.parametrize("process", ["supervisor", "worker"])
def test_another_process_of_the_user_reads_nothing(found: dict[str, dict[str, str]], process: str) -> None:
    results = {name: result for name, result in found[process].items() if name != "core limit"}
    assert set(results.values()) <= {"EPERM", "EACCES"}, results


def test_it_could_read_a_process_that_is_not_protected(found: dict[str, dict[str, str]]) -> None:
    assert found["other"]["environ"] == "did"


def test_no_core_is_dumped(found: dict[str, dict[str, str]]) -> None:
    assert found["supervisor"]["core limit"] == "0"
