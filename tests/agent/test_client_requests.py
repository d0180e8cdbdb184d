"""Requests of clients end a probation only if the candidate fails where the previous release responds well."""

import http.client
import json
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from math import ceil
from pathlib import Path
from typing import Any

import pytest

from device_agent.config.config import ProbationSettings
from tests.support.endpoint_client import infer
from tests.support.faulty_http_server import serve_folder
from tests.support.fragile_models import KINDS, make_fragile_model, make_inputs
from tests.support.load_clients import UnixConnection
from tests.support.publisher import DeviceUnderTest, Publisher

MIN_WINDOW_S = 3
MIN_REQUESTS = 7  # of the nine requests below, those without a 4xx status
# a window that ends with fewer requests is extended nine times
EXTEND = '\n[variants.fp32.health]\ninconclusive = "extend"\n'


class Lab:
    """A running device and its publisher; releases count up."""

    def __init__(self, publisher: Publisher, device: DeviceUnderTest) -> None:
        self.publisher, self.device = publisher, device
        self.version = 0
        self.is_sturdy = False  # whether the installed release never fails

    def release(self, kinds: tuple[str, ...]) -> None:
        """Release a model that fails in these ways."""
        self.version += 1
        self.publisher.release(f"1.{self.version}.0", model=make_fragile_model(self.version, kinds), extra=EXTEND)

    def update_under(self, requests: list[list[float]]) -> tuple[dict[str, Any], list[int]]:
        """Update; send the requests as soon as the probation has begun, one after the other.

        Returns:
            The result of the update, and the statuses of the requests.
        """
        result: dict[str, Any] = {}
        update = threading.Thread(target=lambda: result.update(self.device.call("update")))
        update.start()
        while update.is_alive() and self.device.call("status")["state"] != "probation":
            time.sleep(0.05)
        statuses = [self.ask(values) for values in requests]
        update.join(120)
        return result, statuses

    def ask(self, values: list[float]) -> int:
        """Send one request and return the status of its response."""
        body = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 64], "data": values}]}
        connection = UnixConnection(self.device.config.serve.listen.removeprefix("unix:"))
        try:
            connection.request("POST", "/v2/models/kws/infer", json.dumps(body))
            return connection.getresponse().status
        except http.client.HTTPException:
            return 0
        finally:
            connection.close()


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    folder = tmp_path_factory.mktemp("repeats")
    publisher = Publisher(folder / "site")
    with serve_folder(publisher.published) as site:
        device = DeviceUnderTest.create(folder / "lab", site.url, publisher.root)
        publisher.enroll(device.directory)
        lab = Lab(publisher, device)
        started = time.monotonic()
        lab.release(KINDS)
        # repeats need processes, which start as slowly as those of the release
        window_s = max(MIN_WINDOW_S, ceil(1.5 * (time.monotonic() - started)))
        device.config = replace(device.config, probation=ProbationSettings(window_s, MIN_REQUESTS))
        device.write_config()
        device.start()
        try:
            assert device.call("update")["outcome"] == "updated"
            yield lab
        finally:
            device.stop()


def test_no_mix_of_requests_ends_a_probation_that_the_previous_release_would_also_fail(lab: Lab) -> None:
    for number in range(20):
        lab.ask(make_inputs("", number))
    lab.release(KINDS)
    kinds = ("nan", "error", "slow", "", "nan", "crash", "slow", "error", "nan")
    result, statuses = lab.update_under([make_inputs(kind, number) for number, kind in enumerate(kinds)])
    assert result["outcome"] == "updated", result
    assert statuses == [200, 400, 200, 200, 200, 500, 200, 400, 200]
    probation = result["probation"]
    assert (probation["verdict"], probation["nan"], probation["confirmed"]) == ("passed", 3, 0), probation
    assert probation["repeated"] >= 4
    assert probation["errors"] >= 3
    assert infer(lab.device)["model_version"] == result["release"]


@pytest.mark.parametrize("kind", ["nan", "slow", "crash", "error"])
def test_a_release_that_fails_where_the_previous_one_responds_ends_its_probation_within_ten_requests(
    lab: Lab, kind: str
) -> None:
    if not lab.is_sturdy:
        lab.release(())
        assert lab.update_under([make_inputs("", number) for number in range(MIN_REQUESTS)])[0]["outcome"] == "updated"
        lab.is_sturdy = True
    before = infer(lab.device)["model_version"]
    lab.release((kind,))
    result, _ = lab.update_under([make_inputs(kind, number) for number in range(10)])
    assert (result["outcome"], result["reason"]) == ("rolled-back", "probation-failed"), result
    assert result["probation"]["verdict"] == "failed"
    assert result["probation"]["confirmed"] >= (3 if kind != "slow" else 0)
    assert infer(lab.device)["model_version"] == before


def test_kept_requests_are_in_no_file_and_no_log(lab: Lab) -> None:
    assert lab.device.daemon_log is not None
    assert lab.device.daemon_log.lines
    assert not [line for line in lab.device.daemon_log.lines if b"0.251" in line]
    for path in lab.device.folder.rglob("*"):
        if path.is_file():
            assert b"0.251" not in path.read_bytes(), path
    assert Path(lab.device.config_path).is_file()
