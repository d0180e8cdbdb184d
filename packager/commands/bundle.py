"""`packager bundle`: work on plain bundles and patches without a repository."""

from pathlib import Path
from typing import Final

import click

from bundle.console import print_result, progress_bar
from packager.commands.options import JSON_OPTION, PASSPHRASE_OPTION, PATH

RUNTIMES: Final = ("onnxruntime", "litert", "app", "none")
NO_BASE: Final = "-"  # as BASE: a full download, which needs no base


@click.group("bundle", short_help="Build, diff, apply, inspect and verify bundles.")
def bundle() -> None:
    """Build, diff, apply, inspect and verify bundles.

    A bundle is a folder with a model and its files, in the layout of an ONNX Runtime model package, or with files only.
    """


@bundle.command("build", short_help="Build a bundle folder from a model or from files.")
@click.argument("model", type=PATH, required=False)
@click.option("-o", "--output", "out", type=PATH, required=True, help="Folder to write; it must not exist.")
@click.option("--family", required=True, help="Name of the family, for example kws.")
@click.option(
    "--runtime",
    type=click.Choice(RUNTIMES),
    help="As in a release file; default: that of MODEL's format, or none without MODEL.",
)
@click.option("--version", default="0.0", show_default=True, help="Version of the release.")
@click.option("--variant", default="fp32", show_default=True, help="Name of the variant.")
@click.option(
    "--file", "files", multiple=True, metavar="ROLE=PATH", help="Add this file, for example labels=l.txt. Repeatable."
)
@click.option(
    "--inputs", type=PATH, help="Record golden vectors from this .npz or folder of .npz; default: random inputs."
)
@click.option(
    "--golden",
    type=click.IntRange(0, 1000),
    help="Record this many golden vectors; 0 records none.  [default: 8]",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of the random inputs used without --inputs.")
@JSON_OPTION
def build_command(
    model: Path | None,
    out: Path,
    family: str,
    runtime: str | None,
    version: str,
    variant: str,
    files: tuple[str, ...],
    inputs: Path | None,
    golden: int | None,
    seed: int,
    as_json: bool,
) -> None:
    """Build a bundle folder from MODEL, its external data and golden vectors.

    With --runtime app, MODEL is a file of any format that an application runs.
    Without MODEL, or with --runtime none, the bundle consists of the given files.

    Exit status: 0 built, 2 invalid input, 4 no space, 5 the model crashes, or its outputs differ from run to run.
    """
    from packager.release.plain_bundles import BuildRequest, build_bundle

    request = BuildRequest(model, out, family, version, variant, files, inputs, golden, seed, runtime)
    report = build_bundle(request)
    print_result(report.as_json(), as_json=as_json, text=report.as_lines())


@bundle.command("diff", short_help="Create a patch between two bundles.")
@click.argument("base", type=PATH)
@click.argument("target", type=PATH)
@click.option("-o", "--output", "out", type=PATH, required=True, help="Patch file to write; it must not exist.")
@click.option(
    "--codec", default="auto", show_default=True, help="Codec of the patch; auto tries all and keeps the smallest."
)
@click.option("--html", type=PATH, help="Also write an HTML page that shows which arrays take the bytes.")
@JSON_OPTION
def diff_command(base: Path, target: Path, out: Path, codec: str, html: Path | None, as_json: bool) -> None:
    """Create the patch that turns BASE into TARGET.

    Both are bundle folders or single files. BASE "-" is none: the patch is a full download.

    Exit status: 0 written, 2 invalid input, 4 no space.
    """
    from packager.release.plain_bundles import diff_bundles

    start = None if str(base) == NO_BASE else base
    report = diff_bundles(start, target, out, codec=codec, on_progress=progress_bar("diff"))
    from packager.diff.write.patch_html import write_html
    from packager.diff.write.patch_table import format_table

    if html is not None:
        write_html(report, html)
    share = 100 * report.plain_size / max(1, report.target_bytes)
    text = f"{out}: {report.plain_size:,} bytes ({report.codec}), {share:.1f} % of the target's {report.target_bytes:,}"
    print_result(report.as_json(), as_json=as_json, text=[*format_table(report), text])


@bundle.command("apply", short_help="Apply a patch to a bundle folder or file.")
@click.argument("base", type=PATH)
@click.argument("patch", type=PATH)
@click.option("-o", "--output", "out", type=PATH, required=True, help="Folder or file to write; it must not exist.")
@JSON_OPTION
def apply_command(base: Path, patch: Path, out: Path, as_json: bool) -> None:
    """Apply an unencrypted PATCH to BASE, as a device does.

    BASE is a bundle folder or a single file, or "-" for none.

    Exit status: 0 applied, 2 invalid input, 3 the patch is damaged or made for another base (nothing is written),
    4 no space.
    """
    from bundle.files import bundle_digest
    from packager.diff.bundle_folder import apply_to_directory

    files = apply_to_directory(None if str(base) == NO_BASE else base, patch, out)
    digest = bundle_digest(files)
    result = {"bundle": digest, "files": [file.as_json() for file in files]}
    print_result(result, as_json=as_json, text=f"{out}: {len(files)} files, bundle digest {digest}")


@bundle.command("inspect", short_help="Show what a file or folder is.")
@click.argument("path", type=PATH)
@JSON_OPTION
def inspect_command(path: Path, as_json: bool) -> None:
    """Show what PATH is: manifest, rollout, fleet document, patch, blob, envelope shard or bundle folder.

    Nothing is decrypted, and no signature is verified.

    Exit status: 0 shown, 2 unknown format, 3 known format, but malformed.
    """
    from packager.release.inspect_path import inspect_path

    found = inspect_path(path)
    print_result(found.as_json(), as_json=as_json, text=found.lines)


@bundle.command("verify", short_help="Verify a bundle folder against a manifest.")
@click.argument("folder", type=PATH)
@click.argument("manifest", type=PATH)
@click.argument("variant")
@JSON_OPTION
def verify_command(folder: Path, manifest: Path, variant: str, as_json: bool) -> None:
    """Verify that the plain bundle in FOLDER is VARIANT of MANIFEST.

    FOLDER must contain exactly the files of the manifest, with their sizes and digests. The manifest's signatures are
    not verified; `packager repo verify` does that.

    Exit status: 0 verified, 2 invalid input, 3 the bundle differs, or the manifest is malformed.
    """
    from packager.release.plain_bundles import verify_bundle

    result = verify_bundle(folder, manifest, variant)
    text = f"{folder}: verified as {result['family']} {result['version']} {variant}, {result['files']} files"
    print_result(result, as_json=as_json, text=text)


@bundle.command("sign-oms", short_help="Sign in OpenSSF Model Signing format.")
@click.argument("folder", type=PATH)
@click.option("--key", type=PATH, required=True, help="Key file to sign with; the format requires ecdsa-p256.")
@click.option("-o", "--output", "out", type=PATH, required=True, help="Signature file to write, outside of FOLDER.")
@PASSPHRASE_OPTION
@JSON_OPTION
def sign_oms_command(folder: Path, key: Path, out: Path, passphrase_file: Path | None, as_json: bool) -> None:
    """Sign all files of FOLDER in OpenSSF Model Signing format.

    The public key is written to OUTPUT.pub.pem. Other tools verify it: `model_signing verify key
    --no-ignore-git-paths`. Devices do not read it.

    Exit status: 0 signed, 2 invalid input, 3 FOLDER contains an entry that cannot be signed, for example a symbolic
    link.
    """
    from packager.attestation.model_signature import sign_model
    from packager.commands.options import read_key_passphrase

    signed = sign_model(folder, key, read_key_passphrase(passphrase_file, None, (str(key),)), out)
    print_result(
        signed.as_json(), as_json=as_json, text=f"{out}: {signed.files} files signed, public key {signed.public_key}"
    )


@bundle.command("verify-oms", short_help="Verify in OpenSSF Model Signing format.")
@click.argument("folder", type=PATH)
@click.argument("signature", type=PATH)
@click.option("--public-key", type=PATH, required=True, help="Public key of the signer, a PEM file.")
@JSON_OPTION
def verify_oms_command(folder: Path, signature: Path, public_key: Path, as_json: bool) -> None:
    """Verify an OpenSSF Model Signing SIGNATURE over FOLDER: exactly the signed files, with their digests.

    Exit status: 0 verified, 2 invalid input, 3 verification failed.
    """
    from packager.attestation.model_signature import verify_model

    verify_model(folder, signature, public_key)
    result = {"folder": str(folder), "signature": str(signature), "ok": True}
    print_result(result, as_json=as_json, text=f"{folder}: verified by {signature}")
