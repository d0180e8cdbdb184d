"""What the bundles that this device holds cost here: latency, throughput, memory, processor time, energy.

Rules:
1. Each bundle runs in a model process and behind a front of its own, as it would serve; what serves is not touched, but
   shares the machine: stop its load for figures of a quiet one.
2. Bundles take turns, ROUNDS of them, so that a machine that gets busier or hotter is unfair to none.
3. The request mix is a file of requests, one JSON body of the Open Inference Protocol a line, sent in turn; without
   one, the signed golden inputs; without those, zeros.
4. Energy is the whole machine's while a bundle runs, where there is a counter; processor time is its own processes'.
"""

import json
import os
import socket
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any, Final

from bundle.contract import Contract
from bundle.golden import GoldenSample, read_golden
from device_agent.config.config import Config
from device_agent.errors import BenchFailed, ConfigInvalid, NothingToBenchmark
from device_agent.host.meters import EnergyMeter, ProcessMeter, open_energy_meters
from device_agent.policy.journal_records import BundleRecord
from device_agent.process.jail import JailPolicy
from device_agent.runtime.handles import BundleFds, FrontHandle, GenerationSpec, ModelProcess, ServeConfig
from device_agent.runtime.oip import oip_datatype_name
from device_agent.runtime.tensors import to_bytes
from device_agent.storage.bundle_store import BundleStore
from device_agent.storage.device_directory import DeviceDirectory
from device_agent.storage.journal import Journal
from device_agent.workers.worker_pool import WorkerPool

ROUND_COUNT: Final = 3
WARM_UP_REQUESTS: Final = 5
MAX_MIX_BYTES: Final = 256 * 1024 * 1024
ROLES: Final = ("active", "candidate", "previous")
HTTP_TIMEOUT_S: Final = 60.0


@dataclass(frozen=True, slots=True)
class BenchRequest:
    """One request of the mix: its body, and the bytes of its JSON part where tensors follow it."""

    body: bytes
    json_bytes: int | None = None


@dataclass(slots=True)
class BenchResult:
    """Of one bundle.

    Attributes:
        role: "active", "candidate" or "previous".
        latencies_s: of all requests of all rounds.
        seconds: that they took.
        cpu_s: of front and model process.
        joules: of the machine, or None without a counter.
    """

    role: str
    bundle: BundleRecord
    load_ms: float = 0.0
    latencies_s: list[float] = field(default_factory=list)
    elapsed_s: float = 0.0
    cpu_s: float = 0.0
    joules: float | None = None
    resident_bytes: int = 0
    peak_bytes: int = 0

    def as_json(self) -> dict[str, Any]:
        """For `bench --json`; milliseconds, bytes, joules."""
        ordered, count = sorted(self.latencies_s), len(self.latencies_s)

        def quantile_ms(share: float) -> float:
            return round(ordered[min(count - 1, int(share * count))] * 1000, 3)

        return {
            "role": self.role,
            "release": self.bundle.version,
            "variant": self.bundle.variant,
            "bundle": self.bundle.digest,
            "bundle_bytes": self.bundle.parse_manifest()[1].plain_size,
            "requests": count,
            "requests_per_s": round(count / self.elapsed_s, 1),
            "p50_ms": quantile_ms(0.50),
            "p95_ms": quantile_ms(0.95),
            "p99_ms": quantile_ms(0.99),
            "load_ms": round(self.load_ms, 1),
            "resident_bytes": self.resident_bytes,
            "peak_bytes": self.peak_bytes,
            "cpu_ms_per_request": round(self.cpu_s / count * 1000, 3),
            "joules_per_request": None if self.joules is None else round(self.joules / count, 6),
        }


def measure_bundles(config: Config, *, duration_s: float, connections: int, mix: Path | None) -> dict[str, Any]:
    """Measure every bundle that is active, staged or kept.

    Args:
        config: of one family; a daemon may be running.
        seconds: for each bundle, over all rounds.
        connections: that ask at a time, each waiting for its answer.
        mix: rule 3.

    Raises:
        NothingToMeasure, ConfigInvalid, BenchUnfit: no bundle, a bad mix, a request that is not answered.
        Unfit, Refused, Unavailable: a bundle that does not open or load.
    """
    device = DeviceDirectory.for_family(config)
    found = _stored_bundles(device)
    if not found:
        raise NothingToBenchmark("this device holds no bundle", hint="`device-agent update` installs one")
    requests = None if mix is None else read_mix(mix)
    energy = open_energy_meters()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="airweights-bench-")))
        errands = stack.enter_context(WorkerPool(config, device, BundleStore(device.family_directory)))
        rigs = [
            stack.enter_context(_open_endpoint(config, errands, folder / role, role, holding, requests))
            for role, holding in found.items()
        ]
        for _ in range(ROUND_COUNT):
            for rig in rigs:
                rig.run_round(duration_s / ROUND_COUNT, connections, energy)
        rows = [rig.read_result().as_json() for rig in rigs]
    return {
        "mix": "golden inputs, or zeros" if mix is None else str(mix),
        "connections": connections,
        "energy": [meter.zone for meter in energy],
        "bundles": rows,
    }


