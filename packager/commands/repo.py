"""`packager repo`: create, publish and maintain a repository (signing: packager.commands.signing)."""

from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

import click

from bundle.console import print_result
from packager.commands.options import (
    JSON_OPTION,
    KEY_OPTION,
    KEYS_OPTION,
    PASSPHRASE_OPTION,
    PATH,
    REPO_OPTION,
    REPO_OR_URL_OPTION,
    ROOT_OPTION,
    load_signers,
)
from packager.commands.remote import pull_command, push_command
from packager.commands.repository_text import publish_lines, status_lines
from packager.commands.signing import add_signatures_command, prepare_command, sign_command

if TYPE_CHECKING:
    from securesystemslib.signer import Key

EXIT_CODE_DUE: Final = 4
EXIT_CODE_UNSOUND: Final = 3


@click.group("repo", short_help="Create, sign, publish and maintain a repository.")
def repo() -> None:
    """Create, sign, publish and maintain a repository."""


repo.add_command(prepare_command)
repo.add_command(sign_command)
repo.add_command(add_signatures_command)
repo.add_command(push_command)
repo.add_command(pull_command)


@repo.command("init", short_help="Create a repository and its keys.")
@click.argument("folder", type=PATH)
@click.option("--keys", "key_dir", type=PATH, required=True, help="Directory to write the new keys to.")
@click.option("--family", "families", multiple=True, required=True, help="Name of a family. Repeatable.")
@click.option("--cohort", default="default", show_default=True, help="Name of the first cohort of devices.")
@click.option(
    "--public",
    "public",
    multiple=True,
    metavar="ROLE=KEY",
    help="Public key of ROLE that is stored elsewhere: a PEM file (`keys public`), key file or URI. Repeatable.",
)
@click.option("--classical", is_flag=True, help="Use Ed25519 only, for clients without ML-DSA.")
@click.option("--insecure-plaintext", is_flag=True, help="Write the keys without encryption. For tests only.")
@PASSPHRASE_OPTION
@JSON_OPTION
def init_command(
    folder: Path,
    key_dir: Path,
    families: tuple[str, ...],
    cohort: str,
    public: tuple[str, ...],
    classical: bool,
    insecure_plaintext: bool,
    passphrase_file: Path | None,
    as_json: bool,
) -> None:
    """Create a repository in FOLDER and keys of all its roles.

    Ship FOLDER/published/metadata/1.root.json to devices. All keys are written to one directory, which is fine for
    trials only. In production, name the keys of root, targets and the families with --public: no keys are created for
    those roles, and the first publication needs the signatures of their owners (`repo prepare`, `repo sign`, `repo
    add-signatures`, `repo publish`).

    Exit status: 0 created, 2 invalid input, 4 unavailable.
    """
    from keys.passphrase import read_passphrase
    from packager.repository.creation import create_repository_with_new_keys

    passphrase = None if insecure_plaintext else read_passphrase(passphrase_file, what="the new keys", is_new=True)
    created = create_repository_with_new_keys(
        folder,
        key_dir,
        passphrase,
        families,
        cohort,
        public=_load_role_keys(public),
        classical=classical,
        insecure_plaintext=insecure_plaintext,
    )
    status = created.status()
    result = {
        "repository": str(created.root),
        "repository_id": status.repository_id,
        "published": str(created.published),
        "root": str(created.published / "metadata" / "1.root.json"),
        "keys": str(key_dir),
        "families": list(families),
        "cohort": cohort,
        "complete": bool(status.roles),
    }
    text = (
        f"created repository {status.repository_id[:16]}… in {folder}; serve {created.published}, ship {result['root']}"
    )
    waiting = f"created a repository in {folder}; next: `packager repo prepare --repo {folder} -o request.json`"
    print_result(result, as_json=as_json, text=text if status.roles else waiting)


