"""`packager keys …`: make and look at keys, in files and in tokens."""

from pathlib import Path
from typing import Final

import click

from bundle.console import print_result

PATH: Final = click.Path(path_type=Path)
JSON_OPTION: Final = click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
PASSPHRASE_OPTION: Final = click.option(
    "--passphrase-file",
    type=PATH,
    help="File with the passphrase or PIN; else PACKAGER_PASSPHRASE (tokens: PACKAGER_PIN), else a prompt.",
)
ALGORITHMS: Final = ("ed25519", "ml-dsa-65", "ecdsa-p256")  # keys.key_files.SIGNING_ALGORITHMS; a test keeps them equal


@click.group("keys")
def keys() -> None:
    """Make and look at signing keys.

    A role needs both kinds of key, and a threshold that neither kind meets alone.

    Where a KEY is asked for, it is a key file or a key URI: hsm:2?label=TOKEN (PKCS#11), awskms:…, gcpkms:…,
    azurekms:…, hv:….
    """


@keys.command("new")
@click.argument("key")
@click.option("--algorithm", type=click.Choice(ALGORITHMS), required=True)
@click.option("--insecure-plaintext", is_flag=True, help="Write the key without encryption. For trying out only.")
@PASSPHRASE_OPTION
@JSON_OPTION
def new_command(
    key: str, algorithm: str, insecure_plaintext: bool, passphrase_file: Path | None, as_json: bool
) -> None:
    """Make a new signing key: in a file, which must not be there yet, or in a token (hsm:2?label=TOKEN).

    Exit status: 0 made, 2 wrong input, 4 no space, or the token is not available.
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


@keys.command("show")
@click.argument("key")
@JSON_OPTION
def show_command(key: str, as_json: bool) -> None:
    """Show the public half of a key; needs no passphrase and no PIN.

    Exit status: 0 shown, 2 wrong input, 4 a token or key service is not available.
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


@keys.command("public")
@click.argument("key")
@click.option("-o", "--output", "out", type=PATH, required=True, help="The PEM file to write.")
@JSON_OPTION
def public_command(key: str, out: Path, as_json: bool) -> None:
    """Write the public half of a key as a PEM file: what its owner gives to the one who makes the repository.

    Exit status: 0 written, 2 wrong input, or OUT is there already, 4 a token or key service is not available.
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
        raise KeyExists(f"{out} is there already", hint="choose another name") from error
    result = {"key": key, "file": str(out), "key_id": public.keyid, "public_key_sha256": digest}
    print_result(result, as_json=as_json, text=f"{out}: {public.scheme} key {public.keyid} (public key {digest})")


@keys.command("check")
@click.argument("key")
@PASSPHRASE_OPTION
@JSON_OPTION
def check_command(key: str, passphrase_file: Path | None, as_json: bool) -> None:
    """Open a key and sign something with it: is it whole, and is this its passphrase, or its PIN?

    Exit status: 0 it works, 2 damaged, or another passphrase, 4 no token or key service, or another PIN.
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
    print_result(result, as_json=as_json, text=f"{key} works: key {signer.public_key.keyid}")
