"""A model inside an app, replaced while the app goes on calling it.

    runtime = ModelRuntime()
    runtime.swap(bundle_of(Path("model.onnx")))
    outputs = runtime.run({"x": x})

Rules:
1. A call runs on exactly one generation, the current one at its start, and holds a lease on it until it ends.
2. `swap` loads beside the running model, warms on the golden inputs, switches by one assignment, and keeps the old
   generation for `rollback`. What was kept before it is drained and destroyed, in the caller's thread and not in a
   request's. A candidate that does not load, or answers its golden questions wrongly, changes nothing. While a model
   runs, the work of a swap is done in steps with rests between (device_agent.process.throttle).
3. `isolation="inproc"`: sessions in this process. "worker": a jailed child process per generation; a death of it costs
   one retry on its successor, which is started from the same memfds.
4. `rollback` is one assignment; what it leaves is drained and destroyed by a thread of its own, which the next swap
   waits for. So at most two generations are resident, three while a swap is under way.
5. A swap in this process shortens the interpreter's switch interval while it lasts: a call must not wait 5 ms for the
   interpreter because the swap's thread has it.
"""

import queue
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final

from bundle.contract import Contract
from bundle.errors import Invalid
from bundle.golden import check_outputs
from device_agent.errors import NothingToRollBack
from device_agent.process.throttle import Throttle
from device_agent.runtime.backends import Backend, InProcessBackend, WorkerBackend
from device_agent.runtime.bundle_fds import BundleFds, create_sealed_memfd
from device_agent.runtime.session import LoadedModel, read_golden_samples, trim_heap
from device_agent.runtime.tensors import Array

ISOLATIONS: Final = ("inproc", "worker")
SWAP_SWITCH_INTERVAL_S: Final = 0.0005
DEFAULT_TOLERANCE_PPM: Final = 1_000  # bundle.contract.Health.golden_relative_rms_ppm


class NoModelLoaded(Invalid):
    """`run`, `lease` or `rollback` before the first `swap`, or after `close`."""

    reason = "no-model-loaded"


@dataclass(frozen=True, slots=True)
class SwapReport:
    """Times of a swap, seconds.

    Attributes:
        generation: number of the new one.
        load_s: session creation, and the child's start with isolation "worker"; rests included, here and below.
        warm_s: golden runs and their comparison.
        publish_s: the switch.
        drain_s: until the last lease of the generation that went is back.
        destroy_s: its destruction.
    """

    generation: int
    load_s: float
    warm_s: float
    publish_s: float
    drain_s: float
    destroy_s: float


class Lease:
    """One generation, held: a context manager."""

    __slots__ = ("_generation",)

    def __init__(self, generation: "_Generation") -> None:
        self._generation = generation

    @property
    def generation(self) -> int:
        """Its number."""
        return self._generation.number

    def run(self, inputs: Mapping[str, Array], outputs: Sequence[str] | None = None) -> dict[str, Array]:
        """As ModelRuntime.run, on this generation."""
        return self._generation.backend.run(inputs, outputs)

    def __enter__(self) -> "Lease":
        return self

    def __exit__(
        self, _type: type[BaseException] | None, _error: BaseException | None, _: TracebackType | None
    ) -> None:
        self._generation.release()


