"""`packager repo …`: thin shells over packager.repository."""

from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from bundle.console import print_result

if TYPE_CHECKING:
    from securesystemslib.signer import Signer

    from bundle.frames import Secret
    from packager.repository.publishing import PublishReport
    from packager.repository.staging import SignReport
    from packager.repository.status import StatusReport

PATH: Final = click.Path(path_type=Path)
JSON_OPTION: Final = click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
REPO_OPTION: Final = click.option(
    "--repo", type=PATH, default=Path(), envvar="PACKAGER_REPO", help="The repository's folder; default: here."
)
KEYS_OPTION: Final = click.option("--keys", "key_dir", type=PATH, help="Folder with the keys that are here.")
PASSPHRASE_OPTION: Final = click.option(
    "--passphrase-file", type=PATH, help="File with the passphrase; else PACKAGER_PASSPHRASE, else a prompt."
)
DEFAULT_MEMORY: Final = Path("~/.local/share/airweights/signed")
DUE: Final = 4
UNSOUND: Final = 3


@click.group("repo")
def repo() -> None:
    """Make, sign, publish and look after a repository."""


@repo.command("init")
@click.argument("folder", type=PATH)
@click.option("--keys", "key_dir", type=PATH, required=True, help="Folder for the new keys.")
@click.option("--family", "families", multiple=True, required=True, help="A model line; several times for several.")
@click.option("--cohort", default="default", show_default=True, help="Name of the first cohort of devices.")
@click.option("--classical", is_flag=True, help="Ed25519 only, for clients that know no ML-DSA.")
@click.option("--insecure-plaintext", is_flag=True, help="Write the keys without encryption. For trying out only.")
@PASSPHRASE_OPTION
@JSON_OPTION
def init_command(
    folder: Path,
    key_dir: Path,
    families: tuple[str, ...],
    cohort: str,
    classical: bool,
    insecure_plaintext: bool,
    passphrase_file: Path | None,
    as_json: bool,
) -> None:
    """Make keys of every role and a repository in FOLDER. Devices are shipped FOLDER/published/metadata/1.root.json.

    All keys land in one folder, which is fine for trying out: in earnest move the files of root and targets away,
    each to another place, before the first release.

    Exit status: 0 made, 2 wrong input, 4 not available now.
    """
    from keys.passphrase import read_passphrase
    from packager.repository.repository import Repository

    passphrase = None if insecure_plaintext else read_passphrase(passphrase_file, what="the new keys", is_new=True)
    made = Repository.create_with_new_keys(
        folder,
        key_dir,
        passphrase,
        families,
        cohort,
        classical=classical,
        insecure_plaintext=insecure_plaintext,
    )
    result = {
        "repository": str(made.root),
        "repository_id": made.repository_id,
        "published": str(made.published),
        "root": str(made.published / "metadata" / "1.root.json"),
        "keys": str(key_dir),
        "families": list(families),
        "cohort": cohort,
    }
    text = f"repository {made.repository_id[:16]}… in {folder}; serve {made.published}, ship {result['root']}"
    print_result(result, as_json=as_json, text=text)


@repo.command("sign")
@click.argument("request_file", type=PATH, required=False)
@click.option("--key", "uris", multiple=True, help="A key file or a key URI (hsm:…); several times for several.")
@click.option("-o", "--output", "out", type=PATH, help="With REQUEST_FILE: the signature file to write.")
@click.option("--memory", type=PATH, default=DEFAULT_MEMORY, show_default=True, help="What was signed here before.")
@click.option("--expect", help="Sign only if the summary's digest is this: what somebody reviewed is what is signed.")
@click.option("--replace", is_flag=True, help="Sign a corrected document of a version that was signed here already.")
@REPO_OPTION
@KEYS_OPTION
@PASSPHRASE_OPTION
@JSON_OPTION
def sign_command(
    request_file: Path | None,
    uris: tuple[str, ...],
    out: Path | None,
    memory: Path,
    expect: str | None,
    replace: bool,
    repo: Path,
    key_dir: Path | None,
    passphrase_file: Path | None,
    as_json: bool,
) -> None:
    """Sign what is staged in --repo, or, away from it, what REQUEST_FILE (`repo prepare`) asks for.

    With REQUEST_FILE no repository and no network are needed: what would change is recomputed from the request's bytes
    and from what was signed here before, and shown; it is signed where -o names the file for the signatures.

    Exit status: 0 signed or shown, 2 wrong input, another digest than expected, or no key that may sign,
    3 a request contradicts itself or what was signed before, 4 a token or a lock is not available.
    """
    from keys.errors import SignerNotInRole
    from packager.repository.repository import Repository

    signers = load_signers(uris, key_dir, passphrase_file)
    if request_file is not None:
        _sign_request(request_file, signers, out, memory.expanduser(), expect, replace=replace, as_json=as_json)
        return
    report = Repository.open(repo).sign(signers)
    if uris and len(report.unused) == len(signers):
        raise SignerNotInRole(
            f"none of the {len(signers)} keys may sign what is staged",
            remedy="`packager repo status` shows which keys may",
        )
    print_result(report.as_json(), as_json=as_json, text=sign_text(report))


