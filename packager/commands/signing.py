"""`packager repo sign`, `prepare` and `merge`: signatures, here or where a key lives."""

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
    load_public_keys,
    load_signers,
)

if TYPE_CHECKING:
    from securesystemslib.signer import Key, Signer

    from packager.repository.staging import SignReport

DEFAULT_HISTORY: Final = Path("~/.local/share/airweights/signed")


@click.command("sign")
@click.argument("request_file", type=PATH, required=False)
@KEY_OPTION
@click.option("-o", "--output", "out", type=PATH, help="With REQUEST_FILE: the signature file to write.")
@click.option("--history", type=PATH, default=DEFAULT_HISTORY, show_default=True, help="What was signed here before.")
@click.option("--expect", help="Sign only if the request's digest is this: what somebody reviewed is what is signed.")
@click.option("--replace", is_flag=True, help="Sign a corrected document of a version that was signed here already.")
@click.option("--new-repository", is_flag=True, help="Sign for a repository that is new to a key used here.")
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
    repo: Path,
    key_dir: Path | None,
    passphrase_file: Path | None,
    as_json: bool,
) -> None:
    """Sign what is staged in --repo, or, away from it, what REQUEST_FILE (`repo prepare`) asks for.

    With REQUEST_FILE no repository and no network are needed: what would change is recomputed from the request's bytes
    and from what was signed here before, and shown; it is signed where -o names the file for the signatures. Without -o
    a public half is enough, and no passphrase is asked.

    Exit status: 0 signed or shown, 2 wrong input, another digest than expected, or no key that may sign,
    3 a request contradicts itself or what was signed before, 4 a token or a lock is not available.
    """
    from keys.errors import SignerNotInRole
    from packager.repository.repository import Repository

    if request_file is not None:
        signers = [] if out is None else load_signers(uris, key_dir, passphrase_file)
        public = load_public_keys(uris, key_dir) if out is None else [signer.public_key for signer in signers]
        allowed = {"replace": replace, "new_repository": new_repository}
        _sign_request(request_file, signers, public, out, history.expanduser(), expect, allowed, as_json=as_json)
        return
    signers = load_signers(uris, key_dir, passphrase_file)
    report = Repository.open(repo).sign(signers)
    if uris and len(report.unused) == len(signers):
        raise SignerNotInRole(
            f"none of the {len(signers)} keys may sign what is staged",
            hint="`packager repo status` shows which keys may",
        )
    print_result(report.as_json(), as_json=as_json, text=sign_text(report))


@click.command("prepare")
@click.option("-o", "--output", "out", type=PATH, required=True, help="The request file to write.")
@REPO_OPTION
@JSON_OPTION
def prepare_command(out: Path, repo: Path, as_json: bool) -> None:
    """Write a request for signatures over what is staged, to be signed where keys live (`repo sign REQUEST`).

    Shows what the request changes against what is published, and its digest: every signer's machine computes both anew.

    Exit status: 0 written, 2 nothing is staged, 4 a lock or no space.
    """
    import time

    from packager.repository.detached_signing import prepare_request, request_summary
    from packager.repository.layout import write_file
    from packager.repository.repository import Repository

    now_s = int(time.time())
    request = prepare_request(Repository.open(repo).layout, now_s)
    lines = request_summary(request, now_s)
    write_file(out, request.as_bytes())
    result = {
        "request": str(out),
        "documents": {role: doc.signed.version for role, doc in request.new_documents.items()},
        "summary": list(lines),
        "digest": request.digest,
    }
    text = "\n".join([*lines, f"digest {request.digest}", f"{out}: {', '.join(sorted(request.new_documents))}"])
    print_result(result, as_json=as_json, text=text)


@click.command("merge")
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
    """Add signature FILES to what is staged, and sign with the keys that are here (snapshot and timestamp, as a rule).

    Exit status: 0 merged, 2 wrong input, 3 a signature is not over what is staged, 4 a lock.
    """
    import time

    from packager.errors import InvalidUsage
    from packager.repository.detached_signing import add_signatures
    from packager.repository.repository import Repository

    signers = load_signers(uris, key_dir, passphrase_file) if uris or key_dir else []
    try:
        data = [file.read_bytes() for file in files]
    except FileNotFoundError as error:
        raise InvalidUsage(f"there is no signature file {error.filename}") from error
    report = add_signatures(Repository.open(repo).layout, data, signers, int(time.time()))
    print_result(report.as_json(), as_json=as_json, text=sign_text(report))


def _sign_request(
    request_file: Path,
    signers: "list[Signer]",
    public: "list[Key]",
    out: Path | None,
    history: Path,
    expect: str | None,
    allow_flags: dict[str, bool],
    *,
    as_json: bool,
) -> None:
    import time

    from packager.errors import InvalidUsage
    from packager.repository.detached_signing import review_request, sign_request
    from packager.repository.layout import write_file
    from packager.repository.signing_request import parse_request

    try:
        request = parse_request(request_file.read_bytes())
    except FileNotFoundError as error:
        raise InvalidUsage(f"there is no request file {request_file}") from error
    reviewed = review_request(request, public, history, int(time.time()), **allow_flags)
    if expect is not None and expect != reviewed.digest:
        raise InvalidUsage(
            f"the request's digest is {reviewed.digest}, expected {expect}",
            hint="without -o the summary is shown: compare it with the one that was reviewed",
        )
    if out is not None:
        write_file(out, sign_request(request, reviewed, signers, history))
    result = {
        "roles": list(reviewed.roles),
        "summary": list(reviewed.lines),
        "digest": reviewed.digest,
        "signatures": None if out is None else str(out),
    }
    text = "\n".join([*reviewed.lines, f"digest {reviewed.digest}", "not signed" if out is None else f"signed: {out}"])
    print_result(result, as_json=as_json, text=text)


def sign_text(report: "SignReport") -> str:
    """For people."""
    lines = [
        f"{role.role} {role.version}: {len(role.signed_key_ids)} signatures"
        + (f", {role.missing_signatures} more needed" if role.missing_signatures else "")
        for role in report.roles
    ]
    lines.append("ready to publish" if report.is_complete else "not complete: other keys must sign")
    return "\n".join(lines)
