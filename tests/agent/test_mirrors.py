"""One honest mirror is enough among stale, damaged, empty or unreachable ones, and no mirror is trusted."""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from device_agent.config.config import parse_config
from device_agent.errors import ConfigInvalid
from device_agent.policy.attempt import Outcome
from tests.support import faulty_http_server
from tests.support.faulty_http_server import Exchange, Site, serve_folder
from tests.support.publisher import DeviceUnderTest, Publisher

Lie = Callable[[Site], None]


def flip_middle_bit(exchange: Exchange) -> bool:
    data = bytearray(exchange.data)
    data[len(data) // 2] ^= 0x20
    exchange.data = bytes(data)
    return False


def send_noise(exchange: Exchange) -> bool:
    exchange.data = os.urandom(900)
    return False


LIES: dict[str, Lie] = {
    "poisoned": lambda site: site.faults.append(flip_middle_bit),
    "poisoned blobs": lambda site: site.faults.append(faulty_http_server.only_below("blobs/", flip_middle_bit)),
    "poisoned envelopes": lambda site: site.faults.append(faulty_http_server.only_below("envelopes/", flip_middle_bit)),
    "empty": lambda site: site.faults.append(faulty_http_server.respond_with_status(404)),
    "in trouble": lambda site: site.faults.append(
        faulty_http_server.only_below("metadata/", faulty_http_server.respond_with_status(500))
    ),
    "noise": lambda site: site.faults.append(send_noise),
}


@pytest.fixture
def mirrors(publisher: Publisher, tmp_path: Path) -> Iterator[list[Site]]:
    """Serve three mirrors of a publisher whose channel is at 1.1.0."""
    publisher.offer("1.1.0")
    with ExitStack() as stack:
        yield [stack.enter_context(serve_folder(publisher.published)) for _ in range(3)]


def follow_mirrors(device: DeviceUnderTest, sites: list[Site]) -> DeviceUnderTest:
    first, *others = [site.url for site in sites]
    device.config = replace(device.config, repository_url=first, mirrors=tuple(others))
    return device


@pytest.mark.parametrize("name", LIES)
def test_two_of_three_mirrors_lie(installed: DeviceUnderTest, mirrors: list[Site], name: str) -> None:
    for site in mirrors[:2]:
        LIES[name](site)
    result = follow_mirrors(installed, mirrors).update()
    assert (result.outcome, result.attempt.release) == (Outcome.STAGED, "1.1.0"), result


def test_a_stale_mirror_is_passed_over_once_a_newer_one_was_seen(
    installed: DeviceUnderTest, publisher: Publisher, tmp_path: Path
) -> None:
    stale_files = tmp_path / "stale"
    shutil.copytree(publisher.published, stale_files)
    publisher.offer("1.1.0")
    with serve_folder(publisher.published) as honest, serve_folder(stale_files) as stale:
        assert follow_mirrors(installed, [honest, stale]).update().outcome is Outcome.STAGED
        journal = installed.journal()
        before = journal.persistent_state
        journal.close()
        result = follow_mirrors(installed, [stale, honest]).update()
        assert (result.outcome, result.attempt.release) == (Outcome.STAGED, "1.1.0"), result
        journal = installed.journal()
        assert journal.persistent_state.offered_release == before.offered_release == "1.1.0"
        journal.close()


def test_all_mirrors_lie(installed: DeviceUnderTest, publisher: Publisher, mirrors: list[Site]) -> None:
    for site in mirrors:
        LIES["poisoned"](site)
    result = follow_mirrors(installed, mirrors).update()
    assert result.outcome in (Outcome.REFUSED, Outcome.UNAVAILABLE)
    journal = installed.journal()
    assert journal.pointers.active == publisher.digest("1.0.0")
    journal.close()


def test_a_download_goes_on_at_the_next_mirror(
    installed: DeviceUnderTest, publisher: Publisher, mirrors: list[Site]
) -> None:
    for site in mirrors[:2]:
        site.faults.append(
            faulty_http_server.only_below(
                "blobs/", faulty_http_server.only_first(50, faulty_http_server.cut_after(100))
            )
        )
    result = follow_mirrors(installed, mirrors).update()
    assert result.outcome is Outcome.STAGED
    starts = [seen.start for site in mirrors for seen in site.requests if seen.path.startswith("blobs/")]
    assert starts == sorted(starts), "no byte that is here is asked for again"


@pytest.mark.parametrize(
    ("repository_url", "mirrors"),
    [
        ("https://a", '["ftp://b"]'),
        ("file:///stick", '["https://b"]'),
        ("https://a", '"https://b"'),
        ("https://a", "[1]"),
    ],
)
def test_what_is_no_list_of_mirrors_is_refused(repository_url: str, mirrors: str) -> None:
    text = f'directory = "d"\nrepository_url = "{repository_url}"\nfamily = "f"\nmirrors = {mirrors}\n'
    with pytest.raises(ConfigInvalid, match="mirrors"):
        parse_config(text.encode(), where="config.toml", folder=Path("/"))
