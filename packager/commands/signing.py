"""`packager repo sign`, `prepare` and `add-signatures`: collect signatures on staged changes."""

from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from bundle.console import print_result
from bundle.local_files import read_local_file
from packager.commands.options import (
    JSON_OPTION,
    KEY_OPTION,
    KEYS_OPTION,
    PASSPHRASE_OPTION,
    PATH,
    REPO_OPTION,
    load_public_keys,
    load_signers,
)

if TYPE_CHECKING:
    from securesystemslib.signer import Key, Signer

    from packager.repository.staging import SignReport

DEFAULT_HISTORY: Final = Path("~/.local/share/airweights/signed")

RAW_OPTION: Final = click.option(
    "--raw", is_flag=True, help="Print every field and digest of the documents, instead of a review in words."
)

MAX_REPORT_BYTES: Final = 1024 * 1024


@click.command("sign", short_help="Sign staged changes or a signing request.")
@click.argument("request_file", type=PATH, required=False)
@KEY_OPTION
@click.option("-o", "--output", "out", type=PATH, help="With REQUEST_FILE: signature file to write.")
@click.option(
    "--history",
    type=PATH,
    default=DEFAULT_HISTORY,
    show_default=True,
    help="Folder of the signing history: copies of the documents signed on this machine.",
)
@click.option("--expect", help="Sign only if the request has this digest, the one that was reviewed.")
@click.option(
    "--replace", is_flag=True, help="Allow another document of a version that was signed on this machine before."
)
@click.option(
    "--new-repository", is_flag=True, help="Allow a repository that the key has not signed for on this machine."
)
@click.option(
    "--rebuilt", type=PATH, multiple=True, help="Sign only if this `release --reproduce` result covers each release."
)
@RAW_OPTION
@REPO_OPTION
@KEYS_OPTION
@PASSPHRASE_OPTION
@JSON_OPTION
def sign_command(
    request_file: Path | None,
    uris: tuple[str, ...],
    out: Path | None,
    history: Path,
    expect: str | None,
    replace: bool,
    new_repository: bool,
    raw: bool,
    rebuilt: tuple[Path, ...],
    repo: Path,
    key_dir: Path | None,
    passphrase_file: Path | None,
    as_json: bool,
) -> None:
    """Sign the staged changes of --repo, or the signing request REQUEST_FILE (`packager repo prepare`).

    A signing request needs no repository and no network. Its changes are computed from the request and the signing
    history, and printed. With -o they are signed; without, public keys are enough and no passphrase is needed.

    Exit status: 0 signed or shown, 2 invalid input, another digest than expected, or no key that may sign,
    3 the request contradicts itself or the signing history, 4 a token or a lock is unavailable.
    """
    from keys.errors import SignerNotInRole
    from packager.errors import InvalidUsage
    from packager.repository.repository import Repository

    if request_file is not None:
        signers = [] if out is None else load_signers(uris, key_dir, passphrase_file)
        public = load_public_keys(uris, key_dir) if out is None else [signer.public_key for signer in signers]
        allowed = {"replace": replace, "new_repository": new_repository}
        _sign_request(
            request_file, signers, public, out, history.expanduser(), expect, allowed, rebuilt, raw=raw, as_json=as_json
        )
        return
    if rebuilt:
        raise InvalidUsage("--rebuilt needs a signing request", hint="run `packager repo prepare -o REQUEST` first")
    signers = load_signers(uris, key_dir, passphrase_file)
    report = Repository.open(repo).sign(signers)
    if uris and len(report.unused) == len(signers):
        raise SignerNotInRole(
            f"none of the {len(signers)} keys may sign the staged changes",
            hint="run `packager repo status` to list the keys that may",
        )
    print_result(report.as_json(), as_json=as_json, text=sign_lines(report))


