"""The endpoint and its processes: real requests, swaps and crashes under load, and the jails."""

import contextlib
import gzip
import json
import os
import signal
import socket
import stat
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.http as triton
from onnx import helper

from bundle.errors import GoldenMismatch
from device_agent.config.config import Config, FurtherFamily
from device_agent.config.serve import ServeSettings
from device_agent.errors import AddressUnavailable, ConfigInvalid, DrainTimeout, ModelDoesNotLoad, ModelProcessCrashed
from device_agent.runtime.handles import FrontHandle, ModelProcess, PrestartedProcess
from device_agent.runtime.listening_socket import listen_on
from device_agent.serving.serving_runtime import ServingRuntime
from tests.support import hostile_models as hostile
from tests.support.load_clients import INFER, REQUEST, Load, connect, post, wait_until
from tests.support.memfd_bundles import (
    add_arbitrary_golden,
    create_memfd_bundle,
    floats,
    make_graph_model,
    make_scale_model,
    start_front,
)

SAMPLE = [{"x": floats(1, 2, 3, 4)}]


def get(address: str, path: str) -> tuple[int, Any]:
    connection = connect(address)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, json.loads(response.read())
    finally:
        connection.close()


def infer_value(address: str) -> float:
    status, _, body = post(address)
    assert status == 200, body
    return float(json.loads(body)["outputs"][0]["data"][0])


def test_tritonclient_is_served_in_all_four_combinations_of_json_and_bytes() -> None:
    with create_memfd_bundle(make_scale_model(2.0), list(SAMPLE)) as bundle, start_front() as served:
        process = bundle.start_process(1)
        served.publish("toy", process)
        client = triton.InferenceServerClient(served.address.removeprefix("http://"))
        assert client.is_server_live()
        assert client.is_server_ready()
        assert client.is_model_ready("toy")
        assert client.is_model_ready("toy", "1.0.1")
        assert not client.is_model_ready("toy", "9.9.9")
        assert "binary_tensor_data" in client.get_server_metadata()["extensions"]
        index = client.get_model_repository_index()
        assert [(row["name"], row["version"], row["state"]) for row in index] == [("toy", "1.0.1", "READY")]
        metadata = client.get_model_metadata("toy")
        assert metadata["inputs"] == [{"name": "x", "datatype": "FP32", "shape": [4]}]
        assert metadata["versions"] == ["1.0.1"]
        tensor = triton.InferInput("x", [4], "FP32")
        for as_bytes in (True, False):
            tensor.set_data_from_numpy(floats(1, 2, 3, 4), binary_data=as_bytes)
            for out_bytes in (True, False):
                wanted = triton.InferRequestedOutput("y", binary_data=out_bytes)
                result = client.infer("toy", [tensor], outputs=[wanted], request_id="a", model_version="1.0.1")
                assert result.as_numpy("y").tolist() == [2, 4, 6, 8]
                assert result.get_response()["id"] == "a"
        for algorithm in ("gzip", "deflate"):
            result = client.infer(
                "toy", [tensor], request_compression_algorithm=algorithm, response_compression_algorithm=algorithm
            )
            assert result.as_numpy("y").tolist() == [2, 4, 6, 8]
        [row] = client.get_inference_statistics("toy", "1.0.1")["model_stats"]
        assert row["inference_stats"]["success"]["count"] == 6
        assert row["inference_stats"]["compute_infer"]["ns"] > 0
        assert client.get_inference_statistics("toy", "9.9")["model_stats"] == []
        with pytest.raises(triton.InferenceServerException, match="loaded by updates"):
            client.unload_model("toy")
        client.close()
        process.stop()


