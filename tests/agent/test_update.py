"""Updates by hand, without a daemon: from a repository on loopback to a sealed bundle that waits for the next start."""

from device_agent.attempt import Outcome
from device_agent.machine import State
from tests.agent.lab import Device, Publisher
from tests.agent.server import Site


def test_a_first_update_stages_the_release_that_the_channel_offers(
    device: Device, publisher: Publisher, site: Site
) -> None:
    ended = device.update()
    assert (ended.outcome, ended.reason) == (Outcome.STAGED, ""), ended.detail
    assert ended.attempt.release == "1.0.0"
    assert ended.attempt.download_bytes == ended.attempt.full_bytes == site.bytes_sent("blobs/") > 0
    assert ended.attempt.states == ("checking", "fetching", "patching", "probing", "armed")
    journal = device.journal()
    assert journal.state is State.ARMED
    assert journal.pointers.candidate == publisher.digest("1.0.0")
    journal.close()
