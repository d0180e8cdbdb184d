"""Every attack on downloads that TUF and Uptane name is refused; tests/trust has those on signatures."""

from dataclasses import replace

import pytest

from device_agent.policy.attempt import Outcome
from device_agent.policy.state_machine import State
from device_agent.storage.bundle_store import BundleStore
from tests.support import faulty_http_server
from tests.support.faulty_http_server import Exchange, Site
from tests.support.plaintext_search import contains_any, distinctive_windows
from tests.support.publisher import DeviceUnderTest, Publisher, similar_model
from torture.in_process import InProcessWorkerPool


@pytest.mark.parametrize("needed", [("blobs/",), ("envelopes/", "metadata/archives/")])  # archives have content keys
def test_partial_install(installed: DeviceUnderTest, publisher: Publisher, site: Site, needed: tuple[str, ...]) -> None:
    """A mirror that serves a release but for one of the files that it needs: nothing of it is activated."""
    publisher.offer("1.1.0")
    missing = faulty_http_server.respond_with_status(404)
    site.faults = [faulty_http_server.only_below(folder, missing) for folder in needed]
    result = installed.update()
    assert result.outcome is Outcome.UNAVAILABLE, result
    journal = installed.journal()
    assert journal.pointers.active == publisher.digest("1.0.0")
    assert journal.state is State.IDLE
    journal.close()
    assert BundleStore(installed.directory.root).digests() == {publisher.digest("1.0.0")}
    site.faults = []
    assert installed.update().outcome is Outcome.STAGED


def test_eavesdropping(device: DeviceUnderTest, publisher: Publisher, site: Site) -> None:
    """All that crosses the wire in a first install and an update: no piece of a model, and no name of the device."""
    received: list[bytes] = []

    def listen(exchange: Exchange) -> bool:
        received.append(exchange.path.encode() + b"\n" + exchange.data)
        return False

    site.faults = [listen]
    assert device.update().outcome is Outcome.STAGED
    publisher.offer("1.1.0")
    device.start()
    assert device.call("update")["outcome"] == "updated"
    windows = distinctive_windows(similar_model(0).SerializeToString()) | distinctive_windows(
        similar_model(1).SerializeToString()
    )
    assert any(data.startswith(b"blobs/") for data in received)
    assert [data[:80] for data in received if contains_any(data, windows)] == []
    public = device.directory.read_public_identity()
    for data in received:
        assert public.device_id.encode() not in data
        assert public.label.encode() not in data


def test_slow_retrieval(installed: DeviceUnderTest, publisher: Publisher, site: Site) -> None:
    """A byte now and then, forever: cut by the average rate, what came is kept, and the next attempt goes on there."""
    # the same rule over a shorter window: a test cannot wait for half a minute
    publisher.offer("1.1.0")
    site.faults = [faulty_http_server.only_below("blobs/", faulty_http_server.trickle(0.02))]
    hasty = replace(
        installed.config,
        update=replace(installed.config.update, min_rate_bytes_s=1000),
        repository=replace(installed.config.repository, stall_window_s=1),
    )

    def here() -> InProcessWorkerPool:
        return InProcessWorkerPool(hasty, installed.directory, BundleStore(installed.directory.root))

    result = installed.update(open_workers=here)
    assert (result.outcome, result.reason) == (Outcome.UNAVAILABLE, "server-too-slow"), result
    kept = sum(path.stat().st_size for path in (installed.directory.root / "spool").iterdir())
    assert kept > 0
    site.faults = []
    sent = site.bytes_sent("blobs/")
    again = installed.update()
    assert again.outcome is Outcome.STAGED
    assert site.bytes_sent("blobs/") - sent < again.attempt.patch_bytes, "what came is not fetched again"
