"""Read passphrases and PINs from a file, the environment or a prompt, never from the command line.

Other users of the machine can read a command line.

- Order: the named file, the variable PACKAGER_PASSPHRASE, a prompt if there is a terminal. For a token's PIN, the
  variable PACKAGER_PIN comes first, since a command may use a token and key files together.
- Only the first line of a file counts, without its line end. A file that other users can read is refused.
- A new passphrase is prompted for twice and has at least MIN_PASSPHRASE_CHARACTERS characters.
"""

import getpass
import os
import select
import stat
import sys
import time
from pathlib import Path
from typing import Final

from bundle.errors import TooLarge
from bundle.frames import Secret
from bundle.local_files import decode_text, missing_file_hint, read_local_file
from keys.errors import KeyMissing, PassphraseMissing

PASSPHRASE_VARIABLE: Final = "PACKAGER_PASSPHRASE"  # noqa: S105  # a name
PIN_VARIABLE: Final = "PACKAGER_PIN"
MIN_PASSPHRASE_CHARACTERS: Final = 8
MAX_PASSPHRASE_BYTES: Final = 1024
PIPE_TIMEOUT_S: Final = 10.0


def read_passphrase(file: Path | None, *, what: str, is_new: bool = False) -> Secret:
    """Read a passphrase from the file, PACKAGER_PASSPHRASE or a prompt, in this order.

    Args:
        file: the value of `--passphrase-file`, or None.
        what: what the passphrase opens, for the prompt and messages, for example "signing keys".
        is_new: the passphrase will encrypt a new key: prompt twice, and check its length.

    Raises:
        KeyMissing: the file does not exist.
        PassphraseMissing: there is no passphrase and no terminal, it is empty or too short, the two entries differ, or
            other users can read the file.
    """
    if file is not None:
        found = _read_file(file)
    elif PASSPHRASE_VARIABLE in os.environ:
        found = os.environ[PASSPHRASE_VARIABLE]
    elif sys.stdin.isatty() and sys.stderr.isatty():
        found = _prompt(what, is_new=is_new)
    else:
        raise PassphraseMissing(
            f"a passphrase for {what} is needed, and there is no terminal for a prompt",
            hint=f"give --passphrase-file, or set {PASSPHRASE_VARIABLE}",
        )
    if is_new and len(found) < MIN_PASSPHRASE_CHARACTERS:
        raise PassphraseMissing(
            f"the passphrase for {what} has {len(found)} characters, expected at least {MIN_PASSPHRASE_CHARACTERS}"
        )
    if not found:
        raise PassphraseMissing(f"the passphrase for {what} is empty")
    return Secret(found.encode())


def read_pin(file: Path | None, *, uri: str) -> Secret:
    """Read the PIN of a token from PACKAGER_PIN, else like a passphrase.

    Args:
        file: the value of `--passphrase-file`, or None.
        uri: the key URI that names the token, for the prompt and messages.

    Raises:
        KeyMissing: the file does not exist.
        PassphraseMissing: there is no PIN and no terminal, it is empty, or other users can read the file.
    """
    if PIN_VARIABLE in os.environ:
        return Secret(os.environ[PIN_VARIABLE].encode())
    return read_passphrase(file, what=f"the token of {uri} (its PIN)")


def _read_file(file: Path) -> str:
    try:
        mode = file.stat().st_mode
        data = _read_pipe(file) if stat.S_ISFIFO(mode) else read_local_file(file, MAX_PASSPHRASE_BYTES)
    except FileNotFoundError as error:
        raise KeyMissing(f"there is no passphrase file {file}", hint=missing_file_hint(file)) from error
    except IsADirectoryError as error:
        raise KeyMissing(f"{file} is a folder, expected a passphrase file") from error
    except TooLarge as error:
        raise PassphraseMissing(f"passphrase file {error.message}") from error
    if stat.S_ISREG(mode) and mode & 0o077:
        raise PassphraseMissing(
            f"passphrase file {file} has mode {stat.S_IMODE(mode):o}, expected 600", hint=f"run `chmod 600 {file}`"
        )
    try:
        lines = decode_text(data, where=f"passphrase file {file}").splitlines()
    except UnicodeDecodeError as error:
        raise PassphraseMissing(f"passphrase file {file} is not UTF-8 text") from error
    return lines[0] if lines else ""


def _read_pipe(file: Path) -> bytes:
    """Read a FIFO, such as a shell's `<(command)`, that is written within PIPE_TIMEOUT_S seconds."""
    descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    data, deadline = b"", time.monotonic() + PIPE_TIMEOUT_S
    try:
        while len(data) <= MAX_PASSPHRASE_BYTES:
            readable, _, _ = select.select([descriptor], [], [], max(0.0, deadline - time.monotonic()))
            if not readable:
                raise PassphraseMissing(f"nothing was written to the pipe {file} within {PIPE_TIMEOUT_S:g} s")
            chunk = os.read(descriptor, MAX_PASSPHRASE_BYTES)
            if not chunk:
                return data
            data += chunk
    finally:
        os.close(descriptor)
    raise PassphraseMissing(f"passphrase file {file} has more than {MAX_PASSPHRASE_BYTES} bytes")


def _prompt(what: str, *, is_new: bool) -> str:
    first = getpass.getpass(f"Passphrase for {what}: ", stream=sys.stderr)
    if is_new and getpass.getpass("Repeat the passphrase: ", stream=sys.stderr) != first:
        raise PassphraseMissing("the two passphrases differ")
    return first
