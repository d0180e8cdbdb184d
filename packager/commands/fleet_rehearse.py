"""`packager fleet rehearse`: what a plan would do on a simulated fleet."""

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from bundle.console import print_lines, print_result
from packager.commands.options import JSON_OPTION, PATH, REPO_OPTION

if TYPE_CHECKING:
    from bundle.plan import Plan
    from packager.rehearsal.rehearse import Run

MAX_PLAN_BYTES: Final = 256 * 1024


@click.command("rehearse", short_help="Try a plan on a simulated fleet.")
@click.argument("plan")
@click.option("--devices", type=click.IntRange(100, 5_000_000), default=20_000, show_default=True, help="Fleet size.")
@click.option("--days", type=click.IntRange(1, 60), default=7, show_default=True, help="Length of each run.")
@click.option("--truth", "names", multiple=True, help="What the release does to devices: a name, or `all`. Repeatable.")
@click.option("--rule", "rules", multiple=True, help="Rule to run; default: all of them. Repeatable.")
@click.option("--runs", type=click.IntRange(1, 1_000), default=1, show_default=True, help="Runs with other devices.")
@click.option("--seed", type=click.IntRange(0), default=1, show_default=True, help="Seed of the first run.")
@click.option("--svg", type=PATH, help="Write a plot of the damaged devices over time.")
@REPO_OPTION
@JSON_OPTION
def rehearse_command(
    plan: str,
    devices: int,
    days: int,
    names: tuple[str, ...],
    rules: tuple[str, ...],
    runs: int,
    seed: int,
    svg: Path | None,
    repo: Path,
    as_json: bool,
) -> None:
    """Simulate the rollout of PLAN on many devices, with the stopping rule of `rollout follow`.

    PLAN is a file with a plan or with the output of `packager rollout plan --json`, or FAMILY/CHANNEL of the
    repository. The stopping rule is compared with three simpler rules: time, success-percentage and abort-percentage.
    Devices are selected as real ones are; the delays of their reports are assumptions.

    Truths: good, edge, between, bad, very-bad, late, bricks, class-b, dark-site, hidden-control; default: good, bad,
    late, bricks and class-b.

    Exit status: 0 simulated, 2 invalid input.
    """
    from packager.errors import InvalidUsage
    from packager.rehearsal.rehearse import rehearse, run_as_json, summarize
    from packager.rehearsal.rules import RULES
    from packager.rehearsal.truths import DEFAULT_TRUTHS, TRUTHS

    parsed = _read_plan(plan, repo)
    chosen = tuple(TRUTHS) if "all" in names else names or DEFAULT_TRUTHS
    for given, known, option in ((chosen, TRUTHS, "--truth"), (rules, RULES, "--rule")):
        unknown = [name for name in given if name not in known]
        if unknown:
            raise InvalidUsage(f"{option}: found {unknown[0]!r}, expected one of {', '.join(known)}")
    began = time.monotonic()

    def report(run: "Run") -> None:
        if not is_quiet:
            print_lines(f"{time.monotonic() - began:6.0f} s  {run.truth}, {run.rule}: {run.end}", stream=sys.stderr)

    is_quiet = as_json or not sys.stderr.isatty()
    found = rehearse(
        parsed,
        [TRUTHS[name] for name in chosen],
        rules or RULES,
        devices=devices,
        days=days,
        runs=runs,
        seed=seed,
        on_run=report,
    )
    rows = summarize(found.runs)
    if svg is not None:
        from packager.rehearsal.plot import draw

        svg.write_text(draw(found.runs, days), encoding="utf-8")
    result = {
        "ok": found.differing == 0,
        "devices": devices,
        "days": days,
        "plan": parsed.as_json(),
        "summary": rows,
        "runs": [run_as_json(run) for run in found.runs],
        "polls": found.polls,
        "compared_devices": found.compared,
        "differing_devices": found.differing,
        "cpu_s": round(found.cpu_s, 2),
        "svg": None if svg is None else str(svg),
    }
    numbers = f"{'halted':>7}{'done':>6}{'asked':>6}{'open':>6}{'hit':>8}{'updated':>9}{'halt h':>8}"
    header = f"{'truth':16}{'rule':20}{numbers}"
    text = [
        header,
        *(
            f"{row['truth']:16}{row['rule']:20}{row['halted']:7}{row['done']:6}{row['asked']:6}{row['undecided']:6}"
            f"{row['failing_devices_hit']:8}{row['updated']:9}{row['halted_after_h'] or '':>8}"
            for row in rows
        ),
        f"{devices} devices, {days} days, {found.polls} polls in {found.cpu_s:.1f} s of processor time;"
        f" {found.differing} of {found.compared} compared devices differ from a device's own decision",
    ]
    print_result(result, as_json=as_json, text=text)


def _read_plan(name: str, repo: Path) -> "Plan":
    from bundle import strict_json
    from bundle.errors import Malformed, Refused
    from bundle.local_files import read_local_file
    from bundle.plan import parse_plan
    from packager.errors import InvalidUsage, NoPlan
    from packager.repository.repository import Repository

    path = Path(name)
    if not path.is_file():
        family, slash, channel = name.partition("/")
        if not slash or path.is_absolute() or path.suffix:
            raise InvalidUsage(f"file {name} does not exist", hint="name a file, or FAMILY/CHANNEL of --repo")
        found = Repository.open(repo).plan(family, channel)
        if found is None:
            raise NoPlan(f"{family} has no plan for channel {channel!r}", hint="sign one: packager rollout plan")
        return found
    try:
        value = strict_json.decode(read_local_file(path, MAX_PLAN_BYTES), what=name, max_bytes=MAX_PLAN_BYTES)
        inner = value.get("plan", value) if isinstance(value, dict) else value
        if not isinstance(inner, dict):
            raise Malformed("found no JSON object")
        return parse_plan(strict_json.encode(inner))
    except Refused as error:
        raise InvalidUsage(f"{name} is not a plan: {error.message}") from error
