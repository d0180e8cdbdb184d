"""`check-config --connect` names the step that fails, with the reason of the error, before real servers and proxies."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

import pytest

from device_agent.commands import root
from tests.support.free_ports import free_port
from tests.support.json_schemas import check_schema
from tests.support.publisher import DeviceUnderTest, Publisher
from tests.support.real_servers import PROXY_LOGIN, RealServers, write_repository_table

STEPS = ("proxy", "connection", "TLS", "authentication", "metadata", "enrollment")


@dataclass
class Case:
    """What differs from the configuration that works, and what must be found.

    Attributes:
        place: first part of the path.
        top: top-level keys that are replaced.
        lines: of the table `[repository]`, by key; None leaves a key out. Values are formatted with `folder`, `tls`,
            `port` (a free one) and `tinyproxy`.
        step: the step that fails, or "".
        reason: reason of the error.
        message: a part of the message.
        hint: a part of the hint.
    """

    place: str
    lines: Mapping[str, str | None]
    step: str
    reason: str
    message: str
    hint: str = ""
    top: Mapping[str, str] = field(default_factory=dict)


TINYPROXY = {"proxy": "{tinyproxy}"}
MTLS: dict[str, str | None] = {"client_cert": "{tls.client}", "client_key": "{tls.client_key}"}
CASES = {
    "nothing": Case("open", {}, "", "", ""),
    "nothing, client certificate": Case("mtls", MTLS, "", "", ""),
    "nothing, proxy": Case("open", {**TINYPROXY, "proxy_auth_file": "{folder}/proxy-login"}, "", "", ""),
    "a missing file": Case("open", {"token_file": "{folder}/nothing"}, "settings", "config-invalid", "token_file"),
    "no proxy there": Case("open", {"proxy": "http://127.0.0.1:{port}"}, "proxy", "proxy-failed", "127.0.0.1"),
    "a proxy that wants a login": Case(
        "open", TINYPROXY, "proxy", "proxy-auth-required", "wants a user name", "proxy_auth_file"
    ),
    "a proxy that refuses the login": Case(
        "open", {**TINYPROXY, "proxy_auth_file": "{folder}/basic"}, "proxy", "proxy-auth-required", "does not accept"
    ),
    "no server there": Case("{port}", {}, "connection", "connection-failed", "127.0.0.1"),
    "another authority": Case("open", {"ca_file": None, "system_ca": None}, "TLS", "tls-failed", "certificate"),
    "no login": Case("basic", {}, "authentication", "repository-auth-required", "HTTP 401", "basic_auth_file"),
    "another login": Case(
        "basic", {"basic_auth_file": "{folder}/proxy-login"}, "authentication", "repository-auth-required", "accept"
    ),
    "no token": Case("bearer", {}, "authentication", "repository-auth-required", "HTTP 401", "token_file"),
    "no client certificate": Case("mtls", {}, "authentication", "access-denied", "HTTP 403", "client_cert"),
    "a login page": Case("portal", {}, "metadata", "repository-not-reached", "web page", "log in"),
    "a wrong path": Case("nowhere", {}, "metadata", "not-found", "HTTP 404"),
    "no such family": Case(
        "open",
        {},
        "metadata",
        "no-rollout",
        "'rollout-other'; its families: kws",
        "'other'",
        {"family": "other"},
    ),
    "no such channel": Case(
        "open",
        {},
        "metadata",
        "no-rollout",
        "'other' of 'kws'; its channels: stable",
        "`channel`",
        {"channel": "other"},
    ),
    "no such cohort": Case(
        "open", {}, "enrollment", "envelope-missing", "no cohort 'other'", "cohorts are: default", {"cohort": "other"}
    ),
    "another repository": Case("other", {}, "metadata", "another-repository", "repository"),
}


def write_config(device: DeviceUnderTest, servers: RealServers, case: Case) -> None:
    """Write the configuration of a case."""
    port = free_port()
    url = f"https://127.0.0.1:{port}" if case.place == "{port}" else f"{servers.url}/{case.place}"
    lines: dict[str, str | bool | None] = {"ca_file": "{tls.ca}", "system_ca": False, "proxy": "none", **case.lines}
    tinyproxy = servers.proxies.get("tinyproxy", "")
    values = {"folder": servers.folder, "tls": servers.tls, "port": port, "tinyproxy": tinyproxy}
    table = {
        key: value.format(**values) if isinstance(value, str) else value
        for key, value in lines.items()
        if value is not None
    }
    write_repository_table(device, url, table)
    text = device.config_path.read_text()
    for key, value in case.top.items():
        text = re.sub(rf'(?m)^{key} = ".*"$', f'{key} = "{value}"', text)
    device.config_path.write_text(text)


def check(device: DeviceUnderTest, capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    """Run the command, and return its exit code and outputs."""
    code = root.main(["--config", str(device.config_path), "check-config", "--connect", *words])
    out, err = capsys.readouterr()
    return code, out, err


@pytest.mark.parametrize("name", CASES)
def test_check_config_names_the_step_that_fails(
    name: str, real_servers: RealServers, installed: DeviceUnderTest, capsys: pytest.CaptureFixture[str]
) -> None:
    case = CASES[name]
    if "{tinyproxy}" in case.lines.values() and "tinyproxy" not in real_servers.proxies:
        pytest.skip("tinyproxy is not installed")
    write_config(installed, real_servers, case)
    code, out, err = check(installed, capsys, "--json")
    if not case.step:
        assert (code, err) == (0, "")
        result = json.loads(out)
        check_schema("agent-check-config", result)
        assert tuple(step["step"] for step in result["connections"][0]["steps"]) == STEPS
        return
    error = json.loads(err)["error"]
    assert (error["reason"], code) == (case.reason, error["exit_code"]), error
    assert f"step {case.step} failed" in error["message"]
    assert case.message in error["message"]
    assert not case.hint or case.hint in error["hint"]
    assert PROXY_LOGIN.partition(":")[2] not in err + out


def test_a_device_that_is_not_enrolled_is_told_so_after_the_metadata(
    real_servers: RealServers,
    installed: DeviceUnderTest,
    first_publisher: Publisher,
    capsys: pytest.CaptureFixture[str],
) -> None:
    new = DeviceUnderTest.create(installed.folder / "new", installed.config.repository_url, first_publisher.root)
    write_config(new, real_servers, CASES["nothing"])
    code, out, err = check(new, capsys)
    assert code != 0
    assert [line.split()[1] for line in out.splitlines() if line.startswith("  ok")] == list(STEPS[:-1])
    assert "  FAILED  enrollment" in out
    assert "is not enrolled in cohort 'default'" in err
    assert "device-agent enroll" in err
