"""`packager bundle …`: plain bundles and patches, without a repository; thin shells over the library."""

from pathlib import Path
from typing import Final

import click

from bundle.console import print_result, progress_bar
from packager.commands.options import JSON_OPTION, PASSPHRASE_OPTION, PATH

NO_BASE: Final = "-"  # as BASE: a patch from nothing


@click.group("bundle")
def bundle() -> None:
    """Build, diff, apply, inspect and verify bundles.

    A bundle is a folder: a model with what belongs to it, in the layout of an ONNX Runtime model package.
    """


@bundle.command("build")
@click.argument("model", type=PATH)
@click.option("-o", "--output", "out", type=PATH, required=True, help="The folder to make; must not exist.")
@click.option("--family", required=True, help="Name of the model line, for example kws.")
@click.option("--version", default="0.0", show_default=True, help="Version of the release.")
@click.option("--variant", default="fp32", show_default=True, help="Name of the variant.")
@click.option("--file", "files", multiple=True, metavar="ROLE=PATH", help="A further file, for example labels=l.txt.")
@click.option("--inputs", type=PATH, help="An .npz or a folder of inputs, for golden vectors.")
@click.option("--golden", type=click.IntRange(0, 1000), default=8, show_default=True, help="Golden vectors; 0 is none.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of random inputs, without --inputs.")
@JSON_OPTION
def build_command(
    model: Path,
    out: Path,
    family: str,
    version: str,
    variant: str,
    files: tuple[str, ...],
    inputs: Path | None,
    golden: int,
    seed: int,
    as_json: bool,
) -> None:
    """Lay MODEL out as a bundle, with its external data and golden vectors.

    Exit status: 0 built, 2 wrong input, 4 no space, 5 the model crashes or gives other answers from run to run.
    """
    from packager.release.plain_bundles import BuildRequest, build_bundle

    request = BuildRequest(model, out, family, version, variant, files, inputs, golden, seed)
    report = build_bundle(request)
    print_result(report.as_json(), as_json=as_json, text=report.as_text())


@bundle.command("diff")
@click.argument("base", type=PATH)
@click.argument("target", type=PATH)
@click.option("-o", "--output", "out", type=PATH, required=True, help="The patch to write; must not exist.")
@click.option("--codec", default="auto", show_default=True, help="A codec of docs/format.md, or auto.")
@click.option("--html", type=PATH, help="Also write a page that shows where the bytes went.")
@JSON_OPTION
def diff_command(base: Path, target: Path, out: Path, codec: str, html: Path | None, as_json: bool) -> None:
    """Write the patch that makes TARGET from BASE. Both are bundle folders or single files; BASE "-" is nothing.

    Exit status: 0 written, 2 wrong input, 4 no space.
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
    print_result(report.as_json(), as_json=as_json, text=f"{format_table(report)}\n{text}")


@bundle.command("apply")
@click.argument("base", type=PATH)
@click.argument("patch", type=PATH)
@click.option("-o", "--output", "out", type=PATH, required=True, help="What to make; must not exist.")
@JSON_OPTION
def apply_command(base: Path, patch: Path, out: Path, as_json: bool) -> None:
    """Apply a plain PATCH to BASE, as a device would. BASE is a bundle folder or a single file; "-" is nothing.

    Exit status: 0 applied, 2 wrong input, 3 the patch is damaged or for another base (nothing is written), 4 no space.
    """
    from bundle.files import bundle_digest
    from packager.diff.bundle_folder import apply_to_directory

    files = apply_to_directory(None if str(base) == NO_BASE else base, patch, out)
    digest = bundle_digest(files)
    result = {"bundle": digest, "files": [file.as_json() for file in files]}
    print_result(result, as_json=as_json, text=f"{out}: {len(files)} files, bundle digest {digest}")


@bundle.command("inspect")
@click.argument("path", type=PATH)
@JSON_OPTION
def inspect_command(path: Path, as_json: bool) -> None:
    """Show what PLACE is: a manifest, rollout or fleet document, a patch, a blob, an envelope, or a bundle folder.

    Nothing is decrypted and no signature is checked.

    Exit status: 0 shown, 2 nothing of these, 3 one of these, but malformed.
    """
    from packager.release.inspect_path import inspect_path

    found = inspect_path(path)
    print_result(found.as_json(), as_json=as_json, text=found.as_text())


@bundle.command("verify")
@click.argument("folder", type=PATH)
@click.argument("manifest", type=PATH)
@click.argument("variant")
@JSON_OPTION
def verify_command(folder: Path, manifest: Path, variant: str, as_json: bool) -> None:
    """Check that the plain bundle in FOLDER is VARIANT of MANIFEST: every file, no more and no less.

    The manifest's signatures are not checked: that is what a device, or `packager repo doctor`, does.

    Exit status: 0 it is, 2 wrong input, 3 it is not, or the manifest is malformed.
    """
    from packager.release.plain_bundles import verify_bundle

    result = verify_bundle(folder, manifest, variant)
    text = f"{folder}: {result['family']} {result['version']} {variant}, {result['files']} files, as in the manifest"
    print_result(result, as_json=as_json, text=text)


@bundle.command("sign-oms")
@click.argument("folder", type=PATH)
@click.option("--key", type=PATH, required=True, help="An ecdsa-p256 key file: the format knows elliptic curves only.")
@click.option("-o", "--output", "out", type=PATH, required=True, help="The signature to write, outside of FOLDER.")
@PASSPHRASE_OPTION
@JSON_OPTION
def sign_oms_command(folder: Path, key: Path, out: Path, passphrase_file: Path | None, as_json: bool) -> None:
    """Sign all files of FOLDER in the OpenSSF Model Signing format; the public key goes to OUTPUT.pub.pem.

    For others' tools: `model_signing verify key --no-ignore-git-paths` checks it, and no device does.

    Exit status: 0 signed, 2 wrong input, 3 the folder holds what cannot be signed, for example a symbolic link.
    """
    from packager.attestation.model_signature import sign_model
    from packager.commands.options import read_key_passphrase

    signed = sign_model(folder, key, read_key_passphrase(passphrase_file, None, (str(key),)), out)
    print_result(
        signed.as_json(), as_json=as_json, text=f"{out}: {signed.files} files signed, key in {signed.public_key}"
    )


@bundle.command("verify-oms")
@click.argument("folder", type=PATH)
@click.argument("signature", type=PATH)
@click.option("--public-key", type=PATH, required=True, help="In PEM.")
@JSON_OPTION
def verify_oms_command(folder: Path, signature: Path, public_key: Path, as_json: bool) -> None:
    """Check an OpenSSF Model Signing SIGNATURE over FOLDER: every file, no more and no less.

    Exit status: 0 it holds, 2 wrong input, 3 it does not hold.
    """
    from packager.attestation.model_signature import verify_model

    verify_model(folder, signature, public_key)
    result = {"folder": str(folder), "signature": str(signature), "ok": True}
    print_result(result, as_json=as_json, text=f"{signature} holds over {folder}")