@repo.command("prepare")
@click.option("-o", "--output", "out", type=PATH, required=True, help="The request file to write.")
@REPO_OPTION
@JSON_OPTION
def prepare_command(out: Path, repo: Path, as_json: bool) -> None:
    """Write a request for signatures over what is staged, to be signed where keys live (`repo sign REQUEST`).

    Exit status: 0 written, 2 nothing is staged, 4 a lock or no space.
    """
    import time

    from packager.repository.detached import prepare
    from packager.repository.layout import write_file
    from packager.repository.repository import Repository

    request = prepare(Repository.open(repo).layout, int(time.time()))
    write_file(out, request.as_bytes())
    result = {"request": str(out), "documents": {role: doc.signed.version for role, doc in request.new.items()}}
    print_result(result, as_json=as_json, text=f"{out}: {', '.join(sorted(request.new))}")


@repo.command("merge")
@click.argument("files", type=PATH, nargs=-1, required=True)
@REPO_OPTION
@KEYS_OPTION
@PASSPHRASE_OPTION
@JSON_OPTION
def merge_command(
    files: tuple[Path, ...], repo: Path, key_dir: Path | None, passphrase_file: Path | None, as_json: bool
) -> None:
    """Add signature FILES to what is staged, and sign with the keys in --keys (snapshot and timestamp, as a rule).

    Exit status: 0 merged, 2 wrong input, 3 a signature is not over what is staged, 4 a lock.
    """
    import time

    from packager.errors import UsageInvalid
    from packager.repository.detached import merge
    from packager.repository.repository import Repository

    signers = [] if key_dir is None else load_signers((), key_dir, passphrase_file)
    try:
        data = [file.read_bytes() for file in files]
    except FileNotFoundError as error:
        raise UsageInvalid(f"there is no signature file {error.filename}") from error
    report = merge(Repository.open(repo).layout, data, signers, int(time.time()))
    print_result(report.as_json(), as_json=as_json, text=sign_text(report))


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
    return DUE if report.is_due else 0


@repo.command("doctor")
@REPO_OPTION
@JSON_OPTION
def doctor_command(repo: Path, as_json: bool) -> int:
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
    return 0 if report.is_sound else UNSOUND


@repo.command("refresh")
@REPO_OPTION
@KEYS_OPTION
@PASSPHRASE_OPTION
@JSON_OPTION
def refresh_command(repo: Path, key_dir: Path | None, passphrase_file: Path | None, as_json: bool) -> None:
    """Renew snapshot, timestamp and the unchanged rollout roles, and nothing else. For a daily cron job.

    Exit status: 0 renewed, 2 wrong input or a key is missing, 4 somebody else is publishing.
    """
    from packager.repository.repository import Repository

    report = Repository.open(repo).refresh(load_signers((), key_dir, passphrase_file))
    print_result(report.as_json(), as_json=as_json, text=publish_text(report))


@repo.command("pack")
@click.argument("out", type=PATH)
@click.option("--family", "families", multiple=True, help="Only this model line; several times for several.")
@click.option(
    "--valid", "valid", default="30d", show_default=True, help="How long its metadata is valid, in days: 30d."
)
@REPO_OPTION
@KEYS_OPTION
@PASSPHRASE_OPTION
@JSON_OPTION
def pack_command(
    out: Path,
    families: tuple[str, ...],
    valid: str,
    repo: Path,
    key_dir: Path | None,
    passphrase_file: Path | None,
    as_json: bool,
) -> None:
    """Make an offline pack in the new folder OUT: what devices without a network update from (a `file:` URL).

    Exit status: 0 made, 2 wrong input, longer than root allows, or a key is missing, 4 a lock or no space.
    """
    from packager.errors import UsageInvalid
    from packager.repository.pack import make_pack
    from packager.repository.repository import Repository

    days = valid.removesuffix("d")
    if not days.isdigit():
        raise UsageInvalid(f"--valid: found {valid!r}, expected days, for example 30d")
    signers = load_signers((), key_dir, passphrase_file)
    report = make_pack(Repository.open(repo), out, families, int(days), signers)
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
def discard_command(repo: Path, as_json: bool) -> None:
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
def garbage_command(dry_run: bool, grace_hours: int, repo: Path, as_json: bool) -> None:
    """Remove blobs, envelopes and old metadata that no listed release names. Roots are kept for ever.

    The private workspace lets go of the plain bundles of releases that are no longer listed; content keys are kept.

    Exit status: 0 done, 2 wrong input, 4 a lock is held.
    """
    from packager.repository.repository import Repository
    from packager.workspace import Workspace

    repository = Repository.open(repo)
    report = repository.collect_garbage(dry_run=dry_run, grace_s=grace_hours * 3600)
    listed = {family: repository.releases(family) for family in repository.families()}
    forgotten = Workspace(repository.root).forget_unlisted(listed, dry_run=dry_run)
    verb = "would remove" if dry_run else "removed"
    text = "\n".join(
        [
            *report.removed,
            f"{verb} {len(report.removed)} files, {report.freed_bytes:,} bytes, and {len(forgotten)} plain bundles",
        ]
    )
    print_result({**report.as_json(), "forgotten_bundles": list(forgotten)}, as_json=as_json, text=text)


