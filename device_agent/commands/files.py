"""`device-agent files`: read the verified files of the active release, or run a program on them."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from bundle import console
from bundle.errors import InvalidUsage
from device_agent.commands.daemon_or_offline import JSON_OPTION, REQUIRED_FAMILY_OPTION
from device_agent.config.config import load_config
from device_agent.config.families import require_one_family
from device_agent.errors import DaemonNotRunning, FileUnknown, ProgramMissing

if TYPE_CHECKING:
    from device_agent.apps.client import AppClient, BorrowedBundle

SOCKET_OPTION = click.option(
    "--socket",
    "socket_path",
    type=click.Path(path_type=Path),
    help="Socket for applications; without it, AIRWEIGHTS_APPS_SOCKET or the configuration names it.",
)


@click.group(short_help="Read the verified files of the active release.")
def files() -> None:
    """Read the verified files of the active release, or run a program on them.

    A running daemon lends them to the users that its configuration allows. Without a daemon, the owner of the device
    reads them from the store.

    The environment variable AIRWEIGHTS_FAMILY names the family, unless --family does. Then AIRWEIGHTS_APPS_SOCKET can
    name the socket, and the configuration is not read.
    """


@files.command("list", short_help="List the files of the active release.")
@REQUIRED_FAMILY_OPTION
@SOCKET_OPTION
@JSON_OPTION
@click.pass_obj
def files_list(path: Path, family: str | None, socket_path: Path | None, *, as_json: bool) -> None:
    """List the files of the active release: path, role, size and digest."""
    with _Borrower(path, family, socket_path) as borrower:
        bundle = borrower.list()
    release = bundle.release
    result = {
        "family": release.family,
        "release": release.release,
        "variant": release.variant,
        "bundle": release.bundle,
        "files": [file.as_json() for file in bundle.files],
    }
    rows = [f"{file.role:<14}{file.size:>14,}  {file.sha256[:16]}  {file.path}" for file in bundle.files]
    console.print_result(result, as_json=as_json, text=[f"{release.family} {release.release}", *rows])


@files.command("cat", short_help="Write one file to standard output.")
@click.argument("name")
@REQUIRED_FAMILY_OPTION
@SOCKET_OPTION
@click.pass_obj
def files_cat(path: Path, name: str, family: str | None, socket_path: Path | None) -> None:
    """Write the file NAME to standard output.

    NAME is a path in the bundle, a role such as labels, or a file name.
    """
    with _Borrower(path, family, socket_path) as borrower:
        wanted = borrower.list().find(name)
        with borrower.open([wanted.path]) as bundle:
            offset, fd = 0, bundle.fds[wanted.path]
            output = sys.stdout.buffer
            while part := os.pread(fd, 1 << 20, offset):
                output.write(part)
                offset += len(part)
            output.flush()


@files.command(
    "exec",
    short_help="Run a program with the files as open descriptors.",
    context_settings={"ignore_unknown_options": True},
)
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
@click.option(
    "--on-swap",
    type=click.Choice(("keep", "restart", "signal")),
    default="keep",
    show_default=True,
    help="When another release serves: keep the program, start it again, or send it SIGHUP.",
)
@REQUIRED_FAMILY_OPTION
@SOCKET_OPTION
@click.pass_obj
def files_exec(path: Path, command: Sequence[str], on_swap: str, family: str | None, socket_path: Path | None) -> None:
    """Run COMMAND with the files of the active release.

    In the arguments, {NAME} is replaced by a path under /proc/self/fd, where NAME is a path in the bundle, a role or a
    file name. The program reads the file there, unchanged: nothing is written to disk.

    Example: `device-agent files exec -- wc -l {labels}`.
    """
    from device_agent.apps.run_program import run_program

    if on_swap == "keep":
        with _Borrower(path, family, socket_path) as borrower:
            bundle = borrower.open([])
            arguments = [_replace_names(argument, bundle) for argument in command]
            for fd in bundle.fds.values():
                os.set_inheritable(fd, True)
            sys.stdout.flush()
            try:
                os.execvp(arguments[0], arguments)  # noqa: S606  # the user's own command
            except OSError as error:
                raise ProgramMissing(f"cannot run {arguments[0]!r}: {error.strerror}") from error
    with _Borrower(path, family, socket_path) as borrower:
        client, name = borrower.require_client()
        sys.exit(run_program(client, name, lambda bundle: [_replace_names(one, bundle) for one in command], on_swap))


def _replace_names(argument: str, bundle: "BorrowedBundle") -> str:
    """Return an argument with each {NAME} replaced by the path of a borrowed file; other braces stay."""
    out, rest = "", argument
    while True:
        before, brace, after = rest.partition("{")
        name, closing, tail = after.partition("}")
        if not brace or not closing:
            return out + rest
        try:
            out += before + bundle.path(name)
        except FileUnknown:
            if name and all(character.isalnum() or character in "._-/" for character in name):
                raise
            out += f"{before}{{{name}}}"
        rest = tail


class _Borrower:
    """Borrows files from the running daemon, or from the store if no daemon runs."""

    def __init__(self, path: Path, family: str | None, socket_path: Path | None) -> None:
        self._path, self._family, self._socket_path = path, family, socket_path
        self._client: AppClient | None = None

    def __enter__(self) -> "_Borrower":
        from device_agent.apps.client import AppClient
        from device_agent.process.unix_socket import APPS_SOCKET_VARIABLE, FAMILY_VARIABLE

        family = self._family or os.environ.get(FAMILY_VARIABLE) or None
        socket_path = self._socket_path
        if socket_path is None and family is not None and os.environ.get(APPS_SOCKET_VARIABLE):
            socket_path = Path(os.environ[APPS_SOCKET_VARIABLE])
        if socket_path is not None:
            if family is None:
                raise InvalidUsage("--socket needs --family", hint="name the family: --family NAME")
            self._client, self._name = AppClient(socket_path), family
            return self
        from device_agent.storage.device_directory import DeviceDirectory

        self._config = load_config(self._path)
        self._name = require_one_family(self._config.families, family)
        device = DeviceDirectory(self._config.directory)
        device.check_initialized()
        try:
            self._client = AppClient(self._config.serve.apps_socket or device.apps_path)
        except DaemonNotRunning:
            self._client = None
        return self

    def __exit__(self, *_: object) -> None:
        if self._client is not None:
            self._client.close()

    def list(self) -> "BorrowedBundle":
        if self._client is not None:
            return self._client.list(self._name)
        from device_agent.commands.offline import borrow_offline

        return borrow_offline(self._config, self._name, None)

    def open(self, paths: Sequence[str]) -> "BorrowedBundle":
        """Borrow the files with these paths, or all if there are none."""
        if self._client is not None:
            return self._client.open(self._name, paths=paths)
        from device_agent.commands.offline import borrow_offline

        return borrow_offline(self._config, self._name, paths)

    def require_client(self) -> "tuple[AppClient, str]":
        """Return the connection to the daemon and the family."""
        if self._client is None:
            raise DaemonNotRunning(
                "no daemon runs: a swap can only be watched while one does", hint="start one with `device-agent run`"
            )
        return self._client, self._name