def test_metrics_add_up_over_a_swap() -> None:
    with create_memfd_bundle(make_scale_model(2.0)) as bundle, start_front() as served:
        processes = [bundle.start_process(number) for number in (1, 2)]
        for process in processes:
            served.publish("toy", process)
            infer_value(served.address)
            post(served.address, b"{")
        served.retire("toy", 1, 5)
        served.publish("toy", processes[1])
        served.push_metrics("# TYPE airweights_swaps_total counter\nairweights_swaps_total 7\n")
        connection = connect(served.address)
        connection.request("GET", "/metrics")
        response = connection.getresponse()
        assert response.getheader("content-type", "").startswith("text/plain; version=0.0.4")
        lines = response.read().decode().splitlines()
        connection.close()
        for version in ("1.0.1", "1.0.2"):
            labels = f'family="toy",version="{version}"'
            for code, count in (("2xx", 1), ("4xx", 1), ("5xx", 0)):
                assert f'airweights_requests_total{{{labels},code="{code}"}} {count}' in lines
            assert f'airweights_request_duration_seconds_bucket{{{labels},le="+Inf"}} 2' in lines
            assert f"airweights_inference_duration_seconds_count{{{labels}}} 1" in lines
        assert 'airweights_model_info{family="toy",version="1.0.2"} 1' in lines
        assert 'airweights_generation_switches_total{family="toy"} 2' in lines
        assert "airweights_swaps_total 7" in lines
        resident = next(line for line in lines if line.startswith('airweights_resident_bytes{process="front"} '))
        assert 10e6 < float(resident.split()[1]) < 100e6
        for process in processes:
            process.stop()


def test_large_tensors_go_and_come_as_bytes() -> None:
    size = 300_000
    with create_memfd_bundle(make_scale_model(2.0, size="n")) as bundle, start_front() as served:
        process = bundle.start_process(1)
        served.publish("toy", process)
        client = triton.InferenceServerClient(served.address.removeprefix("http://"))
        values = np.arange(size, dtype=np.float32)
        tensor = triton.InferInput("x", [size], "FP32")
        tensor.set_data_from_numpy(values)
        for _ in range(3):
            assert np.array_equal(client.infer("toy", [tensor]).as_numpy("y"), values * 2)
        client.close()
        process.stop()


def test_the_clients_mistakes_are_4xx_with_words_and_do_not_count_against_the_model() -> None:
    with create_memfd_bundle(make_scale_model(2.0)) as bundle, start_front() as served:
        process = bundle.start_process(1)
        served.publish("toy", process)
        mistakes: list[tuple[bytes, str, dict[str, str], int, str]] = [
            (b"{", INFER, {}, 400, "not JSON"),
            (b'{"inputs":[{"name":"q"}]}', INFER, {}, 400, "input 'q' is unknown, expected x"),
            (REQUEST, "/v2/models/other/infer", {}, 404, "unknown model, expected one of: toy"),
            (REQUEST, "/v2/models/toy/versions/9.9.9/infer", {}, 404, "no loaded version '9.9.9'"),
            (REQUEST, "/v2/models/toy/ready", {}, 405, "expected GET or HEAD"),
            (REQUEST, INFER, {"Inference-Header-Content-Length": "x"}, 400, "expected a decimal number"),
            (REQUEST, INFER, {"Inference-Header-Content-Length": "9999"}, 400, "is 9999, the body has"),
            (REQUEST.replace(b"{", b'{"id": "\\ud800", ', 1), INFER, {}, 400, "id: expected a string"),
            (REQUEST.replace(b"4]}", b"1e999]}", 1), INFER, {}, 400, "beyond FP32"),
            (REQUEST, INFER, {"Content-Encoding": "br"}, 415, "expected gzip"),
            (REQUEST, INFER, {"Content-Encoding": "gzip"}, 400, "not gzip"),
        ]
        for body, path, headers, status, words in mistakes:
            found, fields, text = post(served.address, body, path, **headers)
            assert (found, fields["content-type"]) == (status, "application/json")
            assert words in json.loads(text)["error"]
        assert get(served.address, "/v3")[0] == 404
        window = served.window("toy", 1)
        assert (window.requests, window.client_errors, window.errors) == (6, 6, 0)
        assert infer_value(served.address) == 2.0
        process.stop()


@pytest.mark.parametrize(
    "data",
    [
        b"nonsense\r\n\r\n",
        b"POST /v2/models/toy/infer HTTP/1.1\r\nContent-Length: -5\r\n\r\n",
        b"POST /v2/models/toy/infer HTTP/1.1\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n{}",
        b"POST /v2/models/toy/infer HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"GET /v2 HTTP/1.1\r\nX: " + b"a" * 2**21,
    ],
)
def test_what_is_no_http_is_answered_in_json(data: bytes) -> None:
    with start_front() as served:
        host, _, port = served.address.removeprefix("http://").partition(":")
        with socket.create_connection((host, int(port)), timeout=30) as connection:
            with contextlib.suppress(ConnectionError):  # the server may have closed before all of it was sent
                connection.sendall(data)
            with connection.makefile("rb") as response:
                assert response.readline() == b"HTTP/1.1 400 Bad Request\r\n"
        assert get(served.address, "/v2/health/live")[0] == 200