@repo.command("publish", short_help="Check and publish the signed changes.")
@click.option(
    "--to", "url", help="Publish to this store first (`repo push`); the folder follows only if that succeeds."
)
@REPO_OPTION
@JSON_OPTION
def publish_command(url: str | None, repo: Path, as_json: bool) -> None:
    """Publish signed changes, after checking them as a device on every channel would.

    With --to, the changes are published to that store by compare-and-swap, and then in the folder. If another publisher
    was first there, the folder keeps its publication, and the changes stay staged.

    Exit status: 0 published, 2 nothing is staged or signatures are missing, 3 devices would refuse the changes,
    4 another process published.
    """
    from packager.remote.remote_repository import publish_to
    from packager.repository.repository import Repository
    from packager.stores.open_store import open_store

    repository = Repository.open(repo)
    if url is not None:
        publish_to(repository, open_store(url))
    report = repository.publish()
    print_result(report.as_json(), as_json=as_json, text=publish_lines(report))


@repo.command("status", short_help="Show roles, keys, expiries and open signatures.")
@REPO_OR_URL_OPTION
@ROOT_OPTION
@JSON_OPTION
def status_command(repo: Path | str, root: Path | None, as_json: bool) -> int:
    """Show roles with keys and expiries, and staged changes with the signatures they still need.

    Exit status: 0 nothing is due, 2 invalid input, 4 a role has expired or expires soon.
    """
    from packager.remote.remote_repository import open_repository

    with open_repository(repo, root) as repository:
        report = repository.status()
    print_result(report.as_json(), as_json=as_json, text=status_lines(report))
    return EXIT_CODE_DUE if report.is_due else 0


@repo.command("verify", short_help="Verify published roles, keys and files.")
@click.option(
    "--url",
    "urls",
    multiple=True,
    help="Also fetch every file from this URL, as a device does. Repeatable: each mirror.",
)
@click.option("--config", type=PATH, help="With --url: proxy, CA and credentials as in this device configuration.")
@REPO_OR_URL_OPTION
@ROOT_OPTION
@JSON_OPTION
def verify_command(
    urls: tuple[str, ...], config: Path | None, repo: Path | str, root: Path | None, as_json: bool
) -> int:
    """Verify the published roles, keys and files, and that no role can be signed with one algorithm alone.

    With --url, the device's own fetcher fetches all files of the current publication from there, envelopes in a sample,
    and compares them with the folder. Errors are what makes devices fail; warnings cost bytes or time.

    If --repo is a URL, the documents are fetched and verified, and every file that they name must be there.

    Exit status: 0 verified, 2 invalid input, 3 a role is unsound, a file differs from the signed one,
    other users cannot read one, or a URL serves something else; 4 the device's fetcher does not run here.
    """
    from packager.errors import InvalidUsage
    from packager.remote.registry_store import open_readable_store
    from packager.remote.remote_repository import check_store_files, open_repository
    from packager.repository.layout import unreadable_paths
    from packager.repository.published import PublishedDocuments
    from packager.repository.served_check import check_served

    for url in urls:
        if "@" in urlsplit(url).netloc or urlsplit(url).scheme not in ("http", "https", "file"):
            raise InvalidUsage(
                f"--url: found {url.rpartition('@')[2]!r}, expected http:, https: or file: without a user name",
                hint="put credentials into a device configuration, and name it with --config",
            )
    if urls and isinstance(repo, str):
        raise InvalidUsage("--url compares with a folder, found a URL as --repo", hint="run `packager repo pull` first")
    with open_repository(repo, root) as repository:
        report = repository.status()
        if isinstance(repo, str):
            check_store_files(repository, open_readable_store(repo))
        layout = repository.layout
        unreadable = [path.relative_to(layout.published).as_posix() for path in unreadable_paths(layout)]
        served = [check_served(layout, PublishedDocuments(layout), url, config) for url in urls]
    lines = [
        f"{role.name}: {'; '.join(role.problems) or 'sound'} ({role.still_needed})"
        for role in report.roles
        if role.problems or not report.is_classical
    ]
    if report.is_classical:
        lines.append("this repository is classical: breaking Ed25519 is enough to sign for every role")
    lines += [f"{path}: other users cannot read it: run `chmod -R a+rX {layout.published}`" for path in unreadable]
    lines += [line for one in served for line in one.as_lines()]
    result = {**report.as_json(), "unreadable": unreadable, "served": [one.as_json() for one in served]}
    print_result(result, as_json=as_json, text=lines)
    is_sound = report.is_sound and not unreadable and all(one.is_sound for one in served)
    return 0 if is_sound else EXIT_CODE_UNSOUND


