"""The commands `packager keys new`, `show`, `public` and `check`, for files, tokens and services."""

from pathlib import Path
from typing import Final

import click

from bundle.console import print_result

PATH: Final = click.Path(path_type=Path)
JSON_OPTION: Final = click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout.")
PASSPHRASE_OPTION: Final = click.option(
    "--passphrase-file",
    type=PATH,
    help="File with the passphrase or PIN. Default: PACKAGER_PASSPHRASE (tokens: PACKAGER_PIN), else a prompt.",
)
ALGORITHMS: Final = ("ed25519", "ml-dsa-65", "ecdsa-p256")  # keys.key_files.SIGNING_ALGORITHMS; a test keeps them equal


@click.group("keys", short_help="Create signing keys and manage roles.")
def keys() -> None:
    """Create signing keys and manage roles.

    A role needs classical and ML-DSA keys, and a threshold that neither kind meets alone.

    KEY is a key file or a key URI: hsm:2?label=TOKEN (PKCS#11), awskms:…, gcpkms:…, azurekms:…, hv:….
    """


@keys.command("new", short_help="Create a signing key in a file or a token.")
@click.argument("key")
@click.option("--algorithm", type=click.Choice(ALGORITHMS), required=True, help="Algorithm of the new key.")
@click.option("--insecure-plaintext", is_flag=True, help="Write the key without encryption. For tests only.")
@PASSPHRASE_OPTION
@JSON_OPTION
def new_command(
    key: str, algorithm: str, insecure_plaintext: bool, passphrase_file: Path | None, as_json: bool
) -> None:
    """Create a signing key in a new file or in a token (hsm:2?label=TOKEN).

    Exit status: 0 created, 2 invalid input, or KEY exists already, 4 no space, or the token is not available.
    """
    from keys.key_files import generate_key_file, is_uri
    from keys.passphrase import read_passphrase, read_pin
    from keys.tokens import generate_token_key

    if is_uri(key):
        public = generate_token_key(key, algorithm, read_pin(passphrase_file, uri=key))
        is_sealed = True
    else:
        passphrase = None if insecure_plaintext else read_passphrase(passphrase_file, what=key, is_new=True)
        public = generate_key_file(Path(key), algorithm, passphrase, insecure_plaintext=insecure_plaintext)
        is_sealed = passphrase is not None
    result = {"key": key, "algorithm": algorithm, "key_id": public.keyid, "encrypted": is_sealed}
    print_result(result, as_json=as_json, text=f"{key}: {algorithm} key {public.keyid}")


@keys.command("show", short_help="Show the public key of a key.")
@click.argument("key")
@JSON_OPTION
def show_command(key: str, as_json: bool) -> None:
    """Show the public key of a key; needs no passphrase and no PIN.

    Exit status: 0 shown, 2 invalid input, 4 a token or key service is not available.
    """
    from bundle.trust.public_keys import key_digest
    from keys.key_files import is_encrypted, is_uri
    from keys.signers import read_public_key

    public = read_public_key(key)
    digest = key_digest(public)
    result = {
        "key": key,
        "type": public.keytype,
        "scheme": public.scheme,
        "key_id": public.keyid,
        "public_key_sha256": digest,
        "public": public.keyval["public"],
        "encrypted": is_uri(key) or is_encrypted(Path(key)),
    }
    print_result(result, as_json=as_json, text=f"{key}: {public.scheme} key {public.keyid} (public key {digest})")


@keys.command("public", short_help="Write a public key as a PEM file.")
@click.argument("key")
@click.option("-o", "--output", "out", type=PATH, required=True, help="PEM file to write.")
@JSON_OPTION
def public_command(key: str, out: Path, as_json: bool) -> None:
    """Write a public key as a PEM file, to be listed in a repository's role.

    Exit status: 0 written, 2 invalid input, or the file exists already, 4 a token or key service is not available.
    """
    from bundle.trust.public_keys import key_digest
    from keys.errors import KeyExists
    from keys.key_files import encode_public_pem
    from keys.signers import read_public_key

    public = read_public_key(key)
    digest = key_digest(public)
    try:
        with out.open("xb") as file:
            file.write(encode_public_pem(public))
    except FileExistsError as error:
        raise KeyExists(f"{out} exists already", hint="choose another name with -o") from error
    result = {"key": key, "file": str(out), "key_id": public.keyid, "public_key_sha256": digest}
    print_result(result, as_json=as_json, text=f"{out}: {public.scheme} key {public.keyid} (public key {digest})")


@keys.command("check", short_help="Check that a key can sign.")
@click.argument("key")
@PASSPHRASE_OPTION
@JSON_OPTION
def check_command(key: str, passphrase_file: Path | None, as_json: bool) -> None:
    """Check that a key can sign: open it with its passphrase or PIN, and sign a test message.

    Exit status: 0 the key works, 2 the file is damaged or the passphrase is wrong, 4 the token or key service is not
    available, or the PIN is wrong.
    """
    from keys.key_files import is_encrypted, is_uri
    from keys.passphrase import read_passphrase
    from keys.signers import load_source_signer

    needs_passphrase = not is_uri(key) and is_encrypted(Path(key))
    passphrase = read_passphrase(passphrase_file, what=key) if needs_passphrase else None
    signer = load_source_signer(key, passphrase, passphrase_file)
    message = b"airweights key check"
    signer.public_key.verify_signature(signer.sign(message), message)
    result = {"key": key, "key_id": signer.public_key.keyid, "works": True}
    print_result(result, as_json=as_json, text=f"{key} can sign: key {signer.public_key.keyid}")
