"""`packager attestation`: create and verify SLSA provenance and CycloneDX SBOMs of a release."""

from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from bundle.console import print_result
from packager.commands.options import JSON_OPTION, KEYS_OPTION, PASSPHRASE_OPTION, PATH, REPO_OPTION, load_signers

if TYPE_CHECKING:
    from bundle.manifest import Manifest
    from packager.attestation.attestation_files import AttestationReport
    from packager.repository.repository import Repository

ATTESTATIONS_FOLDER: Final = "attestations"  # below the repository's folder, beside the published files


@click.group("attestation", short_help="Create and verify provenance and SBOMs.")
def attestation() -> None:
    """Create and verify SLSA provenance and a CycloneDX bill of materials (SBOM) of a release.

    Both are made from the signed manifest and the record of the build. Devices do not read them.
    """


@attestation.command("create", short_help="Create attestations of a release.")
@click.argument("family")
@click.argument("version")
@click.option(
    "-o",
    "--output",
    "out",
    type=PATH,
    help="Folder to write; default: attestations/FAMILY/VERSION in the repository.",
)
@click.option("--key", "uris", multiple=True, help="Sign with this key file or key URI (hsm:…). Repeatable.")
@click.option("--builder", help="URI that identifies who ran the build, for example a CI system.")
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
    """Write and sign the attestations of VERSION of FAMILY.

    Only the keys in --keys that belong to the family's release role are used.

    Exit status: 0 written, 2 invalid input, 4 a token is unavailable.
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


@attestation.command("verify", short_help="Verify attestations of a release.")
@click.argument("family")
@click.argument("version")
@click.option(
    "--folder", type=PATH, help="Folder of the attestations; default: attestations/FAMILY/VERSION in the repository."
)
@click.option(
    "--key",
    "files",
    type=PATH,
    multiple=True,
    help="Require a signature of this public key, not of the role. Repeatable.",
)
@REPO_OPTION
@JSON_OPTION
def verify_command(
    family: str, version: str, folder: Path | None, files: tuple[Path, ...], repo: Path, as_json: bool
) -> None:
    """Verify signatures and subjects against the published release.

    Without --key, the threshold of the family's release role must be met.

    Exit status: 0 verified, 2 invalid input, 3 verification failed.
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
    print_result(report.as_json(), as_json=as_json, text=report_text(report, "verified"))


def default_folder(repo: Path, family: str, version: str) -> Path:
    """Return the folder of a release's attestations.

    Args:
        repo: folder of the repository.
        family: family of the release.
        version: version of the release.
    """
    return repo / ATTESTATIONS_FOLDER / family / version


def report_text(report: "AttestationReport", state: str) -> str:
    """Return one line for a terminal.

    Args:
        report: attestations that were written or verified.
        state: "written" or "verified".
    """
    return (
        f"{report.folder}: {state} attestations of {report.family} {report.version}, "
        f"{report.subjects} subjects, signed by {len(report.key_ids)} keys"
    )


def _published_manifest(repository: "Repository", family: str, version: str) -> "Manifest":
    from packager.errors import ReleaseUnknown

    manifest = repository.manifest(family, version)
    if manifest is None:
        known = ", ".join(found.version for found in repository.releases(family)) or "none"
        raise ReleaseUnknown(f"{family} has no release {version}, found {known}")
    return manifest
