"""The command line `device-agent`.

Rules:
1. Every command reads its settings from one TOML file (`--config`) and has `--json`.
2. `status`, `history`, `update`, `plan`, `rollback`, `pause`, `resume` and `forgive` ask the daemon; where none runs
   they work on the device directory themselves, under its lock.
3. What a command needs is imported when it runs.
4. Where the device follows several families, a command without `--family` is for all of them
   (device_agent.config.families),
   or asks for it.
"""

import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import click

from bundle import console
from bundle.errors import AirweightsError
from bundle.version import VERSION
from device_agent.commands.adapter import adapter
from device_agent.commands.daemon_or_offline import (
    FAMILY_OPTION,
    JSON_OPTION,
    REQUIRED_FAMILY_OPTION,
    daemon_or_offline,
)
from device_agent.commands.report import report
from device_agent.config.config import DEFAULT_PATH, Config, ServeSettings, UpdateSettings, load_config, render_config
from device_agent.errors import AlreadyInitialized, ConfigInvalid, InvalidUsage

STATUS_TIMEOUT_S: Final = 10.0
DAEMON_ENVIRONMENT: Final = {"MALLOC_ARENA_MAX": "1"}  # its few threads sleep: an arena for each is memory for nothing
CONTEXT_SETTINGS: Final = {"help_option_names": ["-h", "--help"]}


@click.group(context_settings=CONTEXT_SETTINGS)
@click.option(
    "--config",
    type=click.Path(path_type=Path, dir_okay=False),
    default=DEFAULT_PATH,
    show_default=True,
    envvar="AIRWEIGHTS_CONFIG",
    help="The device's configuration.",
)
@click.version_option(VERSION, prog_name="device-agent")
@click.pass_context
def cli(context: click.Context, config: Path) -> None:
    """Take verified model releases, serve them, and go back when they fail.

    Every command has --json: one object on stdout, or one error object on stderr. Exit status: 0 done or nothing to do,
    2 your input is wrong, 3 refused, 4 not available now, 5 the model is unfit, 70 a bug.
    """
    context.obj = config


@cli.command(short_help="Make identity, folders and configuration.")
@click.option("--root", type=click.Path(path_type=Path, dir_okay=False), required=True, help="Shipped root metadata.")
@click.option("--repository-url", required=True, help="Where the static files are: https:, http: or file:.")
@click.option("--family", required=True, help="The model line to follow.")
@click.option("--channel", default="stable", show_default=True)
@click.option("--cohort", default="default", show_default=True)
@click.option("--variant", default="auto", show_default=True)
@click.option("--listen", default="tcp:127.0.0.1:0", show_default=True, help="unix:/path or tcp:127.0.0.1:PORT.")
@click.option("--directory", type=click.Path(path_type=Path), default=Path("/var/lib/airweights"), show_default=True)
@click.option("--identity", default="file", show_default=True, help="Where its keys rest: file, tpm:… or pkcs11:….")
@click.option("--label", help="What people call the device.  [default: the host's name]")
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
    identity: str,
    label: str | None,
    *,
    as_json: bool,
) -> None:
    """Make this device's identity and folders, and write its configuration."""
    from device_agent.config.config import parse_config
    from device_agent.identity.provision import default_label, initialize_device
    from device_agent.storage.device_directory import DeviceDirectory

    config = Config(
        directory=directory.absolute(),
        repository_url=repository_url,
        family=family,
        channel=channel,
        cohort=cohort,
        key_storage=identity,
        serve=ServeSettings(listen=listen),
        update=replace(UpdateSettings(), variant=variant),
    )
    text = render_config(config)
    parse_config(text.encode(), where="the options given", folder=Path("/"))
    # the identity comes last: an `init` that was cut off before it is simply run again
    device = DeviceDirectory(config.directory)
    is_cut_off = path.exists() and not device.identity_directory.exists() and path.read_bytes() == text.encode()
    if path.exists() and not is_cut_off:
        raise AlreadyInitialized(f"{path} exists", hint="remove it, or name another with --config")
    device.check_uninitialized()
    if not is_cut_off:
        _write_config(path, text)
    try:
        public = initialize_device(device, root, label or default_label(), identity)
    except AirweightsError:
        path.unlink()
        raise
    result = {"device_id": public.device_id, "label": public.label, "config": str(path), "directory": str(directory)}
    click_text = f"device {public.label} ({public.device_id[:16]}) is ready in {config.directory}; next: enroll"
    console.print_result(result, as_json=as_json, text=click_text)


