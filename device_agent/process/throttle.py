"""Pauses between the steps of background work, so that most requests meet an idle machine.

A step runs at full speed. The pause after it lasts WAIT_TO_WORK_RATIO times the processor time of the step, at most
MAX_WAIT_S. So preparing a candidate takes at most a fifth of one processor, and the median request is not slowed down.
The measure is processor time and not elapsed time: a step that waited for a busy processor did not slow down anything.
"""

import time
from collections.abc import Callable
from typing import Final

WAIT_TO_WORK_RATIO: Final = 4.0
MAX_WAIT_S: Final = 3.0


class Throttle:
    """Schedules the pauses of one piece of work, which starts now.

    Args:
        is_paced: False makes `wait` return at once, for work that delays no request or that requests wait for.
        clock: returns the seconds of processor time of this thread.
        sleep: sleeps for a number of seconds.
    """

    def __init__(
        self,
        *,
        is_paced: bool,
        clock: Callable[[], float] = time.thread_time,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._is_paced, self._clock, self._sleep = is_paced, clock, sleep
        self._step_started_s = clock()

    def wait(self) -> None:
        """Pause after a step."""
        if self._is_paced:
            self._sleep(min(WAIT_TO_WORK_RATIO * (self._clock() - self._step_started_s), MAX_WAIT_S))
            self._step_started_s = self._clock()