class ModelRuntime:
    """The current model of an app. Thread-safe; `swap` and `rollback` go one after the other.

    Args:
        isolation: of ISOLATIONS.
        threads: of each model's intra-op pool; 0: one a processor, at most 4.
        tolerance_ppm: of golden answers.
    """

    def __init__(
        self, *, isolation: str = "inproc", threads: int = 0, tolerance_ppm: int = DEFAULT_TOLERANCE_PPM
    ) -> None:
        if isolation not in ISOLATIONS:
            raise ValueError(f"isolation {isolation!r}, expected one of {', '.join(ISOLATIONS)}")
        self._isolation = isolation
        self._threads = threads
        self._tolerance_ppm = tolerance_ppm
        self._lock = threading.Lock()  # of the switch and the leases: held for no longer than an assignment
        self._change_lock = threading.Lock()  # of swap, rollback and close
        self._current: _Generation | None = None
        self._previous: _Generation | None = None
        self._destroy_thread: _DestroyThread | None = None
        self._numbers = 0

    @property
    def generation(self) -> int | None:
        """Number of the current one."""
        current = self._current
        return None if current is None else current.number

    def lease(self) -> Lease:
        """The current generation, kept from being destroyed until the lease ends. Raises NoModelLoaded."""
        with self._lock:
            current = self._current
            if current is None:
                raise NoModelLoaded("no model is loaded yet", hint="call swap first")
            current.leases += 1
        return Lease(current)

    def run(self, inputs: Mapping[str, Array], outputs: Sequence[str] | None = None) -> dict[str, Array]:
        """One inference on the current generation.

        Args:
            inputs: an array for each of the model's inputs.
            outputs: names to compute; None: all.

        Raises:
            RequestInvalid, InferenceUnfit, NoModelLoaded.
        """
        with self.lease() as lease:
            return lease.run(inputs, outputs)

    def swap(self, bundle: BundleFds, contract: Contract | None = None) -> SwapReport:
        """Load, warm, check, switch, and destroy what was kept for rollback before (rule 2).

        Args:
            bundle: still the caller's; it can be closed afterwards.
            contract: that the model must keep; None: whatever it says of itself.

        Raises:
            ModelUnfit, ContractUnfit, GoldenUnfit, InferenceUnfit: nothing has changed.
        """
        with self._change_lock, _shorten_switch_interval():
            if self._destroy_thread is None:
                self._destroy_thread = _DestroyThread(self._destroy)
            self._destroy_thread.wait_until_empty()
            pace = Throttle(is_paced=self._current is not None)
            started = time.perf_counter()
            self._numbers += 1
            generation = _Generation(self._numbers, self._load(bundle, contract), self._lock)
            pace.wait()
            loaded = time.perf_counter()
            try:
                for number, sample in enumerate(read_golden_samples(bundle)):
                    answers = generation.backend.run(sample.inputs, None)
                    check_outputs(answers, sample, tolerance_ppm=self._tolerance_ppm, where=f"golden {number}")
                    pace.wait()
            except BaseException:
                generation.backend.close()
                raise
            warmed = time.perf_counter()
            with self._lock:
                gone, self._previous, self._current = self._previous, self._current, generation
            published = time.perf_counter()
            pace.wait()
            drain_s, destroy_s = self._destroy(gone)
            return SwapReport(
                generation.number, loaded - started, warmed - loaded, published - warmed, drain_s, destroy_s
            )

    def rollback(self) -> int:
        """Back to the generation before; the current one is drained and destroyed afterwards (rule 4).

        Returns:
            the number of the generation that is current again.

        Raises:
            NothingToRollBack.
        """
        with self._change_lock:
            with self._lock:
                gone = self._current
                if self._previous is None or gone is None:
                    raise NothingToRollBack("no previous generation is resident")
                self._current, self._previous = self._previous, None
                number = self._current.number
            # not here: the caller wants its model back, and may itself hold a lease on the one that goes
            assert self._destroy_thread is not None
            self._destroy_thread.enqueue(gone)
            return number

    def discard_previous(self) -> None:
        """Free the generation that is kept for `rollback`."""
        with self._change_lock:
            if self._destroy_thread is not None:
                self._destroy_thread.wait_until_empty()
            with self._lock:
                gone, self._previous = self._previous, None
            self._destroy(gone)

    def close(self) -> None:
        """Drain and destroy everything; any number of times."""
        with self._change_lock:
            if self._destroy_thread is not None:
                self._destroy_thread.stop()
                self._destroy_thread = None
            with self._lock:
                gone = (self._current, self._previous)
                self._current = self._previous = None
            for generation in gone:
                self._destroy(generation)

    def __enter__(self) -> "ModelRuntime":
        return self

    def __exit__(
        self, _type: type[BaseException] | None, _error: BaseException | None, _: TracebackType | None
    ) -> None:
        self.close()

    def _load(self, bundle: BundleFds, contract: Contract | None) -> Backend:
        if self._isolation == "worker":
            return WorkerBackend(bundle, contract, self._threads, in_background=self._current is not None)
        model = LoadedModel.load(bundle, threads=self._threads)
        if contract is not None:
            model.check_contract(contract)
        return InProcessBackend(model)

    def _destroy(self, generation: "_Generation | None") -> tuple[float, float]:
        if generation is None:
            return 0.0, 0.0
        started = time.perf_counter()
        generation.wait_until_drained()
        drained = time.perf_counter()
        generation.backend.close()
        if self._isolation == "inproc":
            trim_heap()
        return drained - started, time.perf_counter() - drained


_switch_interval_lock = threading.Lock()
_running_swaps = 0
_original_interval_s = 0.0


@contextmanager
def _shorten_switch_interval() -> Iterator[None]:
    """Rule 5; the last of several swaps at a time puts the interval back."""
    global _running_swaps, _original_interval_s
    with _switch_interval_lock:
        if not _running_swaps:
            _original_interval_s = sys.getswitchinterval()
            sys.setswitchinterval(min(_original_interval_s, SWAP_SWITCH_INTERVAL_S))
        _running_swaps += 1
    try:
        yield
    finally:
        with _switch_interval_lock:
            _running_swaps -= 1
            if not _running_swaps:
                sys.setswitchinterval(_original_interval_s)


class _Generation:
    __slots__ = ("_drained", "_lock", "backend", "leases", "number")

    def __init__(self, number: int, backend: Backend, lock: threading.Lock) -> None:
        self.number = number
        self.backend = backend
        self.leases = 0
        self._lock = lock
        self._drained: threading.Event | None = None

    def release(self) -> None:
        with self._lock:
            self.leases -= 1
            if self.leases == 0 and self._drained is not None:
                self._drained.set()

    def wait_until_drained(self) -> None:
        with self._lock:
            if self.leases == 0:
                return
            self._drained = threading.Event()
        self._drained.wait()


class _DestroyThread:
    """Destroys generations in a thread that is there already: starting one would take the caller milliseconds."""

    def __init__(self, destroy: Callable[[_Generation], object]) -> None:
        self._destroy = destroy
        self._queue: queue.SimpleQueue[_Generation | threading.Event | None] = queue.SimpleQueue()
        threading.Thread(target=self._run, name="reaper", daemon=True).start()

    def enqueue(self, generation: _Generation) -> None:
        self._queue.put(generation)

    def wait_until_empty(self) -> None:
        """Until all that was taken is gone."""
        reached = threading.Event()
        self._queue.put(reached)
        reached.wait()

    def stop(self) -> None:
        self.wait_until_empty()
        self._queue.put(None)

    def _run(self) -> None:
        while (item := self._queue.get()) is not None:
            if isinstance(item, threading.Event):
                item.set()
            else:
                self._destroy(item)


def bundle_from_files(model: Path, golden: Path | None = None, external: Sequence[Path] = ()) -> BundleFds:
    """A bundle from plain files, for apps that have them; `external` lies beside the model. The caller closes it.

    Raises:
        OSError: of the files.
    """
    files = {path.name: create_sealed_memfd(path.name, path.read_bytes()) for path in (model, *external)}
    if golden is not None:
        files[golden.name] = create_sealed_memfd(golden.name, golden.read_bytes())
    return BundleFds(files, model.name, None if golden is None else golden.name, tuple(p.name for p in external))
