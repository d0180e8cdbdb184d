"""The command line `packager`: the table of commands, and how usage errors are reported.

Rules:
- A command's module is imported only when the command runs or its own help is printed, so that `--help` is fast.
- COMMANDS is the only list of top-level commands; its summaries are the help of the group.
- A wrong command, option or argument is reported like any other error: one line, a hint, exit code 2, and an error
  object with `--json`.
"""

import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Final

import click

from bundle import console
from bundle.version import VERSION
from packager.errors import InvalidUsage

_UNKNOWN_COMMAND: Final = re.compile(r"No such command '([^']*)'")  # click has a class for it since 8.4 only


@dataclass(frozen=True, slots=True)
class LazyCommand:
    """Module and name of a command's function, and the summary that the group's help shows."""

    module: str
    function: str
    summary: str

    def load(self) -> click.Command:
        """Import the module and return the command."""
        command = getattr(import_module(self.module), self.function)
        assert isinstance(command, click.Command)
        return command


class LazyGroup(click.Group):
    """A click group that loads its commands from a table of `LazyCommand`."""

    def __init__(self, *, lazy: Mapping[str, LazyCommand], **options: object) -> None:
        super().__init__(**options)  # type: ignore[arg-type]  # click's own keyword arguments, passed on as they are
        self.lazy = lazy

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of all commands, in the order of the table."""
        return [*self.lazy, *super().list_commands(ctx)]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import and return a command, or return None if there is no such command.

        Args:
            ctx: context of the group.
            cmd_name: name that was typed.
        """
        found = self.lazy.get(cmd_name)
        return found.load() if found is not None else super().get_command(ctx, cmd_name)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002  # click calls it
        """Write the list of commands from the table, without importing any.

        Args:
            ctx: context of the group; not used.
            formatter: receives the list.
        """
        with formatter.section("Commands"):
            formatter.write_dl([(name, command.summary) for name, command in self.lazy.items()])


COMMANDS: Final[Mapping[str, LazyCommand]] = {
    "release": LazyCommand("packager.commands.release", "release", "Create a release from a release file."),
    "bundle": LazyCommand("packager.commands.bundle", "bundle", "Build, diff, apply, inspect and verify bundles."),
    "patch": LazyCommand("packager.commands.patch", "patch", "Add patches to a published release."),
    "quantize": LazyCommand(
        "packager.commands.quantize", "quantize_command", "Quantize a model behind an accuracy gate."
    ),
    "compare": LazyCommand(
        "packager.commands.quantize", "compare_command", "Compare a model with its reference model."
    ),
    "prune": LazyCommand("packager.commands.quantize", "prune_command", "Prune small weights behind the gate."),
    "lint": LazyCommand("packager.commands.quantize", "lint_command", "Check a model for problems on devices."),
    "repo": LazyCommand("packager.commands.repo", "repo", "Create, sign, publish and maintain a repository."),
    "rollout": LazyCommand("packager.commands.rollout", "rollout", "Manage rollouts."),
    "device": LazyCommand("packager.commands.device", "device", "Enroll, list and revoke devices."),
    "fleet": LazyCommand("packager.commands.fleet", "fleet", "Collect the devices' reports, and show the fleet."),
    "attestation": LazyCommand(
        "packager.commands.attestation", "attestation", "Create and verify provenance and SBOMs."
    ),
    "keys": LazyCommand("packager.commands.keys", "keys", "Create signing keys and manage roles."),
    "demo": LazyCommand("packager.commands.demo", "demo", "Demonstrate the whole product on this machine."),
}


@click.group(cls=LazyGroup, lazy=COMMANDS, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(VERSION, prog_name="packager")
def cli() -> None:
    """Turn models into signed, encrypted releases that devices update to.

    Every command has --json: it prints one object on stdout, or one error object on stderr.

    \b
    Exit status:
      0    done
      2    invalid input: fix the command, file or configuration
      3    verification failed: do not retry the same bytes
      4    unavailable: retry later
      5    the model failed a check: the current model stays
      70   internal error: please report it
      130  interrupted
      141  output closed by the reader
    """


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code; `arguments` None reads those of the process."""
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
        raise InvalidUsage(_usage_message(error), hint=f"run `{path} --help`") from error
    except click.ClickException as error:
        raise InvalidUsage(error.format_message()) from error
    except click.Abort as error:
        raise KeyboardInterrupt from error
    return result if isinstance(result, int) else 0


def _usage_message(error: click.UsageError) -> str:
    """Return click's message; for an unknown command or option, with the nearest known one."""
    from bundle.suggestion import suggest

    if isinstance(error, click.NoSuchOption):
        name = error.option_name
        return f"no such option {name!r}{suggest(name, _option_names(error.ctx))}"
    unknown = _UNKNOWN_COMMAND.match(error.message)
    if unknown is not None and error.ctx is not None and isinstance(error.ctx.command, click.Group):
        name = unknown.group(1)
        return f"no such command {name!r}{suggest(name, error.ctx.command.list_commands(error.ctx))}"
    return error.format_message()


def _option_names(context: click.Context | None) -> Iterable[str]:
    return [name for parameter in context.command.params for name in parameter.opts] if context is not None else []
