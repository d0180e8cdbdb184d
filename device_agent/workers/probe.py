"""The probe process: loads a candidate, runs its golden inputs and measures it.

The supervisor decides the verdict (device_agent.runtime.probe_runner).

Rules:
1. The process serves the calls `probe`, `measure`, `adapter` and `provider`. `probe` reports each stage when it
   starts, so that a crash can be located: load, contract, golden N, requests, latency.
2. Outputs are compared as in bundle.golden.
3. After the golden runs, the golden inputs run again at least MIN_RUNS and at most MAX_RUNS times: to measure the
   latency, and because some models fail only after several runs. Without golden vectors the input is zeros, and no
   output is compared. If all sizes of the inputs are fixed, a failure on zeros fails the candidate, unless onnxruntime
   blames the values. If a size is free, the model may not support the chosen one, so a failure is ignored.
4. `measure` runs the model with one thread in turn with the reference graph (device_agent.runtime.reference). It is a
   call of its own, so that the memory of its sessions is not counted as the model's.
5. On another provider than the CPU, a run may fail at random (device_agent.runtime.unsteady_runs).
6. A model whose memory grows by more than MAX_GROWTH_BYTES over these runs leaks, since it has run all inputs before.
"""

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

import numpy as np

from bundle.contract import Contract
from bundle.errors import Refused, Unfit
from bundle.golden.comparison import GoldenVector, check_outputs
from bundle.golden.golden_file import GoldenSample, write_golden
from bundle.providers import CPU
from bundle.strict_json import StrictObject
from device_agent.errors import AdapterIncompatible, InferenceFailed, MemoryLeak, RequestInvalid
from device_agent.process.channel import JsonObject, Message
from device_agent.process.jail import JailPolicy
from device_agent.process.throttle import Throttle
from device_agent.process.worker import Handler, SupervisorChannel, serve_calls, start_worker
from device_agent.runtime.bundle_fds import DEFAULT_RUNTIME, BundleFds, create_sealed_memfd
from device_agent.runtime.golden_check import check_golden_samples
from device_agent.runtime.golden_requests import ask_golden_requests
from device_agent.runtime.inference import check_servable
from device_agent.runtime.loaded_model import LoadedModel, read_golden_samples
from device_agent.runtime.model_backends import backend_of, load_model
from device_agent.runtime.reference import measure_ratio, run_reference
from device_agent.runtime.tensors import Array, has_non_finite
from device_agent.runtime.unsteady_runs import FailureShare, check_repeatedly

MIN_RUNS: Final = 10
MAX_RUNS: Final = 128
MAX_GROWTH_BYTES: Final = 64 * 1024 * 1024  # arenas settle in the first pass; a leak of 5 MB a run is beyond it
LATENCY_BUDGET_S: Final = 1.5  # the whole gate of a 3 MB model is to take less than three seconds
_STATM_FD: Final = os.open("/proc/self/statm", os.O_RDONLY | os.O_CLOEXEC)


def run_probe(supervisor: SupervisorChannel, message: Message) -> JsonObject:
    """Probe a candidate, and return its measurements: call `probe`.

    Args:
        supervisor: receives the stages.
        message: fields `bundle`, `contracts` (one for each model), `golden_relative_rms_ppm` (None to compare no
            outputs), `threads`, `asks_requests` (also send the golden inputs through the request parser); the bundle's
            descriptors.

    Raises:
        ModelDoesNotLoad: onnxruntime cannot load the model.
        ContractMismatch: its inputs or outputs are not those of the contract.
        GoldenMismatch: an output differs by more than the tolerance.
        NanOutput: an output has NaN or infinity.
        EndpointRefuses: a golden input cannot be asked as a request.
        InferenceFailed: a run failed.
        MemoryLeak: the memory grows with every run.
        Malformed: the golden vectors are malformed.
    """
    found: list[JsonObject] = []
    models: list[LoadedModel] = []  # all stay loaded, as in service, so that the peak memory is that of all
    try:
        parts = BundleFds.from_message(message.value["bundle"], message.fds).each_model()
        for part, contract in zip(parts, message.value["contracts"], strict=True):
            prefix = f"model {part.name!r}: " if len(parts) > 1 else ""
            try:
                found.append(_probe_model(supervisor, message.value, part, contract, prefix, models))
            except (Unfit, Refused) as error:
                raise type(error)(f"{prefix}{error.message}", hint=error.hint) from error
    finally:
        message.close()
    latencies = [row["latency_us"] for row in found]
    return {
        "latency_us": None if None in latencies else sum(latencies),
        "cpu_share": min(row["cpu_share"] for row in found),
        "worst_relative_rms_ppm": max(row["worst_relative_rms_ppm"] for row in found),
        **{name: sum(row[name] for row in found) for name in ("load_us", "samples", "runs")},
    }


