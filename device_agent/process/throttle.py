"""Work beside live requests, in steps with rests between: most requests meet an idle machine, whatever a step costs.

A step runs at full speed, and the rest after it is REST times the processor time that the step took: preparing a
candidate takes at most a fifth of one processor, and the median request does not notice. Processor time and not wall
clock: a step that had to wait because the machine is busy has disturbed nobody. A rest ends after MAX_REST_S.
"""

import time
from collections.abc import Callable
from typing import Final

WAIT_TO_WORK_RATIO: Final = 4.0
MAX_WAIT_S: Final = 3.0


class Throttle:
    """The rhythm of one piece of work, which begins now.

    Args:
        is_paced: False: `rest` does nothing, because nobody is disturbed, or somebody waits.
        clock: seconds of processor time of this thread.
        sleep: for seconds.
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
        """After a step."""
        if self._is_paced:
            self._sleep(min(WAIT_TO_WORK_RATIO * (self._clock() - self._step_started_s), MAX_WAIT_S))
            self._step_started_s = self._clock()
