"""Run a model inside an app and replace it while the app keeps calling it; no server and no socket.

    python examples/in_app.py OLD.onnx NEW.onnx [--isolation worker]

One thread calls the model continuously. The main thread swaps OLD for NEW, rolls back, and prints how long the calls
took. With `--isolation worker` each model runs in a jailed process of its own.
"""

import argparse
import threading
import time
from collections import Counter
from pathlib import Path

import numpy as np

from airweights import ModelRuntime, bundle_from_files


def main() -> None:
    """Swap between the two models of the command line while a thread calls them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument("--isolation", choices=["inproc", "worker"], default="inproc")
    arguments = parser.parse_args()
    old, new = bundle_from_files(arguments.old), bundle_from_files(arguments.new)
    calls: Counter[int] = Counter()
    slowest_s = 0.0
    stop = threading.Event()
    with ModelRuntime(isolation=arguments.isolation, threads=1) as runtime:
        runtime.swap(old)
        inputs = zeros_for(arguments.old)

        def keep_calling() -> None:
            nonlocal slowest_s
            while not stop.is_set():
                before = time.perf_counter()
                with runtime.lease() as lease:  # without its number, `runtime.run(inputs)` is enough
                    lease.run(inputs)
                slowest_s = max(slowest_s, time.perf_counter() - before)
                calls[lease.generation] += 1

        caller = threading.Thread(target=keep_calling)
        caller.start()
        time.sleep(1)
        report = runtime.swap(new)
        time.sleep(1)
        restored = runtime.rollback()
        time.sleep(1)
        stop.set()
        caller.join()
    print(f"swap: {report.load_s * 1e3:.1f} ms to load, {report.publish_s * 1e6:.0f} us to switch; back to {restored}")
    print(f"calls by generation: {dict(calls)}; slowest call {slowest_s * 1e3:.1f} ms")
    old.close()
    new.close()


def zeros_for(model: Path) -> dict[str, np.ndarray]:
    """Return inputs of zeros, with size 1 for each free dimension; an app has its own data."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    dtypes = {"tensor(float)": np.float32, "tensor(int64)": np.int64, "tensor(uint8)": np.uint8}
    return {
        value.name: np.zeros([size if isinstance(size, int) else 1 for size in value.shape], dtypes[value.type])
        for value in session.get_inputs()
    }


if __name__ == "__main__":
    main()
