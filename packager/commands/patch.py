"""`packager patch`: add patches to a published release (packager.release.add_patches)."""

from pathlib import Path

import click

from bundle.console import print_result
from packager.commands.options import (
    JSON_OPTION,
    KEYS_OPTION,
    MAX_BASES,
    PASSPHRASE_OPTION,
    REPO_OPTION,
    load_signers,
)


@click.group("patch", short_help="Add patches to a published release.")
def patch() -> None:
    """Add patches to a published release."""


@patch.command("add", short_help="Add patches to a published release.")
@click.argument("family")
@click.argument("version")
@click.option("--from", "bases", multiple=True, help="Create patches from this released version. Repeatable.")
@click.option(
    "--last", type=click.IntRange(1, MAX_BASES), help="Also create patches from this many releases before VERSION."
)
@click.option("--variant", "variants", multiple=True, help="Create patches of this variant only. Repeatable.")
@click.option(
    "--jobs", type=click.IntRange(1, 256), default=1, show_default=True, help="Number of processes that create patches."
)
@click.option("--executor", "executor_text", metavar="EXECUTOR", help="Run jobs in processes:N or dask://HOST:PORT.")
@click.option("--inputs", metavar="URL", help="Store for sealed inputs, if the cluster's workers share no folder.")
@REPO_OPTION
@KEYS_OPTION
@PASSPHRASE_OPTION
@JSON_OPTION
def add_command(
    family: str,
    version: str,
    bases: tuple[str, ...],
    last: int | None,
    variants: tuple[str, ...],
    jobs: int,
    executor_text: str | None,
    inputs: str | None,
    repo: Path,
    key_dir: Path | None,
    passphrase_file: Path | None,
    as_json: bool,
) -> None:
    """Add patches to VERSION of FAMILY from other releases. The files of the release do not change.

    With --keys the change is signed and published; without, it is staged for signers.

    Exit status: 0 done (also if there was nothing to add), 2 invalid input or a missing key, 3 the workspace is
    damaged, 4 unavailable.
    """

    from packager.commands.release import ConsoleReporter
    from packager.errors import InvalidUsage
    from packager.executors.open_executor import open_executor
    from packager.release.add_patches import add_patches
    from packager.repository.repository import Repository

    if not bases and last is None:
        raise InvalidUsage("found neither --from nor --last, expected a base", hint="add --from VERSION or --last N")
    repository = Repository.open(repo)
    signers = load_signers((), key_dir, passphrase_file) if key_dir is not None else None
    with open_executor(executor_text, jobs, inputs) as executor:
        reporter = None if as_json else ConsoleReporter()
        added = add_patches(
            repository,
            family,
            version,
            bases,
            last_releases=last or 0,
            variants=variants,
            reporter=reporter,
            executor=executor,
        )
    published = None
    if added and signers is not None:
        repository.sign(signers)
        published = repository.publish()
    lines = [f"{row.variant} from {row.version}: {row.entry.size:,} bytes ({row.entry.codec})" for row in added]
    state = (
        "nothing to add"
        if not added
        else "published"
        if published is not None
        else "staged: run `packager repo sign` and `packager repo publish`"
    )
    result = {
        "family": family,
        "version": version,
        "added": [row.as_json() for row in added],
        "published": published.as_json() if published is not None else None,
    }
    print_result(result, as_json=as_json, text=[*lines, state])
