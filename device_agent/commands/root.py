"""The command line `device-agent`: the group of all commands, and `main`.

Rules:
- Every command reads its settings from one TOML file (`--config`) and has `--json`.
- A command that needs the device's state asks the running daemon. If no daemon runs, the command works on the device
  directory itself, under the directory's lock (device_agent.commands.daemon_or_offline).
- A command imports its modules when it runs, so that `--help` is fast. Those that only work without a daemon are
  imported when there is none.
- If the device follows several families, a command without `--family` is for all of them, or requires the option
  (device_agent.config.families).
"""

import os
import sys
from pathlib import Path
from typing import Any, Final

import click

from bundle import console
from bundle.errors import AirweightsError
from bundle.suggestion import suggest
from bundle.version import VERSION
from device_agent.commands.adapter import adapter
from device_agent.commands.check_config import check_config
from device_agent.commands.client_key import seal_client_key
from device_agent.commands.daemon_or_offline import (
    FAMILY_OPTION,
    JSON_OPTION,
    REQUIRED_FAMILY_OPTION,
    daemon_or_offline,
    plain_json,
)
from device_agent.commands.files import files
from device_agent.commands.new_device import enroll, first_boot, init
from device_agent.commands.probe_bundle import probe_bundle
from device_agent.commands.quarantine import quarantine
from device_agent.commands.relabel import relabel
from device_agent.commands.report import report
from device_agent.config.config import DEFAULT_PATH, Config, load_config
from device_agent.errors import InvalidUsage

STATUS_TIMEOUT_S: Final = 10.0
DAEMON_ENVIRONMENT: Final = {
    "MALLOC_ARENA_MAX": "1"
}  # one malloc arena for all threads saves memory: most threads sleep
CONTEXT_SETTINGS: Final = {"help_option_names": ["-h", "--help"]}


