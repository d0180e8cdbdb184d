"""`packager rollout`: point channels at releases, halt and resume rollouts."""

import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from bundle.console import print_result
from packager.commands.options import (
    JSON_OPTION,
    KEY_OPTION,
    KEYS_OPTION,
    PASSPHRASE_OPTION,
    REPO_OR_URL_OPTION,
    ROOT_OPTION,
)
from packager.commands.rollout_follow import follow_command, why_command
from packager.commands.rollout_plan import plan_command

if TYPE_CHECKING:
    from bundle.rollout import Rollout
    from packager.repository.repository import Repository


@click.group("rollout", short_help="Manage rollouts.")
def rollout() -> None:
    """Choose which release a channel runs, and for which devices.

    With --key or --keys, a change to the rollout of a published release is signed and published at once, without other
    staged changes. Without keys it is staged.
    """


rollout.add_command(plan_command)
rollout.add_command(follow_command)
rollout.add_command(why_command)


@rollout.command("set", short_help="Point a channel at a release.")
@click.argument("family")
@click.argument("channel")
@click.argument("version")
@click.option(
    "--percent",
    type=click.FloatRange(0, 100),
    help="Offer the release to this share of devices, in percent; default: 100, with a plan its first stage.",
)
@click.option("--cohort", "cohorts", multiple=True, help="Offer the release to this cohort only. Repeatable.")
@click.option("--salt", help="Choose other devices for --percent with this salt; default: keep the salt.")
@click.option(
    "--window",
    "windows",
    multiple=True,
    metavar="START/END",
    help="Let devices activate the release only then: 02:00/04:00 (daily) or 2026-12-01T02:00/2026-12-01T04:00.",
)
@click.option("--timezone", "zone_name", default="", help="IANA time zone of --window; default: this machine's.")
@click.option(
    "--window-days",
    type=click.IntRange(1, 64),
    default=14,
    show_default=True,
    help="Number of days of a daily window.",
)
@click.option("--allow-older", is_flag=True, help="Allow an older release than the one that the channel runs.")
@click.option("--note", default="", help="Text for people, stored in the rollout file.")
@REPO_OR_URL_OPTION
@ROOT_OPTION
@KEY_OPTION
@KEYS_OPTION
@PASSPHRASE_OPTION
@JSON_OPTION
def set_command(
    family: str,
    channel: str,
    version: str,
    percent: float | None,
    cohorts: tuple[str, ...],
    salt: str | None,
    windows: tuple[str, ...],
    zone_name: str,
    window_days: int,
    allow_older: bool,
    note: str,
    repo: Path | str,
    root: Path | None,
    uris: tuple[str, ...],
    key_dir: Path | None,
    passphrase_file: Path | None,
    as_json: bool,
) -> None:
    """Point CHANNEL of FAMILY at release VERSION.

    The number of registered devices that the share and the cohorts reach now is printed. A window opens at the same
    moment for all devices; it is written in local time, and also shown in UTC. A window that is not given is removed.

    Exit status: 0 done, 2 no such release, it is not for this channel, or it is older than the current one, 3 devices
    would refuse the rollout, 4 a lock is held.
    """
    from packager.errors import RolloutBackwards, StagingInvalid
    from packager.repository.planned_rollout import next_rollout
    from packager.repository.windows import find_zone, parse_windows

    repository = _open(repo, root, uris, key_dir)
    parsed = parse_windows(windows, find_zone(zone_name), window_days, int(time.time()))
    manifest = repository.manifest(family, version)
    if manifest is None:
        known = ", ".join(found.version for found in repository.releases(family)) or "none"
        raise StagingInvalid(f"{family} has no release {version}, found {known}")
    published = repository.published_rollout(family, channel)
    before = repository.rollout(family, channel)
    if before is not None and before.counter > manifest.counter and not allow_older:
        raise RolloutBackwards(
            f"{family} {channel}: release {version} is older than {before.version}, which the channel runs",
            hint="add --allow-older to move the channel back",
        )
    changed = next_rollout(
        manifest,
        channel,
        before,
        repository.plan(family, channel),
        int(time.time()),
        percent_bp=None if percent is None else round(percent * 100),
        salt=salt,
        cohorts=cohorts,
        windows=parsed.windows,
        note=note,
    )
    _publish_or_stage(
        repository,
        changed,
        published,
        uris,
        key_dir,
        passphrase_file,
        as_json=as_json,
        zone_name=zone_name,
        notes=parsed.notes,
    )


@rollout.command("halt", short_help="Halt a rollout.")
@click.argument("family")
@click.argument("channel")
@click.option("--note", default="", help="Reason for people, stored in the rollout file.")
@REPO_OR_URL_OPTION
@ROOT_OPTION
@KEY_OPTION
@KEYS_OPTION
@PASSPHRASE_OPTION
@JSON_OPTION
def halt_command(
    family: str,
    channel: str,
    note: str,
    repo: Path | str,
    root: Path | None,
    uris: tuple[str, ...],
    key_dir: Path | None,
    passphrase_file: Path | None,
    as_json: bool,
) -> None:
    """Halt the rollout on CHANNEL of FAMILY.

    No further device activates the release. Serving models do not stop.

    Exit status: 0 done, 2 no such rollout, 4 a lock is held.
    """
    _change_halted(family, channel, note, repo, root, uris, key_dir, passphrase_file, halted=True, as_json=as_json)


