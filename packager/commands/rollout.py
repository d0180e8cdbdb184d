"""`packager rollout …`: which release a channel runs now, and for whom."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from bundle.console import print_result
from packager.commands.options import JSON_OPTION, KEY_OPTION, KEYS_OPTION, PASSPHRASE_OPTION, REPO_OPTION

if TYPE_CHECKING:
    from bundle.rollout import Rollout


@click.group("rollout")
def rollout() -> None:
    """Say which release a channel runs, and for whom.

    With --key or --keys a change of a published release's rollout is signed and published at once, whatever else is
    staged; without, it is staged.
    """


@rollout.command("set")
@click.argument("family")
@click.argument("channel")
@click.argument("version")
@click.option("--percent", type=click.FloatRange(0, 100), default=100.0, show_default=True, help="Share of devices.")
@click.option("--cohort", "cohorts", multiple=True, help="Only this cohort; several times for several.")
@click.option("--salt", help="Draws the devices anew; kept as it is otherwise.")
@click.option("--note", default="", help="For people.")
@REPO_OPTION
@KEY_OPTION
@KEYS_OPTION
@PASSPHRASE_OPTION
@JSON_OPTION
def set_command(
    family: str,
    channel: str,
    version: str,
    percent: float,
    cohorts: tuple[str, ...],
    salt: str | None,
    note: str,
    repo: Path,
    uris: tuple[str, ...],
    key_dir: Path | None,
    passphrase_file: Path | None,
    as_json: bool,
) -> None:
    """Let CHANNEL of FAMILY run release VERSION.

    Exit status: 0 done, 2 no such release, or it is not made for the channel, 3 devices would refuse it, 4 a lock.
    """
    from bundle.rollout import Rollout
    from packager.errors import StagingInvalid
    from packager.repository.repository import Repository

    repository = Repository.open(repo)
    manifest = repository.manifest(family, version)
    if manifest is None:
        known = ", ".join(found.version for found in repository.releases(family)) or "none"
        raise StagingInvalid(f"{family} has no release {version}, found {known}")
    seen = repository.published_rollout(family, channel)
    before = repository.rollout(family, channel)
    is_same = before is not None and before.version == version
    kept = before.salt if before is not None and is_same else f"{family}-{manifest.counter}"
    wanted = Rollout(
        family=family,
        channel=channel,
        version=version,
        counter=manifest.counter,
        manifest_digest=manifest.digest_without_patches(),
        percent_bp=round(percent * 100),
        salt=kept if salt is None else salt,
        cohorts=cohorts,
        note=note,
    )
    _publish_or_stage(repo, wanted, seen, uris, key_dir, passphrase_file, as_json=as_json)


@rollout.command("halt")
@click.argument("family")
@click.argument("channel")
@click.option("--resume", is_flag=True, help="The opposite: let it go on.")
@click.option("--note", default="", help="Why, for people.")
@REPO_OPTION
@KEY_OPTION
@KEYS_OPTION
@PASSPHRASE_OPTION
@JSON_OPTION
def halt_command(
    family: str,
    channel: str,
    resume: bool,
    note: str,
    repo: Path,
    uris: tuple[str, ...],
    key_dir: Path | None,
    passphrase_file: Path | None,
    as_json: bool,
) -> None:
    """Stop new activations of what CHANNEL of FAMILY runs. What serves goes on serving.

    Exit status: 0 done, 2 no such rollout, 4 a lock.
    """
    from packager.errors import StagingInvalid
    from packager.repository.repository import Repository

    repository = Repository.open(repo)
    # what devices see is what is halted; only without keys it is what waits to be signed
    seen = repository.published_rollout(family, channel)
    before = seen if seen is not None and (uris or key_dir) else repository.rollout(family, channel)
    if before is None:
        raise StagingInvalid(f"{family} has no rollout on channel {channel!r}")
    wanted = replace(before, halted=not resume, note=note)
    _publish_or_stage(repo, wanted, seen, uris, key_dir, passphrase_file, as_json=as_json)


@rollout.command("status")
@click.argument("family", required=False)
@REPO_OPTION
@JSON_OPTION
def status_command(family: str | None, repo: Path, as_json: bool) -> None:
    """Show what every channel runs.

    Exit status: 0 shown, 2 wrong input.
    """
    from packager.repository.repository import Repository

    repository = Repository.open(repo)
    names = repository.families() if family is None else (family,)
    found = [entry for name in names for entry in repository.rollouts(name)]
    text = "\n".join(_rollout_line(entry) for entry in found) or "no rollout yet"
    print_result({"rollouts": [entry.as_json() for entry in found]}, as_json=as_json, text=text)


def _publish_or_stage(
    repo: Path,
    rollout_document: "Rollout",
    published_rollout: "Rollout | None",
    uris: tuple[str, ...],
    key_dir: Path | None,
    passphrase_file: Path | None,
    *,
    as_json: bool,
) -> None:
    from packager.commands.options import load_signers
    from packager.repository.repository import Repository

    repository = Repository.open(repo)
    signers = load_signers(uris, key_dir, passphrase_file) if uris or key_dir else None
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
        "staged: sign and publish it" if published is None else f"published, timestamp {published.timestamp_version}"
    )
    result = {"rollout": rollout_document.as_json(), "published": None if published is None else published.as_json()}
    print_result(result, as_json=as_json, text=f"{_rollout_line(rollout_document)}\n{state}")


def _rollout_line(entry: "Rollout") -> str:
    who = f" cohorts {', '.join(entry.cohorts)}" if entry.cohorts else ""
    halted = " HALTED" if entry.halted else ""
    note = f" ({entry.note})" if entry.note else ""
    share = f"{entry.percent_bp / 100:g} %"
    return f"{entry.family} {entry.channel}: {entry.version} (counter {entry.counter}) for {share}{who}{halted}{note}"
