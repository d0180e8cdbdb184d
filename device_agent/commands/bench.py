"""Measure the stored bundles on this device: latency, throughput, memory, CPU time and energy.

Method:
- Each bundle runs in a model process of its own behind a front of its own, as in service. The serving model is not
  changed, but shares the machine: stop its load for figures of an idle machine.
- The bundles take turns, ROUND_COUNT rounds of them, so that a machine that becomes busier or hotter affects all.
- The request mix is a file with one JSON body of the Open Inference Protocol per line, sent in turn. Without a file it
  is the signed golden inputs; without golden inputs, zeros.
- Energy is the whole machine's during the bundle's rounds, if the machine has a counter. CPU time is that of the
  bundle's front and model process alone.
"""

import json
import os
import socket
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any, Final

from bundle.contract import Contract
from bundle.errors import TooLarge
from bundle.golden.comparison import GoldenVector
from bundle.golden.golden_file import read_golden
from bundle.local_files import read_local_file
from device_agent.config.config import Config
from device_agent.errors import BenchFailed, ConfigInvalid, NothingToBenchmark
from device_agent.host.meters import EnergyMeter, ProcessMeter, open_energy_meters
from device_agent.policy.journal_records import BundleRecord
from device_agent.process.jail import JailPolicy
from device_agent.runtime.handles import BundleFds, FrontHandle, GenerationSpec, ModelProcess, ServeConfig
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
    """One request of the mix.

    Attributes:
        body: the HTTP body.
        json_bytes: size of the JSON part if binary tensors follow it, else None.
    """

    body: bytes
    json_bytes: int | None = None