@cli.command(short_help="Print the enrollment request and its fingerprint.")
@click.option("--output", type=click.Path(path_type=Path, dir_okay=False), help="Write the request there.")
@JSON_OPTION
@click.pass_obj
def enroll(path: Path, output: Path | None, *, as_json: bool) -> None:
    """Print the request that the release team enrolls this device with, and its fingerprint to confirm."""
    from device_agent.identity.device_keys import create_enrollment_request
    from device_agent.storage.device_directory import DeviceDirectory

    config = load_config(path)
    request, data = create_enrollment_request(DeviceDirectory(config.directory), config.key_storage)
    if output is not None:
        if not output.parent.is_dir():
            raise InvalidUsage(f"{output}: there is no folder {output.parent}")
        output.write_bytes(data)
    result: dict[str, object] = {
        "device_id": request.device_id,
        "label": request.label,
        "fingerprint": request.fingerprint,
        "request": data.decode(),
        "output": None if output is None else str(output),
    }
    where = data.decode() if output is None else f"request written to {output}"
    console.print_result(result, as_json=as_json, text=f"{where}\nfingerprint: {request.fingerprint}")


@cli.command()
@JSON_OPTION
@click.pass_obj
def run(path: Path, *, as_json: bool) -> None:
    """Serve, poll and update until stopped. Logs JSON lines to stderr."""
    from device_agent.storage.device_directory import DeviceDirectory

    del as_json  # the daemon's log is JSON anyway
    DeviceDirectory(load_config(path).directory).check_initialized()
    # the same process, without what only a command line needs in its memory
    words = [sys.executable, "-P", "-m", "device_agent.daemon", str(path)]
    os.execve(sys.executable, words, {**os.environ, **DAEMON_ENVIRONMENT})  # noqa: S606  # no shell, our own words


@cli.command(short_help="Run one update now and wait for its end.")
@FAMILY_OPTION
@JSON_OPTION
@click.pass_obj
def update(path: Path, family: str | None, *, as_json: bool) -> None:
    """Run one update now and wait for its end, probation included; of several families one after the other."""
    from device_agent.commands.offline import update_offline
    from device_agent.config.families import highest_exit_code, per_family_text

    ended = daemon_or_offline(
        path, "update", lambda config: update_offline(config, family, console.progress_bar), family=family
    )
    console.print_result(ended, as_json=as_json, text=per_family_text(ended, _result_text))
    click.get_current_context().exit(highest_exit_code(ended))


@cli.command()
@JSON_OPTION
@click.pass_obj
def status(path: Path, *, as_json: bool) -> None:
    """What serves, what is held, what is remembered."""
    from device_agent.daemon.status import read_status, status_text

    found = daemon_or_offline(path, "status", read_status, timeout_s=STATUS_TIMEOUT_S)
    console.print_result(found, as_json=as_json, text=status_text(found))


@cli.command()
@click.option("--limit", type=click.IntRange(1, 200), default=20, show_default=True)
@FAMILY_OPTION
@JSON_OPTION
@click.pass_obj
def history(path: Path, limit: int, family: str | None, *, as_json: bool) -> None:
    """How each attempt ended, newest first."""
    from device_agent.config.families import per_family_text
    from device_agent.daemon.status import read_history

    found = daemon_or_offline(
        path, "history", lambda config: read_history(config, family), timeout_s=STATUS_TIMEOUT_S, family=family
    )
    for row in found.get("families", [found]):
        if "history" in row:
            row["history"] = row["history"][:limit]
    console.print_result(found, as_json=as_json, text=per_family_text(found, _history_text))


@cli.command(short_help="Go back to the previous release.")
@REQUIRED_FAMILY_OPTION
@JSON_OPTION
@click.pass_obj
def rollback(path: Path, family: str | None, *, as_json: bool) -> None:
    """Go back to the previous release, and put the one that is left into quarantine."""
    from device_agent.commands.offline import roll_back_offline

    ended = daemon_or_offline(path, "rollback", lambda config: roll_back_offline(config, family), family=family)
    console.print_result(ended, as_json=as_json, text=_result_text(ended))


@cli.command()
@click.option("--explain", is_flag=True, help="Say for every variant what speaks for or against it here.")
@FAMILY_OPTION
@JSON_OPTION
@click.pass_obj
def plan(path: Path, family: str | None, *, explain: bool, as_json: bool) -> None:
    """What an update would do now: which variant, by which patches, how many bytes."""
    from device_agent.commands.offline import plan_offline
    from device_agent.config.families import per_family_text
    from device_agent.update.preview import plan_text

    found = daemon_or_offline(path, "plan", lambda config: plan_offline(config, family), family=family)
    text = per_family_text(found, lambda row: plan_text(row, with_reasons=explain))
    console.print_result(found, as_json=as_json, text=text)


