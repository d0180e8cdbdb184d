"""Rows of swaps under load: a point is one swap; a failed request or a wrong response is bad."""

import threading
from collections import Counter
from contextlib import ExitStack

from airweights import ModelRuntime
from device_agent.runtime.handles import ModelProcess, PrestartedProcess
from tests.support.load_clients import Load
from tests.support.memfd_bundles import create_memfd_bundle, floats, make_scale_model, start_front
from torture.fault_classes import Row

WORKER_SWAPS = 200
INPROC_SWAPS = 1000
KILL_EVERY = 10
SAMPLE = {"x": floats(1, 2, 3, 4)}


def front_swap_row(limit: int | None) -> Row:
    """Swap model processes under HTTP load; kill every tenth and replace it from a prestarted process."""
    row = Row("model swapped under load behind the front, every tenth killed")
    with ExitStack() as stack:
        even = stack.enter_context(create_memfd_bundle(make_scale_model(2.0), [SAMPLE]))
        odd = stack.enter_context(create_memfd_bundle(make_scale_model(3.0), [SAMPLE]))
        served = stack.enter_context(start_front())
        current = even.start_process(0)
        served.publish("toy", current)
        with Load(served.address) as load:
            for number in range(1, min(limit or WORKER_SWAPS, WORKER_SWAPS) + 1):
                bundle = odd if number % 2 else even
                candidate = bundle.start_process(number)
                served.publish("toy", candidate)
                if number % KILL_EVERY == 0:
                    standby = PrestartedProcess.start()
                    candidate.kill()
                    candidate = ModelProcess.start(bundle.fds, bundle.make_spec(number), prestarted=standby)
                    served.publish("toy", candidate)
                load.wait_for_responses(10)
                served.retire("toy", number - 1, 30)
                current.stop()
                current = candidate
                row.points += 1
        current.stop()
    row.bad = [f"{count} answers {key}" for key, count in load.responses.items() if key not in {(200, 2.0), (200, 3.0)}]
    return row


def in_process_swap_row(limit: int | None) -> Row:
    """Swap in a ModelRuntime of this process that two threads call; roll every tenth swap back."""
    row = Row("model swapped under load in an app's process, every tenth rolled back")
    answers: Counter[float | str] = Counter()
    stop = threading.Event()
    with ExitStack() as stack:
        bundles = [
            stack.enter_context(create_memfd_bundle(make_scale_model(factor), [SAMPLE])) for factor in (2.0, 3.0)
        ]
        runtime = stack.enter_context(ModelRuntime(threads=1))
        runtime.swap(bundles[0].fds)

        def call() -> None:
            while not stop.is_set():
                try:
                    answers[float(runtime.run(SAMPLE)["y"][0])] += 1
                except Exception as error:  # noqa: BLE001  # any failure counts
                    answers[repr(error)] += 1

        callers = [threading.Thread(target=call) for _ in range(2)]
        for caller in callers:
            caller.start()
        for number in range(1, min(limit or INPROC_SWAPS, INPROC_SWAPS) + 1):
            runtime.swap(bundles[number % 2].fds)
            if number % KILL_EVERY == 0:
                runtime.rollback()
            row.points += 1
        stop.set()
        for caller in callers:
            caller.join()
    row.bad = [f"{count} calls {key}" for key, count in answers.items() if key not in {2.0, 3.0}]
    return row