@rollout.command("resume", short_help="Resume a halted rollout.")
@click.argument("family")
@click.argument("channel")
@click.option("--note", default="", help="Reason for people, stored in the rollout file.")
@REPO_OR_URL_OPTION
@ROOT_OPTION
@KEY_OPTION
@KEYS_OPTION
@PASSPHRASE_OPTION
@JSON_OPTION
def resume_command(
    family: str,
    channel: str,
    note: str,
    repo: Path | str,
    root: Path | None,
    uris: tuple[str, ...],
    key_dir: Path | None,
    passphrase_file: Path | None,
    as_json: bool,
) -> None:
    """Resume the halted rollout on CHANNEL of FAMILY.

    Exit status: 0 done, 2 no such rollout, 4 a lock is held.
    """
    _change_halted(family, channel, note, repo, root, uris, key_dir, passphrase_file, halted=False, as_json=as_json)


@rollout.command("status", short_help="Show what every channel runs.")
@click.argument("family", required=False)
@REPO_OR_URL_OPTION
@ROOT_OPTION
@JSON_OPTION
def status_command(family: str | None, repo: Path | str, root: Path | None, as_json: bool) -> None:
    """Show the release, share and cohorts of every channel, of FAMILY or of all families.

    Exit status: 0 shown, 2 invalid input.
    """
    from packager.remote.remote_repository import open_repository

    repository = click.get_current_context().with_resource(open_repository(repo, root))
    names = repository.families() if family is None else (family,)
    found = [entry for name in names for entry in repository.rollouts(name)]
    text = [line for entry in found for line in (_rollout_line(entry), *_window_lines(entry))] or "no rollout"
    print_result({"rollouts": [entry.as_json() for entry in found]}, as_json=as_json, text=text)


def _change_halted(
    family: str,
    channel: str,
    note: str,
    repo: Path | str,
    root: Path | None,
    uris: tuple[str, ...],
    key_dir: Path | None,
    passphrase_file: Path | None,
    *,
    halted: bool,
    as_json: bool,
) -> None:
    from packager.errors import StagingInvalid

    repository = _open(repo, root, uris, key_dir)
    # with keys, change the published rollout, which is what devices see; without keys, the staged one
    published = repository.published_rollout(family, channel)
    before = published if published is not None and (uris or key_dir) else repository.rollout(family, channel)
    if before is None:
        raise StagingInvalid(f"{family} has no rollout on channel {channel!r}", hint="run `packager rollout status`")
    changed = replace(before, halted=halted, note=note)
    _publish_or_stage(repository, changed, published, uris, key_dir, passphrase_file, as_json=as_json)


def _open(repo: Path | str, root: Path | None, uris: tuple[str, ...], key_dir: Path | None) -> "Repository":
    """Open the repository until the command ends; a change of a store's repository is never staged."""
    from packager.errors import InvalidUsage
    from packager.remote.remote_repository import open_repository

    if isinstance(repo, str) and not uris and key_dir is None:
        raise InvalidUsage("found a URL as --repo and no key: staged changes need a folder", hint="add --keys or --key")
    return click.get_current_context().with_resource(open_repository(repo, root, is_signing=True))


def _publish_or_stage(
    repository: "Repository",
    rollout_document: "Rollout",
    published_rollout: "Rollout | None",
    uris: tuple[str, ...],
    key_dir: Path | None,
    passphrase_file: Path | None,
    *,
    as_json: bool,
    zone_name: str = "",
    notes: tuple[str, ...] = (),
) -> None:
    from packager.commands.options import load_signers

    signers = load_signers(uris, key_dir, passphrase_file) if uris or key_dir else None
    reached, registered = _count_devices(repository, rollout_document)  # first: a damaged registry changes nothing
    published = None
    if (
        signers is not None
        and repository.published_manifest(rollout_document.family, rollout_document.version) is not None
    ):
        published = repository.publish_rollout(rollout_document, published_rollout, signers)
    else:
        repository.stage_rollout(rollout_document)
        if signers is not None:
            repository.sign(signers)
            published = repository.publish()
    state = (
        "staged: run `packager repo sign` and `packager repo publish`"
        if published is None
        else f"published, timestamp {published.timestamp_version}"
    )
    result = {
        "rollout": rollout_document.as_json(),
        "published": None if published is None else published.as_json(),
        "devices": {"reached": reached, "registered": registered},
        "notes": list(notes),
    }
    lines = [
        _rollout_line(rollout_document),
        *_window_lines(rollout_document, zone_name),
        *(f"note: {note}" for note in notes),
        f"reaches {reached} of {registered} registered devices",
        state,
    ]
    print_result(result, as_json=as_json, text=lines)


def _count_devices(repository: "Repository", entry: "Rollout") -> tuple[int, int]:
    """Return the numbers of selected and of all registered devices, without revoked ones."""
    from bundle.rollout import bucket
    from keys.registry_index import open_index

    with open_index(repository.registry_path) as index:
        reached = sum(bucket(entry.salt, one) < entry.percent_bp for one in index.device_ids(entry.cohorts))
        return reached, index.count()


def _window_lines(entry: "Rollout", zone_name: str = "") -> list[str]:
    from packager.repository.windows import describe_windows, find_zone

    return [f"  {line}" for line in describe_windows(entry.windows, find_zone(zone_name), int(time.time()))]


def _rollout_line(entry: "Rollout") -> str:
    cohorts = f" of cohorts {', '.join(entry.cohorts)}" if entry.cohorts else ""
    halted = " HALTED" if entry.halted else ""
    note = f" ({entry.note})" if entry.note else ""
    share = f"{entry.percent_bp / 100:g} %"
    return (
        f"{entry.family} {entry.channel}: {entry.version} (counter {entry.counter}) for {share}{cohorts}{halted}{note}"
    )
