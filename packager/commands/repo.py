"""`packager repo …`: thin shells over packager.repository."""

from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from bundle.console import print_result
from packager.commands.options import (
    JSON_OPTION,
    KEY_OPTION,
    KEYS_OPTION,
    PASSPHRASE_OPTION,
    PATH,
    REPO_OPTION,
    load_signers,
)
from packager.commands.signing import add_signatures_command, prepare_command, sign_command

if TYPE_CHECKING:
    from securesystemslib.signer import Key

    from packager.repository.publishing import PublishReport
    from packager.repository.repository_status import RepositoryStatus

EXIT_CODE_DUE: Final = 4
EXIT_CODE_UNSOUND: Final = 3


@click.group("repo")
def repo() -> None:
    """Make, sign, publish and look after a repository."""


repo.add_command(prepare_command)
repo.add_command(sign_command)
repo.add_command(add_signatures_command)


@repo.command("init")
@click.argument("folder", type=PATH)
@click.option("--keys", "key_dir", type=PATH, required=True, help="Folder for the new keys.")
@click.option("--family", "families", multiple=True, required=True, help="A model line; several times for several.")
@click.option("--cohort", default="default", show_default=True, help="Name of the first cohort of devices.")
@click.option(
    "--public",
    "public",
    multiple=True,
    metavar="ROLE=KEY",
    help="A key of ROLE that lives elsewhere: its PEM file (`keys public`), key file or URI; several times.",
)
@click.option("--classical", is_flag=True, help="Ed25519 only, for clients that know no ML-DSA.")
@click.option("--insecure-plaintext", is_flag=True, help="Write the keys without encryption. For trying out only.")
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
    """Make keys of every role and a repository in FOLDER. Devices are shipped FOLDER/published/metadata/1.root.json.

    All keys land in one folder, which is fine for trying out. In earnest name the keys of root, targets and the
    families with --public: then none is made for those roles, and the first publication waits for the signatures of
    their owners (`repo prepare`, `sign`, `merge`, `publish`).

    Exit status: 0 made, 2 wrong input, 4 not available now.
    """
    from keys.passphrase import read_passphrase
    from packager.repository.creation import create_repository_with_new_keys

    passphrase = None if insecure_plaintext else read_passphrase(passphrase_file, what="the new keys", is_new=True)
    made = create_repository_with_new_keys(
        folder,
        key_dir,
        passphrase,
        families,
        cohort,
        public=_load_role_keys(public),
        classical=classical,
        insecure_plaintext=insecure_plaintext,
    )
    status = made.status()
    result = {
        "repository": str(made.root),
        "repository_id": status.repository_id,
        "published": str(made.published),
        "root": str(made.published / "metadata" / "1.root.json"),
        "keys": str(key_dir),
        "families": list(families),
        "cohort": cohort,
        "complete": bool(status.roles),
    }
    text = f"repository {status.repository_id[:16]}… in {folder}; serve {made.published}, ship {result['root']}"
    waiting = f"a repository in {folder}, not published yet: `packager repo prepare --repo {folder} -o request.json`"
    print_result(result, as_json=as_json, text=text if status.roles else waiting)


@repo.command("publish")
@REPO_OPTION
@JSON_OPTION
def publish_command(repo: Path, as_json: bool) -> None:
    """Publish what is signed, after devices of every channel have tried it.

    Exit status: 0 published, 2 nothing staged or below threshold, 3 devices would refuse it, 4 somebody else published.
    """
    from packager.repository.repository import Repository

    report = Repository.open(repo).publish()
    print_result(report.as_json(), as_json=as_json, text=publish_text(report))


@repo.command("status")
@REPO_OPTION
@JSON_OPTION
def status_command(repo: Path, as_json: bool) -> int:
    """Show every role, its keys, when it expires, and what waits for whose signature.

    Exit status: 0 nothing is due, 2 wrong input, 4 a role has expired or soon will.
    """
    from packager.repository.repository import Repository

    report = Repository.open(repo).status()
    print_result(report.as_json(), as_json=as_json, text=status_text(report))
    return EXIT_CODE_DUE if report.is_due else 0


@repo.command("doctor")
@REPO_OPTION
@JSON_OPTION
def verify_command(repo: Path, as_json: bool) -> int:
    """Prove for the published repository that no role can be signed by one algorithm alone.

    Exit status: 0 sound, 2 wrong input, 3 a role is unsound or a file is not what was signed.
    """
    from packager.repository.repository import Repository

    report = Repository.open(repo).status()
    lines = [
        f"{role.name}: {'; '.join(role.problems) or 'sound'} ({role.still_needed})"
        for role in report.roles
        if role.problems or not report.is_classical
    ]
    if report.is_classical:
        lines.append("this repository is classical: a break of Ed25519 is a break of all of it")
    print_result(report.as_json(), as_json=as_json, text="\n".join(lines))
    return 0 if report.is_sound else EXIT_CODE_UNSOUND