def format_table(result: dict[str, Any]) -> str:
    """The same for a person."""
    head = ("", "release", "variant", "p50 ms", "p95 ms", "p99 ms", "req/s", "RSS MiB", "CPU ms", "J")
    rows = [
        (
            *(row["role"], row["release"], row["variant"]),
            *(f"{row[name]:.2f}" for name in ("p50_ms", "p95_ms", "p99_ms")),
            f"{row['requests_per_s']:.0f}",
            f"{row['resident_bytes'] / 2**20:.1f}",
            f"{row['cpu_ms_per_request']:.2f}",
            "-" if row["joules_per_request"] is None else f"{row['joules_per_request']:.4f}",
        )
        for row in result["bundles"]
    ]
    widths = [max(len(row[column]) for row in (head, *rows)) for column in range(len(head))]
    lines = ["  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)) for row in (head, *rows)]
    return "\n".join([*(line.rstrip() for line in lines), f"{result['connections']} connections; CPU and J a request"])


def read_mix(path: Path) -> tuple[BenchRequest, ...]:
    """Rule 3. Raises ConfigInvalid."""
    try:
        with path.open("rb") as stream:
            data = stream.read(MAX_MIX_BYTES + 1)
    except OSError as error:
        raise ConfigInvalid(f"{path}: {error.strerror}") from error
    lines = [line for line in data.splitlines() if line.strip()]
    if not lines or len(data) > MAX_MIX_BYTES:
        raise ConfigInvalid(f"{path}: found {len(lines)} requests in {len(data)} bytes, expected one a line")
    for number, line in enumerate(lines, 1):
        try:
            is_object = isinstance(json.loads(line), dict)
        except (ValueError, RecursionError):
            is_object = False
        if not is_object:
            raise ConfigInvalid(f"{path}, line {number}: no JSON object", hint="docs/endpoint.md shows a request")
    return tuple(BenchRequest(line) for line in lines)


def make_golden_mix(samples: Sequence[GoldenSample], contract: Contract) -> tuple[BenchRequest, ...]:
    """Golden inputs as binary tensors; zeros, empty strings and sizes of 1 where there are none."""
    import numpy as np

    inputs = [sample.inputs for sample in samples]
    if not inputs:
        zeros: dict[str, Any] = {}
        for spec in contract.inputs:
            shape = [size if isinstance(size, int) else 1 for size in spec.shape]
            zeros[spec.name] = np.full(shape, "", object) if spec.dtype == "string" else np.zeros(shape, spec.dtype)
        inputs = [zeros]
    requests = []
    for arrays in inputs:
        rows, raw = [], b""
        for spec in contract.inputs:
            data = bytes(to_bytes(np.asarray(arrays[spec.name])))
            row = {"name": spec.name, "datatype": oip_datatype_name(spec), "shape": list(np.shape(arrays[spec.name]))}
            rows.append({**row, "parameters": {"binary_data_size": len(data)}})
            raw += data
        text = json.dumps({"inputs": rows, "parameters": {"binary_data_output": True}}).encode()
        requests.append(BenchRequest(text + raw, len(text)))
    return tuple(requests)


class _UnixConnection(HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=HTTP_TIMEOUT_S)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(HTTP_TIMEOUT_S)
        self.sock.connect(str(self._path))


class _BenchEndpoint:
    """One bundle behind its own front (rule 1)."""

    def __init__(
        self, result: BenchResult, front: FrontHandle, process: ModelProcess, requests: Sequence[BenchRequest]
    ) -> None:
        self._result, self._front, self._process, self._requests = result, front, process, requests
        self._path = Path(front.address.removeprefix("unix:"))
        self._url = f"/v2/models/{result.bundle.family}/infer"

    def run_round(self, duration_s: float, connections: int, energy: Sequence[EnergyMeter]) -> None:
        """One round."""
        meters = [ProcessMeter.open(pid) for pid in (self._front.pid, self._process.pid)]
        failures: list[str] = []
        barrier = threading.Barrier(connections + 1)
        end = [0.0]
        threads = [
            threading.Thread(target=self._send_requests, args=(number, barrier, end, failures))
            for number in range(connections)
        ]
        for thread in threads:
            thread.start()
        barrier.wait()
        cpu_s = sum(meter.cpu_s() for meter in meters)
        joules = [meter.read_joules() or 0.0 for meter in energy]
        started = time.monotonic()
        end[0] = started + duration_s
        barrier.wait()
        for thread in threads:
            thread.join()
        self._result.elapsed_s += time.monotonic() - started
        self._result.cpu_s += sum(meter.cpu_s() for meter in meters) - cpu_s
        if energy:
            spent = sum(meter.joules_since(before) for meter, before in zip(energy, joules, strict=True))
            self._result.joules = (self._result.joules or 0.0) + spent
        for meter in meters:
            meter.close()
        if failures:
            raise BenchFailed(f"release {self._result.bundle.version} does not answer the mix: {failures[0]}")

    def read_result(self) -> BenchResult:
        """With its memory, as it is after the last round."""
        self._result.resident_bytes = self._process.resident_bytes()
        self._result.peak_bytes = self._process.peak_bytes()
        return self._result

    def _send_requests(self, first: int, barrier: threading.Barrier, end: list[float], failures: list[str]) -> None:
        connection, latencies, number = _UnixConnection(self._path), list[float](), first
        try:
            for _ in range(WARM_UP_REQUESTS):
                self._send_request(connection, number, failures)
            barrier.wait()
            barrier.wait()
            while not failures and (before := time.monotonic()) < end[0]:
                self._send_request(connection, number, failures)
                latencies.append(time.monotonic() - before)
                number += 1
        except (OSError, HTTPException) as error:
            failures.append(f"{type(error).__name__}: {error}")
            barrier.abort()
        finally:
            connection.close()
        self._result.latencies_s += latencies

    def _send_request(self, connection: _UnixConnection, number: int, failures: list[str]) -> None:
        request = self._requests[number % len(self._requests)]
        headers = {} if request.json_bytes is None else {"Inference-Header-Content-Length": str(request.json_bytes)}
        connection.request("POST", self._url, request.body, headers)
        response = connection.getresponse()
        data = response.read()
        if response.status != 200:
            failures.append(f"{response.status} {data[:300].decode('utf-8', 'replace')}")


@contextmanager
def _open_endpoint(
    config: Config, workers: WorkerPool, path: Path, role: str, bundle: BundleRecord, mix: Sequence[BenchRequest] | None
) -> Iterator[_BenchEndpoint]:
    contract = bundle.parse_manifest()[1].contract
    spec = GenerationSpec(bundle.family, 1, bundle.version, bundle.variant, contract, threads=config.serve.threads)
    jail = JailPolicy(allow_unjailed=config.allow_unjailed)
    fds: BundleFds = workers.unseal(bundle)
    try:
        requests = make_golden_mix(_read_golden(fds), contract) if mix is None else mix
        process = ModelProcess.start(fds, spec, jail)
    finally:
        fds.close()
    try:
        front = FrontHandle.start(ServeConfig(f"unix:{path}", (bundle.family,), jail=jail))
        try:
            front.publish(bundle.family, process)
            yield _BenchEndpoint(BenchResult(role, bundle, process.load_us / 1000), front, process, requests)
        finally:
            front.stop()
    finally:
        process.stop()


def _read_golden(fds: BundleFds) -> tuple[GoldenSample, ...]:
    if fds.golden is None:
        return ()
    fd = fds.files[fds.golden]
    return read_golden(os.pread(fd, os.fstat(fd).st_size, 0))


def _stored_bundles(device: DeviceDirectory) -> dict[str, BundleRecord]:
    device.check_initialized()
    journal = Journal(device.journal_path, read_only=device.journal_path.exists())
    try:
        pointers, found = journal.pointers, dict[str, BundleRecord]()
        for role in ROLES:
            holding = journal.bundle(getattr(pointers, role))
            if holding is not None and holding.digest not in {other.digest for other in found.values()}:
                found[role] = holding
        return found
    finally:
        journal.close()