def test_head_is_answered_without_a_body_and_the_connection_goes_on() -> None:
    with start_front() as served:
        connection = connect(served.address)
        for method, body in (("HEAD", b""), ("GET", b'{"live": true}')):
            connection.request(method, "/v2/health/live")
            response = connection.getresponse()
            assert (response.status, response.getheader("content-length")) == (200, "14")
            assert response.read() == body
        connection.close()


def test_a_gzip_request_gets_a_gzip_answer() -> None:
    with create_memfd_bundle(make_scale_model(2.0)) as bundle, start_front() as served:
        process = bundle.start_process(1)
        served.publish("toy", process)
        headers = {"Content-Encoding": "gzip", "Accept-Encoding": "deflate, gzip;q=0.5"}
        _, fields, body = post(served.address, gzip.compress(REQUEST), **headers)
        assert fields["content-encoding"] == "gzip"
        assert json.loads(gzip.decompress(body))["outputs"][0]["data"] == [2, 4, 6, 8]
        process.stop()


def test_requests_beyond_a_limit_are_refused_and_not_piled_up() -> None:
    with (
        create_memfd_bundle(make_scale_model(2.0)) as bundle,
        start_front(max_body_bytes=1000, max_waiting=1, wait_s=60.0) as served,
    ):
        process = bundle.start_process(1)
        served.publish("toy", process)
        process.kill()  # from here on requests wait for its successor
        wait_until(lambda: not served.state()["families"]["toy"]["ready"])
        status, fields, _ = post(served.address, b"x" * 1001)
        assert (status, fields["connection"]) == (413, "close")
        chunked = connect(served.address)
        chunked.request("POST", INFER, iter([b"x" * 600, b"x" * 600]), encode_chunked=True)
        assert chunked.getresponse().status == 413
        chunked.close()
        waiting = connect(served.address)
        waiting.request("POST", INFER, REQUEST)
        wait_until(lambda: served.state()["families"]["toy"]["waiting"])
        status, fields, body = post(served.address)
        assert (status, fields["retry-after"]) == (503, "1")
        assert "1 requests are waiting already" in json.loads(body)["error"]
        waiting.close()


def test_the_endpoint_is_ready_only_while_every_family_is_loaded() -> None:
    with create_memfd_bundle(make_scale_model(2.0)) as bundle, start_front(families=("toy", "other")) as served:
        process, other = bundle.start_process(1), bundle.start_process(1, family="other")
        assert get(served.address, "/v2/health/ready")[0] == 400
        served.publish("toy", process)
        assert get(served.address, "/v2/health/ready")[0] == 400
        served.publish("other", other)
        assert get(served.address, "/v2/health/ready")[0] == 200
        other.stop()
        wait_until(lambda: not served.state()["families"]["other"]["ready"])
        assert get(served.address, "/v2/health/ready")[0] == 400
        assert get(served.address, "/v2/health/live")[0] == 200
        process.stop()


def test_no_request_fails_while_models_are_swapped_under_load() -> None:
    swaps = 6
    with (
        create_memfd_bundle(make_scale_model(2.0), list(SAMPLE)) as even,
        create_memfd_bundle(make_scale_model(3.0), list(SAMPLE)) as odd,
        start_front() as served,
    ):
        current = even.start_process(0)
        served.publish("toy", current)
        with Load(served.address) as load:
            for number in range(1, swaps + 1):
                candidate = (odd if number % 2 else even).start_process(number)
                served.publish("toy", candidate)
                load.wait_for_responses(30)
                assert get(served.address, "/v2/health/ready")[0] == 200
                served.retire("toy", number - 1, 10)
                current.stop()
                current = candidate
            load.wait_for_responses(30)
        assert load.failures == {}
        assert set(load.responses) == {(200, 2.0), (200, 3.0)}
        assert served.window("toy", swaps).errors == 0
        current.stop()


