"""strace of an update: credentials are read by the fetcher alone, and sent to the server and its proxy alone.

The server wants a client certificate, whose key is sealed, a token and a header field; the proxy wants a login.
"""

import base64
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from device_agent.commands import root
from tests.support.publisher import DeviceUnderTest
from tests.support.real_servers import HEADER, PROXY_LOGIN, TOKEN, RealServers, write_repository_table
from torture.fault_classes import reason_without_strace

STRACE = (
    *("strace", "-f", "--seccomp-bpf", "--decode-pids=pidns", "-v", "-yy", "-s", "8192", "-e", "signal=none", "-e"),
    "trace=execve,clone,clone3,fork,vfork,read,pread64,readv,write,pwrite64,writev,sendto,sendmsg,recvfrom,recvmsg",
)
CALL = re.compile(r"(\d+) +(?:<\.\.\. )?(\w+)")
CHILD = re.compile(r"= (\d+)$|= \d+ /\* (\d+) in strace's PID NS \*/$")
MODULE = re.compile(r'"-m", "device_agent\.workers\.(\w+)"')
SENDS = ("write", "pwrite64", "writev", "sendto", "sendmsg")


@dataclass(frozen=True)
class TracedCall:
    """A system call.

    Attributes:
        process: name of the worker, or "supervisor".
        name: of the call.
        text: the line of strace.
    """

    process: str
    name: str
    text: str


def parse_trace(lines: list[str]) -> Iterator[TracedCall]:
    """Yield the calls with the names of their processes; a thread has the name of its process."""
    names: dict[str, str] = {}
    for line in lines:
        if (match := CALL.match(line)) is None:
            continue
        pid, call = match.groups()
        own = names.setdefault(pid, "supervisor")
        if call in ("clone", "clone3", "fork", "vfork") and (child := CHILD.search(line)) is not None:
            names.setdefault(child[2] or child[1], own)
        if call == "execve" and (module := MODULE.search(line)) is not None:
            own = names[pid] = module[1]
        yield TracedCall(own, call, line)


def test_credentials_go_to_the_fetcher_the_server_and_its_proxy_only(
    real_servers: RealServers, installed: DeviceUnderTest, tmp_path: Path
) -> None:
    if (why := reason_without_strace()) is not None:
        pytest.skip(why)
    if "tinyproxy" not in real_servers.proxies:
        pytest.skip("tinyproxy is not installed")
    proxy, key = real_servers.proxies["tinyproxy"], real_servers.tls.client_key
    folder = real_servers.folder
    assert root.main(["--config", str(installed.config_path), "identity", "seal-client-key", str(key)]) == 0
    lines = {"ca_file": real_servers.tls.ca, "system_ca": False, "token_file": folder / "token", "proxy": proxy}
    lines |= {"headers_file": folder / "headers", "proxy_auth_file": folder / "proxy-login"}
    lines |= {"client_cert": real_servers.tls.client, "client_key": "sealed"}
    write_repository_table(installed, f"{real_servers.url}/guarded", lines)
    command = [sys.executable, "-m", "device_agent", "--config", str(installed.config_path), "update", "--json"]
    done = subprocess.run([*STRACE, "-o", tmp_path / "trace", *command], capture_output=True, text=True, check=False)
    assert '"outcome": "nothing-new"' in done.stdout, done.stderr
    calls = list(parse_trace((tmp_path / "trace").read_text(errors="replace").splitlines()))
    login = base64.b64encode(PROXY_LOGIN.encode()).decode()
    for secret in (TOKEN, HEADER[1], PROXY_LOGIN, login, key.read_text().splitlines()[1]):
        seen = [call for call in calls if secret in call.text]
        owners = {"fetcher", "patcher"} if secret in key.read_text() else {"fetcher"}
        assert {call.process for call in seen} == owners, secret
        assert "execve" not in {call.name for call in seen}
        sent = [call.text for call in seen if call.name in SENDS and "memfd:" not in call.text]
        assert all(f"->{proxy.removeprefix('http://')}]" in text for text in sent), sent
        assert bool(sent) == (secret == login)  # TLS hides the others
    assert TOKEN not in done.stdout + done.stderr
