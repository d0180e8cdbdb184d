"""The output of `device-agent ... --json` matches docs/schemas, with and without a daemon."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.json_schemas import check_schema
from tests.support.packager_cli import run_packager
from tests.support.release_fixtures import create_site

START_LIMIT_S = 60


class Agent:
    """The command line of the agent for one device below a folder."""

    def __init__(self, folder: Path) -> None:
        self._words = [sys.executable, "-P", "-m", "device_agent", "--config", str(folder / "device.toml")]

    def run(self, *words: str, code: int = 0) -> Any:
        """Run a command and return the object that it prints."""
        done = subprocess.run([*self._words, *words, "--json"], capture_output=True, text=True, check=False)
        assert done.returncode == code, done.stderr
        return json.loads(done.stdout or done.stderr)

    def start_daemon(self, log: Path) -> subprocess.Popen[str]:
        """Start the daemon with its log in a file."""
        with log.open("w") as stream:
            return subprocess.Popen([*self._words, "run"], stdin=subprocess.DEVNULL, stderr=stream, text=True)


@pytest.fixture
def agent(tmp_path: Path) -> Agent:
    """Return an enrolled device of a repository with one release, read from the file system."""
    site = create_site(tmp_path)
    release = tmp_path / "small-1.0.0.toml"
    release.write_text(release.read_text().replace("percent = 10", "percent = 100"))
    assert site.release(release.name).code == 0
    agent = Agent(tmp_path)
    where = {
        "--root": tmp_path / "repo/published/metadata/1.root.json",
        "--repository-url": (tmp_path / "repo/published").as_uri(),
        "--family": "kws",
        "--directory": tmp_path / "device",
        "--listen": f"unix:{tmp_path}/s",
    }
    check_schema("agent-init", agent.run("init", *[str(word) for pair in where.items() for word in pair]))
    check_schema("agent-relabel", agent.run("relabel", "kitchen"))
    check_schema("agent-first-boot", agent.run("first-boot"))
    enrollment = agent.run("enroll", "--output", str(tmp_path / "request.json"))
    check_schema("agent-enroll", enrollment)
    request = ("device", "enroll", tmp_path / "request.json", "--fingerprint", enrollment["fingerprint"])
    assert run_packager(*request, "--repo", tmp_path / "repo", "--keys", tmp_path / "keys").code == 0
    return agent


def test_what_the_agent_prints(agent: Agent, tmp_path: Path) -> None:
    check_schema("agent-check-config", agent.run("check-config"))
    check_schema("agent-status", agent.run("status"))
    check_schema("agent-pause", agent.run("pause"))
    check_schema("error", agent.run("update", code=4))
    check_schema("agent-pause", agent.run("resume"))
    check_schema("agent-update", agent.run("update"))
    check_schema("agent-status", agent.run("status"))
    check_schema("agent-history", agent.run("history"))
    check_schema("agent-plan", agent.run("plan"))
    check_schema("agent-bench", agent.run("bench", "--seconds", "0.3"))
    check_schema("agent-adapter", agent.run("adapter", "list"))
    check_schema("agent-quarantine-list", agent.run("quarantine", "list"))
    check_schema("agent-quarantine-clear", agent.run("quarantine", "clear"))
    check_schema("error", agent.run("rollback", code=2))
    daemon = agent.start_daemon(tmp_path / "log")
    try:
        asked = 0
        while not (status := agent.run("status"))["serving"]:
            asked += 1
            assert daemon.poll() is None, (tmp_path / "log").read_text()
            assert asked < START_LIMIT_S, (tmp_path / "log").read_text()
        check_schema("agent-status", status)
        check_schema("agent-update", agent.run("update"))
        check_schema("agent-history", agent.run("history"))
    finally:
        os.kill(daemon.pid, signal.SIGTERM)
        daemon.wait(30)