def test_going_back_to_a_resident_generation_is_one_publish() -> None:
    with (
        create_memfd_bundle(make_scale_model(2.0)) as good,
        create_memfd_bundle(make_scale_model(3.0)) as bad,
        start_front() as served,
    ):
        old, new = good.start_process(1), bad.start_process(2)
        served.publish("toy", old)
        served.publish("toy", new)
        assert infer_value(served.address) == 3.0
        assert get(served.address, "/v2/models/toy")[1]["versions"] == ["1.0.1", "1.0.2"]
        served.publish("toy", old)
        assert infer_value(served.address) == 2.0
        served.retire("toy", 2, 5)
        new.stop()
        assert get(served.address, "/v2/models/toy")[1]["versions"] == ["1.0.1"]
        old.stop()


def test_no_request_is_lost_when_the_model_process_is_killed_and_restarted() -> None:
    with create_memfd_bundle(make_scale_model(2.0), list(SAMPLE)) as bundle, start_front() as served:
        process = bundle.start_process(1)
        served.publish("toy", process)
        with Load(served.address) as load:
            for _ in range(3):
                load.wait_for_responses(20)
                os.kill(process.pid, signal.SIGKILL)
                process.stop()
                assert not process.is_alive()
                process = bundle.start_process(1)
                served.publish("toy", process)
            load.wait_for_responses(20)
        assert load.failures == {}
        window = served.window("toy", 1)
        assert (window.crashes, window.errors) == (3, 0)
        assert window.requests == sum(load.responses.values())
        process.stop()


def test_a_standby_takes_over_from_a_killed_process() -> None:
    with create_memfd_bundle(make_scale_model(2.0), list(SAMPLE)) as bundle, start_front() as served:
        process, standby = bundle.start_process(1), PrestartedProcess.start()
        served.publish("toy", process)
        with Load(served.address) as load:
            load.wait_for_responses(20)
            process.kill()
            process = ModelProcess.start(bundle.fds, bundle.make_spec(1), prestarted=standby)
            served.publish("toy", process)
            load.wait_for_responses(20)
        assert load.failures == {}
        assert process.pid == standby.worker.pid
        process.stop()
        assert not standby.is_alive()
        again = ModelProcess.start(bundle.fds, bundle.make_spec(1), prestarted=standby)
        assert again.pid != standby.worker.pid
        again.stop()
        unused = PrestartedProcess.start()
        unused.stop()
        assert not unused.is_alive()


def test_bodies_that_fill_the_request_channel_are_all_answered() -> None:
    size = 15_000
    body = json.dumps({"inputs": [{"name": "x", "datatype": "FP32", "shape": [size], "data": [1] * size}]}).encode()
    with create_memfd_bundle(make_scale_model(2.0, size="n")) as bundle, start_front() as served:
        process = bundle.start_process(1)
        served.publish("toy", process)
        statuses: list[int] = []

        def send() -> None:
            for _ in range(10):
                statuses.append(post(served.address, body)[0])

        clients = [threading.Thread(target=send) for _ in range(8)]
        for client in clients:
            client.start()
        for client in clients:
            client.join()
        assert statuses == [200] * 80
        process.stop()


def test_inputs_that_the_model_cannot_run_on_are_the_clients_mistake_and_of_no_other_request() -> None:
    shape = helper.make_tensor("shape", 7, [1], [4])
    model = make_graph_model(
        [helper.make_node("Reshape", ["x", "shape"], ["y"])],
        [("x", "float32", ["n"])],
        [("y", "float32", [4])],
        [shape],
    )
    with create_memfd_bundle(model) as bundle, start_front() as served:
        process = bundle.start_process(1)
        served.publish("toy", process)
        wrong = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [3], "data": [1, 2, 3]}]}
        status, _, body = post(served.address, json.dumps(wrong).encode())
        assert (status, "cannot run on input 'x' of shape [3]" in json.loads(body)["error"]) == (400, True)
        assert infer_value(served.address) == 1.0
        window = served.window("toy", 1)
        assert (window.requests, window.client_errors, window.errors) == (2, 1, 0)
        process.stop()


