"""The swap benchmark runs on models of many kinds, and its figures are consistent."""

import json
import subprocess
import sys
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

FIGURES = {
    *("swaps_committed", "requests_sent", "requests_failed", "publish_p99_us", "p50_ratio", "worst_added_ms"),
    *("rollback_resident_ms", "rss_growth_ratio", "latencies_csv"),
}


def make_echo_model(elem_type: int, shape: list[int | str]) -> onnx.ModelProto:
    """Return a model whose output is its input."""
    value = helper.make_tensor_value_info
    node = helper.make_node("Identity", ["x"], ["y"])
    graph = helper.make_graph([node], "echo", [value("x", elem_type, shape)], [value("y", elem_type, shape)])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize(
    ("isolation", "elem_type", "shape"),
    [
        ("worker", TensorProto.FLOAT, [1, 3, 256, 256]),  # answers of several reads
        ("worker", TensorProto.STRING, ["n"]),
        ("inproc", TensorProto.FLOAT16, ["n", 8]),
    ],
)
def test_swaps_of_any_kind_of_model_fail_no_request(
    isolation: str, elem_type: int, shape: list[int | str], tmp_path: Path
) -> None:
    onnx.save(make_echo_model(elem_type, shape), tmp_path / "m.onnx")
    out, plot = tmp_path / "out.json", tmp_path / "plot.png"
    words = ["--model", str(tmp_path / "m.onnx"), "--model", str(tmp_path / "m.onnx"), "--isolation", isolation]
    words += ["--swaps", "2", "--rate", "20", "--json", str(out), "--plot", str(plot)]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.swap_latency", *words],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(out.read_text())
    assert found.keys() >= FIGURES
    assert (found["swaps_committed"], found["requests_failed"]) == (2, 0)
    lines = Path(found["latencies_csv"]).read_text().splitlines()
    assert len(lines) == found["requests_sent"] + 1
    assert plot.read_bytes().startswith(b"\x89PNG")
