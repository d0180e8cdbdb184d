"""`packager demo`: a thin shell over packager.demo."""

import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from bundle.console import print_result

PATH = click.Path(path_type=Path)


@click.command("demo")
@click.option("--model", "models", type=PATH, multiple=True, help="Twice: your OLD and NEW float models.")
@click.option("--inputs", type=PATH, help="An .npz for them: one array per model input, first axis = sample.")
@click.option("--keep", type=PATH, help="A new folder to play in and leave behind, instead of a temporary one.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout; the story goes to stderr.")
def demo(models: tuple[Path, ...], inputs: Path | None, keep: Path | None, as_json: bool) -> None:
    """See a model go to a device and come back, on this machine, in about a minute.

    Exit status: 0 all of it held, 2 wrong input, 4 the published models cannot be fetched, 5 something did not hold.
    """
    from packager.demo.demo_models import load_own_models, load_published_models
    from packager.demo.demo_report import render_table
    from packager.demo.scenes import Scenes
    from packager.errors import DemoFailed, InvalidUsage

    if len(models) not in (0, 2):
        raise InvalidUsage(f"found --model {len(models)} times, expected twice: OLD and NEW, or not at all")
    if inputs is not None and not models:
        raise InvalidUsage("--inputs belongs to models of your own", hint="add --model OLD.onnx --model NEW.onnx")

    def say(line: str) -> None:
        print(line, file=sys.stderr if as_json else sys.stdout, flush=True)

    with _demo_folder(keep) as folder:
        subject = load_own_models(folder, models[0], models[1], inputs) if models else load_published_models(folder)
        report = Scenes(folder, subject, say).play_all()
    print_result(report.as_json(), as_json=as_json, text=render_table(report))
    if not report.has_passed:
        broken = next((claim for claim in report.checks if not claim.passed), None)
        raise DemoFailed(f"not proven: {broken.name}: {broken.observed}" if broken else "nothing was proven")


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
        raise InvalidUsage(f"--keep {keep} is there already", hint="name a folder that does not exist") from error
    yield keep.absolute()