def _sign_request(
    request_file: Path,
    signers: "list[Signer]",
    out: Path | None,
    memory: Path,
    expect: str | None,
    *,
    replace: bool,
    as_json: bool,
) -> None:
    from packager.errors import UsageInvalid
    from packager.repository.detached import parse_request, review, sign_request
    from packager.repository.layout import write_file

    try:
        request = parse_request(request_file.read_bytes())
    except FileNotFoundError as error:
        raise UsageInvalid(f"there is no request file {request_file}") from error
    reviewed = review(request, [signer.public_key for signer in signers], memory, replace=replace)
    if expect is not None and expect != reviewed.digest:
        raise UsageInvalid(
            f"the summary's digest is {reviewed.digest}, expected {expect}",
            remedy="without -o the summary is shown: compare it with the one that was reviewed",
        )
    if out is not None:
        write_file(out, sign_request(request, reviewed, signers, memory))
    result = {
        "roles": list(reviewed.roles),
        "summary": list(reviewed.lines),
        "digest": reviewed.digest,
        "signatures": None if out is None else str(out),
    }
    text = "\n".join([*reviewed.lines, f"digest {reviewed.digest}", "not signed" if out is None else f"signed: {out}"])
    print_result(result, as_json=as_json, text=text)


def load_signers(uris: tuple[str, ...], key_dir: Path | None, passphrase_file: Path | None) -> "list[Signer]":
    """Signers of `--key` and `--keys`. Raises UsageInvalid, and errors of keys."""
    from keys.files import load_signer
    from keys.signers import signers_from
    from packager.errors import UsageInvalid

    if not uris and key_dir is None:
        raise UsageInvalid("no key is given", remedy="--keys FOLDER, or --key FILE_OR_URI")
    passphrase = read_key_passphrase(passphrase_file, key_dir, uris)
    found = [load_signer(uri, passphrase) for uri in uris]
    return found + (signers_from(key_dir, passphrase) if key_dir is not None else [])


def read_key_passphrase(
    passphrase_file: Path | None, key_dir: Path | None, uris: tuple[str, ...] = ()
) -> "Secret | None":
    """The passphrase of keys, or None where no key file is encrypted."""
    from keys.files import URI, is_encrypted
    from keys.passphrase import read_passphrase
    from keys.signers import key_files

    files = [Path(uri) for uri in uris if not URI.fullmatch(uri)] + (key_files(key_dir) if key_dir else [])
    if passphrase_file is None and files and not any(is_encrypted(file) for file in files):
        return None
    return read_passphrase(passphrase_file, what="signing keys")


def sign_text(report: "SignReport") -> str:
    """For people."""
    lines = [
        f"{role.role} {role.version}: {len(role.signed)} signatures"
        + (f", {role.missing} more needed" if role.missing else "")
        for role in report.roles
    ]
    lines.append("ready to publish" if report.is_complete else "not complete: other keys must sign")
    return "\n".join(lines)


def publish_text(report: "PublishReport") -> str:
    """For people."""
    lines = [f"published: timestamp {report.timestamp_version}"]
    lines += [f"{r.family} {r.channel}: {r.version or 'no release: ' + str(r.refusal)}" for r in report.rehearsed]
    return "\n".join(lines)


def status_text(report: "StatusReport") -> str:
    """For people."""
    lines = [f"repository {report.repository_id}, timestamp {report.timestamp_version}"]
    for role in report.roles:
        due = " DUE" if role.is_due else ""
        keys = f"{role.threshold} of {role.classical} classical + {role.post_quantum} ML-DSA"
        lines.append(f"{role.name:<24} v{role.version:<5} {role.days_left:>7.1f} days left{due}  {keys}")
        lines += [f"  problem: {problem}" for problem in role.problems]
    for staged in report.staged:
        who = ", ".join(key[:16] for key in staged.may_sign)
        waits = f"{staged.missing} more signatures, of: {who}" if staged.missing else "complete"
        lines.append(f"staged {staged.name} {staged.version}: {waits}")
    lines += [f"staged file {name}" for name in report.staged_targets]
    lines += [f"to be withdrawn: {name}" for name in report.withdrawn]
    return "\n".join(lines)
