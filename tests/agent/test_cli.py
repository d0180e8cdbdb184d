"""The output, exit codes and one-line errors of `device-agent`."""

import json
import os
import pty
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from device_agent.commands import root
from tests.support.faulty_http_server import Site
from tests.support.publisher import DeviceUnderTest, Publisher
from torture.fault_classes import reason_without_strace, strace_command


def _run(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    code = root.main([str(word) for word in words])
    result = capsys.readouterr()
    return code, result.out, result.err


def _run_refused(capsys: pytest.CaptureFixture[str], code: int, reason: str, *words: object) -> str:
    """Run a command that fails: nothing on stdout, one line of JSON on stderr; return the message."""
    found, out, err = _run(capsys, *words, "--json")
    error = json.loads(err)["error"]
    assert (found, out, error["reason"], error["exit_code"]) == (code, "", reason, code), err
    return str(error["message"])


@pytest.fixture
def words(publisher: Publisher, tmp_path: Path) -> list[str]:
    """Return the arguments of a complete `init`."""
    return [
        *("--config", str(tmp_path / "config.toml"), "init", "--directory", str(tmp_path / "device")),
        *("--root", str(publisher.root), "--repository-url", "http://127.0.0.1:9", "--family", "kws"),
    ]


def test_init_makes_a_device_once(words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = _run(capsys, *words, "--json")
    assert code == 0
    assert len(json.loads(out)["device_id"]) == 64
    assert _run_refused(capsys, 2, "already-initialized", *words).endswith("config.toml exists")
    (tmp_path / "config.toml").unlink()
    assert "identity exists" in _run_refused(capsys, 2, "already-initialized", *words)
    assert not (tmp_path / "config.toml").exists()


def test_init_whose_configuration_can_not_be_written_can_be_tried_again(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    elsewhere = [str(tmp_path / "file" / "config.toml") if word.endswith("config.toml") else word for word in words]
    _run_refused(capsys, 2, "config-invalid", *elsewhere)
    assert not (tmp_path / "device" / "identity").exists()
    code, _, err = _run(capsys, *words)
    assert code == 0, err


def test_init_that_was_killed_is_run_again(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if (why := reason_without_strace()) is not None:
        pytest.skip(why)
    command = [sys.executable, "-m", "device_agent", *map(str, words)]
    killed = 0
    for call, number in (("mkdir", 1), ("rename", 1), ("rename", 2), ("rename", 3), ("rename", 6), ("fsync", 3)):
        for name in ("config.toml", "device"):
            path = tmp_path / name
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        done = subprocess.run(
            [*strace_command(call, f"signal=KILL:when={number}"), *command],
            capture_output=True,
            check=False,
            env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},  # of its renames, the first would be Python's
        )
        killed += done.returncode in (-signal.SIGKILL, 128 + signal.SIGKILL)
        _run(capsys, *words)
        code, _, err = _run(capsys, "--config", tmp_path / "config.toml", "status", "--json")
        assert code == 0, (call, number, err)
    assert killed >= 5


def test_init_with_a_wrong_root_leaves_nothing_behind(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = tmp_path / "wrong.json"
    wrong.write_text("{}")
    message = _run_refused(capsys, 2, "config-invalid", *words, "--root", wrong)
    assert "not root metadata" in message
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != "site") == ["wrong.json"]


def test_init_refuses_a_setting_that_the_agent_could_not_read(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert "family is 'K W S'" in _run_refused(capsys, 2, "config-invalid", *words, "--family", "K W S")


def test_enrol_prints_a_request_and_its_fingerprint(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _run(capsys, *words)
    config = ("--config", tmp_path / "config.toml")
    code, out, _ = _run(capsys, *config, "enroll", "--output", tmp_path / "request.json", "--json")
    assert code == 0
    assert json.loads(out)["request"] == (tmp_path / "request.json").read_text()
    assert len(json.loads(out)["fingerprint"].split()) == 10


@pytest.mark.parametrize(
    "command", ["status", "update", "history", "rollback", "pause", "quarantine clear", "run", "enroll"]
)
def test_a_directory_that_was_not_made_is_said_to_be_so(
    command: str, words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _run(capsys, *words)
    (tmp_path / "device" / "identity" / "device.json").unlink()
    message = _run_refused(capsys, 2, "not-initialized", "--config", tmp_path / "config.toml", *command.split())
    assert message.endswith("identity/device.json is missing")


def test_a_missing_configuration_and_a_wrong_option_are_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "No such file" in _run_refused(capsys, 2, "config-invalid", "--config", tmp_path / "no.toml", "status")
    assert _run_refused(capsys, 2, "invalid-usage", "status", "--color") == "no such option '--color'"
    code, out, err = _run(capsys, "--config", tmp_path / "no.toml", "status")
    assert (code, out) == (2, "")
    assert [line.partition(":")[0] for line in err.splitlines()] == ["error", "hint"]


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("stats", "no such command 'stats', did you mean 'status'?"),
        ("quarantine lst", "no such command 'lst', did you mean 'list'?"),
        ("zzz", "no such command 'zzz'"),
        ("status --jso", "no such option '--jso', did you mean '--json'?"),
    ],
)
def test_a_mistyped_word_is_answered_with_the_nearest_known_one(
    command: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = _run(capsys, *command.split())
    assert (code, out, err.splitlines()[0]) == (2, "", f"error: {message}")


def _commands(group: click.Group, name: str = "device-agent") -> Iterator[tuple[str, click.Command]]:
    for word, command in group.commands.items():
        yield f"{name} {word}", command
        if isinstance(command, click.Group):
            yield from _commands(command, f"{name} {word}")


def test_every_command_has_a_short_help_that_is_not_cut() -> None:
    for name, command in _commands(root.cli):
        assert command.short_help, name
        assert len(command.short_help) <= 60, name
        assert command.short_help.endswith("."), name


def test_check_config_does_nothing_but_read(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _run(capsys, *words)
    config = tmp_path / "config.toml"
    assert _run(capsys, "--config", config, "check-config", "--json")[0] == 0
    config.write_text(config.read_text() + "\ncolor = 1\n")
    assert "unknown key 'update.color'" in _run_refused(capsys, 2, "config-invalid", "--config", config, "check-config")


def test_each_outcome_of_an_update_has_its_exit_code(
    installed: DeviceUnderTest, publisher: Publisher, site: Site, capsys: pytest.CaptureFixture[str]
) -> None:
    config = ("--config", installed.config_path)

    def update() -> tuple[int, str]:
        code, out, _ = _run(capsys, *config, "update", "--json")
        return code, str(json.loads(out)["outcome"])

    assert update() == (0, "nothing-new")
    publisher.release("1.2.0", seed=2, drill="damaged-weights", is_shared=True)
    assert update() == (5, "unfit")
    assert update() == (3, "refused")
    site.faults = [lambda exchange: exchange.path.startswith("metadata/timestamp") and _respond_busy(exchange)]
    assert update() == (4, "unavailable")
    rows = json.loads(_run(capsys, *config, "history", "--json")[1])["history"]
    assert [row["outcome"] for row in rows] == ["unavailable", "refused", "unfit", "updated"]
    assert _run(capsys, *config, "history", "--limit", 1)[1].startswith("unavailable")


def _respond_busy(exchange: object) -> bool:
    from tests.support.faulty_http_server import Exchange, respond_with_status

    assert isinstance(exchange, Exchange)
    return respond_with_status(503, {"Retry-After": "0"})(exchange)


def test_without_a_daemon_the_commands_work_on_the_directory(
    installed: DeviceUnderTest, publisher: Publisher, capsys: pytest.CaptureFixture[str]
) -> None:
    config = ("--config", installed.config_path)
    status = json.loads(_run(capsys, *config, "status", "--json")[1])
    assert (status["daemon"], status["ready"], status["active"]["release"]) == (False, False, "1.0.0")
    assert "the daemon is not running" in _run(capsys, *config, "status")[1]
    assert _run(capsys, *config, "pause")[1] == "updates are paused\n"
    assert "updates are paused" in _run_refused(capsys, 4, "updates-paused", *config, "update")
    assert _run(capsys, *config, "resume")[0] == 0
    assert "no previous release" in _run_refused(capsys, 2, "nothing-to-roll-back", *config, "rollback")
    assert json.loads(_run(capsys, *config, "quarantine", "clear", "--json")[1]) == {"cleared": 0}


def test_a_rollback_without_a_daemon_moves_the_pointers(
    updated: tuple[Publisher, DeviceUnderTest], capsys: pytest.CaptureFixture[str]
) -> None:
    _, device = updated
    config = ("--config", device.config_path)
    update_result = json.loads(_run(capsys, *config, "rollback", "--json")[1])
    assert (update_result["outcome"], update_result["release"]) == ("rolled-back", "1.1.0")
    status = json.loads(_run(capsys, *config, "status", "--json")[1])
    assert (status["active"]["release"], status["previous"]) == ("1.0.0", None)


def test_a_key_file_that_others_can_read_is_refused(
    installed: DeviceUnderTest, capsys: pytest.CaptureFixture[str]
) -> None:
    (installed.directory.identity_directory / "ed25519.key").chmod(0o644)
    message = _run_refused(capsys, 2, "identity-invalid", "--config", installed.config_path, "enroll")
    assert "has mode 0644, expected 0600" in message


def test_a_damaged_key_file_says_nothing_of_its_content(
    installed: DeviceUnderTest, capsys: pytest.CaptureFixture[str]
) -> None:
    path = installed.directory.identity_directory / "ed25519.key"
    text = path.read_text()
    path.write_text(text.replace('"value":"', '"value":"0'))
    message = _run_refused(capsys, 2, "identity-invalid", "--config", installed.config_path, "enroll")
    assert message == "the ed25519 key file of this device is damaged"


def test_a_start_that_fails_is_a_line_for_people_on_a_terminal_and_json_elsewhere(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "device_agent", "--config", str(tmp_path / "no.toml"), "run"]
    found = subprocess.run(words, capture_output=True, text=True, check=False)
    assert found.returncode == 2
    assert json.loads(found.stderr)["error"]["reason"] == "config-invalid"
    ours, theirs = pty.openpty()
    with subprocess.Popen(words, stderr=theirs) as process:
        assert process.wait(60) == 2
    os.close(theirs)
    shown = os.read(ours, 4096).decode()
    os.close(ours)
    assert [line.partition(":")[0] for line in shown.splitlines()] == ["error", "hint"], shown
