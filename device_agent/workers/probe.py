"""The probe's process: loads a candidate, asks it the golden questions, measures it. The verdict is the supervisor's.

Rules:
1. One call, `probe`, or `adapter`. Before each stage `probe` says which one, so that a death has a place: load,
   contract, golden N, latency.
2. Answers are compared as bundle.golden rule 2 says.
3. After the golden runs come more of them, at least MIN_RUNS and at most MAX_RUNS: for the latency, and because some
   models fail only later. Without golden vectors zeros are asked, and no answer is compared. Where every size is fixed
   they must be answered, unless onnxruntime blames the values; where a size is free, one might be asked that the model
   cannot take, so a failure is no verdict.
4. A model whose memory grows over these further runs, of inputs that it has all seen, leaks.
"""

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

import numpy as np

from bundle.contract import Contract
from bundle.golden import GoldenSample, check_outputs, write_golden
from bundle.strict_json import StrictObject
from device_agent.errors import AdapterIncompatible, InferenceFailed, MemoryLeak, NanOutput, RequestInvalid
from device_agent.process.channel import JsonObject, Message
from device_agent.process.worker import SupervisorChannel, serve_calls, start_worker
from device_agent.runtime.bundle_fds import BundleFds, create_sealed_memfd
from device_agent.runtime.inference import check_servable
from device_agent.runtime.session import LoadedModel, read_golden_samples
from device_agent.runtime.tensors import Array, has_non_finite

MIN_RUNS: Final = 10
MAX_RUNS: Final = 128
MAX_GROWTH_BYTES: Final = 64 * 1024 * 1024  # arenas settle in the first pass; a leak of 5 MB a run is beyond it
LATENCY_BUDGET_S: Final = 1.5  # the whole gate of a 3 MB model is to take less than three seconds
_STATM_FD: Final = os.open("/proc/self/statm", os.O_RDONLY | os.O_CLOEXEC)


def run_probe(supervisor: SupervisorChannel, message: Message) -> JsonObject:
    """Call `probe`. Raises ModelUnfit, ContractUnfit, GoldenUnfit, InferenceUnfit, MalformedRefused."""
    value = message.value

    def stage(name: str) -> None:
        supervisor.send_event({"stage": name})

    try:
        bundle = BundleFds.from_message(value["bundle"], message.fds)
        stage("load")
        started = time.perf_counter_ns()
        model = LoadedModel.load(bundle, threads=value["threads"])
        load_us = (time.perf_counter_ns() - started) // 1000
        stage("contract")
        contract = Contract.parse(StrictObject(value["contract"], "contract"))
        model.check_contract(contract)
        check_servable(contract)
        samples = read_golden_samples(bundle)
    finally:
        message.close()
    worst = 0.0
    for number, sample in enumerate(samples):
        stage(f"golden {number}")
        answers = model.infer(sample.inputs)
        for name, golden in sample.outputs.items():
            if name in answers and has_non_finite(answers[name]) and not has_non_finite(np.asarray(golden)):
                # its own reason, whatever the tolerance
                raise NanOutput(f"golden {number}: output {name!r} has NaN or infinity")
        tolerance_ppm = value["golden_relative_rms_ppm"]
        worst = max(worst, check_outputs(answers, sample, tolerance_ppm=tolerance_ppm, where=f"golden {number}"))
    questions: list[Mapping[str, Array]] = [sample.inputs for sample in samples] or _zero_inputs(model, contract)
    stage("latency")
    grown_bytes, measured = measure_growth(model, questions)
    if grown_bytes > MAX_GROWTH_BYTES:
        raise MemoryLeak(f"{grown_bytes} bytes more after {measured['runs']} runs, at most {MAX_GROWTH_BYTES} allowed")
    return {
        "load_us": load_us,
        "samples": len(samples),
        "worst_relative_rms_ppm": round(worst * 1e6),
        **measured,
    }


def measure_growth(model: LoadedModel, inputs: Sequence[Mapping[str, Array]]) -> tuple[int, JsonObject]:
    """Rule 3's further runs: by how much resident memory grew, and {"latency_us", "runs", "cpu_share"}.
    Raises InferenceUnfit."""
    before_bytes = _resident_bytes()
    measured = _measure_latency(model, inputs)
    return _resident_bytes() - before_bytes, measured


def run_adapter_check(_supervisor: SupervisorChannel, message: Message) -> JsonObject | Message:
    """Call `adapter`: the golden questions of a bundle with an adapter. Without further descriptors the answers come
    back as golden vectors; with one of such vectors they are compared. Raises AdapterUnfit, Unfit, MalformedRefused."""
    value = message.value
    try:
        count = len(value["bundle"]["paths"])
        bundle = BundleFds.from_message(value["bundle"], message.fds[:count])
        model = LoadedModel.load(bundle)
        wanted: tuple[GoldenSample, ...] = ()
        if len(message.fds) > count:
            files = {**bundle.files, "wanted": message.fds[count]}
            wanted = read_golden_samples(replace(bundle, files=files, golden="wanted"))
        samples = wanted or read_golden_samples(bundle)
    finally:
        message.close()
    if not samples:
        raise AdapterIncompatible("the release has no golden inputs to try it with")
    answered = tuple(GoldenSample(dict(sample.inputs), dict(model.infer(sample.inputs))) for sample in samples)
    if not wanted:
        return Message({}, (create_sealed_memfd("golden-with-adapter", write_golden(answered)),))
    tolerance_ppm = value["tolerance_ppm"]
    errors = [
        check_outputs(found.outputs, sample, tolerance_ppm=tolerance_ppm, where=f"golden {number} with the adapter")
        for number, (found, sample) in enumerate(zip(answered, wanted, strict=True))
    ]
    return {"worst_relative_rms_ppm": round(max(errors) * 1e6)}


def _measure_latency(model: LoadedModel, inputs: Sequence[Mapping[str, Array]]) -> JsonObject:
    durations: list[int] = []
    cpu, wall = time.process_time(), time.perf_counter()
    while inputs and len(durations) < MAX_RUNS:
        before = time.perf_counter_ns()
        model.infer(inputs[len(durations) % len(inputs)])
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
        return []  # not every model takes zeros; this one promised nothing about them
    except InferenceFailed:
        if all(isinstance(size, int) for tensor in contract.inputs for size in tensor.shape):
            raise
        return []
    return [zeros]


def main() -> None:
    """The process."""
    parent, _ = start_worker()
    serve_calls(parent, {"probe": run_probe, "adapter": run_adapter_check})


if __name__ == "__main__":
    main()
