"""The client of `apps.sock`: borrow files, watch swaps, send verdicts. Standard library only.

with AppClient("/run/device-agent/apps.sock") as client:
    with client.open("kws") as bundle:
        labels = bundle.read("labels/labels.txt")
"""

import contextlib
import mmap
import os
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final

from bundle.errors import Malformed
from bundle.files import BundleFile, parse_files
from bundle.strict_json import StrictObject
from bundle.tflite_interface import TFLITE_IDENTIFIER
from device_agent.apps.protocol import PROTOCOL_VERSION
from device_agent.errors import DaemonNotRunning, FileUnknown, error_from_dict
from device_agent.process.channel import ChannelClosed, Message, receive_message, send_message
from device_agent.process.unix_socket import APPS_SOCKET_VARIABLE, ShortSocketPath
from device_agent.runtime.bundle_fds import DEFAULT_RUNTIME, BundleFds


@dataclass(frozen=True, slots=True)
class ServingRelease:
    """The release of a family that serves.

    Attributes:
        family: name of the family.
        release: version of the release.
        variant: name of its variant.
        bundle: digest of its bundle.
        generation: number of the generation; another number means that another load serves.
    """

    family: str
    release: str
    variant: str
    bundle: str
    generation: int

    @classmethod
    def parse(cls, value: Mapping[str, Any]) -> "ServingRelease":
        """Return the fields of a reply."""
        return cls(
            str(value["family"]),
            str(value["release"]),
            str(value["variant"]),
            str(value["bundle"]),
            int(value["generation"]),
        )


@dataclass(frozen=True, slots=True)
class BorrowedModel:
    """A model that the agent runs too.

    Attributes:
        name: its name in the bundle.
        file: path of its file.
        golden: path of its golden vectors, or None.
    """

    name: str
    file: str
    golden: str | None


class BorrowedBundle:
    """Files of one release, borrowed from the agent. Use it as a context manager.

    Attributes:
        release: the release that they belong to.
        files: the files, sorted by path.
        fds: a read-only descriptor of a sealed memory file, by path; empty if the files were only listed.
        models: the models that the agent runs too; empty for a release of runtime "app" or "none".
        on_close: called by `close`, or None.
    """

    def __init__(
        self,
        release: ServingRelease,
        files: Sequence[BundleFile],
        fds: Mapping[str, int],
        models: Sequence[BorrowedModel] = (),
    ) -> None:
        self.release, self.files, self.fds, self.models = release, tuple(files), dict(fds), tuple(models)
        self.on_close: Callable[[], None] | None = None

    def __enter__(self) -> "BorrowedBundle":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def find(self, name: str) -> BundleFile:
        """Return the file with a path, or the only one with a role or a file name.

        Args:
            name: a path ("labels/labels.txt"), a role ("labels") or a file name ("labels.txt").

        Raises:
            FileUnknown: no file has the name, or several have it.
        """
        for attribute in ("path", "role", "name"):
            found = [file for file in self.files if _attribute(file, attribute) == name]
            if len(found) == 1:
                return found[0]
            if found:
                raise FileUnknown(
                    f"release {self.release.release} has {len(found)} files {name!r}",
                    hint=f"name one by its path: {', '.join(file.path for file in found)}",
                )
        raise FileUnknown(
            f"release {self.release.release} of {self.release.family!r} has no file {name!r}",
            hint=f"it has: {', '.join(file.path for file in self.files)}",
        )

    def read(self, name: str) -> bytes:
        """Return the content of a file (`find`)."""
        file = self.find(name)
        out = bytearray()
        while len(out) < file.size:
            part = os.pread(self.fds[file.path], min(1 << 24, file.size - len(out)), len(out))
            if not part:
                raise Malformed(f"{file.path}: {len(out)} bytes, {file.size} expected")
            out += part
        return bytes(out)

    def map(self, name: str) -> mmap.mmap:
        """Return a read-only mapping of a file (`find`), which must not be empty; nothing is copied."""
        file = self.find(name)
        return mmap.mmap(self.fds[file.path], file.size, prot=mmap.PROT_READ)

    def path(self, name: str) -> str:
        """Return a path that this process can open, for libraries that take file names only."""
        return f"/proc/self/fd/{self.fds[self.find(name).path]}"

    def model_files(self, name: str | None = None) -> BundleFds:
        """Return the files of a model for ModelRuntime; their descriptors belong to this bundle.

        Args:
            name: name, path or file name of the model; None for the only one.

        Raises:
            FileUnknown: the bundle has no such model, or several models and no name is given.
        """
        for model in self.models:
            if model.name == name or (name is None and len(self.models) == 1):
                return self._model_files(model.file, model.golden)
        golden = [file.path for file in self.files if file.role == "golden"]
        return self._model_files(self.find(name or "model").path, golden[0] if len(golden) == 1 else None)

    def _model_files(self, model: str, golden: str | None) -> BundleFds:
        folder = f"{model.rpartition('/')[0]}/"
        external = [file.path for file in self.files if file.role == "external-data" and file.path.startswith(folder)]
        fds = {path: self.fds[path] for path in (model, golden, *external) if path is not None}
        runtime = "litert" if os.pread(self.fds[model], 4, 4) == TFLITE_IDENTIFIER else DEFAULT_RUNTIME
        return BundleFds(fds, model, golden, tuple(external), runtime=runtime)

    def close(self) -> None:
        """Close all descriptors and end the loan; a second call does nothing."""
        for fd in self.fds.values():
            os.close(fd)
        self.fds.clear()
        if self.on_close is not None:
            self.on_close()


def _attribute(file: BundleFile, attribute: str) -> str:
    return file.role if attribute == "role" else file.path.rpartition("/")[2] if attribute == "name" else file.path