def test_nan_answers_are_counted() -> None:
    with create_memfd_bundle(hostile.make_nan_model()) as bundle, start_front() as served:
        process = bundle.start_process(1)
        served.publish("toy", process)
        bad = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [4], "data": [-1, 1, 1, 1]}]}
        status, _, body = post(served.address, json.dumps(bad).encode())
        assert (status, json.loads(body)["outputs"][0]["data"][0]) == (200, None)
        assert served.window("toy", 1).nan == 1
        process.stop()


def test_a_generation_with_a_hanging_request_does_not_drain_and_can_be_killed() -> None:
    with (
        create_memfd_bundle(hostile.make_slow_model(2**40)) as slow,
        create_memfd_bundle(make_scale_model(2.0)) as good,
        start_front(response_deadline_s=0.2) as served,
    ):
        process = slow.start_process(1)
        served.publish("toy", process)
        status, _, body = post(served.address)
        assert (status, "did not respond within 0.2 s" in json.loads(body)["error"]) == (504, True)
        window = served.window("toy", 1)
        assert (window.errors, window.in_flight) == (1, 1)
        assert window.oldest_in_flight_s >= 0.2
        with pytest.raises(DrainTimeout, match="generation 1 of 'toy' has requests after"):
            served.retire("toy", 1, 0.1)
        successor = good.start_process(2)
        served.publish("toy", successor)
        process.kill()
        while (answer := post(served.address))[0] == 504:  # the deadline is short for a busy machine
            pass
        assert (answer[0], json.loads(answer[2])["outputs"][0]["data"][0]) == (200, 2.0)
        successor.stop()


def test_a_model_that_can_not_be_loaded_leaves_no_process_behind() -> None:
    with create_memfd_bundle(b"noise", contract=_contract()) as bundle:
        with pytest.raises(ModelDoesNotLoad, match=r"cannot load 'toy/fp32/model\.onnx'"):
            bundle.start_process(1)
    with create_memfd_bundle(hostile.make_hanging_model()) as bundle:
        with (
            add_arbitrary_golden(bundle, 4) as bundle_with_golden,
            pytest.raises(ModelProcessCrashed, match="within 1 s"),
        ):
            ModelProcess.start(bundle_with_golden.fds, bundle_with_golden.make_spec(1), deadline_s=1)


def test_each_process_has_only_what_it_needs() -> None:
    with create_memfd_bundle(make_scale_model(2.0), list(SAMPLE)) as bundle, start_front() as served:
        process = bundle.start_process(1)
        served.publish("toy", process)
        infer_value(served.address)
        for holder, foreign in (
            (served, {"numpy", "onnxruntime", "tuf", "cryptography", "starlette", "sqlite3", "urllib3"}),
            (process, {"uvicorn", "tuf", "cryptography", "urllib3", "sqlite3", "onnx", "asyncio"}),
        ):
            facts = holder.facts()
            assert not foreign & {name.split(".")[0] for name in facts["modules"]}
            if os.geteuid() == 0:
                assert facts["uid"] != 0
            status = Path(f"/proc/{holder.pid}/status").read_text()
            assert "Seccomp:\t2" in status
            assert "NoNewPrivs:\t1" in status
            assert "CapEff:\t0000000000000000" in status
        maps = Path(f"/proc/{process.pid}/maps").read_text() if os.geteuid() == 0 else ""
        assert "libonnxruntime" in maps or "onnxruntime_pybind11" in maps or not maps
        process.stop()


def test_nothing_wakes_while_nobody_asks() -> None:
    with create_memfd_bundle(make_scale_model(2.0)) as bundle, start_front() as served:
        process = bundle.start_process(1)
        served.publish("toy", process)
        infer_value(served.address)
        # only the sweep after the last request may still run
        deadline = time.monotonic() + 30
        while _switches(served.pid, process.pid) != _switches_after_a_second(served.pid, process.pid):
            assert time.monotonic() < deadline
        process.stop()


