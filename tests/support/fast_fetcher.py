"""The fetcher with a rate window of a fifth of a second and one try, so that a test need not wait."""

from device_agent.process.worker import serve, start
from device_agent.workers import fetcher

fetcher.RATE_WINDOW_S = 0.2  # type: ignore[misc]  # the test's whole point
fetcher.TRIES = 1  # type: ignore[misc]

if __name__ == "__main__":
    serve(start()[0], {"get": fetcher.get, "blob": fetcher.blob})
