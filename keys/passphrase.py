"""Where a passphrase comes from: a file, the environment, or a prompt. Never the command line, which others can read.

Rules:
1. In this order: the file that was named, the variable PACKAGER_PASSPHRASE, a prompt where there is a terminal. A
   token's PIN: before these the variable PACKAGER_PIN, since a machine may use a token and key files at once.
2. A file's first line counts, without its line end. A file that others may read is refused.
3. A new passphrase is asked for twice, and is at least MIN_CHARACTERS long.
"""

import getpass
import os
import stat
import sys
from pathlib import Path
from typing import Final

from bundle.frames import Secret
from keys.errors import KeyMissing, PassphraseMissing

PASSPHRASE_VARIABLE: Final = "PACKAGER_PASSPHRASE"  # noqa: S105  # a name
PIN_VARIABLE: Final = "PACKAGER_PIN"
MIN_PASSPHRASE_CHARACTERS: Final = 8
MAX_PASSPHRASE_BYTES: Final = 1024


def read_passphrase(file: Path | None, *, what: str, is_new: bool = False) -> Secret:
    """Rule 1.

    Args:
        file: the file that was named, or None.
        what: for the prompt, for example "signing keys".
        is_new: will it encrypt something new (rule 3)?

    Raises:
        KeyMissing: the file is not there.
        PassphraseMissing: nothing given and nobody to ask, or too short, or the file is open to others.
    """
    if file is not None:
        found = _read_file(file)
    elif PASSPHRASE_VARIABLE in os.environ:
        found = os.environ[PASSPHRASE_VARIABLE]
    elif sys.stdin.isatty() and sys.stderr.isatty():
        found = _prompt(what, is_new=is_new)
    else:
        raise PassphraseMissing(
            f"a passphrase for {what} is needed, and there is no terminal to ask at",
            hint=f"give --passphrase-file, or set {PASSPHRASE_VARIABLE}",
        )
    if is_new and len(found) < MIN_PASSPHRASE_CHARACTERS:
        raise PassphraseMissing(
            f"a passphrase of {len(found)} characters, expected at least {MIN_PASSPHRASE_CHARACTERS}"
        )
    if not found:
        raise PassphraseMissing(f"the passphrase for {what} is empty")
    return Secret(found.encode())


def read_pin(file: Path | None, *, uri: str) -> Secret:
    """The PIN of the token that a key URI names (rule 1). Raises as `read_passphrase`."""
    if PIN_VARIABLE in os.environ:
        return Secret(os.environ[PIN_VARIABLE].encode())
    return read_passphrase(file, what=f"the token of {uri} (its PIN)")


def _read_file(file: Path) -> str:
    try:
        mode = file.stat().st_mode
        data = file.read_bytes()
    except FileNotFoundError as error:
        raise KeyMissing(f"there is no passphrase file {file}") from error
    except IsADirectoryError as error:
        raise KeyMissing(f"{file} is a folder, expected a passphrase file") from error
    if stat.S_ISREG(mode) and mode & 0o077:
        raise PassphraseMissing(
            f"passphrase file {file} has mode {stat.S_IMODE(mode):o}, expected 600", hint=f"chmod 600 {file}"
        )
    if len(data) > MAX_PASSPHRASE_BYTES:
        raise PassphraseMissing(
            f"passphrase file {file} is {len(data)} bytes, at most {MAX_PASSPHRASE_BYTES} are allowed"
        )
    try:
        lines = data.decode().splitlines()
    except UnicodeDecodeError as error:
        raise PassphraseMissing(f"passphrase file {file} is not UTF-8 text") from error
    return lines[0] if lines else ""


def _prompt(what: str, *, is_new: bool) -> str:
    first = getpass.getpass(f"Passphrase for {what}: ", stream=sys.stderr)
    if is_new and getpass.getpass("The same again: ", stream=sys.stderr) != first:
        raise PassphraseMissing("the two passphrases differ")
    return first
