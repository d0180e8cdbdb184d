"""Maintenance windows are written in local time, and open at one moment for all devices."""

from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import pytest

from bundle.rollout import Rollout, Window
from packager.errors import WindowInvalid
from packager.repository.windows import describe_windows, find_zone, parse_windows
from tests.support.metadata_publisher import CHANNEL, FAMILY, MetadataPublisher
from tests.support.packager_cli import assert_refused, run_packager

BERLIN = ZoneInfo("Europe/Berlin")


def utc(text: str) -> int:
    """Return the Unix time of a moment in UTC."""
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp())


def spans(windows: tuple[Window, ...]) -> list[str]:
    """Return windows as text, in UTC."""
    return [
        f"{datetime.fromtimestamp(one.start_s, UTC):%m-%d %H:%M}/{datetime.fromtimestamp(one.end_s, UTC):%m-%d %H:%M}"
        for one in windows
    ]


def test_a_daily_window_keeps_its_local_time_when_the_clocks_change() -> None:
    found = parse_windows(["22:00/04:00"], BERLIN, 3, utc("2026-10-23T12:00"))
    assert spans(found.windows) == [
        "10-23 20:00/10-24 02:00",
        "10-24 20:00/10-25 03:00",  # seven hours: one of them occurs twice
        "10-25 21:00/10-26 03:00",
    ]
    assert found.notes == ()


def test_a_moment_that_the_clocks_skip_or_repeat_is_told() -> None:
    found = parse_windows(["02:30/03:30"], BERLIN, 1, utc("2026-03-29T00:00"))
    assert spans(found.windows) == ["03-29 01:00/03-29 01:30"]
    assert "2026-03-29 02:30 does not exist" in found.notes[0]
    found = parse_windows(["2026-10-25T02:15/2026-10-25T02:45"], BERLIN, 1, utc("2026-10-24T00:00"))
    assert spans(found.windows) == ["10-25 00:15/10-25 01:45"]
    assert ["first" in note for note in found.notes] == [True, False]


def test_a_moment_may_have_its_own_offset() -> None:
    found = parse_windows(["2026-12-01T02:00Z/2026-12-01T05:00+01:00"], BERLIN, 1, utc("2026-11-30T00:00"))
    assert spans(found.windows) == ["12-01 02:00/12-01 04:00"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("02:00", "expected START/END"),
        ("25:00/26:00", "expected START/END"),
        ("tomorrow/later", "expected START/END"),
        ("2026-12-02T00:00/2026-12-01T00:00", "ends before it starts"),
        ("2020-12-01T00:00/2020-12-02T00:00", "all windows have closed"),
        ("2026-12-01T02:00/9999-12-31T23:59Z", "1971 to 9998"),
        ("0001-01-01T00:00/2026-12-01T02:00", "1971 to 9998"),
    ],
)
def test_a_malformed_window_is_refused(text: str, words: str) -> None:
    with pytest.raises(WindowInvalid, match=words):
        parse_windows([text], BERLIN, 1, utc("2026-11-30T00:00"))


def test_an_unknown_zone_and_too_many_windows_are_refused() -> None:
    with pytest.raises(WindowInvalid, match="Europe/Berlin"):
        find_zone("Mars/Olympus")
    with pytest.raises(WindowInvalid, match="at most 64"):
        parse_windows(["01:00/02:00", "03:00/04:00"], UTC, 64, utc("2026-11-30T00:00"))
    assert find_zone("") is not None


def test_the_variable_tz_names_the_zone_of_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    for text in ("Europe/Berlin", ":Europe/Berlin"):
        monkeypatch.setenv("TZ", text)
        found = parse_windows(["02:00/04:00"], find_zone(""), 1, utc("2026-07-01T00:00"))
        assert spans(found.windows) == ["07-01 00:00/07-01 02:00"]
    monkeypatch.setenv("TZ", "no zone")
    assert find_zone("").utcoffset(datetime.now()) is not None


def test_a_description_says_when_the_next_window_opens() -> None:
    windows = parse_windows(["02:00/04:00"], BERLIN, 2, utc("2026-11-30T00:00")).windows
    lines = describe_windows(windows, BERLIN, utc("2026-11-30T00:00"))
    assert lines[0] == "the next window opens at 2026-11-30 02:00 +0100 (2026-11-30T01:00Z), in 1 h 0 min"
    assert len(lines) == 3
    open_now = describe_windows(windows, BERLIN, utc("2026-11-30T01:30"))
    assert open_now[0] == "a window is open until 2026-11-30 04:00 +0100 (2026-11-30T03:00Z)"
    assert describe_windows(windows, BERLIN, utc("2027-01-01T00:00")) == [
        "all windows have closed: no device activates the release"
    ]
    assert describe_windows((), BERLIN, 0) == []


def test_the_command_sets_windows_and_counts_devices(publisher: MetadataPublisher) -> None:
    repo = ("--repo", publisher.repository.root)
    words = ("rollout", "set", FAMILY, CHANNEL, "1.0.0", "--percent", "50")
    result = run_packager(*words, "--window", "02:00/04:00", "--timezone", "Europe/Berlin", *repo, "--json")
    assert result.code == 0, result.stderr
    assert len(result.json["rollout"]["windows"]) in (13, 14)
    assert result.json["devices"] == {"reached": 0, "registered": 0}
    rollout = publisher.repository.rollout(FAMILY, CHANNEL)
    assert isinstance(rollout, Rollout)
    assert rollout.windows
    text = run_packager("rollout", "status", *repo).stdout
    assert "the next window opens at" in text or "a window is open until" in text
    assert "reaches 0 of 0 registered devices" in run_packager(*words, *repo).stdout
    unknown = run_packager("rollout", "set", "visoin", CHANNEL, "1.0.0", *repo, "--json")
    assert_refused(unknown, code=2, reason="family-unknown", words=(FAMILY,))
    other = run_packager("rollout", "set", FAMILY, "beta", "1.0.0", *repo, "--json")
    assert_refused(other, code=2, reason="staging-invalid", words=("beta", CHANNEL))


def test_a_damaged_registry_changes_no_rollout(publisher: MetadataPublisher) -> None:
    publisher.repository.registry_path.write_text("damaged\n")
    words = ("rollout", "set", FAMILY, CHANNEL, "1.0.0", "--percent", "50", "--repo", publisher.repository.root)
    assert_refused(run_packager(*words, "--json"), code=2, reason="registry-damaged", words=("registry.jsonl",))
    assert publisher.repository.is_staging_empty


def test_a_channel_moves_back_with_a_flag_only(publisher: MetadataPublisher) -> None:
    publisher.release("1.1.0", 2)
    words = ("rollout", "set", FAMILY, CHANNEL, "1.0.0", "--repo", publisher.repository.root)
    refused = run_packager(*words, "--json")
    assert_refused(refused, code=2, reason="rollout-backwards", words=("1.0.0 is older than 1.1.0",))
    assert publisher.repository.is_staging_empty
    assert run_packager(*words, "--allow-older").code == 0
