"""`packager release`: create a release from a release file (packager.release.pipeline)."""

from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from bundle.console import Progress, print_lines, print_result, progress_bar
from packager.commands.options import (
    JSON_OPTION,
    KEYS_OPTION,
    MAX_BASES,
    PASSPHRASE_OPTION,
    REPO_OPTION,
    load_signers,
)

if TYPE_CHECKING:
    from packager.release.release_plan import ReleasePlan
    from packager.repository.repository import Repository

PATH: Final = click.Path(path_type=Path)


@click.command("release", short_help="Create a release from a release file.")
@click.argument("release_file", type=PATH, default=Path("release.toml"))
@click.option("--key", "uris", multiple=True, help="Sign with this key file or key URI (hsm:…). Repeatable.")
@REPO_OPTION
@KEYS_OPTION
@PASSPHRASE_OPTION
@click.option(
    "--from",
    "bases",
    multiple=True,
    help="Create patches from this version instead of those in the release file. Repeatable.",
)
@click.option(
    "--last", "newest", type=click.IntRange(0, MAX_BASES), help="Create patches from this many latest releases instead."
)
@click.option("--until", help="Stop after this step; `sign` stages the release for signers.")
@click.option("--dry-run", is_flag=True, help="Stop after the step diff: show all sizes, change nothing.")
@click.option("--attest", is_flag=True, help="Also write and sign provenance and an SBOM.")
@click.option("--builder", help="With --attest: URI that identifies who runs the build, for example a CI system.")
@click.option(
    "--jobs", type=click.IntRange(1, 256), default=1, show_default=True, help="Number of processes that create patches."
)
@click.option("--executor", "executor_text", metavar="EXECUTOR", help="Run jobs in processes:N or dask://HOST:PORT.")
@click.option("--inputs", metavar="URL", help="Store for sealed inputs, if the cluster's workers share no folder.")
@click.option(
    "--reproduce", "manifest_file", type=PATH, help="Rebuild the release of this manifest, compare, and change nothing."
)
@click.option("--html", type=PATH, help="Also write the report as an HTML page.")
@JSON_OPTION
def release(
    release_file: Path,
    bases: tuple[str, ...],
    newest: int | None,
    uris: tuple[str, ...],
    repo: Path,
    key_dir: Path | None,
    passphrase_file: Path | None,
    until: str | None,
    dry_run: bool,
    attest: bool,
    builder: str | None,
    jobs: int,
    executor_text: str | None,
    inputs: str | None,
    manifest_file: Path | None,
    html: Path | None,
    as_json: bool,
) -> None:
    """Create the release that RELEASE_FILE describes.

    Steps: quantize, compare, golden, assemble, diff, encrypt, sign, publish. A variant that fails its gate is left out,
    with the reason, unless the file marks it as required. The result is a table of all variants: sizes, patches, errors
    against the float model, and speed; then notes on what to look at before others sign.

    With --reproduce, the bundles of a published or staged release are rebuilt from the release file, and compared with
    its manifest, before you sign it. Nothing is changed, and no key is needed.

    Exit status: 0 done, 2 invalid input, 3 devices would refuse the release, or it is not reproduced, 4 unavailable (a
    lock, a key, space), 5 a required variant failed its gate, or no variant is left.
    """
    from dataclasses import replace

    from packager.errors import InvalidUsage
    from packager.executors.open_executor import open_executor
    from packager.release.pipeline import STEP_NAMES, run_release
    from packager.release.release_file import parse_release_file
    from packager.repository.repository import Repository

    last = "diff" if dry_run else until or "publish"
    if dry_run and until is not None:
        raise InvalidUsage("--dry-run and --until: found both, expected at most one")
    if bases and newest is not None:
        raise InvalidUsage("--from and --last: found both, expected at most one")
    if last not in STEP_NAMES:
        raise InvalidUsage(f"--until: found {last!r}, expected one of {', '.join(STEP_NAMES)}")
    plan = parse_release_file(release_file)
    if bases:
        plan = replace(plan, bases=bases)
    elif newest is not None:
        plan = replace(plan, bases=newest)
    repository = Repository.open(repo)
    if manifest_file is not None:
        _reproduce(plan, repository, manifest_file, as_json=as_json)
        return
    if last == "publish" and not uris and key_dir is None:
        raise InvalidUsage(
            "found no key, expected --key or --keys", hint="add --keys FOLDER, or --until sign to let others sign"
        )
    if html is not None and (not html.parent.is_dir() or html.is_dir()):
        raise InvalidUsage(f"--html: found {html}, expected the name of a file in a folder that exists")
    if builder is not None and not attest:
        raise InvalidUsage("found --builder without --attest, expected both", hint="add --attest")
    if attest:
        if last not in ("sign", "publish") or (not uris and key_dir is None):
            raise InvalidUsage(
                "--attest: found no key to sign with",
                hint="add --keys FOLDER, or run `packager attestation create` later",
            )
        from packager.attestation.provenance import check_libraries

        check_libraries()
    has_keys = bool(uris) or key_dir is not None
    signers = load_signers(uris, key_dir, passphrase_file) if has_keys and last in ("sign", "publish") else []
    with open_executor(executor_text, jobs, inputs) as executor:
        reporter = None if as_json else ConsoleReporter()  # with --json, stderr is reserved for the error object
        report = run_release(plan, repository, signers, reporter, until=last, executor=executor)
    if html is not None:
        from packager.release.release_page import render_release_page

        html.write_text(render_release_page(report), encoding="utf-8")
    result, text = report.as_json(), report.as_lines()
    if attest and report.manifest is not None:
        from packager.attestation.attest import write_release_attestations as write
        from packager.commands.attestation import default_folder, report_text

        folder = default_folder(repo, report.family, report.version)
        written = write(repository, report.manifest, signers, folder, builder)
        result["attestations"] = written.as_json()
        text.append(report_text(written, "written"))
    print_result(result, as_json=as_json, text=text)


def _reproduce(plan: "ReleasePlan", repository: "Repository", manifest_file: Path, *, as_json: bool) -> None:
    from bundle.local_files import read_local_file
    from bundle.manifest import MAX_MANIFEST_BYTES, parse_manifest
    from packager.errors import FileNotFound
    from packager.release.reproduce import reproduce_release

    try:
        manifest = parse_manifest(read_local_file(manifest_file, MAX_MANIFEST_BYTES))
    except OSError as error:
        raise FileNotFound(f"{manifest_file}: {error.strerror}") from error
    report = reproduce_release(plan, repository, manifest, None if as_json else ConsoleReporter())
    report.check()
    print_result(report.as_json(), as_json=as_json, text=report.as_lines())


class ConsoleReporter:
    """Reports progress on stderr; draws bars only if stderr is a terminal."""

    def step(self, name: str, number: int, count: int) -> None:
        """Print the step's number and name.

        Args:
            name: name of the step that begins.
            number: its number, from 1.
            count: number of steps.
        """
        print_lines(f"[{number}/{count}] {name}")

    def note(self, text: str) -> None:
        """Print one line for the user."""
        print_lines(f"note: {text}")

    def bar(self, label: str) -> Progress:
        """Return a function that draws a progress bar."""
        return progress_bar(label)