def _probe_model(
    supervisor: SupervisorChannel,
    value: JsonObject,
    bundle: BundleFds,
    contract_fields: JsonObject,
    prefix: str,
    models: list[LoadedModel],
) -> JsonObject:
    def stage(name: str) -> None:
        supervisor.send_event({"stage": f"{prefix}{name}"})

    stage("load")
    started = time.perf_counter_ns()
    model = load_model(bundle, threads=value["threads"])
    load_us = (time.perf_counter_ns() - started) // 1000
    models.append(model)
    stage("contract")
    contract = Contract.parse(StrictObject(contract_fields, "contract"))
    model.check_contract(contract)
    check_servable(contract)
    samples = read_golden_samples(bundle)
    worst, tolerance_ppm = 0.0, value["golden_relative_rms_ppm"]
    is_steady = bundle.provider == CPU
    if tolerance_ppm is not None:
        check = check_golden_samples if is_steady else check_repeatedly
        worst = check(model, samples, tolerance_ppm, stage)
    inputs: list[Mapping[str, Array]] = [sample.inputs for sample in samples] or _zero_inputs(model, contract)
    if value["asks_requests"]:
        stage("requests")
        ask_golden_requests(model, contract, samples, inputs, tolerance_ppm or 0)
    stage("latency")
    grown_bytes, measured = measure_growth(model, inputs, is_steady=is_steady)
    if grown_bytes > MAX_GROWTH_BYTES:
        raise MemoryLeak(f"{grown_bytes} bytes more after {measured['runs']} runs, at most {MAX_GROWTH_BYTES} allowed")
    return {
        "load_us": load_us,
        "samples": len(samples),
        "worst_relative_rms_ppm": round(worst * 1e6),
        **measured,
    }


def run_measure(_supervisor: SupervisorChannel, message: Message) -> JsonObject:
    """Measure the model relative to the reference graph: call `measure`.

    Args:
        message: fields `bundle`, `contracts`; descriptors of the bundle.

    Returns:
        {"ratio": {"ratio_ppm": sum over the models}, or None without an input to run, or on another runtime than
        ONNX Runtime's CPU provider}.

    Raises:
        ModelDoesNotLoad: onnxruntime cannot load the model.
        InferenceFailed: a run failed.
        Malformed: the golden vectors are malformed.
    """
    try:
        bundle = BundleFds.from_message(message.value["bundle"], message.fds)
        if bundle.runtime != DEFAULT_RUNTIME or bundle.provider != CPU:
            # the reference graph is for onnxruntime's CPU provider; another one works in threads that are not measured
            return {"ratio": None}
        total_ppm = 0
        for part, contract_fields in zip(bundle.each_model(), message.value["contracts"], strict=True):
            model = load_model(part, threads=1)
            contract = Contract.parse(StrictObject(contract_fields, "contract"))
            samples = read_golden_samples(part)
            found = measure_ratio(model, [sample.inputs for sample in samples] or _zero_inputs(model, contract))
            if found is None:
                return {"ratio": None}
            total_ppm += found.ratio_ppm
        return {"ratio": {"ratio_ppm": total_ppm}}
    finally:
        message.close()


def measure_growth(
    model: LoadedModel, inputs: Sequence[Mapping[str, Array]], *, is_steady: bool = True
) -> tuple[int, JsonObject]:
    """Run the inputs repeatedly; return the growth of resident memory in bytes, and the measurements.

    Args:
        model: the loaded candidate.
        inputs: input tensors of each run, by name.
        is_steady: a single failed run counts; if not, device_agent.runtime.unsteady_runs decides.

    Returns:
        The growth, and {"latency_us": median, "runs": number, "cpu_share": processor seconds per second}.

    Raises:
        InferenceFailed: a run failed.
        ProviderUnstable: too many runs failed on another provider than the CPU.
    """
    before_bytes = _resident_bytes()
    measured = _measure_latency(model, inputs, None if is_steady else FailureShare())
    return _resident_bytes() - before_bytes, measured


