"""Options that several commands share, and the keys that they name."""

from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

if TYPE_CHECKING:
    from securesystemslib.signer import Key, Signer

    from bundle.frames import Secret

PATH: Final = click.Path(path_type=Path)
MAX_BASES: Final = 60  # release_file.MAX_BASES; not imported here, so that help is fast
JSON_OPTION: Final = click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
REPO_OPTION: Final = click.option(
    "--repo", type=PATH, default=Path(), envvar="PACKAGER_REPO", help="The repository's folder; default: here."
)
KEY_OPTION: Final = click.option(
    "--key", "uris", multiple=True, help="A key file or key URI (hsm:…, awskms:…, hv:…); several times for several."
)
KEYS_OPTION: Final = click.option("--keys", "key_dir", type=PATH, help="Folder with the keys that are here.")
PASSPHRASE_OPTION: Final = click.option(
    "--passphrase-file", type=PATH, help="File with the passphrase; else PACKAGER_PASSPHRASE, else a prompt."
)


def load_signers(uris: tuple[str, ...], key_dir: Path | None, passphrase_file: Path | None) -> "list[Signer]":
    """Signers of `--key` and `--keys`. Raises UsageInvalid, and errors of keys."""
    from keys.key_files import is_uri
    from keys.signers import load_folder_signers, load_source_signer
    from packager.errors import InvalidUsage

    if not uris and key_dir is None:
        raise InvalidUsage("no key is given", hint="--keys FOLDER, or --key FILE_OR_URI")
    files = tuple(uri for uri in uris if not is_uri(uri))
    passphrase = read_key_passphrase(passphrase_file, key_dir, files) if files or key_dir else None
    found = [load_source_signer(uri, passphrase, passphrase_file) for uri in uris]
    return found + (load_folder_signers(key_dir, passphrase) if key_dir is not None else [])


def load_public_keys(uris: tuple[str, ...], key_dir: Path | None) -> "list[Key]":
    """Public halves of `--key` and `--keys`; needs no passphrase. Raises UsageInvalid, and errors of keys."""
    from keys.key_files import load_public_key
    from keys.signers import list_key_files, read_public_key
    from packager.errors import InvalidUsage

    if not uris and key_dir is None:
        raise InvalidUsage("no key is given", hint="--keys FOLDER, or --key FILE_OR_URI")
    found = [read_public_key(uri) for uri in uris]
    return found + ([load_public_key(file) for file in list_key_files(key_dir)] if key_dir is not None else [])


def read_key_passphrase(
    passphrase_file: Path | None, key_dir: Path | None, files: tuple[str, ...] = ()
) -> "Secret | None":
    """The passphrase of key files, or None where none of them is encrypted."""
    from keys.key_files import is_encrypted
    from keys.passphrase import read_passphrase
    from keys.signers import list_key_files

    paths = [Path(file) for file in files] + (list_key_files(key_dir) if key_dir else [])
    if passphrase_file is None and paths and not any(is_encrypted(path) for path in paths):
        return None
    return read_passphrase(passphrase_file, what="signing keys")


def check_output(out: Path, *sources: Path | None) -> None:
    """That nothing which is read would be written over. Raises OutputExists."""
    from packager.errors import OutputExists

    for source in sources:
        if source is not None and source.exists() and out.exists() and out.samefile(source):
            raise OutputExists(f"{out} is what would be read", hint="name another file with -o")