@click.command("prepare", short_help="Write a signing request for the staged changes.")
@click.option("-o", "--output", "out", type=PATH, required=True, help="Request file to write.")
@RAW_OPTION
@REPO_OPTION
@JSON_OPTION
def prepare_command(out: Path, raw: bool, repo: Path, as_json: bool) -> None:
    """Write a signing request for the staged changes.

    Sign it on other machines with `packager repo sign REQUEST`. Prints the changes against the published repository,
    and the request's digest. Each signer's machine computes both again.

    Exit status: 0 written, 2 nothing is staged, 4 a lock is held, or no space.
    """
    import time

    from packager.repository.detached_signing import prepare_request, request_summary
    from packager.repository.layout import write_file
    from packager.repository.repository import Repository

    now_s = int(time.time())
    request = prepare_request(Repository.open(repo).layout, now_s)
    summary = request_summary(request, now_s)
    write_file(out, request.as_bytes())
    result = {
        "request": str(out),
        "documents": {role: doc.signed.version for role, doc in request.new_documents.items()},
        "summary": list(summary.raw),
        "review": list(summary.plain),
        "digest": request.digest,
    }
    text = [
        *(summary.raw if raw else summary.plain),
        f"digest {request.digest}",
        f"{out}: {', '.join(sorted(request.new_documents))}",
    ]
    print_result(result, as_json=as_json, text=text)


@click.command("add-signatures", short_help="Add signature files to the staged changes.")
@click.argument("files", type=PATH, nargs=-1, required=True)
@REPO_OPTION
@KEY_OPTION
@KEYS_OPTION
@PASSPHRASE_OPTION
@JSON_OPTION
def add_signatures_command(
    files: tuple[Path, ...],
    repo: Path,
    uris: tuple[str, ...],
    key_dir: Path | None,
    passphrase_file: Path | None,
    as_json: bool,
) -> None:
    """Add signature FILES to the staged changes.

    The keys of --key and --keys sign too; usually those of snapshot and timestamp.

    Exit status: 0 added, 2 invalid input, 3 a signature does not match the staged changes, 4 a lock is held.
    """
    import time

    from packager.errors import InvalidUsage
    from packager.repository.detached_signing import add_signatures
    from packager.repository.repository import Repository
    from packager.repository.signing_request import MAX_REQUEST_BYTES

    signers = load_signers(uris, key_dir, passphrase_file) if uris or key_dir else []
    try:
        data = [read_local_file(file, MAX_REQUEST_BYTES) for file in files]
    except FileNotFoundError as error:
        raise InvalidUsage(f"signature file {error.filename} does not exist") from error
    report = add_signatures(Repository.open(repo).layout, data, signers, int(time.time()))
    print_result(report.as_json(), as_json=as_json, text=sign_lines(report))


def _sign_request(
    request_file: Path,
    signers: "list[Signer]",
    public: "list[Key]",
    out: Path | None,
    history: Path,
    expect: str | None,
    allow_flags: dict[str, bool],
    rebuilt: tuple[Path, ...],
    *,
    raw: bool,
    as_json: bool,
) -> None:
    import time

    from packager.errors import InvalidUsage
    from packager.repository.detached_signing import review_request, sign_request
    from packager.repository.layout import write_file
    from packager.repository.rebuilt import check_rebuilt
    from packager.repository.signing_request import MAX_REQUEST_BYTES, parse_request

    try:
        request = parse_request(read_local_file(request_file, MAX_REQUEST_BYTES))
    except FileNotFoundError as error:
        raise InvalidUsage(f"signing request {request_file} does not exist") from error
    reviewed = review_request(request, public, history, int(time.time()), **allow_flags)
    if expect is not None and expect != reviewed.digest:
        raise InvalidUsage(
            f"the request's digest is {reviewed.digest}, expected {expect}",
            hint="run the command without -o, and compare the summary with the reviewed one",
        )
    if rebuilt:
        check_rebuilt(request, [read_local_file(path, MAX_REPORT_BYTES) for path in rebuilt])
    if out is not None:
        write_file(out, sign_request(request, reviewed, signers, history))
    result = {
        "roles": list(reviewed.roles),
        "summary": list(reviewed.summary.raw),
        "review": list(reviewed.summary.plain),
        "digest": reviewed.digest,
        "signatures": None if out is None else str(out),
    }
    text = [
        *(reviewed.summary.raw if raw else reviewed.summary.plain),
        f"digest {reviewed.digest}",
        "not signed: add -o FILE to sign" if out is None else f"signed: {out}",
    ]
    print_result(result, as_json=as_json, text=text)


def sign_lines(report: "SignReport") -> list[str]:
    """Return the report as lines for a terminal."""
    lines = [
        f"{role.role} version {role.version}: {len(role.signed_key_ids)} valid signatures"
        + (f", {role.missing_signatures} more needed" if role.missing_signatures else "")
        for role in report.roles
    ]
    lines.append("ready to publish" if report.is_complete else "incomplete: other keys must sign")
    return lines
