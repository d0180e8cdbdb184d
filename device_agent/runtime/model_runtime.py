"""Models inside an app, replaced while the app keeps calling them; the library behind `airweights`.

    runtime = ModelRuntime()
    runtime.swap(bundle_from_files(Path("model.onnx")))
    outputs = runtime.run({"x": x})

Theory of operation. A generation is one loaded model with a number that grows by one for each attempted swap. The
runtime has at most two generations: C, the current one, and P, the previous one, kept for `rollback`. Each generation
g has a count of leases L(g). One lock protects C, P and every L(g). It is locked only for a few assignments, never
while a model loads, runs or is destroyed.

    lease     g = C; L(g) += 1                     a call runs on g, whatever C becomes meanwhile
    release   L(g) -= 1                            if L(g) is 0 and g waits to be destroyed, it is destroyed
    switch    X, P, C = P, C, new                  the switch of `swap`: X is the generation to destroy
    rollback  X, C, P = C, P, none                 X is destroyed by another thread
    destroy   wait until L(X) = 0, then free X     no call can get a new lease on X, because X is neither C nor P

So a call never runs on two generations and never on a freed one, and it waits for no swap.

Rules:
1. A call runs on exactly one generation, the one that is current when the call starts. It has a lease on it until it
   ends.
2. `swap` loads the candidate while the running model serves, runs it on the golden inputs, and then switches. It drains
   and destroys the generation before the replaced one in its own thread, not in the thread of a call. A candidate that
   does not load, or whose golden outputs are wrong, changes nothing. If a model is running, the work of a swap is done
   in steps with pauses between them (device_agent.process.throttle).
3. With `isolation="inproc"` a model is a session in this process. With "worker" each generation has a jailed process.
   If that process ends, it is started again from the same memfds, and the call is sent once more.
4. `rollback` drains and destroys the rejected generation in a thread of its own, which the next `swap` waits for. So
   at most two generations are loaded, and three during a swap.
5. During a swap the interpreter's switch interval is SWAP_SWITCH_INTERVAL_S instead of 5 ms, so that a call gets the
   interpreter back from the swap's thread sooner.
"""

import os
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final

from bundle.contract import Contract
from bundle.errors import Invalid
from bundle.golden.comparison import check_outputs
from bundle.tflite_interface import TFLITE_IDENTIFIER
from device_agent.errors import NothingToRollBack
from device_agent.process.throttle import Throttle
from device_agent.runtime.bundle_fds import DEFAULT_RUNTIME, BundleFds, create_sealed_memfd
from device_agent.runtime.generations import DestroyThread, Generation
from device_agent.runtime.loaded_model import read_golden_samples, trim_heap
from device_agent.runtime.model_backends import load_model
from device_agent.runtime.model_runners import InProcessRunner, Runner, WorkerRunner
from device_agent.runtime.tensors import Array

ISOLATIONS: Final = ("inproc", "worker")
SWAP_SWITCH_INTERVAL_S: Final = 0.0005
DEFAULT_TOLERANCE_PPM: Final = 1_000  # the default of Health.golden_relative_rms_ppm (bundle.contract)


class NoModelLoaded(Invalid):
    """No model is loaded: `swap` was not called yet, or `close` was called. Call `swap` first."""

    reason = "no-model-loaded"


@dataclass(frozen=True, slots=True)
class SwapReport:
    """Durations of a swap, in seconds, pauses between the steps included.

    Attributes:
        generation: number of the new generation.
        load_s: creation of the session; with isolation "worker" also the start of the process.
        warm_s: runs on the golden inputs, and the comparison of their outputs.
        publish_s: duration of the switch.
        drain_s: wait for the last lease of the generation that is destroyed; 0 if there is none.
        destroy_s: destruction of that generation.
    """

    generation: int
    load_s: float
    warm_s: float
    publish_s: float
    drain_s: float
    destroy_s: float


class Lease:
    """A context manager that keeps one generation loaded until it exits.

    It can be used from any thread, but must be entered and exited once. `ModelRuntime.lease` creates it.
    """

    __slots__ = ("_generation",)

    def __init__(self, generation: Generation) -> None:
        self._generation = generation

    @property
    def generation(self) -> int:
        """Number of the leased generation."""
        return self._generation.number

    @property
    def worker_pid(self) -> int | None:
        """Process id of the generation's worker; None with isolation "inproc"."""
        return self._generation.runner.worker_pid

    def run(self, inputs: Mapping[str, Array], outputs: Sequence[str] | None = None) -> dict[str, Array]:
        """Run one inference on the leased generation, even if another one is current by now.

        Args:
            inputs: an array for each of the model's inputs, with the dtype and shape that the model declares.
            outputs: names of the outputs to compute; None for all.

        Returns:
            The outputs by name.

        Raises:
            RequestInvalid: the inputs do not fit the model.
            InferenceFailed: the model failed.
        """
        return self._generation.runner.run(inputs, outputs)

    def __enter__(self) -> "Lease":
        return self

    def __exit__(
        self, _type: type[BaseException] | None, _error: BaseException | None, _: TracebackType | None
    ) -> None:
        self._generation.release()


