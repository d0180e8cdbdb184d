"""`dask://HOST:PORT`: jobs in a Dask cluster, over mutual TLS.

Rules:
1. A process of its own talks to the cluster (packager.executors.dask_gateway): what workers return is unpickled there.
2. Certificates are named by Dask's own variables. Without mutual TLS there is no connection.
3. Every worker has this machine's versions, or the build does not start.
4. Workers see plain models. With an inputs store, they get them sealed (packager.executors.sealed_inputs); otherwise
   they must see the same folders.
5. A job of a worker that died runs again, as Dask does it; what workers return is checked by applying the patch.
"""

import json
import os
import pickle
import secrets
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Final

from bundle.errors import AirweightsError
from packager.diff.run_jobs import JobExecutor
from packager.diff.sources import Source, SourceFinder
from packager.errors import SourceMismatch, SourceMissing
from packager.executors.dask_gateway import GONE_S, NUMBER, read_message
from packager.executors.errors import ExecutorInvalid, WorkerIncompatible, WorkerLost, WorkerOutOfMemory
from packager.executors.results import decode_result
from packager.executors.sealed_inputs import KEY_BYTES, SealedFinder, share_inputs
from packager.stores.open_store import open_store

GATEWAY: Final = "packager.executors.dask_gateway"
JOBS_PER_THREAD: Final = 3
PRIVATE_PREFIXES: Final = ("PACKAGER_",)  # variables with a passphrase
LOST: Final = b"E" + json.dumps({"reason": WorkerLost.reason, "message": "dask: the connection ended"}).encode()
ERRORS: Final[dict[str, type[AirweightsError]]] = {
    error.reason: error
    for error in (SourceMismatch, SourceMissing, ExecutorInvalid, WorkerIncompatible, WorkerLost, WorkerOutOfMemory)
}


class DaskExecutor(JobExecutor):
    """An executor with the workers of a Dask cluster; use it as a context manager.

    Args:
        address: host and port of the scheduler.
        inputs: URL of a store for sealed inputs; None if the workers see this machine's folders.
        gone_s: after this many seconds without any worker, all jobs end with WorkerLost.

    Raises:
        ExecutorInvalid: no certificates are configured.
        WorkerIncompatible: a worker has other versions.
        WorkerLost: the scheduler does not answer, or has no worker.
    """

    def __init__(self, address: str, inputs: str | None = None, gone_s: float = GONE_S) -> None:
        self._inputs, self._key = inputs, secrets.token_bytes(KEY_BYTES)
        self._shared: set[str] = set()
        self._futures: dict[int, Future[Any]] = {}
        self._lock, self._next = threading.Lock(), 1
        environment = {name: text for name, text in os.environ.items() if not name.startswith(PRIVATE_PREFIXES)}
        self._process = subprocess.Popen(
            [sys.executable, "-m", GATEWAY, address, str(gone_s)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
        )
        first = self._read()
        try:
            self.jobs_in_flight = max(JOBS_PER_THREAD * int(str(_open_answer(first[1]))), JOBS_PER_THREAD)
        except AirweightsError:
            self.shutdown()
            raise
        threading.Thread(target=self._receive, name="dask", daemon=True).start()

    def share_sources(self, paths: Mapping[Source, Path]) -> SourceFinder:
        """Seal the files into the store of inputs, if there is one, and return what finds them on a worker."""
        if self._inputs is None:
            return super().share_sources(paths)
        self._shared.update(share_inputs(self._inputs, self._key, paths, self._shared))
        return SealedFinder(self._inputs, self._key)

    def submit(self, function: Callable[..., Any], /, *arguments: Any, **options: Any) -> "Future[Any]":
        """Run a function on a worker.

        Args:
            function: the function, of a module.
            arguments: its arguments.
            options: its keyword arguments; none are supported.
        """
        assert not options
        future: Future[Any] = Future()
        with self._lock:
            number, self._next = self._next, self._next + 1
            self._futures[number] = future
            message = pickle.dumps((number, function, arguments))
            assert self._process.stdin is not None
            try:
                self._process.stdin.write(NUMBER.pack(len(message)) + message)
                self._process.stdin.flush()
            except BrokenPipeError as error:
                raise WorkerLost("the connection to the cluster ended") from error
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:  # noqa: ARG002 - inherited
        """End the connection, and delete the sealed inputs.

        Args:
            wait: not used: jobs that run are dropped.
            cancel_futures: not used.
        """
        self._process.kill()
        self._process.wait()
        if self._inputs is not None and self._shared:
            open_store(self._inputs).delete(sorted(self._shared))
            self._shared.clear()

    def _read(self) -> tuple[int, bytes]:
        assert self._process.stdout is not None
        try:
            message = read_message(self._process.stdout)
        except (MemoryError, OverflowError):  # no message is so long
            message = b""
        if len(message) <= NUMBER.size:
            return 0, LOST
        return NUMBER.unpack(message[: NUMBER.size])[0], message[NUMBER.size :]

    def _receive(self) -> None:
        while True:
            number, answer = self._read()
            with self._lock:
                if number not in self._futures:  # 0: the connection ended; another: no answer to a job
                    number, answer = 0, answer if number == 0 and answer[:1] == b"E" else LOST
                ended = list(self._futures.values()) if number == 0 else [self._futures.pop(number)]
                if number == 0:
                    self._futures.clear()
                    self._process.kill()
            for future in ended:
                try:
                    future.set_result(_open_answer(answer))
                except AirweightsError as error:
                    future.set_exception(error)
            if number == 0:
                return


def _open_answer(answer: bytes) -> object:
    if answer[:1] == b"R":
        return decode_result(answer[1:])
    try:
        found = json.loads(answer[1:])
        error = ERRORS.get(str(found["reason"]), WorkerLost)
        raise error(str(found["message"]), hint=found.get("hint"))
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise WorkerLost("the connection to the cluster ended") from error
