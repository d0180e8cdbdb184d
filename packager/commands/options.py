"""Options that several commands share, and functions that load the keys named by them."""

from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

if TYPE_CHECKING:
    from securesystemslib.signer import Key, Signer

    from bundle.frames import Secret

PATH: Final = click.Path(path_type=Path)


class PathOrUrl(click.ParamType):  # type: ignore[type-arg]  # not generic before click 8.2
    """A folder, or the URL of a store, which stays text."""

    name = "path or url"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> Path | str:  # noqa: ARG002
        """Return a URL as it is, and everything else as a path.

        Args:
            value: what was typed.
            param: the option; not used.
            ctx: context of the command; not used.
        """
        return value if isinstance(value, str) and "://" in value else Path(str(value))


MAX_BASES: Final = 60  # packager.release.release_plan.MAX_BASES; not imported here, so that help is fast
JSON_OPTION: Final = click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout.")
REPO_OPTION: Final = click.option(
    "--repo",
    type=PATH,
    default=Path(),
    envvar="PACKAGER_REPO",
    help="Folder of the repository; default: $PACKAGER_REPO, else the current folder.",
)
REPO_OR_URL_OPTION: Final = click.option(
    "--repo",
    type=PathOrUrl(),
    default=Path(),
    envvar="PACKAGER_REPO",
    metavar="PATH|URL",
    help="Folder of the repository, or URL of its master copy; default: $PACKAGER_REPO, else the current folder.",
)
ROOT_OPTION: Final = click.option(
    "--root",
    type=PATH,
    envvar="PACKAGER_ROOT",
    help="The 1.root.json that devices were given, to verify what a store has; default: $PACKAGER_ROOT.",
)
KEY_OPTION: Final = click.option(
    "--key", "uris", multiple=True, help="Sign with this key file or key URI (hsm:…, awskms:…, hv:…). Repeatable."
)
KEYS_OPTION: Final = click.option("--keys", "key_dir", type=PATH, help="Directory of private keys on this machine.")
PASSPHRASE_OPTION: Final = click.option(
    "--passphrase-file",
    type=PATH,
    help="Read the passphrase from this file; default: $PACKAGER_PASSPHRASE, else a prompt.",
)
KEY_HINT: Final = "add --keys FOLDER or --key FILE_OR_URI"


def load_signers(uris: tuple[str, ...], key_dir: Path | None, passphrase_file: Path | None) -> "list[Signer]":
    """Load the private keys that `--key` and `--keys` name.

    The passphrase of encrypted key files is read from a file, the environment or a prompt.

    Args:
        uris: key files and key URIs, the values of `--key`.
        key_dir: a directory of key files, the value of `--keys`.
        passphrase_file: the value of `--passphrase-file`.

    Raises:
        InvalidUsage: neither `uris` nor `key_dir` names a key.
        AirweightsError: a key cannot be loaded (keys.errors).
    """
    from keys.key_files import is_uri
    from keys.signers import load_folder_signers, load_source_signer
    from packager.errors import InvalidUsage

    if not uris and key_dir is None:
        raise InvalidUsage("found no key, expected --key or --keys", hint=KEY_HINT)
    files = tuple(uri for uri in uris if not is_uri(uri))
    passphrase = read_key_passphrase(passphrase_file, key_dir, files) if files or key_dir else None
    found = [load_source_signer(uri, passphrase, passphrase_file) for uri in uris]
    return found + (load_folder_signers(key_dir, passphrase) if key_dir is not None else [])


def load_public_keys(uris: tuple[str, ...], key_dir: Path | None) -> "list[Key]":
    """Load the public halves of the keys that `--key` and `--keys` name; this needs no passphrase.

    Args:
        uris: key files and key URIs, the values of `--key`.
        key_dir: a directory of key files, the value of `--keys`.

    Raises:
        InvalidUsage: neither `uris` nor `key_dir` names a key.
        AirweightsError: a key cannot be read (keys.errors).
    """
    from keys.key_files import load_public_key
    from keys.signers import list_key_files, read_public_key
    from packager.errors import InvalidUsage

    if not uris and key_dir is None:
        raise InvalidUsage("found no key, expected --key or --keys", hint=KEY_HINT)
    found = [read_public_key(uri) for uri in uris]
    return found + ([load_public_key(file) for file in list_key_files(key_dir)] if key_dir is not None else [])


def read_key_passphrase(
    passphrase_file: Path | None, key_dir: Path | None, files: tuple[str, ...] = ()
) -> "Secret | None":
    """Read the passphrase of key files from a file, the environment or a prompt.

    Args:
        passphrase_file: the value of `--passphrase-file`; it wins over the environment.
        key_dir: a directory of key files to open, or None.
        files: key files to open beside those of `key_dir`.

    Returns:
        The passphrase, or None if no key file is encrypted.
    """
    from keys.key_files import is_encrypted
    from keys.passphrase import read_passphrase
    from keys.signers import list_key_files

    paths = [Path(file) for file in files] + (list_key_files(key_dir) if key_dir else [])
    if passphrase_file is None and paths and not any(is_encrypted(path) for path in paths):
        return None
    return read_passphrase(passphrase_file, what="signing keys")


def check_output(out: Path, *sources: Path | None) -> None:
    """Check that writing `out` does not overwrite a file that the command reads.

    Args:
        out: the file to write.
        sources: files that the command reads; None is ignored.

    Raises:
        OutputExists: `out` is one of `sources`, possibly through a link.
    """
    from packager.errors import OutputExists

    for source in sources:
        if source is not None and source.exists() and out.exists() and out.samefile(source):
            raise OutputExists(f"output {out} is the input {source}", hint="name another file with -o")
