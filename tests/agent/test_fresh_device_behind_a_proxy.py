"""A fresh device behind a proxy, with a private authority, set up by the section of docs/operations/networks.md alone.

Only the proxy can resolve the server's name. Paths and addresses of the page are replaced by those of the test.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from packager.repository.devices import enroll_device
from tests.support.console_page import REPOSITORY, Command, parse_commands
from tests.support.publisher import COHORT, Publisher
from tests.support.real_servers import PROXY_ONLY_HOST, RealServers

PAGE = REPOSITORY / "docs" / "operations" / "networks.md"


def read_section() -> str:
    """Return the section about a fresh device."""
    return PAGE.read_text().split("## A fresh device, step by step\n")[1].split("\n## ")[0]


def test_the_section_about_a_fresh_device_works_as_written(real_servers: RealServers, tmp_path: Path) -> None:
    if "squid" not in real_servers.proxies:
        pytest.skip("squid is not installed")
    publisher = Publisher(real_servers.folder / "update")
    port = real_servers.url.rpartition(":")[2]
    (tmp_path / "1.root.json").write_bytes(publisher.root.read_bytes())
    (tmp_path / "company-ca.pem").write_bytes(real_servers.tls.ca.read_bytes())
    replaced = {
        "/etc/airweights/": f"{tmp_path}/",
        "http://proxy.example.com:3128": real_servers.proxies["squid"],
        "https://models.example.com/kws": f"https://{PROXY_ONLY_HOST}:{port}/update",
        "sudo device-agent init": f"device-agent init --directory {tmp_path}/device --listen unix:{tmp_path}/socket",
        "sudo ": "",
    }
    section = read_section()
    for old, new in replaced.items():
        assert old in section
        section = section.replace(old, new)
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {"PATH": path, "AIRWEIGHTS_CONFIG": f"{tmp_path}/config.toml", "LC_ALL": "C.UTF-8"}

    def follow(command: Command) -> str:
        done = subprocess.run(
            ["bash", "-c", command.text],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=240,
        )
        assert done.returncode == 0, done.stderr
        assert [line for line in command.shown_lines if line not in done.stdout.splitlines()] == [], done.stdout
        return done.stdout + done.stderr

    initialize, check, enroll, check_again, update = parse_commands(section)
    follow(initialize)
    (table,) = re.findall(r"```toml\n(.*?)```", section, re.DOTALL)
    with (tmp_path / "config.toml").open("a") as config:
        config.write(table)
    printed = follow(check)
    assert "is not enrolled in cohort 'default'" in printed
    assert "device-agent enroll" in printed
    fingerprint = follow(enroll).split("fingerprint: ")[1].strip()
    request = (tmp_path / "request.json").read_bytes()
    enroll_device(publisher.repository, request, fingerprint, COHORT, publisher.keys, None)
    publisher.publish()
    follow(check_again)
    assert "1.1.0" in follow(update)
