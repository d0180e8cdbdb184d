"""Shadow mode: a candidate receives a share of the requests, agrees or not, and delays no live request."""

import json
import os
import signal

import numpy as np
import pytest

from device_agent.front.requests import Request
from device_agent.front.shadow import ShadowMirror
from device_agent.runtime.comparison import compare_outputs, decode_response
from device_agent.runtime.handles import FrontHandle
from device_agent.runtime.tensors import Array
from device_agent.runtime.wire import NO_JSON, Response
from tests.support import hostile_models as hostile
from tests.support.load_clients import Load, post, wait_until
from tests.support.memfd_bundles import create_memfd_bundle, floats, make_scale_model, start_front
from tests.support.queue_doubles import Process, RecordedResponse


def wait_for_comparisons(served: FrontHandle, count: int) -> None:
    def heard() -> bool:
        assert post(served.address)[0] == 200
        stats = served.shadow_stats("toy")
        return stats.compared + stats.errors + stats.crashes >= count

    wait_until(heard)


@pytest.mark.parametrize(
    ("factor", "limit_ppm", "agrees"), [(2.0, 0, True), (2.02, 20_000, True), (-2.0, 10_000, False)]
)
def test_a_candidate_agrees_or_not(factor: float, limit_ppm: int, agrees: bool) -> None:
    with (
        create_memfd_bundle(make_scale_model(2.0)) as live,
        create_memfd_bundle(make_scale_model(factor)) as candidate,
        start_front() as served,
    ):
        processes = live.start_process(1), candidate.start_process(2)
        served.publish("toy", processes[0])
        processes[1].set_background(is_background=True)
        served.set_shadow("toy", processes[1], 1_000_000, limit_ppm)
        wait_for_comparisons(served, 5)
        stats = served.shadow_stats("toy")
        assert (stats.agreed == stats.compared, stats.errors, stats.nan) == (agrees, 0, 0)
        assert stats.worst_ppm == pytest.approx(abs(factor - 2) / 2 * 1e6, abs=2)
        served.publish("toy", processes[1])
        assert json.loads(post(served.address)[2])["outputs"][0]["data"][0] == pytest.approx(factor)
        assert served.shadow_stats("toy").compared == 0
        for process in processes:
            process.stop()


def test_only_the_share_is_heard_and_both_encodings_are_compared() -> None:
    with create_memfd_bundle(make_scale_model(2.0)) as live, start_front() as served:
        processes = live.start_process(1), live.start_process(2)
        served.publish("toy", processes[0])
        served.set_shadow("toy", processes[1], 250_000, 0)
        head = {
            "inputs": [{"name": "x", "datatype": "FP32", "shape": [4], "parameters": {"binary_data_size": 16}}],
            "parameters": {"binary_data_output": True},
        }
        text = json.dumps(head).encode()
        body = text + floats(1, 2, 3, 4).tobytes()
        for _ in range(20):
            status, _, _ = post(served.address, body, **{"Inference-Header-Content-Length": str(len(text))})
            assert status == 200
        wait_for_comparisons(served, 5)
        assert served.window("toy", 1).requests >= 20
        stats = served.shadow_stats("toy")
        assert stats.compared <= served.window("toy", 1).requests // 4
        assert stats.agreed == stats.compared
        for process in processes:
            process.stop()


def test_a_candidate_that_hangs_or_dies_costs_no_live_request() -> None:
    with (
        create_memfd_bundle(make_scale_model(2.0)) as live,
        create_memfd_bundle(hostile.make_slow_model(2**40)) as candidate,
        start_front() as served,
    ):
        processes = live.start_process(1), candidate.start_process(2)
        served.publish("toy", processes[0])
        served.set_shadow("toy", processes[1], 1_000_000, 0)
        with Load(served.address) as load:
            load.wait_for_responses(50)
            os.kill(processes[1].pid, signal.SIGKILL)
            load.wait_for_responses(50)
        assert load.failures == {}
        wait_for_comparisons(served, 1)
        assert served.shadow_stats("toy").crashes == 1
        for process in processes:
            process.stop()


def test_answers_are_compared_output_by_output() -> None:
    live: dict[str, Array] = {"p": floats(0.1, 0.9), "n": np.array([1, 2])}
    assert compare_outputs(live, live, 0) == (True, 0)
    assert compare_outputs({**live, "p": floats(0.4, 0.6)}, live, 0)[0]
    assert not compare_outputs({**live, "p": floats(0.6, 0.4)}, live, 0)[0]
    assert not compare_outputs({**live, "n": np.array([1, 3])}, live, 10**6)[0]
    assert not compare_outputs({"p": live["p"]}, live, 10**6)[0]
    assert not compare_outputs({**live, "p": floats(np.nan, 1)}, live, 10**6)[0]
    assert compare_outputs(live, {**live, "p": floats(np.nan, 1)}, 0)[0]
    text = json.dumps({"outputs": [{"name": "p", "datatype": "FP32", "shape": [2], "data": [1.0, None]}]}).encode()
    assert np.isnan(decode_response(memoryview(text), NO_JSON)["p"][1])


def test_a_request_that_the_live_model_answers_with_nan_is_not_mirrored() -> None:
    candidate = Process()
    mirror = ShadowMirror("candidate", 1_000_000, 0, lambda **_callbacks: candidate, [""])
    request = Request(0, NO_JSON, b"{}", RecordedResponse(), 0.0)
    mirror.mirror(request, Response(200, NO_JSON, b"{}", has_nan=True))
    assert candidate.inbox == []
    mirror.mirror(request, Response(200, NO_JSON, b"{}"))
    assert len(candidate.inbox) == 1
