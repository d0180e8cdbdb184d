"""Models of one bundle are released, served, swapped and rolled back together."""

import http.client
import json
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest

from bundle.errors import AirweightsError
from bundle.variant import Variant
from device_agent.config.config import ProbationSettings
from packager.release.release_file import parse_release_file
from tests.support.endpoint_client import get
from tests.support.faulty_http_server import serve_folder
from tests.support.fragile_models import make_fragile_model, make_inputs
from tests.support.load_clients import connect, wait_until
from tests.support.publisher import FAMILY, DeviceUnderTest, Publisher

MODELS = ("encoder", "decoder")
NAMES = [f"{FAMILY}.{name}" for name in MODELS]
ENTRIES = "".join(f'[[models]]\nname = "{name}"\nmodel = "{name}.onnx"\ninputs = "inputs.npz"\n' for name in MODELS)
SETTINGS = f'family = "{FAMILY}"\nversion = "VERSION"\nchannels = ["stable"]\ngolden = 2\n{ENTRIES}[variants.fp32]\n'


def publish(publisher: Publisher, version: str, seed: int, fragile: str = "") -> Variant:
    """Publish a release of two models, one of which fails on the triggers of NaN."""
    for number, name in enumerate(MODELS):
        model = make_fragile_model(seed + number, ("nan",) if name == fragile else ())
        onnx.save(model, publisher.folder / f"{name}.onnx")
    # a window with too few requests is extended nine times: on a busy machine they take long
    health = 'health.inconclusive = "extend"\n'
    text = f"{SETTINGS.replace('VERSION', version)}{health}[rollout]\npercent = 100\n"
    (publisher.folder / "release.toml").write_text(text)
    publisher.publish_release_file()
    variant = publisher.manifest(version).variant("fp32")
    assert variant is not None
    return variant


class Clients:
    """Threads that each ask one model repeatedly; one asks both in turn.

    Attributes:
        statuses: number of responses by (model, status, version).
        versions: versions of the responses to the thread that asks both models.
    """

    def __init__(self, address: str) -> None:
        self.statuses: Counter[tuple[str, int, str]] = Counter()
        self.versions: list[str] = []
        self._address, self._stop, self._lock = address, threading.Event(), threading.Lock()
        self._threads = [threading.Thread(target=self._run, args=(names,)) for names in ([NAMES[0]], NAMES)]

    def __enter__(self) -> "Clients":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _run(self, names: list[str]) -> None:
        connection = connect(self._address)
        number = 0
        while not self._stop.wait(0.002):
            name, number = names[number % len(names)], number + 1
            status, answer = ask(connection, name, make_inputs("", number % 50))
            with self._lock:
                self.statuses[name, status, answer.get("model_version", answer.get("error", ""))] += 1
                if len(names) > 1:
                    self.versions.append(answer.get("model_version", ""))
        connection.close()


def ask(connection: http.client.HTTPConnection, name: str, inputs: list[float]) -> tuple[int, dict[str, Any]]:
    body = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 64], "data": inputs}]}
    connection.request("POST", f"/v2/models/{name}/infer", json.dumps(body))
    response = connection.getresponse()
    return response.status, json.loads(response.read())


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Publisher, DeviceUnderTest]]:
    """Yield a publisher of 1.0.0 with two models, and a running device that has installed it."""
    folder = tmp_path_factory.mktemp("several")
    publisher = Publisher(folder / "site")
    publish(publisher, "1.0.0", 1)
    with serve_folder(publisher.published) as site:
        device = DeviceUnderTest.create(folder / "lab", site.url, publisher.root)
        device.config = replace(device.config, probation=ProbationSettings(window_s=3, min_requests=40))
        device.write_config()
        publisher.enroll(device.directory)
        device.start()
        assert device.call("update")["outcome"] == "updated"
        try:
            yield publisher, device
        finally:
            device.stop()


