"""An update receives few bytes in few requests; every copy that it uses is replaceable by the single files."""

from collections import Counter

from device_agent.policy.attempt import Outcome
from tests.support.faulty_http_server import Site
from tests.support.publisher import FAMILY, DeviceUnderTest, Publisher

MAX_REQUESTS = 6
MAX_BESIDE_THE_BLOB = 20_000


def test_an_update_needs_six_requests_and_20_kb_beside_its_blob(
    installed: DeviceUnderTest, publisher: Publisher, site: Site
) -> None:
    publisher.release("1.2.0", seed=2)
    site.requests.clear()
    result = installed.update()
    assert result.outcome is Outcome.STAGED, result.detail
    paths = [request.path for request in site.requests]
    assert len(paths) <= MAX_REQUESTS, paths
    assert max(Counter(paths).values()) <= 2, paths  # timestamp and root again right before the swap
    downloaded = result.attempt.downloaded
    assert downloaded.total - result.attempt.patch_bytes <= MAX_BESIDE_THE_BLOB


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
