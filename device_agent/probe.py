"""The probe's process: loads a candidate, asks it the golden questions, measures it. The verdict is the supervisor's.

Rules:
1. One call, `probe`. Before each stage it says which one, so that a death has a place: load, contract, golden N,
   latency.
2. Answers are compared as bundle.golden rule 2 says.
3. After the golden runs come more of them, at least MIN_RUNS and at most MAX_RUNS: for the latency, and because some
   models fail only later. Without golden vectors, zeros are asked where that works, and no answer is compared.
"""

import time
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np

from bundle.canonical import Fields
from bundle.errors import AirweightsError
from bundle.golden import check_answer
from bundle.manifest import Contract
from device_agent.messages import Message, Value
from device_agent.parent import Parent, serve, start
from device_agent.runtime.bundle_fds import BundleFds
from device_agent.runtime.inference import servable
from device_agent.runtime.session import LoadedModel, golden_of
from device_agent.runtime.tensors import Array, has_non_finite

MIN_RUNS: Final = 10
MAX_RUNS: Final = 128
BUDGET_S: Final = 1.5  # the whole gate of a 3 MB model is to take less than three seconds


def run_probe(parent: Parent, message: Message) -> Value:
    """Call `probe`. Raises ModelUnfit, ContractUnfit, GoldenUnfit, InferenceUnfit, MalformedRefused."""
    value = message.value

    def stage(name: str) -> None:
        parent.event({"stage": name})

    try:
        bundle = BundleFds.from_message(value["bundle"], message.fds)
        stage("load")
        started = time.perf_counter_ns()
        model = LoadedModel.load(bundle, threads=value["threads"])
        load_us = (time.perf_counter_ns() - started) // 1000
        stage("contract")
        contract = Contract.parse(Fields(value["contract"], "contract"))
        model.check_contract(contract)
        servable(contract)
        samples = golden_of(bundle)
    finally:
        message.close()
    worst = 0.0
    for number, sample in enumerate(samples):
        stage(f"golden {number}")
        answers = model.run(sample.inputs)
        for name, golden in sample.outputs.items():
            if name in answers and has_non_finite(answers[name]) and not has_non_finite(np.asarray(golden)):
                # its own reason, whatever the tolerance
                return {"failed": "nan", "detail": f"golden {number}: output {name!r} has NaN or infinity"}
        tolerance_ppm = value["golden_relative_rms_ppm"]
        worst = max(worst, check_answer(answers, sample, tolerance_ppm=tolerance_ppm, where=f"golden {number}"))
    questions: list[Mapping[str, Array]] = [sample.inputs for sample in samples] or _zeros(model, contract)
    stage("latency")
    return {
        "load_us": load_us,
        "samples": len(samples),
        "worst_relative_rms_ppm": round(worst * 1e6),
        **_latency(model, questions),
    }


def _latency(model: LoadedModel, questions: Sequence[Mapping[str, Array]]) -> Value:
    durations: list[int] = []
    cpu, wall = time.process_time(), time.perf_counter()
    while questions and len(durations) < MAX_RUNS:
        before = time.perf_counter_ns()
        model.run(questions[len(durations) % len(questions)])
        durations.append((time.perf_counter_ns() - before) // 1000)
        if len(durations) >= MIN_RUNS and time.perf_counter() - wall > BUDGET_S:
            break
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    latency_us = sorted(durations)[len(durations) // 2] if durations else None
    return {"latency_us": latency_us, "runs": len(durations), "cpu_share": cpu / wall if wall > 0 else 1.0}


def _zeros(model: LoadedModel, contract: Contract) -> list[Mapping[str, Array]]:
    zeros: dict[str, Any] = {}
    for tensor in contract.inputs:
        shape = tuple(size if isinstance(size, int) else 1 for size in tensor.shape)
        zeros[tensor.name] = np.full(shape, "", object) if tensor.dtype == "string" else np.zeros(shape, tensor.dtype)
    try:
        model.run(zeros)
    except AirweightsError:
        return []  # not every model takes zeros; this one promised nothing about them
    return [zeros]


def main() -> None:
    """The process."""
    parent, _ = start()
    serve(parent, {"probe": run_probe})


if __name__ == "__main__":
    main()
