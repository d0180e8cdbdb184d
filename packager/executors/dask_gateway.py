"""The process that talks to a Dask cluster, for `--executor dask://HOST:PORT`.

Dask unpickles what workers return, and a pickle can run code. So it happens here, in a process without signing keys and
without the passphrase: only bytes of a closed format (packager.executors.results) go on to the process that signs.

Messages: a length (8 bytes, big-endian), then the message. From the parent: a pickled (number, function, arguments), in
Dask's terms one task. To the parent: the number (8 bytes), "R" and a result, or "E" and an error as JSON. The first
message to the parent is the number of threads of the cluster. An error with the number 0 ends the connection: after
GONE_S seconds without any worker, since Dask would wait forever.
"""

import contextlib
import json
import os
import pickle
import resource
import struct
import sys
import threading
import time
from collections.abc import Callable
from typing import IO, Any, Final

from bundle.errors import AirweightsError
from bundle.version import VERSION
from packager.executors.errors import ExecutorInvalid, WorkerIncompatible, WorkerLost, WorkerOutOfMemory
from packager.executors.results import encode_result

NUMBER: Final = struct.Struct(">Q")
WORKERS_S: Final = 30
GONE_S: Final = 120.0
# of other versions, they could create other bytes
LIBRARIES: Final = ("numpy", "backports.zstd", "pcodec", "bsdiff4", "onnx", "onnxruntime")


def worker_versions() -> dict[str, str]:
    """Return the versions that must be equal everywhere."""
    from importlib.metadata import PackageNotFoundError, version

    found = {"airweights": VERSION, "python": ".".join(map(str, sys.version_info[:2]))}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = ""
    return found


def run_on_worker(versions: dict[str, str], function: Callable[..., Any], *arguments: Any) -> Any:
    """Run a job on a worker; a worker that joined after the connection is checked here.

    Args:
        versions: what `worker_versions` must return.
        function: the job's function.
        arguments: its arguments.

    Raises:
        WorkerIncompatible: this worker has other versions.
    """
    if not _prepared:
        _check_versions("the worker", worker_versions(), versions)
        _limit_memory()
        _prepared.append(True)
    return function(*arguments)


_prepared: list[bool] = []  # not empty: this process was checked, and its memory is limited


def _limit_memory() -> None:
    """Let a job fail that needs more than Dask's `--memory-limit`, before Dask ends the worker."""
    from distributed import get_worker

    limit = get_worker().memory_manager.memory_limit
    if limit:
        _, hard = resource.getrlimit(resource.RLIMIT_DATA)
        resource.setrlimit(resource.RLIMIT_DATA, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard))


def main() -> None:
    """Connect to the cluster, and run what the parent sends until it closes the pipe."""
    # results have a pipe of their own: libraries may print
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    lock = threading.Lock()

    def send(number: int, kind: bytes, data: bytes) -> None:
        with lock, contextlib.suppress(BrokenPipeError):
            out.write(NUMBER.pack(len(data) + 9) + NUMBER.pack(number) + kind + data)
            out.flush()

    try:
        client = _connect(sys.argv[1])
        threads = _check_workers(client)
    except AirweightsError as error:
        send(0, b"E", _error(error))
        return
    own = worker_versions()
    send(0, b"R", encode_result(threads))
    gone_s = float(sys.argv[2]) if len(sys.argv) > 2 else GONE_S
    threading.Thread(target=_watch_workers, args=(client, gone_s, send), name="watch", daemon=True).start()
    while message := read_message(sys.stdin.buffer):
        number, function, arguments = pickle.loads(message)  # noqa: S301 - from the parent
        future = client.submit(run_on_worker, own, function, *arguments, pure=False)
        future.add_done_callback(_finisher(send, number))
        _kept[number] = future


def _watch_workers(client: Any, gone_s: float, send: Callable[[int, bytes, bytes], None]) -> None:
    seen_s = time.monotonic()
    while True:
        time.sleep(gone_s / 10)
        with contextlib.suppress(Exception):  # the scheduler may be unavailable for a moment
            if client.scheduler_info(n_workers=-1)["workers"]:
                seen_s = time.monotonic()
        if time.monotonic() - seen_s > gone_s:
            send(0, b"E", _error(WorkerLost(f"the cluster has had no worker for {gone_s:.0f} s")))
            os._exit(0)


_kept: dict[int, Any] = {}  # a task whose future is dropped is cancelled


def _finisher(send: Callable[[int, bytes, bytes], None], number: int) -> Callable[[Any], None]:
    def finish(future: Any) -> None:
        try:
            send(number, b"R", encode_result(future.result()))
        except BaseException as error:  # noqa: BLE001 - whatever a worker raised belongs to the job
            send(number, b"E", _error(error))
        _kept.pop(number, None)

    return finish


def _connect(address: str) -> Any:
    from distributed import Client
    from distributed.security import Security

    security = Security(require_encryption=True)
    if not (security.tls_ca_file and security.tls_client_cert and security.tls_client_key):
        raise ExecutorInvalid(
            "dask: found no certificates for mutual TLS",
            hint="set DASK_DISTRIBUTED__COMM__TLS__CA_FILE, …TLS__CLIENT__CERT and …TLS__CLIENT__KEY",
        )
    try:
        return Client(f"tls://{address}", security=security, set_as_default=False)
    except (OSError, ValueError) as error:
        raise WorkerLost(f"dask://{address}: no connection to the scheduler: {error}") from error


def _check_workers(client: Any) -> int:
    client.wait_for_workers(1, timeout=WORKERS_S)
    own = worker_versions()
    for address, found in client.run(worker_versions).items():
        _check_versions(f"worker {address}", found, own)
    return sum(worker["nthreads"] for worker in client.scheduler_info(n_workers=-1)["workers"].values())


def _check_versions(worker: str, found: dict[str, str], own: dict[str, str]) -> None:
    for name, version in own.items():
        if found.get(name) != version:
            raise WorkerIncompatible(f"{worker} has {name} {found.get(name)!r}, this machine {version!r}")


def _error(error: BaseException) -> bytes:
    if isinstance(error, MemoryError):
        error = WorkerOutOfMemory("a job needs more memory than its worker has")
    elif not isinstance(error, AirweightsError):
        error = WorkerLost(f"a job failed on a worker: {type(error).__name__}: {str(error)[:300]}")
    return json.dumps({"reason": error.reason, "message": error.message, "hint": error.hint}).encode()


def read_message(stream: IO[bytes]) -> bytes:
    """Return the next message; empty at the end of the stream."""
    head = stream.read(NUMBER.size)
    return stream.read(NUMBER.unpack(head)[0]) if len(head) == NUMBER.size else b""


if __name__ == "__main__":
    main()