def run_adapter_check(_supervisor: SupervisorChannel, message: Message) -> JsonObject | Message:
    """Run a bundle's golden inputs with an adapter: call `adapter`.

    Args:
        message: fields `bundle`, `tolerance_ppm`; descriptors of the bundle, and of golden vectors to compare with, or
            none to get the outputs back as golden vectors.

    Raises:
        AdapterIncompatible: the release has no golden inputs.
        Unfit: the model does not load or run with the adapter, or an output differs by more than the tolerance.
        Malformed: the golden vectors are malformed.
    """
    value = message.value
    try:
        count = len(value["bundle"]["paths"])
        bundle = BundleFds.from_message(value["bundle"], message.fds[:count])
        model = load_model(bundle)
        expected: tuple[GoldenVector, ...] = ()
        if len(message.fds) > count:
            files = {**bundle.files, "expected": message.fds[count]}
            expected = read_golden_samples(replace(bundle, files=files, golden="expected"))
        samples = expected or read_golden_samples(bundle)
    finally:
        message.close()
    if not samples:
        raise AdapterIncompatible("the release has no golden inputs to check the adapter with")
    found_samples = tuple(GoldenSample(dict(sample.inputs), dict(model.infer(sample.inputs))) for sample in samples)
    if not expected:
        for number, sample in enumerate(found_samples):
            if any(has_non_finite(output) for output in sample.outputs.values()):
                raise AdapterIncompatible(f"golden {number} with the adapter: an output has NaN or infinity")
        return Message({}, (create_sealed_memfd("golden-with-adapter", write_golden(found_samples)),))
    tolerance_ppm = value["tolerance_ppm"]
    errors = [
        check_outputs(found.outputs, sample, tolerance_ppm=tolerance_ppm, where=f"golden {number} with the adapter")
        for number, (found, sample) in enumerate(zip(found_samples, expected, strict=True))
    ]
    return {"worst_relative_rms_ppm": round(max(errors) * 1e6)}


def _measure_latency(
    model: LoadedModel, inputs: Sequence[Mapping[str, Array]], failures: FailureShare | None
) -> JsonObject:
    durations: list[int] = []
    cpu, wall = time.process_time(), time.perf_counter()
    while inputs and len(durations) < MAX_RUNS:
        before = time.perf_counter_ns()
        try:
            model.infer(inputs[len(durations) % len(inputs)])
        except InferenceFailed as error:
            if failures is None:
                raise
            failures.record(error, len(durations) + 1)
        durations.append((time.perf_counter_ns() - before) // 1000)
        if len(durations) >= MIN_RUNS and time.perf_counter() - wall > LATENCY_BUDGET_S:
            break
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    latency_us = sorted(durations)[len(durations) // 2] if durations else None
    return {"latency_us": latency_us, "runs": len(durations), "cpu_share": cpu / wall if wall > 0 else 1.0}


def _resident_bytes() -> int:
    # statm's second field, in pages; open since before the jail, which closes /proc
    return int(os.pread(_STATM_FD, 200, 0).split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _zero_inputs(model: LoadedModel, contract: Contract) -> list[Mapping[str, Array]]:
    zeros: dict[str, Any] = {}
    for tensor in contract.inputs:
        shape = tuple(size if isinstance(size, int) else 1 for size in tensor.shape)
        zeros[tensor.name] = np.full(shape, "", object) if tensor.dtype == "string" else np.zeros(shape, tensor.dtype)
    try:
        model.run(zeros)
    except RequestInvalid:
        return []  # the contract does not promise that the model accepts zeros
    except InferenceFailed:
        if all(isinstance(size, int) for tensor in contract.inputs for size in tensor.shape):
            raise
        return []
    return [zeros]


def run_provider_check(_supervisor: SupervisorChannel, message: Message) -> JsonObject:
    """Run the reference graph on a provider in the jail: call `provider`.

    Args:
        message: the field `provider`.

    Raises:
        ProviderMissing: the provider does not run here.
        InferenceFailed: the run failed.
    """
    message.close()
    return run_reference(message.value["provider"])


def _prepare(_throttle: Throttle, policy: JailPolicy) -> JailPolicy:
    backend = backend_of(policy.runtime or DEFAULT_RUNTIME)
    return replace(policy, read=(*policy.read, *backend.warm_process(policy.provider, policy.provider_library)))


def main() -> None:
    """Run the probe process until the supervisor stops it."""
    parent, _ = start_worker(_prepare)
    handlers: dict[str, Handler] = {"probe": run_probe, "measure": run_measure, "adapter": run_adapter_check}
    serve_calls(parent, {**handlers, "provider": run_provider_check})


if __name__ == "__main__":
    main()
