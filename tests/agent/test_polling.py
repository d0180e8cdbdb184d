"""The time of a device's next poll."""

import pytest

from device_agent.policy.poll_schedule import FIRST_RETRY_S, JITTER_SHARE, MAX_RETRY_FACTOR, next_poll_delay_s


@pytest.mark.parametrize(("drawn", "expected"), [(0.0, 1 - JITTER_SHARE), (0.5, 1.0), (1.0, 1 + JITTER_SHARE)])
def test_a_pause_lies_around_the_interval(drawn: float, expected: float) -> None:
    assert next_poll_delay_s(3600, 0, lambda: drawn) == pytest.approx(3600 * expected)


def test_devices_that_started_together_do_not_stay_together() -> None:
    assert len({round(next_poll_delay_s(3600, 0)) for _ in range(100)}) > 50


def test_failures_back_off_from_seconds_to_a_multiple_of_the_interval() -> None:
    pauses = [next_poll_delay_s(3600, failures, lambda: 1.0) for failures in range(1, 200)]
    assert pauses[0] == FIRST_RETRY_S
    assert pauses == sorted(pauses)
    assert pauses[-1] == MAX_RETRY_FACTOR * 3600
    assert next_poll_delay_s(3600, 1, lambda: 0.0) == FIRST_RETRY_S / 2
