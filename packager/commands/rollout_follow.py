"""`packager rollout follow` and `why`: halt and advance planned rollouts, and show why."""

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from bundle.console import print_lines, print_result
from packager.commands.fleet_store import STORE_OPTION, default_store, require_fleet_extra
from packager.commands.options import (
    JSON_OPTION,
    KEY_OPTION,
    KEYS_OPTION,
    PASSPHRASE_OPTION,
    PATH,
    REPO_OR_URL_OPTION,
    ROOT_OPTION,
)

if TYPE_CHECKING:
    from packager.follow.follower import Action
    from packager.follow.lines import LineSource
    from packager.follow.look import Look
    from packager.repository.repository import Repository

SHOWN_DEVICES: Final = 20
FOLDER_HINT: Final = "name a folder with a copy of registry.jsonl, in which evidence and state are kept"
LINES_OPTION: Final = click.option("--lines", type=PATH, help="Read device lines from this file instead of a store.")

FOLDER_OPTION: Final = click.option(
    "--folder",
    type=PATH,
    help="Folder of the device registry, evidence and state; default: that of --repo, which a URL has not.",
)


@click.command("follow", short_help="Halt and advance planned rollouts.")
@click.argument("family", required=False)
@click.argument("channel", required=False)
@click.option("--once", is_flag=True, help="Look once and end, for cron.")
@click.option("--dry-run", is_flag=True, help="Show what would be published; sign nothing.")
@click.option(
    "--interval", type=click.FloatRange(1, 86_400), default=3.0, show_default=True, help="Seconds between looks."
)
@click.option(
    "--notify", "notify_target", metavar="COMMAND|URL", help="Notify people of decisions, no lines, and due roles."
)
@STORE_OPTION
@LINES_OPTION
@REPO_OR_URL_OPTION
@ROOT_OPTION
@FOLDER_OPTION
@KEY_OPTION
@KEYS_OPTION
@PASSPHRASE_OPTION
@JSON_OPTION
def follow_command(
    family: str | None,
    channel: str | None,
    once: bool,
    dry_run: bool,
    interval: float,
    notify_target: str | None,
    store: str | None,
    lines: Path | None,
    repo: Path | str,
    root: Path | None,
    folder: Path | None,
    uris: tuple[str, ...],
    key_dir: Path | None,
    passphrase_file: Path | None,
    as_json: bool,
) -> None:
    """Follow the planned rollouts of all channels, or of CHANNEL of FAMILY.

    The lines of the devices are verified again. A halt is published at once, an advance only inside the signed plan; a
    halted rollout is never resumed. Needs the keys of rollout-FAMILY, snapshot and timestamp. The evidence of each
    change is kept in `evidence` of --folder. With --json, each look is one object on a line.

    If --repo is a URL (`packager repo pull`), its publication is read there, and changes are published there unless
    another publisher was first. --folder then has a copy of registry.jsonl, which no store has.

    Exit status: 0 looked, 2 no plan or invalid input, 3 the registry is not the signed one, 4 the store or a lock
    is not available, or another publisher was first.
    """
    from bundle.errors import Unavailable
    from packager.commands.options import load_signers
    from packager.errors import InvalidUsage, PublishConflict

    require_fleet_extra()
    from packager.follow.follower import Follower
    from packager.remote.remote_repository import PulledRepository
    from packager.repository.repository import Repository

    if (family is None) != (channel is None):
        raise InvalidUsage("found a family without a channel", hint="give FAMILY and CHANNEL, or neither")
    folder = _folder_of(repo, folder)
    signers = None if dry_run else load_signers(uris, key_dir, passphrase_file)
    channels = None if family is None or channel is None else [(family, channel)]
    if isinstance(repo, str):
        pulled = click.get_current_context().with_resource(PulledRepository(repo, root, is_signing=not dry_run))
        repository = pulled.refresh()
    else:
        pulled, repository = None, Repository.open(repo)
    follower = Follower(
        repository, _open_source(folder, repository.repository_id, store, lines), signers, notify_target, folder
    )
    while True:
        try:
            if pulled is not None:
                follower.use(pulled.refresh())
            actions = follower.step(channels)
        except Unavailable as error:
            if pulled is not None:
                pulled.forget()
            if once:
                raise
            print_lines(f"{error.reason}: {error.message}", stream=sys.stderr)
            actions = []
        problem = next((action.problem for action in actions if action.problem), "")
        if problem and pulled is not None:
            pulled.forget()
        result = {"actions": [action.as_json() for action in actions]}
        if once or as_json or any(_is_notable(action) for action in actions):
            text = [line for action in actions for line in _describe(action)] or "no rollout follows a plan"
            print_result(result, as_json=as_json, text=text)
        if once:
            if problem:
                raise PublishConflict(problem, hint="the next look begins from what is published then")
            return
        time.sleep(interval)


