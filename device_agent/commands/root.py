"""The command line `device-agent`: the group of all commands, and `main`.

Rules:
- Every command reads its settings from one TOML file (`--config`) and has `--json`.
- A command that needs the device's state asks the running daemon. If no daemon runs, the command works on the device
  directory itself, under the directory's lock (device_agent.commands.daemon_or_offline).
- A command imports its modules when it runs, so that `--help` is fast.
- If the device follows several families, a command without `--family` is for all of them, or requires the option
  (device_agent.config.families).
"""

import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Final

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
from device_agent.commands.quarantine import quarantine
from device_agent.commands.relabel import relabel
from device_agent.commands.report import report
from device_agent.config.config import DEFAULT_PATH, Config, ServeSettings, UpdateSettings, load_config, render_config
from device_agent.errors import AlreadyInitialized, ConfigInvalid, InvalidUsage

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


@cli.command(short_help="Create identity, folders and configuration.")
@click.option(
    "--root",
    type=click.Path(path_type=Path, dir_okay=False),
    required=True,
    help="The shipped root metadata, a JSON file.",
)
@click.option("--repository-url", required=True, help="URL of the repository: https:, http: or file:.")
@click.option("--family", required=True, help="The family to follow.")
@click.option("--channel", default="stable", show_default=True, help="The channel to follow.")
@click.option("--cohort", default="default", show_default=True, help="The cohort that the device belongs to.")
@click.option("--variant", default="auto", show_default=True, help="A variant, or auto: choose by the device's facts.")
@click.option(
    "--listen",
    default="tcp:127.0.0.1:0",
    show_default=True,
    help="Address of the endpoint: unix:/path or tcp:127.0.0.1:PORT; port 0 chooses a free port.",
)
@click.option(
    "--directory",
    type=click.Path(path_type=Path),
    default=Path("/var/lib/airweights"),
    show_default=True,
    help="The device directory to create.",
)
@click.option("--key-storage", default="file", show_default=True, help="Storage of the keys: file, tpm:… or pkcs11:….")
@click.option("--label", help="Name of the device for people.  [default: host name and start of the device id]")
@JSON_OPTION
@click.pass_obj
def init(
    path: Path,
    root: Path,
    repository_url: str,
    family: str,
    channel: str,
    cohort: str,
    variant: str,
    listen: str,
    directory: Path,
    key_storage: str,
    label: str | None,
    *,
    as_json: bool,
) -> None:
    """Create this device's identity and folders, and write its configuration file."""
    from bundle.local_files import read_local_file
    from bundle.private_folder import check_private_folder
    from device_agent.config.config import MAX_CONFIG_BYTES, parse_config
    from device_agent.identity.provision import initialize_device
    from device_agent.storage.device_directory import DeviceDirectory

    config = Config(
        directory=directory.absolute(),
        repository_url=repository_url,
        family=family,
        channel=channel,
        cohort=cohort,
        key_storage=key_storage,
        serve=ServeSettings(listen=listen),
        update=replace(UpdateSettings(), variant=variant),
    )
    config_text = render_config(config)
    parse_config(config_text.encode(), where="the options given", folder=Path("/"))
    check_private_folder(config.directory)
    check_private_folder(path.absolute().parent, may_be_sticky=True)
    # create the identity last: `init` can then be run again after a crash before that step
    device = DeviceDirectory(config.directory)
    is_unfinished = (
        path.exists()
        and not device.identity_directory.exists()
        and read_local_file(path, MAX_CONFIG_BYTES) == config_text.encode()
    )
    if path.exists() and not is_unfinished:
        raise AlreadyInitialized(f"{path} exists", hint="remove it, or name another file with --config")
    device.check_uninitialized()
    if not is_unfinished:
        _write_config(path, config_text)
    try:
        public = initialize_device(device, root, label, key_storage)
    except AirweightsError:
        path.unlink()
        raise
    result = {"device_id": public.device_id, "label": public.label, "config": str(path), "directory": str(directory)}
    text = (
        f"device {public.label} ({public.device_id[:16]}) is created in {config.directory}; next: device-agent enroll"
    )
    console.print_result(result, as_json=as_json, text=text)


