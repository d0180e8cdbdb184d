"""An update receives few bytes in few requests; every copy that it uses is replaceable by the single files."""

from collections import Counter

import numpy as np
import onnx
import pytest

from device_agent.commands.offline import plan_offline
from device_agent.policy.attempt import Outcome
from packager.repository.devices import rotate_cohort_key
from tests.support.faulty_http_server import Site
from tests.support.publisher import COHORT, FAMILY, DeviceUnderTest, Publisher, similar_model

MAX_REQUESTS = 6
MAX_BESIDE_THE_BLOB = 20_000


def test_an_update_needs_six_requests_and_20_kb_beside_its_blob(
    installed: DeviceUnderTest, publisher: Publisher, site: Site
) -> None:
    publisher.release("1.2.0", seed=2, is_shared=True)
    site.requests.clear()
    result = installed.update()
    assert result.outcome is Outcome.STAGED, result.detail
    paths = [request.path for request in site.requests]
    assert len(paths) <= MAX_REQUESTS, paths
    assert max(Counter(paths).values()) <= 2, paths  # timestamp and root again right before the swap
    downloaded = result.attempt.downloaded
    assert downloaded.total - result.attempt.patch_bytes <= MAX_BESIDE_THE_BLOB


@pytest.mark.parametrize("replacement", ["none", "missing", "of-another-cohort", "malformed"])
def test_devices_of_many_cohorts_need_no_request_more(
    installed: DeviceUnderTest, publisher: Publisher, site: Site, replacement: str
) -> None:
    for cohort in ("north", "south"):
        rotate_cohort_key(publisher.repository, cohort, publisher.keys, None, insecure_plaintext=True)
    publisher.publish()
    assert installed.update().outcome is Outcome.NOTHING_NEW
    publisher.release("1.2.0", seed=2)
    folder = publisher.published / "metadata" / "archives" / FAMILY
    newest = max(int(path.name.partition("-")[0]) for path in folder.iterdir())
    for path in folder.glob(f"{newest}-*-{COHORT}.awz"):
        match replacement:
            case "missing":
                path.unlink()
            case "of-another-cohort":
                path.write_bytes(path.with_name(path.name.replace(COHORT, "north")).read_bytes())
            case "malformed":
                path.write_bytes(path.read_bytes()[:-3])
    site.requests.clear()
    result = installed.update()
    assert result.outcome is Outcome.STAGED, result.detail
    paths = [request.path for request in site.requests]
    if replacement == "none":
        assert len(paths) <= MAX_REQUESTS, paths
        assert result.attempt.downloaded.total - result.attempt.patch_bytes <= MAX_BESIDE_THE_BLOB
    else:
        # the archive of all devices, and the published shard in one or two parts
        assert len(paths) <= MAX_REQUESTS + 3, paths


def test_a_plan_predicts_what_an_update_receives(installed: DeviceUnderTest, publisher: Publisher, site: Site) -> None:
    publisher.offer("1.1.0")
    path = plan_offline(installed.config, None).values()[0].path
    assert path is not None
    found = installed.update().attempt.downloaded
    assert found.total == pytest.approx(path.download.total, rel=0.05)
    for kind, size in path.download.as_json().items():
        assert found.as_json()[kind] == pytest.approx(size, rel=0.05), kind


def tied_model(seed: int) -> onnx.ModelProto:
    """Return a model that has its first weight twice, the second time with rows and columns exchanged."""
    model = similar_model(0)
    (weight,) = (tensor for tensor in model.graph.initializer if tensor.name == "w1")
    values = onnx.numpy_helper.to_array(weight)
    values = (values + np.random.default_rng(seed).standard_normal(values.shape) * 1e-4).astype(np.float32)
    weight.CopyFrom(onnx.numpy_helper.from_array(values, "w1"))
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.ascontiguousarray(values.T), "tied"))
    first = next(node for node in model.graph.node if "w1" in node.input)
    first.input[0] = "again"
    model.graph.node.insert(0, onnx.helper.make_node("MatMul", ["there", "tied"], ["again"]))
    model.graph.node.insert(0, onnx.helper.make_node("MatMul", ["x", "w1"], ["there"]))
    return model


def test_a_device_reads_what_it_has_written(installed: DeviceUnderTest, publisher: Publisher) -> None:
    for number in (2, 3):
        manifest = publisher.release(f"1.{number}.0", model=tied_model(number))
        features = {feature for patch in manifest.variants[0][1].patches for feature in patch.features}
        assert "repeat" in features
        result = installed.update()
        assert result.outcome is Outcome.STAGED, result.detail


def test_a_wrong_shard_in_an_archive_costs_one_request(
    installed: DeviceUnderTest, publisher: Publisher, site: Site
) -> None:
    counter = publisher.manifest("1.1.0").counter
    shard = publisher.published / "envelopes" / "content" / FAMILY / str(counter)
    good = shard.read_bytes()
    shard.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    publisher.offer("1.1.0")
    shard.write_bytes(good)
    site.requests.clear()
    assert installed.update().outcome is Outcome.STAGED
    assert f"envelopes/content/{FAMILY}/{counter}" in {request.path for request in site.requests}
