"""Between probe and swap: shadow mode as the contract requires it, and memory admission."""

import json
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest

from device_agent.config.config import ProbationSettings
from device_agent.runtime.admission import BARE_PROCESS_BYTES, RESERVE_BYTES
from tests.support import tiny_models
from tests.support.endpoint_client import get, infer
from tests.support.load_clients import wait_until
from tests.support.publisher import DeviceUnderTest, Publisher

SHADOW = "\n[variants.fp32.health]\nshadow_ppm = 1_000_000\nshadow_relative_rms_ppm = {limit}\n"
SHADOW += 'shadow_agreement_ppm = 990_000\ninconclusive = "extend"\n'


@contextmanager
def send_requests(device: DeviceUnderTest) -> Iterator[Counter[str]]:
    """Send requests in the background; yield the number of responses by version, and of failures."""
    answers: Counter[str] = Counter()
    stop = threading.Event()

    def ask() -> None:
        while not stop.wait(0.02):
            try:
                answers[infer(device)["model_version"]] += 1
            except Exception as error:  # noqa: BLE001  whatever a client sees is the result
                answers[f"failed: {error!r}"] += 1

    client = threading.Thread(target=ask)
    client.start()
    try:
        yield answers
    finally:
        stop.set()
        client.join()


def _start(device: DeviceUnderTest, *, requests: int, window_s: int = 1, serve: str = "") -> None:
    device.config = replace(device.config, probation=ProbationSettings(window_s=window_s, min_requests=requests))
    device.write_config()
    text = device.config_path.read_text()
    device.config_path.write_text(text.replace("[serve]", f"[serve]\n{serve}"))
    device.start()


def test_a_candidate_that_agrees_in_the_shadow_is_swapped_in(installed: DeviceUnderTest, publisher: Publisher) -> None:
    publisher.release("1.2.0", seed=1, extra=SHADOW.format(limit=50_000))
    _start(installed, requests=5)
    with send_requests(installed) as answers:
        update_result = installed.call("update")
    assert update_result["outcome"] == "updated", update_result
    assert list(update_result["phases_ms"]) == ["check", "fetch", "patch", "probe", "swap", "shadow", "probation"]
    assert set(answers) == {"1.0.0", "1.2.0"}, answers


def test_a_candidate_that_answers_otherwise_never_serves(installed: DeviceUnderTest, publisher: Publisher) -> None:
    publisher.release("1.2.0", seed=0, model=tiny_models.mlp(7), extra=SHADOW.format(limit=50_000))
    _start(installed, requests=5, window_s=3600)
    with send_requests(installed) as answers:
        update_result = installed.call("update")
    assert (update_result["outcome"], update_result["reason"]) == ("unfit", "shadow-failed"), update_result
    assert "agree" in update_result["detail"]
    assert set(answers) == {"1.0.0"}, answers
    assert installed.call("status")["quarantine"][0]["reason"] == "shadow-failed"
    assert read_metric(installed, "swaps_total", result="failed") == 1
    assert read_metric(installed, "updates_total", outcome="unfit") == 1


def test_an_operator_ends_a_shadow(installed: DeviceUnderTest, publisher: Publisher) -> None:
    publisher.release("1.2.0", seed=1, extra=SHADOW.format(limit=50_000))
    _start(installed, requests=10**6, window_s=3600)
    result: dict[str, Any] = {}
    update = threading.Thread(target=lambda: result.update(installed.call("update")))
    update.start()
    wait_until(lambda: installed.call("status")["state"] == "swapping")
    installed.call("rollback")
    update.join(120)
    assert (result["outcome"], result["reason"]) == ("unfit", "operator-rollback"), result
    assert infer(installed)["model_version"] == "1.0.0"


@pytest.mark.parametrize("drill", ["", "live-nan"])
def test_where_two_models_do_not_fit_the_running_one_is_stopped_first(
    installed: DeviceUnderTest, publisher: Publisher, drill: str
) -> None:
    publisher.release("1.2.0", seed=1, drill=drill, is_shared=True)
    budget = BARE_PROCESS_BYTES + RESERVE_BYTES + 40 * 2**20
    # a bad release fails at its first responses; the window of a good one has to pass
    _start(installed, requests=5, window_s=3600 if drill else 1, serve=f"memory_bytes = {budget}")
    with send_requests(installed) as answers:
        update_result = installed.call("update")
    good = "1.0.0" if drill else "1.2.0"
    assert update_result["outcome"] == ("rolled-back" if drill else "updated"), update_result
    assert 0 < update_result["downtime_ms"] < 60_000
    assert infer(installed)["model_version"] == good
    assert set(answers) == {"1.0.0", "1.2.0"}, "requests wait for the next model, they do not fail"
    status = json.loads(installed.command("status", "--json").stdout)
    assert status["last_update"]["downtime_ms"] == update_result["downtime_ms"]
    assert read_metric(installed, "swap_downtime_seconds_total") == pytest.approx(update_result["downtime_ms"] / 1000)
    assert read_metric(installed, "swaps_total", result="rolled-back" if drill else "committed") == 1


def test_a_candidate_that_fits_nowhere_is_not_tried(installed: DeviceUnderTest, publisher: Publisher) -> None:
    publisher.offer("1.1.0")
    _start(installed, requests=0, serve=f"memory_bytes = {2**20}")
    update_result = installed.call("update")
    assert (update_result["outcome"], update_result["reason"], update_result["downtime_ms"]) == (
        "unavailable",
        "out-of-memory",
        0,
    ), update_result
    assert infer(installed)["model_version"] == "1.0.0"


def read_metric(device: DeviceUnderTest, name: str, **labels: str) -> float:
    """Return one value of /metrics; `labels` are added to the family."""
    wanted = ",".join(f'{key}="{value}"' for key, value in {"family": "kws", **labels}.items())
    for line in get(device, "/metrics").decode().splitlines():
        if line.startswith(f"airweights_{name}{{{wanted}}} "):
            return float(line.split()[-1])
    raise AssertionError(f"{name}{{{wanted}}} is not among the metrics")
