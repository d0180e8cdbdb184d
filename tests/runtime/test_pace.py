"""Background work pauses between steps in proportion to its CPU time."""

from device_agent.process.throttle import MAX_WAIT_S, WAIT_TO_WORK_RATIO, Throttle


class FakeClock:
    """CPU time that the test advances, and the recorded pauses."""

    def __init__(self) -> None:
        self.now, self.waits = 5.0, list[float]()

    def throttle(self, *, is_paced: bool = True) -> Throttle:
        return Throttle(is_paced=is_paced, clock=lambda: self.now, sleep=self.waits.append)


def test_a_rest_is_a_multiple_of_the_step_before_it() -> None:
    clock = FakeClock()
    throttle = clock.throttle()
    for step_s in (0.25, 0.0, 0.125):
        clock.now += step_s
        throttle.wait()
    assert clock.waits == [0.25 * WAIT_TO_WORK_RATIO, 0.0, 0.125 * WAIT_TO_WORK_RATIO]


def test_a_long_step_is_not_paid_for_without_end() -> None:
    clock = FakeClock()
    throttle = clock.throttle()
    clock.now += 1000.0
    throttle.wait()
    assert clock.waits == [MAX_WAIT_S]


def test_without_a_pace_nothing_rests() -> None:
    clock = FakeClock()
    throttle = clock.throttle(is_paced=False)
    clock.now += 1.0
    throttle.wait()
    assert clock.waits == []
