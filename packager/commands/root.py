"""The command line `packager`: which commands there are, and how their errors are told.

Rules:
1. A command's module is imported when the command is used or its own help is asked for, never before: `--help` is fast.
2. The table below is the only list of commands; its words are the help of the group.
3. A wrong option or argument is an error like any other: one line, a hint, exit 2, and an object with `--json`.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Final

import click

from bundle import console
from bundle.version import VERSION
from packager.errors import InvalidUsage


@dataclass(frozen=True, slots=True)
class LazyCommand:
    """Where a command lives, and what the group's help says about it."""

    module: str
    function: str
    summary: str

    def load(self) -> click.Command:
        """Import it (rule 1)."""
        command = getattr(import_module(self.module), self.function)
        assert isinstance(command, click.Command)
        return command


class LazyGroup(click.Group):
    """A click group whose commands are a table of `LazyCommand`."""

    def __init__(self, *, lazy: Mapping[str, LazyCommand], **options: object) -> None:
        super().__init__(**options)  # type: ignore[arg-type]  # click's own keyword arguments, passed on as they are
        self.lazy = lazy

    def list_commands(self, ctx: click.Context) -> list[str]:
        """In the order of the table."""
        return [*self.lazy, *super().list_commands(ctx)]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of that name; this imports it."""
        found = self.lazy.get(cmd_name)
        return found.load() if found is not None else super().get_command(ctx, cmd_name)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002  # click calls it
        """The list of commands, from the table: nothing is imported."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, command.summary) for name, command in self.lazy.items()])


COMMANDS: Final[Mapping[str, LazyCommand]] = {
    "release": LazyCommand("packager.commands.release", "release", "Make a release from a release.toml: all steps."),
    "bundle": LazyCommand("packager.commands.bundle", "bundle", "Build, diff, apply, inspect and verify bundles."),
    "patch": LazyCommand("packager.commands.patch", "patch", "Add patches to a release that is out."),
    "quantize": LazyCommand("packager.commands.quantize", "quantize_command", "Quantize a model, behind a gate."),
    "compare": LazyCommand("packager.commands.quantize", "compare_command", "Compare a model with its teacher."),
    "prune": LazyCommand("packager.commands.quantize", "prune_command", "Set small weights to zero, behind the gate."),
    "lint": LazyCommand("packager.commands.quantize", "lint_command", "Say what will bring trouble on devices."),
    "repo": LazyCommand("packager.commands.repo", "repo", "Make, sign, publish and look after a repository."),
    "rollout": LazyCommand("packager.commands.rollout", "rollout", "Say which release a channel runs, and for whom."),
    "device": LazyCommand("packager.commands.device", "device", "Enroll, list and revoke devices."),
    "attestation": LazyCommand(
        "packager.commands.attestation", "attestation", "Write and check provenance and bill of materials."
    ),
    "keys": LazyCommand("packager.commands.keys", "keys", "Make signing keys, and say which a role has."),
    "demo": LazyCommand("packager.commands.demo", "demo", "See the whole product work, on this machine."),
}


@click.group(cls=LazyGroup, lazy=COMMANDS, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(VERSION, prog_name="packager")
def cli() -> None:
    """Turn models into signed, encrypted releases that devices update to.

    Every command has --json: one object on stdout, or one error object on stderr. Exit status: 0 done, 2 your input is
    wrong, 3 somebody's bytes are wrong, 4 not available now, 5 the model fails a gate, 70 a bug.
    """


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns its exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    status = 0

    def invoke() -> None:
        nonlocal status
        status = _run_command(words)

    return console.run(invoke, as_json="--json" in words) or status


def _run_command(arguments: list[str]) -> int:
    try:
        result = cli.main(arguments, prog_name="packager", standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        print(error.format_message(), file=sys.stderr)
        return InvalidUsage.exit_code
    except click.UsageError as error:
        path = error.ctx.command_path if error.ctx is not None else "packager"
        raise InvalidUsage(error.format_message(), hint=f"{path} --help lists what it takes") from error
    except click.ClickException as error:
        raise InvalidUsage(error.format_message()) from error
    except click.Abort as error:
        raise KeyboardInterrupt from error
    return result if isinstance(result, int) else 0
