"""`packager attestation …`: provenance and bill of materials of a release, for the tools of others."""

from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from bundle.console import print_result
from packager.commands.options import JSON_OPTION, KEYS_OPTION, PASSPHRASE_OPTION, PATH, REPO_OPTION, load_signers

if TYPE_CHECKING:
    from bundle.manifest import Manifest
    from packager.attestation.attestation_files import AttestationReport
    from packager.repository.repository import Repository

ATTESTATIONS_FOLDER: Final = "attestations"  # below the repository's folder, beside what is published


@click.group("attestation")
def attestation() -> None:
    """Write and check what a release says of itself: SLSA provenance and a CycloneDX bill of materials.

    Both come from the signed manifest and the record that was kept of the build. Devices never read them.
    """


@attestation.command("make")
@click.argument("family")
@click.argument("version")
@click.option(
    "-o", "--output", "out", type=PATH, help="The folder to write; default: attestations/… in the repository."
)
@click.option("--key", "uris", multiple=True, help="A key file or a key URI (hsm:…); several times for several.")
@click.option("--builder", help="URI of who ran the build, for example of a CI system.")
@REPO_OPTION
@KEYS_OPTION
@PASSPHRASE_OPTION
@JSON_OPTION
def create_command(
    family: str,
    version: str,
    out: Path | None,
    uris: tuple[str, ...],
    builder: str | None,
    repo: Path,
    key_dir: Path | None,
    passphrase_file: Path | None,
    as_json: bool,
) -> None:
    """Write and sign the attestations of VERSION of FAMILY. From --keys, the keys of the family's release role sign.

    Exit status: 0 written, 2 wrong input, 4 a token is not available.
    """
    from packager.attestation.attest import write_release_attestations
    from packager.repository.repository import Repository

    repository = Repository.open(repo)
    manifest = _published_manifest(repository, family, version)
    signers = load_signers(uris, key_dir, passphrase_file)
    report = write_release_attestations(
        repository, manifest, signers, out or default_folder(repo, family, version), builder
    )
    print_result(report.as_json(), as_json=as_json, text=report_text(report, "written"))


@attestation.command("verify")
@click.argument("family")
@click.argument("version")
@click.option("--folder", type=PATH, help="Where they are; default: attestations/… in the repository.")
@click.option("--key", "files", type=PATH, multiple=True, help="Whose signature is asked for, instead of the role's.")
@REPO_OPTION
@JSON_OPTION
def verify_command(
    family: str, version: str, folder: Path | None, files: tuple[Path, ...], repo: Path, as_json: bool
) -> None:
    """Check signatures and subjects against the published release. Without --key, the release role's threshold counts.

    Exit status: 0 they hold, 2 wrong input, 3 they do not hold.
    """
    from keys.key_files import load_public_key
    from packager.attestation.attest import release_keys
    from packager.attestation.attestation_files import check_attestations
    from packager.repository.repository import Repository

    repository = Repository.open(repo)
    manifest = _published_manifest(repository, family, version)
    keys, threshold = release_keys(repository, family)
    if files:
        keys, threshold = tuple(load_public_key(file) for file in files), len(files)
    report = check_attestations(folder or default_folder(repo, family, version), manifest, keys, threshold)
    print_result(report.as_json(), as_json=as_json, text=report_text(report, "hold"))


def default_folder(repo: Path, family: str, version: str) -> Path:
    """Where the attestations of a release go."""
    return repo / ATTESTATIONS_FOLDER / family / version


def report_text(report: "AttestationReport", state: str) -> str:
    """One line for a person."""
    what = f"attestations of {report.family} {report.version} over {report.subjects} subjects"
    return f"{report.folder}: {what} {state}, signed by {len(report.key_ids)} keys"


def _published_manifest(repository: "Repository", family: str, version: str) -> "Manifest":
    from packager.errors import ReleaseUnknown

    manifest = repository.manifest(family, version)
    if manifest is None:
        known = ", ".join(found.version for found in repository.releases(family)) or "none"
        raise ReleaseUnknown(f"{family} has no release {version}, found {known}")
    return manifest