class ModelRuntime:
    """The current model of an app, and the one before it.

    Thread-safe: `run` and `lease` can be called from any number of threads, also during a swap. `swap`, `rollback`,
    `discard_previous` and `close` wait for each other. Use it as a context manager, or call `close`.

    Args:
        isolation: "inproc" runs models in this process, "worker" runs each in a jailed process of its own. A worker
            takes numeric and Boolean arrays only, no strings.
        threads: intra-op threads of each model; 0 for one per processor, at most 4.
        tolerance_ppm: largest relative RMS error of a golden output, in parts per million.

    Raises:
        ValueError: unknown isolation.
    """

    def __init__(
        self, *, isolation: str = "inproc", threads: int = 0, tolerance_ppm: int = DEFAULT_TOLERANCE_PPM
    ) -> None:
        if isolation not in ISOLATIONS:
            raise ValueError(f"isolation: found {isolation!r}, expected one of {', '.join(ISOLATIONS)}")
        self._isolation = isolation
        self._threads = threads
        self._tolerance_ppm = tolerance_ppm
        self._lock = threading.Lock()  # protects C, P and the lease counts; locked for a few assignments only
        self._change_lock = threading.Lock()  # serializes swap, rollback, discard_previous and close
        self._current: Generation | None = None
        self._previous: Generation | None = None
        self._destroy_thread: DestroyThread | None = None
        self._last_number = 0

    @property
    def generation(self) -> int | None:
        """Number of the current generation; None if no model is loaded."""
        current = self._current
        return None if current is None else current.number

    def lease(self) -> Lease:
        """Lease the current generation: it stays loaded until the lease exits.

        Raises:
            NoModelLoaded: no model is loaded.
        """
        with self._lock:
            current = self._current
            if current is None:
                raise NoModelLoaded("no model is loaded yet", hint="call swap() first")
            current.leases += 1
        return Lease(current)

    def run(self, inputs: Mapping[str, Array], outputs: Sequence[str] | None = None) -> dict[str, Array]:
        """Run one inference on the current generation. Thread-safe; never waits for a swap.

        Args:
            inputs: an array for each of the model's inputs, with the dtype and shape that the model declares. Read only
                during the call.
            outputs: names of the outputs to compute; None for all.

        Returns:
            The outputs by name, with the dtypes and shapes that the model computes. With isolation "worker", large
            outputs are views of shared memory, which is reused after the last view is gone.

        Raises:
            NoModelLoaded: no model is loaded.
            RequestInvalid: the inputs do not fit the model.
            InferenceFailed: the model failed.
        """
        with self.lease() as lease:
            return lease.run(inputs, outputs)

    def swap(self, bundle: BundleFds, contract: Contract | None = None) -> SwapReport:
        """Load a model, check it on its golden inputs, and switch to it.

        The replaced generation stays loaded for `rollback`. The one before it, and one that a rollback rejected, are
        drained and destroyed. `swap` blocks until the last lease on those has exited, so do not call it with such a
        lease. Calls of `run` are served meanwhile.

        Args:
            bundle: the model's files; the caller still owns the descriptors and can close them afterwards.
            contract: inputs and outputs that the model must have; None to accept the model's own.

        Raises:
            ModelDoesNotLoad: onnxruntime cannot load the model.
            ContractMismatch: the model's inputs or outputs are not the contract's.
            GoldenMismatch: a golden output is wrong.
            InferenceFailed: the model failed on a golden input.
            ModelProcessCrashed: with isolation "worker", the process ended or took too long.
            Malformed, TooLarge: the golden vectors are not readable.
            Unavailable: with isolation "worker", no process can be started.
            After any of these, the current model is the same as before.
        """
        with self._change_lock, _shorten_switch_interval():
            if self._destroy_thread is None:
                self._destroy_thread = DestroyThread(self._destroy)
            self._destroy_thread.wait_until_empty()
            throttle = Throttle(is_paced=self._current is not None)
            started = time.perf_counter()
            self._last_number += 1
            generation = Generation(self._last_number, self._load(bundle, contract), self._lock)
            throttle.wait()
            loaded = time.perf_counter()
            try:
                for number, sample in enumerate(read_golden_samples(bundle)):
                    outputs = generation.runner.run(sample.inputs, None)
                    check_outputs(outputs, sample, tolerance_ppm=self._tolerance_ppm, where=f"golden {number}")
                    throttle.wait()
                generation.runner.reset()
            except BaseException:
                generation.runner.close()
                raise
            warmed = time.perf_counter()
            with self._lock:
                retired, self._previous, self._current = self._previous, self._current, generation
            published = time.perf_counter()
            throttle.wait()
            drain_s, destroy_s = self._destroy(retired)
            return SwapReport(
                generation.number, loaded - started, warmed - loaded, published - warmed, drain_s, destroy_s
            )

    def rollback(self) -> int:
        """Switch back to the previous generation.

        The rejected generation is drained and destroyed afterwards, by another thread.

        Can be called with a lease on the current generation.

        Returns:
            The number of the generation that is current again.

        Raises:
            NothingToRollBack: no previous generation is loaded.
        """
        with self._change_lock:
            with self._lock:
                rejected = self._current
                if self._previous is None or rejected is None:
                    raise NothingToRollBack("no previous generation is loaded")
                self._current, self._previous = self._previous, None
                number = self._current.number
            # destroyed in another thread: the caller may itself have a lease on the rejected generation
            assert self._destroy_thread is not None
            self._destroy_thread.enqueue(rejected)
            return number

    def discard_previous(self) -> None:
        """Free the previous generation. `rollback` is not possible until the next swap.

        Blocks until the last lease on that generation has exited.
        """
        with self._change_lock:
            if self._destroy_thread is not None:
                self._destroy_thread.wait_until_empty()
            with self._lock:
                retired, self._previous = self._previous, None
            self._destroy(retired)

    def close(self) -> None:
        """Drain and destroy all generations. Can be called repeatedly.

        Blocks until the last lease has exited. A later `swap` starts again with an empty runtime.
        """
        with self._change_lock:
            if self._destroy_thread is not None:
                self._destroy_thread.stop()
                self._destroy_thread = None
            with self._lock:
                retired = (self._current, self._previous)
                self._current = self._previous = None
            for generation in retired:
                self._destroy(generation)

    def __enter__(self) -> "ModelRuntime":
        return self

    def __exit__(
        self, _type: type[BaseException] | None, _error: BaseException | None, _: TracebackType | None
    ) -> None:
        self.close()

    def _load(self, bundle: BundleFds, contract: Contract | None) -> Runner:
        if self._isolation == "worker":
            return WorkerRunner(bundle, contract, self._threads, in_background=self._current is not None)
        model = load_model(bundle, threads=self._threads)
        if contract is not None:
            model.check_contract(contract)
        return InProcessRunner(model)

    def _destroy(self, generation: Generation | None) -> tuple[float, float]:
        if generation is None:
            return 0.0, 0.0
        started = time.perf_counter()
        generation.wait_until_drained()
        drained = time.perf_counter()
        generation.runner.close()
        if self._isolation == "inproc":
            trim_heap()
        return drained - started, time.perf_counter() - drained


_switch_interval_lock = threading.Lock()
_running_swaps = 0
_original_interval_s = 0.0


@contextmanager
def _shorten_switch_interval() -> Iterator[None]:
    """Set the switch interval of rule 5; the last of several concurrent swaps restores it."""
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


def bundle_from_files(model: Path, golden: Path | None = None, external: Sequence[Path] = ()) -> BundleFds:
    """Read a bundle from plain files.

    Args:
        model: the ONNX or TFLite file.
        golden: file with golden vectors, which `swap` checks; None to check none.
        external: the model's external data files, from the same folder.

    Returns:
        The bundle in memory; the caller closes it.

    Raises:
        OSError: a file cannot be read.
    """
    files = {path.name: create_sealed_memfd(path.name, path.read_bytes()) for path in (model, *external)}
    if golden is not None:
        files[golden.name] = create_sealed_memfd(golden.name, golden.read_bytes())
    runtime = "litert" if os.pread(files[model.name], 4, 4) == TFLITE_IDENTIFIER else DEFAULT_RUNTIME
    golden_name = None if golden is None else golden.name
    return BundleFds(files, model.name, golden_name, tuple(path.name for path in external), runtime=runtime)