@repo.command("refresh", short_help="Renew the online metadata.")
@REPO_OR_URL_OPTION
@ROOT_OPTION
@KEY_OPTION
@KEYS_OPTION
@PASSPHRASE_OPTION
@JSON_OPTION
def refresh_command(
    repo: Path | str,
    root: Path | None,
    uris: tuple[str, ...],
    key_dir: Path | None,
    passphrase_file: Path | None,
    as_json: bool,
) -> None:
    """Renew the online metadata: the timestamp each time, snapshot and rollout roles when they are due.

    They are due with less than 30 % of their validity left. Run it daily, for example by cron.

    Exit status: 0 renewed, 2 invalid input or a missing key, 4 another process is publishing.
    """
    from packager.remote.remote_repository import open_repository

    with open_repository(repo, root, is_signing=True) as repository:
        report = repository.refresh(load_signers(uris, key_dir, passphrase_file))
    print_result(report.as_json(), as_json=as_json, text=publish_lines(report))


@repo.command("offline-pack", short_help="Create an offline pack.")
@click.argument("out", type=PATH)
@click.option("--family", "families", multiple=True, help="Pack this family only. Repeatable.")
@click.option(
    "--valid", "valid", default="30d", show_default=True, help="Validity of the pack's metadata, in days: 30d."
)
@REPO_OPTION
@KEY_OPTION
@KEYS_OPTION
@PASSPHRASE_OPTION
@JSON_OPTION
def offline_pack_command(
    out: Path,
    families: tuple[str, ...],
    valid: str,
    repo: Path,
    uris: tuple[str, ...],
    key_dir: Path | None,
    passphrase_file: Path | None,
    as_json: bool,
) -> None:
    """Create an offline pack in the new folder OUT.

    Devices without a network update from the pack through a `file:` URL.

    Exit status: 0 created, 2 invalid input, a validity beyond that of root, or a missing key, 4 a lock is held, or no
    space.
    """
    from packager.errors import InvalidUsage
    from packager.repository.offline_pack import create_pack
    from packager.repository.repository import Repository

    days = valid.removesuffix("d")
    if not days.isdigit():
        raise InvalidUsage(f"--valid: found {valid!r}, expected days, for example 30d")
    signers = load_signers(uris, key_dir, passphrase_file)
    report = create_pack(Repository.open(repo), out, families, int(days), signers)
    lines = [f"{family} {channel}: {version}" for family, channel, version in report.releases]
    text = [*lines, f"{out}: {report.files} files, {report.size:,} bytes, valid {report.valid_days} days"]
    print_result(report.as_json(), as_json=as_json, text=text)


@repo.command("withdraw", short_help="Stage the withdrawal of a release.")
@click.argument("family")
@click.argument("version")
@REPO_OPTION
@JSON_OPTION
def withdraw_command(family: str, version: str, repo: Path, as_json: bool) -> None:
    """Stage the withdrawal of release VERSION of FAMILY. Devices do not activate withdrawn releases.

    Exit status: 0 staged, 2 invalid input.
    """
    from packager.repository.repository import Repository

    Repository.open(repo).withdraw(family, version)
    result = {"family": family, "version": version, "staged": True}
    print_result(
        result,
        as_json=as_json,
        text=f"{family} {version}: withdrawal staged: run `packager repo sign` and `packager repo publish`",
    )


