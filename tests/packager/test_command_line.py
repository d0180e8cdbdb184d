"""All commands share one form of help, errors, exit codes and JSON output."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from packager.commands.root import COMMANDS, cli
from tests.support.packager_cli import assert_refused, run_packager
from tests.support.release_fixtures import ReleaseSite

HEAVY = ("numpy", "onnx", "onnxruntime", "tuf", "cryptography", "bsdiff4", "securesystemslib")


def list_commands() -> Iterator[tuple[str, click.Command]]:
    """Yield every command below the root with its name."""

    def walk(words: str, command: click.Command) -> Iterator[tuple[str, click.Command]]:
        if isinstance(command, click.Group):
            for name in command.list_commands(click.Context(command)):
                found = command.get_command(click.Context(command), name)
                assert found is not None
                yield from walk(f"{words} {name}".strip(), found)
        else:
            yield words, command

    return walk("", cli)


def test_help_lists_every_command_and_imports_nothing_heavy() -> None:
    load = "import sys\nfrom packager.commands.root import main\nmain(['--help'])\n"
    program = f"{load}print([m for m in {HEAVY} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    for name in COMMANDS:
        assert f"  {name} " in done.stdout
    assert done.stdout.endswith("[]\n")


def test_help_of_every_command_imports_nothing_heavy() -> None:
    lines = ["import sys", "from packager.commands.root import main", f"heavy = {HEAVY}"]
    for words, _ in list_commands():
        lines.append(f"assert main({[*words.split(), '--help']!r}) == 0")
        lines.append(f"assert not set(heavy) & set(sys.modules), ({words!r}, set(heavy) & set(sys.modules))")
    done = subprocess.run([sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


def test_every_command_has_json_and_documents_its_exit_status() -> None:
    for words, command in list_commands():
        assert "--json" in [option for parameter in command.params for option in parameter.opts], words
        assert "Exit status" in (command.help or ""), words


def test_version_is_told() -> None:
    result = run_packager("--version")
    assert result.code == 0
    assert result.stdout.startswith("packager, version ")


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (["nonsense"], "nonsense"),
        (["bundle", "nonsense"], "nonsense"),
        (["bundle", "diff"], "BASE"),
        (["bundle", "diff", "a", "b"], "--output"),
        (["bundle", "inspect", "a", "--wrong"], "--wrong"),
        (["release", "x.toml", "--repo", "r", "--jobs", "none"], "--jobs"),
    ],
)
def test_wrong_usage_is_one_line_a_hint_and_exit_2(words: list[str], found: str) -> None:
    result = run_packager(*words)
    assert result.code == 2
    assert result.stdout == ""
    error, hint = result.stderr.splitlines()
    assert error.startswith("error: ")
    assert found in error
    assert hint.startswith("hint: run `packager")
    assert_refused(run_packager(*words, "--json"), code=2, reason="invalid-usage", words=(found,))


def test_without_a_command_the_help_goes_to_stderr_and_the_exit_code_is_2() -> None:
    result = run_packager()
    assert (result.code, result.stdout) == (2, "")
    assert "Commands:" in result.stderr


@pytest.mark.parametrize("link", [False, True])
@pytest.mark.parametrize("command", ["quantize", "prune"])
def test_a_model_is_never_written_over_itself(site: ReleaseSite, tmp_path: Path, command: str, link: bool) -> None:
    model = tmp_path / "model.onnx"
    model.write_bytes((site.folder / "1.0.0.onnx").read_bytes())
    out = tmp_path / "out.onnx"
    out.symlink_to(model)
    result = run_packager(
        command, model, "-o", out if link else model, "--inputs", site.folder / "inputs.npz", "--json"
    )
    assert (result.code, result.error["reason"]) == (2, "output-exists")
    assert model.read_bytes() == (site.folder / "1.0.0.onnx").read_bytes()