DEFAULT_SOCKET: Final = "/run/device-agent/apps.sock"


def open_bundle(family: str, socket_path: str | Path | None = None, *, roles: Sequence[str] = ()) -> BorrowedBundle:
    """Return the files of a family's serving release; its connection closes with the bundle.

    Args:
        family: name of the family.
        socket_path: path of the agent's socket; None: the environment variable AIRWEIGHTS_APPS_SOCKET, else
            DEFAULT_SOCKET.
        roles: roles of the wanted files; empty means all.

    Raises:
        DaemonNotRunning: no daemon listens there.
        AirweightsError: as `AppClient.open`.
    """
    with AppClient(socket_path or os.environ.get(APPS_SOCKET_VARIABLE, DEFAULT_SOCKET)) as client:
        return client.open(family, roles=roles)


class AppClient:
    """A connection to the agent's socket for applications. Use it from one thread at a time.

    Each borrowed bundle has a connection of its own: the agent counts its memory until the bundle is closed.

    Args:
        path: path of the socket.

    Raises:
        DaemonNotRunning: no daemon listens there.
    """

    def __init__(self, path: str | Path) -> None:
        self._path = Path(path)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            with ShortSocketPath(self._path) as address:
                self._socket.connect(address)
        except OSError as error:
            self._socket.close()
            raise DaemonNotRunning(
                f"no daemon lends files at {self._path}: {error.strerror}", hint="start one with `device-agent run`"
            ) from error

    def __enter__(self) -> "AppClient":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def path(self) -> Path:
        """The path of the socket."""
        return self._path

    def close(self) -> None:
        """Close the connection; borrowed bundles stay open.

        A thread that waits in `watch` gets DaemonNotRunning.
        """
        with contextlib.suppress(OSError):  # the daemon has closed it
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def list(self, family: str) -> BorrowedBundle:
        """Return the files of the serving release, without borrowing them.

        Raises:
            AirweightsError: the agent refused.
        """
        return self._receive_bundle({"command": "list", "family": family})

    def open(self, family: str, *, roles: Sequence[str] = (), paths: Sequence[str] = ()) -> BorrowedBundle:
        """Return files of the serving release, borrowed from the agent.

        Args:
            family: name of the family.
            roles: roles of the wanted files; empty means all.
            paths: paths of the wanted files; empty means all.

        Raises:
            NotAllowed: this process may not read the family.
            NothingServed: no release of the family serves.
            FileUnknown: no file matches.
            LendLimitReached: this process holds files of too many releases.
            DaemonNotRunning: the daemon has ended.
        """
        request: dict[str, Any] = {"command": "open", "family": family}
        if roles:
            request["roles"] = list(roles)
        if paths:
            request["paths"] = list(paths)
        lending = AppClient(self._path)
        try:
            bundle = lending._receive_bundle(request)
        except BaseException:
            lending.close()
            raise
        bundle.on_close = lending.close
        return bundle

    def watch(self, family: str) -> Iterator[ServingRelease | None]:
        """Yield the serving release now and after each change; None while nothing serves.

        Raises:
            NotAllowed: this process may not read the family.
            DaemonNotRunning: the daemon has ended.
        """
        value = self._call({"command": "watch", "family": family}).value
        while True:
            yield ServingRelease.parse(value) if value["event"] == "serving" else None
            value = self._receive().value

    def send_verdict(
        self, bundle: BorrowedBundle, *, is_healthy: bool, reason: str = "", latency_us: int | None = None
    ) -> bool:
        """Send a health verdict on a borrowed release, and return whether it counts.

        Args:
            bundle: the borrowed release.
            is_healthy: the verdict; an unhealthy one ends a probation.
            reason: cause of an unhealthy verdict, at most 200 printable characters.
            latency_us: median latency of inferences in microseconds, or None.

        Raises:
            NotAllowed: this process is no judge of the family.
            ReleaseReplaced: another release serves now.
        """
        request: dict[str, Any] = {"command": "verdict", "family": bundle.release.family, "is_healthy": is_healthy}
        request |= {"bundle": bundle.release.bundle, "why": reason}
        if latency_us is not None:
            request["latency_us"] = latency_us
        return bool(self._call(request).value["counted"])

    def _receive_bundle(self, request: Mapping[str, Any]) -> BorrowedBundle:
        files: list[BundleFile] = []
        fds: dict[str, int] = {}
        message = self._call(request)
        while True:
            rows = [StrictObject(row, "file") for row in message.value["files"]]
            part = parse_files(rows)
            files += part
            if message.fds:
                fds.update(zip((file.path for file in part), message.fds, strict=True))
            if message.value["is_last"]:
                models = [BorrowedModel(row["name"], row["file"], row["golden"]) for row in message.value["models"]]
                return BorrowedBundle(ServingRelease.parse(message.value), files, fds, models)
            message = self._receive_reply()

    def _call(self, request: Mapping[str, Any]) -> Message:
        try:
            send_message(self._socket, {"version": PROTOCOL_VERSION, **request})
        except (ChannelClosed, OSError) as error:
            raise DaemonNotRunning(f"the daemon at {self._path} has ended: {error}") from error
        return self._receive_reply()

    def _receive_reply(self) -> Message:
        message = self._receive()
        if "error" in message.value:
            message.close()
            raise error_from_dict(message.value["error"])
        return Message(message.value["ok"], message.fds)

    def _receive(self) -> Message:
        try:
            return receive_message(self._socket)
        except (ChannelClosed, OSError) as error:
            raise DaemonNotRunning(f"the daemon at {self._path} has ended: {error}") from error
