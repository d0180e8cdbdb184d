"""Run the fetcher worker with a rate window of 0.2 seconds and a single attempt, so that tests do not wait."""

from device_agent.process.worker import serve_calls, start_worker
from device_agent.workers import fetcher

fetcher.RATE_WINDOW_S = 0.2  # type: ignore[misc]  # what the test changes
fetcher.MAX_TRIES = 1  # type: ignore[misc]

if __name__ == "__main__":
    serve_calls(start_worker()[0], {"get": fetcher.handle_get, "blob": fetcher.fetch_blob})
