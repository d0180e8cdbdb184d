"""`packager repo push` and `packager repo pull`: copies of a repository in stores and registries."""

from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from bundle.console import print_result, progress_bar
from bundle.local_files import read_local_file
from packager.commands.options import JSON_OPTION, REPO_OPTION, ROOT_OPTION

if TYPE_CHECKING:
    from packager.remote.pull import PullReport
    from packager.remote.push import PushReport

MAX_LISTED: Final = 20  # paths that are printed on a terminal


@click.command("push", short_help="Send the publication to a store or a registry.")
@click.argument("url")
@click.option("--dry-run", is_flag=True, help="Show what would be sent, and send nothing.")
@REPO_OPTION
@JSON_OPTION
def push_command(url: str, dry_run: bool, repo: Path, as_json: bool) -> None:
    """Send the publication to URL: file:///FOLDER, s3://BUCKET/PREFIX, gs:, az:, or oci://REGISTRY/NAME.

    Only what is missing there is sent, and the timestamp last: devices see the old publication or the new one. If
    another publisher was first, nothing is replaced, and the error names it. gs: and az: are tested with
    emulators only.

    Credentials come from the environment: AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_SESSION_TOKEN, with
    AWS_REGION and AWS_ENDPOINT_URL. For a registry they are Docker's (`docker login`), or USER:PASSWORD in
    AIRWEIGHTS_REGISTRY_AUTH; oci+http: is for a registry without TLS.

    Exit status: 0 sent, 2 invalid URL or credentials, 3 the store cannot keep publications whole, or has another
    repository, 4 another publisher was first, or the store is unavailable.
    """
    from packager.remote.push import push, read_timestamps
    from packager.remote.push_registry import push_to_registry
    from packager.repository.layout import lock_repository
    from packager.repository.repository import Repository
    from packager.stores.open_store import is_registry_url, open_store
    from packager.stores.registry_client import RegistryClient

    layout = Repository.open(repo).layout
    on_progress = None if as_json else progress_bar("push")
    with lock_repository(layout):
        timestamps = read_timestamps(layout)
        if is_registry_url(url):
            client = RegistryClient(url)
            report = push_to_registry(layout, client, timestamps, is_dry_run=dry_run, on_progress=on_progress)
        else:
            report = push(layout, open_store(url), timestamps, is_dry_run=dry_run, on_progress=on_progress)
    print_result(report.as_json(), as_json=as_json, text=push_lines(report))


@click.command("pull", short_help="Fetch the publication from a store or a registry.")
@click.argument("url")
@click.option("--dry-run", is_flag=True, help="Show what would be fetched, and write nothing.")
@click.option("--replace", "is_replacing", is_flag=True, help="Discard the folder's publication if it is another one.")
@REPO_OPTION
@ROOT_OPTION
@JSON_OPTION
def pull_command(url: str, dry_run: bool, is_replacing: bool, repo: Path, root: Path | None, as_json: bool) -> None:
    """Fetch the publication from URL into the repository's folder, which is created if missing.

    URL is as for `packager repo push`. The roots are verified from --root, else from the folder's own first root, and
    every document by its role's keys. The device registry, plain bundles and content keys are in no store: restore
    those from a backup.

    Exit status: 0 fetched, 2 invalid URL or credentials, 3 a file is missing, damaged or not signed as it must be, 4
    the folder has another publication, or the store is unavailable.
    """
    from bundle.trust.updater import MAX_ROOT_BYTES
    from packager.remote.pull import pull
    from packager.remote.registry_store import open_readable_store
    from packager.repository.layout import RepositoryLayout, lock_repository

    layout = RepositoryLayout(repo)
    store = open_readable_store(url)
    layout.create()
    with lock_repository(layout):
        report = pull(
            store,
            layout,
            None if root is None else read_local_file(root, MAX_ROOT_BYTES),
            is_dry_run=dry_run,
            is_replacing=is_replacing,
            on_progress=None if as_json else progress_bar("pull"),
        )
    print_result(report.as_json(), as_json=as_json, text=_pull_lines(report))


def push_lines(report: "PushReport") -> list[str]:
    """Return the report of a push as lines for a terminal."""
    verb = "would send" if report.is_dry_run else "sent"
    listed = [f"{verb} {path}" for path in report.sent[:MAX_LISTED]] if report.is_dry_run else []
    more = len(report.sent) - len(listed)
    if listed and more:
        listed.append(f"… and {more} more")
    return [
        *listed,
        f"{report.url}: {verb} {len(report.sent)} files, {report.sent_bytes:,} bytes; {report.present} were there"
        f" already; timestamp {report.timestamp_version}",
    ]


def _pull_lines(report: "PullReport") -> str:
    verb = "would fetch" if report.is_dry_run else "fetched"
    return (
        f"{report.url}: {verb} {len(report.received)} files, {report.received_bytes:,} bytes; {report.present} were"
        f" here already; timestamp {report.timestamp_version}"
    )