@cli.command()
@click.option("--seconds", type=click.FloatRange(0.1, 3600), default=9.0, show_default=True, help="For each bundle.")
@click.option("--connections", type=click.IntRange(1, 64), default=2, show_default=True, help="That ask at a time.")
@click.option(
    "--mix",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Requests, one JSON body a line.  [default: the golden inputs]",
)
@FAMILY_OPTION
@JSON_OPTION
@click.pass_obj
def bench(path: Path, seconds: float, connections: int, mix: Path | None, family: str | None, *, as_json: bool) -> None:
    """Measure the bundles that are held: latency, throughput, memory, processor time, energy."""
    from device_agent.commands.bench import format_table, measure_bundles
    from device_agent.config.families import check_family, per_family, per_family_text, require_one_family

    config = load_config(path)
    check_family(config.families, family)
    if mix is not None:
        family = require_one_family(config.families, family)  # a request is for one model
    chosen = {one.family: one for one in config.family_configs() if family in (None, one.family)}
    result = per_family(
        chosen, lambda name: measure_bundles(chosen[name], duration_s=seconds, connections=connections, mix=mix)
    )
    console.print_result(result, as_json=as_json, text=per_family_text(result, format_table))


@cli.command(short_help="Take no updates until `resume`.")
@JSON_OPTION
@click.pass_obj
def pause(path: Path, *, as_json: bool) -> None:
    """Take no updates until `resume`; what serves goes on serving."""
    from device_agent.commands.offline import set_paused_offline

    daemon_or_offline(path, "pause", lambda config: set_paused_offline(config, is_paused=True))
    console.print_result({"paused": True}, as_json=as_json, text="updates are paused")


@cli.command()
@JSON_OPTION
@click.pass_obj
def resume(path: Path, *, as_json: bool) -> None:
    """Take updates again."""
    from device_agent.commands.offline import set_paused_offline

    daemon_or_offline(path, "resume", lambda config: set_paused_offline(config, is_paused=False))
    console.print_result({"paused": False}, as_json=as_json, text="updates are taken again")


@cli.command(short_help="Take bundles out of quarantine.")
@click.option("--bundle", help="Only this bundle digest.  [default: all]")
@FAMILY_OPTION
@JSON_OPTION
@click.pass_obj
def forgive(path: Path, bundle: str | None, family: str | None, *, as_json: bool) -> None:
    """Take bundles out of quarantine: the next update may try them again."""
    from device_agent.commands.offline import clear_quarantine_offline

    done = daemon_or_offline(
        path, "forgive", lambda config: clear_quarantine_offline(config, family, bundle), bundle=bundle, family=family
    )
    console.print_result(done, as_json=as_json, text=f"{done['forgiven']} taken out of quarantine")


@cli.command(short_help="Move the keys to where `identity` says.")
@JSON_OPTION
@click.pass_obj
def reseal(path: Path, *, as_json: bool) -> None:
    """Bring this device's keys to where `identity` in the configuration says: files, a TPM, or a token.

    Also after a planned change of what a TPM's PCRs measure: before it, to fewer PCRs; after it, to all of them again.
    """
    from device_agent.identity.provision import move_keys_to_configured_storage as move

    config = load_config(path)
    move(config)
    result = {"identity": config.key_storage, "directory": str(config.directory)}
    console.print_result(result, as_json=as_json, text=f"the keys rest in {config.key_storage} now")


@cli.command("check-config")
@JSON_OPTION
@click.pass_obj
def check_config(path: Path, *, as_json: bool) -> None:
    """Read the configuration and do nothing."""
    config = load_config(path)
    result = {"config": str(path), "ok": True, "directory": str(config.directory), "family": config.family}
    if config.further_families:
        result["families"] = list(config.families)
    console.print_result(result, as_json=as_json, text=f"{path} is good")


cli.add_command(adapter)
cli.add_command(report)


def main(arguments: list[str]) -> int:
    """Run a command; the exit code (bundle.console)."""
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
            raise InvalidUsage(error.format_message(), hint="device-agent --help") from error
        except click.Abort:
            raise KeyboardInterrupt from None

    code = console.run(call, as_json="--json" in arguments)
    return code or exit_code


def _history_text(found: dict[str, Any]) -> str:
    return "\n".join(_result_text(row) for row in found["history"]) or "no attempt yet"


def _result_text(result: dict[str, Any]) -> str:
    parts = [result["outcome"], result["release"] or "", result["variant"] or ""]
    if result["reason"]:
        parts.append(f"({result['reason']}: {result['detail']})")
    if result["full_bytes"]:
        parts.append(f"{result['download_bytes']} bytes downloaded, {result['full_bytes']} for all of it")
    return " ".join(part for part in parts if part)


def _write_config(path: Path, text: str) -> None:
    from device_agent.storage.bundle_store import write_durably

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_durably(path, text.encode(), 0o644)
    except OSError as error:
        raise ConfigInvalid(f"{path}: {error.strerror}", hint="name another place with --config") from error


__all__ = ["AirweightsError", "cli", "main"]