@repo.command("unstage", short_help="Discard all staged changes.")
@REPO_OPTION
@JSON_OPTION
def unstage_command(repo: Path, as_json: bool) -> None:
    """Discard all staged changes.

    Exit status: 0 discarded, 2 invalid input.
    """
    from packager.repository.repository import Repository

    Repository.open(repo).discard()
    print_result({"staged": False}, as_json=as_json, text="discarded all staged changes")


@repo.command("collect-garbage", short_help="Remove files that no listed release needs.")
@click.option("--dry-run", is_flag=True, help="Show why each file stays or goes, and remove none.")
@click.option(
    "--grace-hours",
    type=click.IntRange(0, 24 * 365),
    default=24,
    show_default=True,
    help="Keep what fell out of use less than this many hours ago.",
)
@REPO_OR_URL_OPTION
@ROOT_OPTION
@JSON_OPTION
def collect_garbage_command(
    dry_run: bool, grace_hours: int, repo: Path | str, root: Path | None, as_json: bool
) -> None:
    """Remove blobs, envelopes and old metadata that no listed release needs.

    What a publication named that was replaced less than --grace-hours ago stays: caches may still serve it. Root
    documents are kept forever. Plain bundles of unlisted releases are removed from the private workspace; content
    keys are kept. In a store, files younger than --grace-hours stay, too: they may be of a push that is under way.

    In a registry, the tags of replaced publications are deleted; the registry itself deletes blobs without a tag.

    Exit status: 0 done, 2 invalid input, 3 the registry does not delete manifests, 4 a lock is held, or the store is
    unavailable.
    """
    from packager.remote.push import FIRST_ROOT
    from packager.remote.registry_garbage import collect_registry_garbage
    from packager.remote.remote_repository import collect_store_garbage, open_repository
    from packager.repository.workspace import Workspace
    from packager.stores.open_store import is_registry_url, open_store
    from packager.stores.registry_client import RegistryClient

    with open_repository(repo, root) as repository:
        if isinstance(repo, str) and is_registry_url(repo):
            first_root = (repository.layout.published / FIRST_ROOT).read_bytes()
            client = RegistryClient(repo)
            report = collect_registry_garbage(client, first_root, dry_run=dry_run, grace_s=grace_hours * 3600)
        elif isinstance(repo, str):
            store = open_store(repo)
            report = collect_store_garbage(repository, store, dry_run=dry_run, grace_s=grace_hours * 3600)
        else:
            report = repository.collect_garbage(dry_run=dry_run, grace_s=grace_hours * 3600)
        listed = {family: repository.releases(family) for family in repository.families()}
        forgotten = Workspace(repository.root).delete_unlisted_bundles(listed, dry_run=dry_run)
    verb = "would remove" if dry_run else "removed"
    names = (
        [f"{'keep' if one.is_kept else 'remove'} {one.path}: {one.reason}" for one in report.decisions]
        if dry_run
        else report.removed
    )
    text = [
        *names,
        f"{verb} {len(report.removed)} files, {report.freed_bytes:,} bytes, and {len(forgotten)} plain bundles",
    ]
    print_result({**report.as_json(), "forgotten_bundles": list(forgotten)}, as_json=as_json, text=text)


def _load_role_keys(texts: tuple[str, ...]) -> "dict[str, list[Key]]":
    from keys.signers import read_public_key
    from packager.errors import InvalidUsage

    out: dict[str, list[Key]] = {}
    for word in texts:
        role, equals, key = word.partition("=")
        if not role or not equals or not key:
            raise InvalidUsage(f"--public: found {word!r}, expected ROLE=KEY, for example root=officer.pem")
        out.setdefault(role, []).append(read_public_key(key))
    return out