@click.group(context_settings=CONTEXT_SETTINGS)
@click.option(
    "--config",
    type=click.Path(path_type=Path, dir_okay=False),
    default=DEFAULT_PATH,
    show_default=True,
    envvar="AIRWEIGHTS_CONFIG",
    help="Path of the configuration file.",
)
@click.version_option(VERSION, prog_name="device-agent")
@click.pass_context
def cli(context: click.Context, config: Path) -> None:
    """Install verified model releases, serve them, and return to the previous release if one fails.

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
    context.obj = config


@cli.command(short_help="Run the daemon.")
@JSON_OPTION
@click.pass_obj
def run(path: Path, *, as_json: bool) -> None:
    """Run the daemon: serve, poll and update until SIGTERM or SIGINT.

    SIGHUP makes it read its configuration again. It logs JSON lines to stderr; an error at its start is
    printed for people if stderr is a terminal.
    """
    from device_agent.storage.device_directory import DeviceDirectory

    try:
        DeviceDirectory(load_config(path).directory).check_initialized()
    except AirweightsError:
        if as_json or sys.stderr.isatty():
            raise
        # else the daemon finds the same error, and logs it as a line of its JSON log
    # replace this process: the daemon does not keep the modules of the command line in memory
    arguments = [sys.executable, "-P", "-m", "device_agent.daemon", str(path)]
    os.execve(sys.executable, arguments, {**os.environ, **DAEMON_ENVIRONMENT})  # noqa: S606  # no shell


@cli.command(short_help="Run one update now and wait for its result.")
@FAMILY_OPTION
@JSON_OPTION
@click.pass_obj
def update(path: Path, family: str | None, *, as_json: bool) -> None:
    """Run one update now and wait for its result, probation included.

    Several families are updated one after the other; the exit code is the highest of theirs.
    """
    from device_agent.commands.result_text import result_lines
    from device_agent.config.families import FamilyResults
    from device_agent.policy.attempt import UpdateResult

    def offline(config: Config) -> FamilyResults[UpdateResult]:
        from device_agent.commands.offline import update_offline

        return update_offline(config, family, console.progress_bar)

    found = daemon_or_offline(
        path,
        "update",
        offline,
        lambda reply, families: FamilyResults.parse(reply, families, UpdateResult.from_json),
        family=family,
    )
    console.print_result(found.as_json(UpdateResult.as_json), as_json=as_json, text=found.as_lines(result_lines))
    click.get_current_context().exit(max(value.exit_code for _, value in found.rows))


@cli.command(short_help="Show the serving model and the update state.")
@JSON_OPTION
@click.pass_obj
def status(path: Path, *, as_json: bool) -> None:
    """Show the serving model, the stored bundles, the update state and the quarantine."""
    from device_agent.commands.result_text import status_lines
    from device_agent.policy.status_report import StatusReport

    def offline(config: Config) -> StatusReport:
        from device_agent.daemon.status import read_status

        return read_status(config)

    report = daemon_or_offline(
        path, "status", offline, lambda reply, _: StatusReport.parse(reply), timeout_s=STATUS_TIMEOUT_S
    )
    console.print_result(report.as_json(), as_json=as_json, text=status_lines(report))


@cli.command(short_help="Show past update attempts, newest first.")
@click.option(
    "--limit", type=click.IntRange(1, 200), default=20, show_default=True, help="Show at most this many attempts."
)
@FAMILY_OPTION
@JSON_OPTION
@click.pass_obj
def history(path: Path, limit: int, family: str | None, *, as_json: bool) -> None:
    """Show past update attempts with their outcomes, newest first."""
    from device_agent.commands.result_text import history_lines
    from device_agent.config.families import FamilyResults
    from device_agent.policy.update_history import UpdateHistory

    def offline(config: Config) -> FamilyResults[UpdateHistory]:
        from device_agent.daemon.status import read_history

        return read_history(config, family)

    found = daemon_or_offline(
        path,
        "history",
        offline,
        lambda reply, families: FamilyResults.parse(reply, families, UpdateHistory.parse),
        timeout_s=STATUS_TIMEOUT_S,
        family=family,
    )
    result = found.as_json(lambda history: history.newest(limit).as_json())
    text = found.as_lines(lambda history: history_lines(history.newest(limit)))
    console.print_result(result, as_json=as_json, text=text)


@cli.command(short_help="Return to the previous release.")
@REQUIRED_FAMILY_OPTION
@JSON_OPTION
@click.pass_obj
def rollback(path: Path, family: str | None, *, as_json: bool) -> None:
    """Return to the previous release, and put the bundle of the current one into quarantine."""
    from bundle.strict_json import StrictObject
    from device_agent.commands.result_text import result_text
    from device_agent.policy.attempt import UpdateResult

    def offline(config: Config) -> UpdateResult:
        from device_agent.commands.offline import roll_back_offline

        return roll_back_offline(config, family)

    result = daemon_or_offline(
        path,
        "rollback",
        offline,
        lambda reply, _: UpdateResult.from_json(StrictObject(reply, "result")),
        family=family,
    )
    console.print_result(result.as_json(), as_json=as_json, text=result_text(result))


@cli.command(short_help="Show what an update would do now.")
@click.option("--explain", is_flag=True, help="Show for every variant why it is chosen or not.")
@FAMILY_OPTION
@JSON_OPTION
@click.pass_obj
def plan(path: Path, family: str | None, *, explain: bool, as_json: bool) -> None:
    """Show what an update would do now: the variant, the patches and the download size.

    Nothing is changed on the device.
    """
    from device_agent.commands.offline import plan_offline
    from device_agent.commands.result_text import plan_lines
    from device_agent.config.families import FamilyResults
    from device_agent.update.preview import Plan

    found = daemon_or_offline(
        path,
        "plan",
        lambda config: plan_offline(config, family),
        lambda reply, families: FamilyResults.parse(reply, families, Plan.parse),
        family=family,
    )
    text = found.as_lines(lambda one: plan_lines(one, with_reasons=explain))
    console.print_result(found.as_json(Plan.as_json), as_json=as_json, text=text)


@cli.command(short_help="Measure latency, memory and energy of stored bundles.")
@click.option(
    "--seconds",
    type=click.FloatRange(0.1, 3600),
    default=9.0,
    show_default=True,
    help="Measure each bundle for this many seconds.",
)
@click.option(
    "--connections",
    type=click.IntRange(1, 64),
    default=2,
    show_default=True,
    help="Send requests over this many connections at a time.",
)
@click.option(
    "--mix",
    type=click.Path(path_type=Path, dir_okay=False),
    help="File of requests, one JSON body per line.  [default: the golden inputs]",
)
@FAMILY_OPTION
@JSON_OPTION
@click.pass_obj
def bench(path: Path, seconds: float, connections: int, mix: Path | None, family: str | None, *, as_json: bool) -> None:
    """Measure latency, throughput, memory, CPU time and energy of the stored bundles on this device."""
    from device_agent.commands.bench import BenchReport, format_table, measure_bundles
    from device_agent.config.families import check_family, per_family, require_one_family

    config = load_config(path)
    check_family(config.families, family)
    if mix is not None:
        family = require_one_family(config.families, family)  # the requests of one file fit one model
    chosen = {one.family: one for one in config.family_configs() if family in (None, one.family)}
    result = per_family(
        chosen, lambda name: measure_bundles(chosen[name], duration_s=seconds, connections=connections, mix=mix)
    )
    console.print_result(result.as_json(BenchReport.as_json), as_json=as_json, text=result.as_lines(format_table))


@cli.command(short_help="Stop taking updates.")
@JSON_OPTION
@click.pass_obj
def pause(path: Path, *, as_json: bool) -> None:
    """Stop taking updates until `device-agent resume`. The current model keeps serving."""
    daemon_or_offline(path, "pause", lambda config: _pause_offline(config, is_paused=True), plain_json)
    console.print_result({"paused": True}, as_json=as_json, text="updates are paused")


@cli.command(short_help="Start taking updates.")
@JSON_OPTION
@click.pass_obj
def resume(path: Path, *, as_json: bool) -> None:
    """Start taking updates again, after `device-agent pause`."""
    daemon_or_offline(path, "resume", lambda config: _pause_offline(config, is_paused=False), plain_json)
    console.print_result({"paused": False}, as_json=as_json, text="updates are resumed")


def _pause_offline(config: Config, *, is_paused: bool) -> dict[str, Any]:
    from device_agent.commands.offline import set_paused_offline

    return set_paused_offline(config, is_paused=is_paused)


@cli.group(short_help="Move the device's keys to another key storage.")
def identity() -> None:
    """Manage the storage of this device's keys."""


