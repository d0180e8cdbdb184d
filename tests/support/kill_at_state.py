"""Run the daemon and kill it with SIGKILL as soon as its journal has recorded a state.

    python -m tests.support.kill_at_state STATE TIMES CONFIG

The daemon is killed when it enters STATE for the TIMES-th time. The agent has no option for this: the module replaces
the journal's transactions.
"""

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from device_agent.daemon import run
from device_agent.storage.database import RecordDatabase

STATE, TIMES, CONFIG = sys.argv[1:]
remaining = int(TIMES)
transaction = RecordDatabase.transaction


@contextmanager
def transaction_with_kill(self: RecordDatabase) -> Iterator[None]:
    global remaining
    before = self.get("machine", "state")
    with transaction(self):
        yield
    after = self.get("machine", "state")
    name = None if after is None else after.text("state")
    if name == STATE and (before is None or before.text("state") != STATE):
        remaining -= 1
        if remaining <= 0:
            os.kill(os.getpid(), signal.SIGKILL)


RecordDatabase.transaction = transaction_with_kill  # type: ignore[method-assign]  # see the module's docstring
sys.exit(run.main([CONFIG]))
