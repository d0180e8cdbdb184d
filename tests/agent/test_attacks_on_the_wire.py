"""The attacks on a download that TUF and Uptane name, by name; those on signatures are in tests/trust."""

from dataclasses import replace

import pytest

from device_agent import fetcher
from device_agent.attempt import Outcome
from device_agent.machine import State
from device_agent.store import Store
from tests.agent import server
from tests.agent.lab import Device, Publisher, near
from tests.agent.server import Exchange, Site
from tests.agent.test_plaintext import holds_any, windows_of
from tests.torture.alone import ErrandsHere


def test_partial_install(installed: Device, publisher: Publisher, site: Site) -> None:
    """A mirror that serves a release but for one of the files that it needs: nothing of it is activated."""
    publisher.offer("1.1.0")
    for needed in ("blobs/", "envelopes/"):
        site.faults = [server.below(needed, server.status(404))]
        ended = installed.update()
        assert ended.outcome is Outcome.UNAVAILABLE, ended
        journal = installed.journal()
        assert journal.pointers.active == publisher.digest("1.0.0")
        assert journal.state is State.IDLE
        journal.close()
        assert Store(installed.directory.root).held() == {publisher.digest("1.0.0")}
    site.faults = []
    assert installed.update().outcome is Outcome.STAGED


def test_eavesdropping(device: Device, publisher: Publisher, site: Site) -> None:
    """All that crosses the wire in a first install and an update: no piece of a model, and no name of the device."""
    heard: list[bytes] = []

    def listen(exchange: Exchange) -> bool:
        heard.append(exchange.path.encode() + b"\n" + exchange.data)
        return False

    site.faults = [listen]
    assert device.update().outcome is Outcome.STAGED
    publisher.offer("1.1.0")
    device.start()
    assert device.ask("update")["outcome"] == "updated"
    windows = windows_of(near(0).SerializeToString()) | windows_of(near(1).SerializeToString())
    assert any(data.startswith(b"blobs/") for data in heard)
    assert [data[:80] for data in heard if holds_any(data, windows)] == []
    public = device.directory.public_identity()
    for data in heard:
        assert public.device_id.encode() not in data
        assert public.label.encode() not in data


def test_slow_retrieval(installed: Device, publisher: Publisher, site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """A byte now and then, for ever: cut by the average rate, what came is kept, and the next attempt goes on there."""
    # the same rule over a shorter window: a test can not wait for half a minute
    monkeypatch.setattr(fetcher, "RATE_WINDOW_S", 0.3)
    publisher.offer("1.1.0")
    site.faults = [server.below("blobs/", server.trickle(0.02))]
    hasty = replace(installed.config, update=replace(installed.config.update, min_rate_bytes_s=1000))

    def here() -> ErrandsHere:
        return ErrandsHere(hasty, installed.directory, Store(installed.directory.root))

    ended = installed.update(errands=here)
    assert (ended.outcome, ended.reason) == (Outcome.UNAVAILABLE, "too-slow-server"), ended
    kept = sum(path.stat().st_size for path in (installed.directory.root / "spool").iterdir())
    assert kept > 0
    site.faults = []
    sent = site.bytes_sent("blobs/")
    again = installed.update()
    assert again.outcome is Outcome.STAGED
    assert site.bytes_sent("blobs/") - sent < again.attempt.patch_bytes, "what came is not fetched again"