@dataclass(slots=True)
class BenchResult:
    """Measurements of one bundle, added up over its rounds.

    Attributes:
        role: "active", "candidate" or "previous".
        bundle: the measured bundle.
        load_ms: time to load the model, in milliseconds.
        latencies_s: latency of each request, in seconds.
        elapsed_s: duration of the rounds, in seconds.
        cpu_s: CPU seconds of front and model process.
        joules: energy of the machine, or None without a counter.
        resident_bytes: resident memory of the model process after the last round.
        peak_bytes: peak memory of the model process.
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
        """Return the row of `bench --json`: milliseconds, bytes, joules."""
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


@dataclass(frozen=True, slots=True)
class BenchReport:
    """Measurements of the bundles of one family.

    Attributes:
        mix: path of the request file, or a description of the default mix.
        connections: number of connections.
        energy_zones: names of the machine's energy counters.
        bundles: measurements of each bundle.
    """

    mix: str
    connections: int
    energy_zones: tuple[str, ...]
    bundles: tuple[BenchResult, ...]

    def as_json(self) -> dict[str, Any]:
        """Return the object of `bench --json` for one family."""
        return {
            "mix": self.mix,
            "connections": self.connections,
            "energy": list(self.energy_zones),
            "bundles": [bundle.as_json() for bundle in self.bundles],
        }


def measure_bundles(config: Config, *, duration_s: float, connections: int, mix: Path | None) -> BenchReport:
    """Measure the active, the staged and the previous bundle of a family. A daemon may be running.

    Args:
        config: the configuration of one family.
        duration_s: seconds per bundle, over all rounds.
        connections: number of connections; each sends a request when it has the response to the one before.
        mix: file of requests, or None for the golden inputs.

    Raises:
        NothingToBenchmark: no bundle is stored.
        ConfigInvalid: `mix` is not a file of requests.
        BenchFailed: a response has a status other than 200.
        Unfit, Refused, Unavailable: a bundle cannot be opened or loaded.
    """
    device = DeviceDirectory.for_family(config)
    found = _stored_bundles(device)
    if not found:
        raise NothingToBenchmark("no bundle is stored on this device", hint="install one with `device-agent update`")
    requests = None if mix is None else read_mix(mix)
    energy = open_energy_meters()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="airweights-bench-")))
        workers = stack.enter_context(WorkerPool(config, device, BundleStore(device.family_directory)))
        endpoints = [
            stack.enter_context(_open_endpoint(config, workers, folder / role, role, bundle, requests))
            for role, bundle in found.items()
        ]
        for _ in range(ROUND_COUNT):
            for endpoint in endpoints:
                endpoint.run_round(duration_s / ROUND_COUNT, connections, energy)
        results = tuple(endpoint.read_result() for endpoint in endpoints)
    return BenchReport(
        mix="golden inputs, or zeros" if mix is None else str(mix),
        connections=connections,
        energy_zones=tuple(meter.zone for meter in energy),
        bundles=results,
    )


def format_table(report: BenchReport) -> list[str]:
    """Format the measurements as a table, one row per bundle."""
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
        for row in (bundle.as_json() for bundle in report.bundles)
    ]
    widths = [max(len(row[column]) for row in (head, *rows)) for column in range(len(head))]
    lines = ["  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)) for row in (head, *rows)]
    return [*(line.rstrip() for line in lines), f"{report.connections} connections; CPU ms and J are per request"]


def read_mix(path: Path) -> tuple[BenchRequest, ...]:
    """Read a file of requests, one JSON object per line.

    Raises:
        ConfigInvalid: the file cannot be read, is empty, exceeds MAX_MIX_BYTES, or a line is not a JSON object.
    """
    try:
        data = read_local_file(path, MAX_MIX_BYTES)
    except TooLarge as error:
        raise ConfigInvalid(error.message) from error
    except OSError as error:
        raise ConfigInvalid(f"{path}: {error.strerror}") from error
    lines = [line for line in data.splitlines() if line.strip()]
    if not lines:
        raise ConfigInvalid(f"{path}: found no request, expected at least one, one per line")
    for number, line in enumerate(lines, 1):
        try:
            is_object = isinstance(json.loads(line), dict)
        except (ValueError, RecursionError):
            is_object = False
        if not is_object:
            raise ConfigInvalid(
                f"{path}, line {number}: found no JSON object",
                hint="write the body of one inference request per line, without line breaks in it",
            )
    return tuple(BenchRequest(line) for line in lines)


def make_golden_mix(samples: Sequence[GoldenVector], contract: Contract) -> tuple[BenchRequest, ...]:
    """Return one request with binary tensors per golden sample.

    Args:
        samples: the golden samples. If empty, one request of zeros and empty strings is returned, with every open
            dimension at 1.
        contract: the model's contract, whose inputs the requests contain.
    """
    import numpy as np

    from device_agent.runtime.golden_requests import encode_request

    inputs = [sample.inputs for sample in samples]
    if not inputs:
        zeros: dict[str, Any] = {}
        for spec in contract.inputs:
            shape = [size if isinstance(size, int) else 1 for size in spec.shape]
            zeros[spec.name] = np.full(shape, "", object) if spec.dtype == "string" else np.zeros(shape, spec.dtype)
        inputs = [zeros]
    requests = []
    for arrays in inputs:
        requests.append(BenchRequest(*encode_request(arrays, contract, is_raw=True)))
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
    """One bundle in a model process behind a front of its own."""

    def __init__(
        self, result: BenchResult, front: FrontHandle, process: ModelProcess, requests: Sequence[BenchRequest]
    ) -> None:
        self._result, self._front, self._process, self._requests = result, front, process, requests
        self._path = Path(front.address.removeprefix("unix:"))
        self._url = f"/v2/models/{result.bundle.family}/infer"

    def run_round(self, duration_s: float, connections: int, energy: Sequence[EnergyMeter]) -> None:
        """Send requests for `duration_s` over all connections and add up the measurements.

        Args:
            duration_s: seconds of this round, after the warm-up.
            connections: number of connections.
            energy: the machine's energy counters.

        Raises:
            BenchFailed: a response has a status other than 200, or a connection fails.
        """
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
        started, cpu_s, joules = time.monotonic(), 0.0, list[float]()
        with suppress(threading.BrokenBarrierError):  # a connection failed, which `failures` says
            barrier.wait()
            cpu_s = sum(meter.cpu_s() for meter in meters)
            joules = [meter.read_joules() or 0.0 for meter in energy]
            started = time.monotonic()
            end[0] = started + duration_s
            barrier.wait()
        for thread in threads:
            thread.join()
        if failures:
            for meter in meters:
                meter.close()
            raise BenchFailed(f"release {self._result.bundle.version} does not respond to the requests: {failures[0]}")
        self._result.elapsed_s += time.monotonic() - started
        self._result.cpu_s += sum(meter.cpu_s() for meter in meters) - cpu_s
        if energy:
            spent = sum(meter.joules_since(before) for meter, before in zip(energy, joules, strict=True))
            self._result.joules = (self._result.joules or 0.0) + spent
        for meter in meters:
            meter.close()

    def read_result(self) -> BenchResult:
        """Read the memory of the model process and return all measurements."""
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
            # at least one, also if this process had to wait for a processor all the time
            while not failures and ((before := time.monotonic()) < end[0] or not latencies):
                self._send_request(connection, number, failures)
                latencies.append(time.monotonic() - before)
                number += 1
        except (OSError, HTTPException) as error:
            failures.append(f"{type(error).__name__}: {error}")
            barrier.abort()
        except threading.BrokenBarrierError:
            pass  # another connection failed
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
    models = bundle.parse_manifest()[1].models
    if len(models) != 1:
        raise BenchFailed(f"release {bundle.version} has {len(models)} models, only releases with one are measured")
    contract = models[0].contract
    spec = GenerationSpec(bundle.family, 1, bundle.version, bundle.variant, contract, threads=config.serve.threads)
    jail = JailPolicy(allow_unjailed=config.allow_unjailed)
    fds: BundleFds = workers.patcher.unseal(bundle)
    try:
        requests = make_golden_mix(_read_golden(fds), contract) if mix is None else mix
        libraries, devices = config.serve.provider_libraries, config.serve.devices
        process = ModelProcess.start(fds, spec, replace(jail, provider_libraries=libraries, devices=devices))
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


def _read_golden(fds: BundleFds) -> tuple[GoldenVector, ...]:
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
            bundle = journal.bundle(getattr(pointers, role))
            if bundle is not None and bundle.digest not in {other.digest for other in found.values()}:
                found[role] = bundle
        return found
    finally:
        journal.close()