@cli.command(short_help="Print the enrollment request and its fingerprint.")
@click.option(
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write the request to this file instead of printing it.",
)
@JSON_OPTION
@click.pass_obj
def enroll(path: Path, output: Path | None, *, as_json: bool) -> None:
    """Print the enrollment request of this device, and its fingerprint.

    Send the request to the fleet officer, and confirm the fingerprint over another channel, such as a phone call.
    """
    from device_agent.identity.device_keys import create_enrollment_request
    from device_agent.storage.device_directory import DeviceDirectory

    config = load_config(path)
    request, data = create_enrollment_request(DeviceDirectory(config.directory), config.key_storage)
    if output is not None:
        if not output.parent.is_dir():
            raise InvalidUsage(f"{output}: folder {output.parent} does not exist")
        output.write_bytes(data)
    result: dict[str, object] = {
        "device_id": request.device_id,
        "label": request.label,
        "fingerprint": request.fingerprint,
        "request": data.decode(),
        "output": None if output is None else str(output),
    }
    request_text = data.decode() if output is None else f"request written to {output}"
    console.print_result(result, as_json=as_json, text=[request_text, f"fingerprint: {request.fingerprint}"])


@cli.command(short_help="Run the daemon.")
@JSON_OPTION
@click.pass_obj
def run(path: Path, *, as_json: bool) -> None:
    """Run the daemon: serve, poll and update until SIGTERM or SIGINT. It logs JSON lines to stderr."""
    from device_agent.storage.device_directory import DeviceDirectory

    del as_json  # the daemon's log is always JSON
    DeviceDirectory(load_config(path).directory).check_initialized()
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
    from device_agent.commands.offline import update_offline
    from device_agent.commands.result_text import result_lines
    from device_agent.config.families import FamilyResults
    from device_agent.policy.attempt import UpdateResult

    found = daemon_or_offline(
        path,
        "update",
        lambda config: update_offline(config, family, console.progress_bar),
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
    from device_agent.daemon.status import read_status
    from device_agent.policy.status_report import StatusReport

    report = daemon_or_offline(
        path, "status", read_status, lambda reply, _: StatusReport.parse(reply), timeout_s=STATUS_TIMEOUT_S
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
    from device_agent.daemon.status import read_history
    from device_agent.policy.status_report import UpdateHistory

    found = daemon_or_offline(
        path,
        "history",
        lambda config: read_history(config, family),
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
    from device_agent.commands.offline import roll_back_offline
    from device_agent.commands.result_text import result_text
    from device_agent.policy.attempt import UpdateResult

    result = daemon_or_offline(
        path,
        "rollback",
        lambda config: roll_back_offline(config, family),
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
    from device_agent.commands.offline import set_paused_offline

    daemon_or_offline(path, "pause", lambda config: set_paused_offline(config, is_paused=True), plain_json)
    console.print_result({"paused": True}, as_json=as_json, text="updates are paused")


@cli.command(short_help="Start taking updates.")
@JSON_OPTION
@click.pass_obj
def resume(path: Path, *, as_json: bool) -> None:
    """Start taking updates again, after `device-agent pause`."""
    from device_agent.commands.offline import set_paused_offline

    daemon_or_offline(path, "resume", lambda config: set_paused_offline(config, is_paused=False), plain_json)
    console.print_result({"paused": False}, as_json=as_json, text="updates are resumed")


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
identity.add_command(seal_client_key)
cli.add_command(files)
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


def _write_config(path: Path, text: str) -> None:
    from device_agent.storage.bundle_store import write_durably

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_durably(path, text.encode(), 0o644)
    except OSError as error:
        raise ConfigInvalid(f"{path}: {error.strerror}", hint="name another file with --config") from error


__all__ = ["AirweightsError", "cli", "main"]
