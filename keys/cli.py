"""`packager keys …`: make and look at key files."""

from pathlib import Path
from typing import Final

import click

from bundle.console import print_result

PATH: Final = click.Path(path_type=Path)
JSON_OPTION: Final = click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
ALGORITHMS: Final = ("ed25519", "ml-dsa-65", "ecdsa-p256")  # keys.files.SIGNING_ALGORITHMS; a test keeps them equal


@click.group("keys")
def keys() -> None:
    """Make and look at signing keys.

    A role needs both kinds of key, and a threshold that neither kind meets alone.
    """


@keys.command("new")
@click.argument("file", type=PATH)
@click.option("--algorithm", type=click.Choice(ALGORITHMS), required=True)
@click.option("--insecure-plaintext", is_flag=True, help="Write the key without encryption. For trying out only.")
@click.option("--passphrase-file", type=PATH, help="File with the passphrase; else PACKAGER_PASSPHRASE, else a prompt.")
@JSON_OPTION
def new_command(
    file: Path, algorithm: str, insecure_plaintext: bool, passphrase_file: Path | None, as_json: bool
) -> None:
    """Make a new signing key in FILE, which must not be there yet.

    Exit status: 0 made, 2 wrong input, 4 no space.
    """
    from keys.files import generate_key_file
    from keys.passphrase import read_passphrase

    passphrase = None if insecure_plaintext else read_passphrase(passphrase_file, what=str(file), is_new=True)
    public = generate_key_file(file, algorithm, passphrase, insecure_plaintext=insecure_plaintext)
    result = {"file": str(file), "algorithm": algorithm, "key_id": public.keyid, "encrypted": passphrase is not None}
    print_result(result, as_json=as_json, text=f"{file}: {algorithm} key {public.keyid}")


@keys.command("show")
@click.argument("file", type=PATH)
@JSON_OPTION
def show_command(file: Path, as_json: bool) -> None:
    """Show the public half of a key file; needs no passphrase.

    Exit status: 0 shown, 2 wrong input.
    """
    from bundle.trust.client import key_digest
    from keys.files import is_encrypted, load_public

    public = load_public(file)
    result = {
        "file": str(file),
        "type": public.keytype,
        "scheme": public.scheme,
        "key_id": public.keyid,
        "public_key_sha256": key_digest(public),
        "public": public.keyval["public"],
        "encrypted": is_encrypted(file),
    }
    print_result(result, as_json=as_json, text=f"{file}: {public.scheme} key {public.keyid}")


@keys.command("check")
@click.argument("file", type=PATH)
@click.option("--passphrase-file", type=PATH, help="File with the passphrase; else PACKAGER_PASSPHRASE, else a prompt.")
@JSON_OPTION
def check_command(file: Path, passphrase_file: Path | None, as_json: bool) -> None:
    """Open a key file and sign something with it: is the file whole, and is this its passphrase?

    Exit status: 0 it works, 2 damaged, or another passphrase.
    """
    from keys.files import is_encrypted, load_signer
    from keys.passphrase import read_passphrase

    passphrase = read_passphrase(passphrase_file, what=str(file)) if is_encrypted(file) else None
    signer = load_signer(file, passphrase)
    message = b"airweights key check"
    signer.public_key.verify_signature(signer.sign(message), message)
    result = {"file": str(file), "key_id": signer.public_key.keyid, "works": True}
    print_result(result, as_json=as_json, text=f"{file} works: key {signer.public_key.keyid}")