def test_requests_wait_for_a_front_that_is_stopped_to_answer_them() -> None:
    with create_memfd_bundle(hostile.make_slow_model(200_000)) as bundle:
        process = bundle.start_process(1)
        with start_front() as served:
            served.publish("toy", process)
            answers: list[int] = []
            client = threading.Thread(target=lambda: answers.append(post(served.address)[0]))
            client.start()
            wait_until(lambda: served.window("toy", 1).in_flight)
            served.stop()
            client.join()
            assert answers == [200]
        with start_front() as successor:
            successor.publish("toy", process)
            assert post(successor.address)[0] == 200
        process.stop()


def test_a_unix_socket_is_for_its_owner_and_group_and_taken_over_only_from_the_dead(tmp_path: Path) -> None:
    path = tmp_path / "infer.sock"
    with create_memfd_bundle(make_scale_model(2.0)) as bundle, start_front(listen=f"unix:{path}") as served:
        process = bundle.start_process(1)
        served.publish("toy", process)
        assert stat.S_IMODE(path.stat().st_mode) == 0o660
        assert infer_value(served.address) == 2.0
        with pytest.raises(AddressUnavailable, match="another server uses it"):
            FrontHandle.start(_config(f"unix:{path}"))
        process.stop()
    assert not path.exists()
    listen_on(f"unix:{path}")[0].close()
    listen_on(f"unix:{path}")[0].close()
    path.unlink()
    path.write_text("not a socket")
    with pytest.raises(AddressUnavailable, match="in use"):
        listen_on(f"unix:{path}")


@pytest.mark.parametrize("listen", ["", "unix:relative", "tcp:127.0.0.1", "tcp::1", "tcp:127.0.0.1:70000", "udp:x:1"])
def test_a_malformed_address_is_named(listen: str) -> None:
    with pytest.raises(ConfigInvalid, match="expected unix:/path, tcp:HOST:PORT or systemd"):
        listen_on(listen)


def _config(listen: str) -> Any:
    from device_agent.runtime.handles import ServeConfig

    return ServeConfig(listen)


def _contract() -> Any:
    with create_memfd_bundle(make_scale_model(2.0)) as bundle:
        return bundle.contract


def _switches(*pids: int) -> list[str]:
    lines = []
    for pid in pids:
        for status in sorted(Path(f"/proc/{pid}/task").glob("*/status")):
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # a thread that has just ended
                lines += [line for line in status.read_text().splitlines() if "voluntary_ctxt_switches" in line]
    return lines


def _switches_after_a_second(*pids: int) -> list[str]:
    threading.Event().wait(1.0)
    return _switches(*pids)


def test_a_switchboard_answers_as_long_as_each_family_does(tmp_path: Path) -> None:
    config = Config(
        tmp_path, "https://models.example.com", "a", serve=ServeSettings(), further_families=(FurtherFamily("b"),)
    )
    with create_memfd_bundle(make_scale_model(2.0)) as bundle:
        switchboard = ServingRuntime(config)
        try:
            processes = {family: bundle.start_process(1) for family in ("a", "b")}
            for family, process in processes.items():
                assert get(switchboard.address, "/v2/health/ready")[0] == 400
                switchboard.family_runtime(family).publish(1, process)
                assert switchboard.is_responding()
            assert get(switchboard.address, "/v2/health/ready")[0] == 200
            processes["b"].kill()
            assert not switchboard.is_responding()
            switchboard.family_runtime("b").retire(1)
            assert switchboard.is_responding(), "nothing is expected of what was taken out"
        finally:
            switchboard.stop()
        processes["a"].stop()


def test_golden_inputs_run_in_a_serving_process_between_two_requests() -> None:
    def damage(outputs: dict[str, Any]) -> None:
        outputs["y"] = outputs["y"] + 1

    with (
        create_memfd_bundle(make_scale_model(2.0), list(SAMPLE)) as bundle,
        create_memfd_bundle(make_scale_model(2.0), list(SAMPLE), damage=damage) as other,
        start_front() as served,
    ):
        process = bundle.start_process(1)
        served.publish("toy", process)
        assert bundle.fds.golden is not None
        assert other.fds.golden is not None
        with Load(served.address) as load:
            load.wait_for_responses(5)
            process.check_golden(bundle.fds.files[bundle.fds.golden], 1000)
            with pytest.raises(GoldenMismatch, match="golden 0"):
                process.check_golden(other.fds.files[other.fds.golden], 1000)
            load.wait_for_responses(5)
        assert load.failures == {}
        process.stop()