@identity.command("move", short_help="Move the keys to the configured key storage.")
@JSON_OPTION
@click.pass_obj
def move_command(path: Path, *, as_json: bool) -> None:
    """Move the keys to the configured key storage: files, a TPM or a PKCS#11 token. No daemon may run.

    Run it also before and after a planned change of a TPM's PCRs: before it, with the changing PCRs removed from
    `key_storage`; after it, with all of them.
    """
    from device_agent.identity.provision import move_keys_to_configured_storage

    config = load_config(path)
    move_keys_to_configured_storage(config)
    result = {"key_storage": config.key_storage, "directory": str(config.directory)}
    console.print_result(result, as_json=as_json, text=f"the keys are stored in {config.key_storage}")


cli.add_command(adapter)
cli.add_command(check_config)
cli.add_command(enroll)
cli.add_command(init)
cli.add_command(first_boot)
identity.add_command(seal_client_key)
cli.add_command(files)
cli.add_command(probe_bundle)
cli.add_command(quarantine)
cli.add_command(relabel)
cli.add_command(report)


def main(arguments: list[str]) -> int:
    """Run one command and return its exit code (bundle.console).

    Args:
        arguments: the words after `device-agent`.
    """
    exit_code = 0

    def call() -> None:
        nonlocal exit_code
        try:
            result = cli.main(arguments, prog_name="device-agent", standalone_mode=False)
            exit_code = result if isinstance(result, int) else 0
        except click.exceptions.NoArgsIsHelpError as error:
            print(error.format_message(), file=sys.stderr)
            exit_code = InvalidUsage.exit_code
        except click.ClickException as error:
            raise _invalid_usage(error) from error
        except click.Abort:
            raise KeyboardInterrupt from None

    code = console.run(call, as_json="--json" in arguments)
    return code or exit_code


def _invalid_usage(error: click.ClickException) -> InvalidUsage:
    context, message = getattr(error, "ctx", None), error.format_message()
    if isinstance(context, click.Context):
        if isinstance(error, click.NoSuchOption):
            options = [option for one in context.command.get_params(context) for option in one.opts]
            message = f"no such option {error.option_name!r}{suggest(error.option_name, options)}"
        elif isinstance(context.command, click.Group) and (name := getattr(error, "command_name", None)):
            message = f"no such command {name!r}{suggest(name, context.command.commands)}"
    return InvalidUsage(message, hint=f"run `{context.command_path if context else 'device-agent'} --help`")