@repo.command("refresh")
@REPO_OPTION
@KEY_OPTION
@KEYS_OPTION
@PASSPHRASE_OPTION
@JSON_OPTION
def refresh_command(
    repo: Path, uris: tuple[str, ...], key_dir: Path | None, passphrase_file: Path | None, as_json: bool
) -> None:
    """Renew snapshot, timestamp and the unchanged rollout roles, and nothing else. For a daily cron job.

    Exit status: 0 renewed, 2 wrong input or a key is missing, 4 somebody else is publishing.
    """
    from packager.repository.repository import Repository

    report = Repository.open(repo).refresh(load_signers(uris, key_dir, passphrase_file))
    print_result(report.as_json(), as_json=as_json, text=publish_text(report))


@repo.command("pack")
@click.argument("out", type=PATH)
@click.option("--family", "families", multiple=True, help="Only this model line; several times for several.")
@click.option(
    "--valid", "valid", default="30d", show_default=True, help="How long its metadata is valid, in days: 30d."
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
    """Make an offline pack in the new folder OUT: what devices without a network update from (a `file:` URL).

    Exit status: 0 made, 2 wrong input, longer than root allows, or a key is missing, 4 a lock or no space.
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
    text = "\n".join([*lines, f"{out}: {report.files} files, {report.size:,} bytes, valid {report.valid_days} days"])
    print_result(report.as_json(), as_json=as_json, text=text)


@repo.command("withdraw")
@click.argument("family")
@click.argument("version")
@REPO_OPTION
@JSON_OPTION
def withdraw_command(family: str, version: str, repo: Path, as_json: bool) -> None:
    """Stage that release VERSION of FAMILY is no longer listed. What is not listed is not activated.

    Exit status: 0 staged, 2 wrong input.
    """
    from packager.repository.repository import Repository

    Repository.open(repo).withdraw(family, version)
    result = {"family": family, "version": version, "staged": True}
    print_result(result, as_json=as_json, text=f"{family} {version} will be withdrawn: sign and publish")


@repo.command("discard")
@REPO_OPTION
@JSON_OPTION
def unstage_command(repo: Path, as_json: bool) -> None:
    """Forget everything that is staged.

    Exit status: 0 forgotten, 2 wrong input.
    """
    from packager.repository.repository import Repository

    Repository.open(repo).discard()
    print_result({"staged": False}, as_json=as_json, text="nothing is staged now")


@repo.command("collect-garbage")
@click.option("--dry-run", is_flag=True, help="Only say what would go.")
@click.option("--grace-hours", type=click.IntRange(0, 24 * 365), default=24, show_default=True, help="Spare the young.")
@REPO_OPTION
@JSON_OPTION
def collect_garbage_command(dry_run: bool, grace_hours: int, repo: Path, as_json: bool) -> None:
    """Remove blobs, envelopes and old metadata that no listed release names. Roots are kept forever.

    The private workspace lets go of the plain bundles of releases that are no longer listed; content keys are kept.

    Exit status: 0 done, 2 wrong input, 4 a lock is held.
    """
    from packager.repository.repository import Repository
    from packager.repository.workspace import Workspace

    repository = Repository.open(repo)
    report = repository.collect_garbage(dry_run=dry_run, grace_s=grace_hours * 3600)
    listed = {family: repository.releases(family) for family in repository.families()}
    forgotten = Workspace(repository.root).delete_unlisted_bundles(listed, dry_run=dry_run)
    verb = "would remove" if dry_run else "removed"
    text = "\n".join(
        [
            *report.removed,
            f"{verb} {len(report.removed)} files, {report.freed_bytes:,} bytes, and {len(forgotten)} plain bundles",
        ]
    )
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


def publish_text(report: "PublishReport") -> str:
    """For people."""
    lines = [f"published: timestamp {report.timestamp_version}"]
    lines += [f"{r.family} {r.channel}: {r.version or 'no release: ' + str(r.refusal)}" for r in report.client_checks]
    return "\n".join(lines)


def status_text(report: "RepositoryStatus") -> str:
    """For people."""
    lines = ["nothing is published yet: the first publication waits for signatures"]
    if report.roles:
        lines = [f"repository {report.repository_id}, timestamp {report.timestamp_version}"]
    for role in report.roles:
        due = " DUE" if role.is_due else ""
        keys = f"{role.threshold} of {role.classical} classical + {role.post_quantum} ML-DSA"
        lines.append(f"{role.name:<24} v{role.version:<5} {role.days_left:>7.1f} days left{due}  {keys}")
        lines += [f"  {key.scheme:<20} {key.key_id}{'' if key.has_signed else '  not signed'}" for key in role.keys]
        lines += [f"  problem: {problem}" for problem in role.problems]
    for staged in report.staged:
        waits = f"{staged.missing} more signatures, of:" if staged.missing else "complete"
        lines.append(f"staged {staged.name} {staged.version}: {waits}")
        lines += [f"  {key.scheme:<20} {key.key_id}" for key in staged.may_sign if staged.missing]
    lines += [f"staged file {name}" for name in report.staged_targets]
    lines += [f"to be withdrawn: {name}" for name in report.withdrawn]
    return "\n".join(lines)
