"""`packager rollout plan`: sign how far, and on which evidence, a rollout may advance by itself."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from bundle.console import print_result
from packager.commands.options import JSON_OPTION, KEY_OPTION, KEYS_OPTION, PASSPHRASE_OPTION, REPO_OPTION

if TYPE_CHECKING:
    from bundle.manifest import Manifest
    from bundle.plan import Plan
    from packager.repository.repository import Repository


@click.command("plan", short_help="Sign the plan of a rollout.")
@click.argument("family")
@click.argument("channel")
@click.argument("version", required=False)
@click.option("--stages", default="1,5,25,100", show_default=True, help="Shares of the stages, in percent.")
@click.option("--accept", default="1%", show_default=True, help="Failure rate that is acceptable.")
@click.option("--refuse", default="5%", show_default=True, help="Failure rate that must not pass.")
@click.option("--soak", default="24h", show_default=True, help="Watch each stage for this time: 30s, 15m, 24h, 3d.")
@click.option("--grow-after", help="Add devices to a stage that is this old; default: three soak times.")
@click.option("--base-ceiling", default="10%", show_default=True, help="Ask if more of the control group is silent.")
@click.option("--alpha", default="1%", show_default=True, help="Bound of the probability of a false halt.")
@click.option("--beta", default="5%", show_default=True, help="Bound of the probability of a false go.")
@click.option("--cohort", "cohorts", multiple=True, help="Offer the release to this cohort only. Repeatable.")
@click.option(
    "--fallback", "fallbacks", multiple=True, help="Allow to point the channel back to this release. Repeatable."
)
@click.option("--remove", is_flag=True, help="Remove the plan of the channel.")
@REPO_OPTION
@KEY_OPTION
@KEYS_OPTION
@PASSPHRASE_OPTION
@JSON_OPTION
def plan_command(
    family: str,
    channel: str,
    version: str | None,
    stages: str,
    accept: str,
    refuse: str,
    soak: str,
    grow_after: str | None,
    base_ceiling: str,
    alpha: str,
    beta: str,
    cohorts: tuple[str, ...],
    fallbacks: tuple[str, ...],
    remove: bool,
    repo: Path,
    uris: tuple[str, ...],
    key_dir: Path | None,
    passphrase_file: Path | None,
    as_json: bool,
) -> None:
    """Plan the rollout of release VERSION on CHANNEL of FAMILY.

    The role release-FAMILY signs the plan. From then on devices refuse every rollout of the channel that does not lie
    inside it. The release that the channel runs now is a fallback. Start the rollout with `packager rollout set`, which
    begins with the first stage; if the channel runs VERSION already, its rollout follows the plan from now on. With
    --key or --keys, staged changes are signed and published.

    Exit status: 0 done, 2 no such release or a wrong value, 3 devices would refuse the publication, 4 a lock is held.
    """
    from packager.errors import InvalidUsage
    from packager.repository.repository import Repository

    repository = Repository.open(repo)
    if remove == (version is not None):
        raise InvalidUsage("found neither VERSION nor --remove, or both", hint="give VERSION, or --remove")
    if version is None:
        repository.remove_plan(family, channel)
        published = _publish(repository, uris, key_dir, passphrase_file)
        print_result(
            {"plan": None, "digest": None, "published": published},
            as_json=as_json,
            text=f"plan removed, {_state(published)}",
        )
        return
    plan = _parse_plan(
        repository,
        family,
        channel,
        version,
        fallbacks,
        stages=stages,
        cohorts=cohorts,
        rates={"accept": accept, "refuse": refuse, "base_ceiling": base_ceiling, "alpha": alpha, "beta": beta},
        soak=soak,
        grow_after=grow_after,
    )
    current = repository.rollout(family, channel)
    repository.stage_plan(plan)
    if current is not None and current.manifest_digest == plan.release.manifest_digest:
        repository.stage_rollout(replace(current, plan=plan.digest(), cohorts=current.cohorts or plan.cohorts))
    published = _publish(repository, uris, key_dir, passphrase_file)
    text = [
        f"plan {plan.digest()[:16]}… for {version} on {family} {channel}",
        f"  stages {', '.join(f'{bp / 100:g} %' for bp in plan.stages_bp)}, soak {soak}",
        f"  fallbacks {', '.join(one.version for one in plan.fallbacks) or 'none'}",
        _state(published),
    ]
    print_result({"plan": plan.as_json(), "digest": plan.digest(), "published": published}, as_json=as_json, text=text)


def _parse_plan(
    repository: "Repository",
    family: str,
    channel: str,
    version: str,
    fallbacks: tuple[str, ...],
    *,
    stages: str,
    cohorts: tuple[str, ...],
    rates: dict[str, str],
    soak: str,
    grow_after: str | None,
) -> "Plan":
    from bundle.errors import Malformed
    from bundle.plan import BASIS_POINTS, MILLION, check_plan, parse_plan
    from bundle.quantities import parse_duration, parse_share
    from keys.errors import CohortUnknown
    from packager.errors import InvalidUsage
    from packager.repository.planned_rollout import make_plan

    known = [cohort.name for cohort in repository.fleet().cohorts]
    for name in cohorts:
        if name not in known:
            raise CohortUnknown(f"--cohort: found {name!r}, the fleet has {', '.join(known)}")
    try:
        parts = {f"{name}_ppm": parse_share(text, f"--{name}", per=MILLION) for name, text in rates.items()}
        stages_bp = tuple(parse_share(text, "--stages", per=BASIS_POINTS) for text in stages.split(","))
        plan = make_plan(
            _find_manifest(repository, family, version),
            channel,
            repository.rollout(family, channel),
            [_find_manifest(repository, family, one) for one in fallbacks],
            cohorts=cohorts,
            stages_bp=stages_bp,
            soak_s=parse_duration(soak, "--soak"),
            grow_after_s=None if grow_after is None else parse_duration(grow_after, "--grow-after"),
            **parts,
        )
        check_plan(plan)
        parse_plan(plan.as_bytes())  # the limits of each value
    except Malformed as error:
        raise InvalidUsage(error.message) from error
    return plan


def _find_manifest(repository: "Repository", family: str, version: str) -> "Manifest":
    from packager.errors import StagingInvalid

    manifest = repository.manifest(family, version)
    if manifest is None:
        known = ", ".join(found.version for found in repository.releases(family)) or "none"
        raise StagingInvalid(f"{family} has no release {version}, found {known}")
    return manifest


def _publish(
    repository: "Repository", uris: tuple[str, ...], key_dir: Path | None, passphrase_file: Path | None
) -> dict[str, object] | None:
    from packager.commands.options import load_signers

    if not uris and key_dir is None:
        return None
    repository.sign(load_signers(uris, key_dir, passphrase_file))
    return repository.publish().as_json()


def _state(published: dict[str, object] | None) -> str:
    if published is None:
        return "staged: run `packager repo sign` and `packager repo publish`"
    return f"published, timestamp {published['timestamp_version']}"