def test_each_model_has_a_name_a_contract_and_golden_vectors(lab: tuple[Publisher, DeviceUnderTest]) -> None:
    publisher, device = lab
    variant = publisher.manifest("1.0.0").variant("fp32")
    assert variant is not None
    assert [(model.name, model.file, model.golden) for model in variant.models] == [
        (name, f"{name}/fp32/model.onnx", f"golden/{name}.bin") for name in MODELS
    ]
    for name in NAMES:
        metadata = json.loads(get(device, f"/v2/models/{name}"))
        assert (metadata["name"], metadata["versions"]) == (name, ["1.0.0"])
        assert metadata["inputs"] == [{"name": "x", "datatype": "FP32", "shape": [1, 64]}]
        assert json.loads(get(device, f"/v2/models/{name}/ready")) == {"name": name, "ready": True}
    unknown = json.loads(get(device, f"/v2/models/{FAMILY}", 404))["error"]
    assert unknown == f"unknown model, expected one of: {', '.join(NAMES)}"
    answers = {}
    connection = connect(device.config.serve.listen)
    for name in NAMES:
        status, answer = ask(connection, name, make_inputs())
        assert (status, answer["model_name"], answer["model_version"]) == (200, name, "1.0.0")
        answers[name] = tuple(answer["outputs"][0]["data"])
    connection.close()
    assert len(set(answers.values())) == len(NAMES), "each name is another model"


def test_all_models_swap_at_once_under_load_and_none_fails(lab: tuple[Publisher, DeviceUnderTest]) -> None:
    publisher, device = lab
    publish(publisher, "1.1.0", 11)
    with Clients(device.config.serve.listen) as clients:
        updated = device.call("update")
        assert (updated["outcome"], updated["release"], updated["probation"]["verdict"]) == (
            "updated",
            "1.1.0",
            "passed",
        ), updated
        wait_until(lambda: all(clients.statuses[name, 200, "1.1.0"] for name in NAMES))
    assert {status for _, status, _ in clients.statuses} == {200}, clients.statuses
    # after the first response of the new release, no model of the old one responds
    assert clients.versions == sorted(clients.versions)
    assert set(clients.versions) == {"1.0.0", "1.1.0"}


def test_a_release_with_one_bad_model_is_rolled_back_whole(lab: tuple[Publisher, DeviceUnderTest]) -> None:
    publisher, device = lab
    publish(publisher, "1.2.0", 21, fragile="decoder")
    with Clients(device.config.serve.listen) as clients, ThreadPoolExecutor(1) as pool:
        update = pool.submit(device.call, "update")
        # no client fails: each asks the release before it is given up
        wait_until(lambda: update.done() or "1.2.0" in clients.versions)
        connection = connect(device.config.serve.listen)
        number = 0
        while not update.done():
            number += 1
            status, _ = ask(connection, NAMES[1], make_inputs("nan", number))
            assert status == 200
        connection.close()
        result = update.result()
        assert (result["outcome"], result["release"]) == ("rolled-back", "1.2.0"), result
        before = dict(clients.statuses)
        wait_until(lambda: all(clients.statuses[name, 200, "1.1.0"] > before[name, 200, "1.1.0"] for name in NAMES))
    assert {status for _, status, _ in clients.statuses} == {200}, clients.statuses
    assert clients.versions[-1] == "1.1.0"
    assert "1.2.0" in clients.versions


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("[variants.fp32]\n", '[variants.fp32]\nscheme = "int8"\n'), "several models are released unchanged"),
        (
            ("[variants.fp32]\n", '[variants.fp32]\nrequires.providers = ["OpenVINO"]\n'),
            "several models are released for the CPU",
        ),
        (("channels", 'model = "encoder.onnx"\nchannels'), "found beside [[models]]"),
        (('"decoder"', '"encoder"'), "each name once"),
        (('"decoder"', '"golden"'), "none of labels"),
        (("decoder.onnx", "missing.onnx"), "missing.onnx does not exist"),
        (("golden = 2", 'metric = "m:f"'), "has no effect with several models"),
        (('name = "encoder"\n', ""), "name"),
        (('name = "encoder"\n', 'nmae = "encoder"\n'), "did you mean 'name'?"),
    ],
)
def test_mistakes_in_the_release_file_are_named(tmp_path: Path, change: tuple[str, str], words: str) -> None:
    for name in MODELS:
        (tmp_path / f"{name}.onnx").touch()
    (tmp_path / "inputs.npz").touch()
    text = SETTINGS.replace("VERSION", "1.0.0")
    assert change[0] in text
    (tmp_path / "release.toml").write_text(text.replace(*change, 1))
    with pytest.raises(AirweightsError) as caught:
        parse_release_file(tmp_path / "release.toml")
    assert words in f"{caught.value.message} {caught.value.hint}"
    assert caught.value.exit_code == 2
