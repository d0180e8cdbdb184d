"""The daemon, killed with SIGKILL at the moment when its journal has recorded a state: `python -m
tests.support.kill_at_state
STATE TIMES CONFIG`.

The product has no switch for this: the journal's transactions are wrapped from outside, as a debugger would.
"""

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from device_agent.daemon import run
from device_agent.storage.database import RecordDatabase

STATE, TIMES, CONFIG = sys.argv[1:]
left = int(TIMES)
transaction = RecordDatabase.transaction


@contextmanager
def wrapped(self: RecordDatabase) -> Iterator[None]:
    global left
    before = self.get("machine", "state")
    with transaction(self):
        yield
    after = self.get("machine", "state")
    name = None if after is None else after.text("state")
    if name == STATE and (before is None or before.text("state") != STATE):
        left -= 1
        if left <= 0:
            os.kill(os.getpid(), signal.SIGKILL)


RecordDatabase.transaction = wrapped  # type: ignore[method-assign]  # see above
sys.exit(run.main([CONFIG]))
