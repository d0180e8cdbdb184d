"""Envelopes are found in shards by ranges, without ranges, and while shards are replaced; lies have their reasons."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from bundle.envelope_shard import HEAD_BYTES, MAX_SHARD_BYTES, encode_shard, max_records
from bundle.errors import DownloadFailed, NotFound, Refused, ShardTooLarge
from device_agent.workers.envelope_lookup import fetch_envelope
from device_agent.workers.fetcher import prepare_client
from tests.support.faulty_http_server import Exchange, Site, respond_with_status, serve_folder

SIZE = 1240
FULLEST = max_records(SIZE)


def make_envelopes(count: int, first: int = 0) -> dict[str, bytes]:
    """Return `count` envelopes, with names that are spread evenly."""
    return {
        f"{(number << 64) // count:016x}".ljust(64, "0"): bytes([number % 251 + first]) * SIZE
        for number in range(count)
    }


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    with serve_folder(tmp_path) as served:
        yield served


def put(site: Site, data: bytes) -> str:
    (site.folder / "shard").write_bytes(data)
    return f"{site.url}/shard"


@pytest.mark.parametrize("ranges", [True, False], ids=["ranges", "no ranges"])
@pytest.mark.parametrize("count", [1, 2, 3, 100, FULLEST])
def test_every_record_is_found(site: Site, count: int, *, ranges: bool) -> None:
    envelopes = make_envelopes(count)
    site.ranges = ranges
    url = put(site, encode_shard(envelopes))
    for name in list(envelopes)[:: max(count // 3, 1)]:
        site.requests.clear()
        assert fetch_envelope(prepare_client(), url, name) == envelopes[name]
        assert fetch_envelope(prepare_client(), (site.folder / "shard").as_uri(), name) == envelopes[name]
        sent = [request.sent for request in site.requests]
        if ranges:
            assert len(sent) <= 2
            assert sum(sent) <= HEAD_BYTES + 32 + SIZE
        else:
            assert sent == [len(encode_shard(envelopes))]
    with pytest.raises(NotFound):
        fetch_envelope(prepare_client(), url, "ee" * 32)


def test_a_server_that_fails_at_ranges_or_ignores_their_end_is_good_enough(site: Site) -> None:
    envelopes = make_envelopes(50)
    url = put(site, encode_shard(envelopes))
    name = list(envelopes)[20]

    def fail_at_ranges(exchange: Exchange) -> bool:
        return exchange.is_range and respond_with_status(500)(exchange)

    def ignore_ends(exchange: Exchange) -> bool:
        body = exchange.data[exchange.start :]
        total = len(exchange.data)
        fields = {
            "Content-Length": str(len(body)),
            "Content-Range": f"bytes {exchange.start}-{total - 1}/{total}",
        }
        exchange.head(206, fields)
        exchange.write(body)
        return True

    for fault in (fail_at_ranges, ignore_ends):
        site.faults[:] = [fault]
        assert fetch_envelope(prepare_client(), url, name) == envelopes[name]


def test_a_shard_that_is_replaced_during_a_lookup_is_read_again(site: Site) -> None:
    before, after = make_envelopes(50), make_envelopes(50) | {"01" * 32: bytes(SIZE)}
    url = put(site, encode_shard(before))
    name = list(before)[20]

    def replace_it(exchange: Exchange) -> bool:
        if exchange.start:
            exchange.data = encode_shard(after)
            put(site, exchange.data)
            site.faults.clear()
        return False

    site.faults.append(replace_it)
    assert fetch_envelope(prepare_client(), url, name) == after[name]


def _with(data: bytes, start: int, new: bytes) -> bytes:
    return data[:start] + new + data[start + len(new) :]


GOOD = encode_shard(make_envelopes(50))
LIES = {
    "shard-malformed": [b"x" * 40, GOOD + b"x", _with(GOOD, 12, b"\xff\xff\xff\xff"), _with(GOOD, 8, bytes(4))],
    "shard-truncated": [b"", GOOD[:-1], GOOD[:10], GOOD[:100], GOOD[: len(GOOD) // 2]],
    "shard-too-large": [_with(GOOD, 8, b"\xff\xff\xff\xff")],
    "shard-unsorted": [_with(GOOD, 24, bytes(8))],
    "shard-mismatch": [_with(GOOD, 16 + 50 * 8 + 20 * (32 + SIZE), b"another")],
    "not-found": [_with(GOOD, 16 + 20 * 8 + 7, b"\x77")],
}


@pytest.mark.parametrize("ranges", [True, False], ids=["ranges", "no ranges"])
@pytest.mark.parametrize("reason", LIES)
def test_each_way_a_shard_can_lie_has_its_reason(site: Site, reason: str, *, ranges: bool) -> None:
    name = list(make_envelopes(50))[20]
    site.ranges = ranges
    for number, data in enumerate(LIES[reason]):
        url = put(site, data)
        with pytest.raises((Refused, DownloadFailed)) as refused:
            fetch_envelope(prepare_client(), url, name)
        assert refused.value.reason == reason, (number, refused.value.message)
        assert sum(request.sent for request in site.requests) <= 3 * MAX_SHARD_BYTES
        site.requests.clear()


def test_a_shard_without_ranges_is_read_up_to_its_limit(site: Site) -> None:
    site.ranges = False
    with pytest.raises(ShardTooLarge):
        fetch_envelope(prepare_client(), put(site, GOOD + bytes(MAX_SHARD_BYTES)), "00" * 32)