@click.command("why", short_help="Show what decides about a planned rollout.")
@click.argument("family", required=False)
@click.argument("channel", required=False)
@click.option("--evidence", type=PATH, help="Compute the decision of this evidence file again.")
@STORE_OPTION
@LINES_OPTION
@REPO_OR_URL_OPTION
@ROOT_OPTION
@FOLDER_OPTION
@JSON_OPTION
def why_command(
    family: str | None,
    channel: str | None,
    evidence: Path | None,
    store: str | None,
    lines: Path | None,
    repo: Path | str,
    root: Path | None,
    folder: Path | None,
    as_json: bool,
) -> None:
    """Show the numbers, the bound and what is missing for the rollout on CHANNEL of FAMILY.

    The lines of the devices are verified again. With --evidence, the decision of an earlier look is computed again from
    its lines; the registry must still have the devices.

    Exit status: 0 shown, 2 no plan or invalid input, 3 the evidence leads to another decision, or the registry is not
    the signed one, 4 the store is not available.
    """
    from packager.errors import InvalidUsage
    from packager.remote.remote_repository import open_repository
    from packager.repository.layout import REGISTRY_NAME

    require_fleet_extra()
    folder = _folder_of(repo, folder)
    registry = folder / REGISTRY_NAME
    repository = click.get_current_context().with_resource(open_repository(repo, root))
    digest: str | None = None
    if evidence is not None:
        from packager.follow.evidence import recompute

        look, digest = recompute(evidence, registry)
    else:
        if family is None or channel is None:
            raise InvalidUsage("found no rollout", hint="give FAMILY and CHANNEL, or --evidence FILE")
        from packager.follow.look import open_view, planned_rollout
        from packager.follow.members import fix_members

        plan, rollout = planned_rollout(repository, family, channel)
        view = open_view(repository, plan, rollout, registry)
        now_s = int(time.time())
        view.add(_open_source(folder, repository.repository_id, store, lines), now_s)
        fix_members(folder, view, now_s, is_written=False)
        look = view.look(rollout, now_s)
    note = _published_note(repository, look) if digest is not None else ""
    result = {**look.as_json(), "evidence": digest, "is_named_by_rollout": digest is not None and digest in note}
    text = _explain(look)
    if digest is not None:
        named = "the published rollout names it" if digest in note else "the published rollout does not name it"
        text = [f"evidence {digest[:16]}… leads to the same decision; {named}", *text]
    print_result(result, as_json=as_json, text=text)


def _folder_of(repo: Path | str, folder: Path | None) -> Path:
    """Return the folder of registry, evidence and state."""
    from packager.errors import InvalidUsage

    if folder is not None:
        return folder
    if isinstance(repo, str):
        raise InvalidUsage(f"--repo is the URL {repo}, and --folder is missing", hint=FOLDER_HINT)
    return repo


def _open_source(folder: Path, repository_id: str, store: str | None, lines: Path | None) -> "LineSource":
    from packager.follow.lines import FileLines, StoreLines

    if lines is not None:
        return FileLines(lines)
    return StoreLines(store or default_store(folder), repository_id)


def _published_note(repository: "Repository", look: "Look") -> str:
    rollout = repository.published_rollout(look.plan.family, look.plan.channel)
    return "" if rollout is None else rollout.note


def _is_notable(action: "Action") -> bool:
    return action.rollout is not None or bool(action.problem)


def _describe(action: "Action") -> list[str]:
    where = f"{action.family} {action.channel}"
    if action.look is None:
        return [f"{where}: {action.problem}"]
    decision, rollout = action.look.decision, action.look.rollout
    state = "halted" if rollout.halted else f"at {rollout.percent_bp / 100:g} %"
    out = [f"{where}: {action.look.plan.release.version} {state}: {decision.word}: {decision.text}"]
    if action.rollout is not None:
        changed = "halted" if action.rollout.halted else f"{action.rollout.percent_bp / 100:g} %"
        how = "would publish" if action.published is None else f"published, timestamp {action.published}"
        out.append(f"  {how}: {changed}")
    if action.evidence is not None:
        out.append(f"  evidence {action.evidence}")
    return [*out, f"  {action.problem}"] if action.problem else out


def _explain(look: "Look") -> list[str]:
    plan, rollout, whole, decision = look.plan, look.rollout, look.counts.whole, look.decision
    state = "HALTED" if rollout.halted else f"{rollout.percent_bp / 100:g} %"
    numbers = ", ".join(f"{name} {value}" for name, value in decision.numbers.items())
    out = [
        f"{plan.family} {plan.channel}: {plan.release.version}, {state}, stage {look.counts.age_s / 3600:.1f} h old",
        f"  {decision.word}: {decision.text}",
        f"  {numbers}",
        f"  exposed {whole.exposed}: {whole.bad} bad, {whole.complete} complete, {whole.incomplete} missing,"
        f" {whole.silent} silent; control group {whole.control}: {whole.control_silent} silent",
        f"  bounds: false halt {plan.alpha_ppm / 10_000:g} %, false go {plan.beta_ppm / 10_000:g} %",
    ]
    for name, group in sorted(look.counts.strata.items()):
        if group.bad:
            out.append(f"  {name}: {group.bad} bad of {group.exposed}")
    for label, ids in (("bad", look.bad_devices), ("suspect", look.suspects)):
        out += [f"  {label} device {device}" for device in ids[:SHOWN_DEVICES]]
        if len(ids) > SHOWN_DEVICES:
            out.append(f"  and {len(ids) - SHOWN_DEVICES} more: --json lists them")
    return out
