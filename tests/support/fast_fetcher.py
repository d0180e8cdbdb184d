"""Run the fetcher worker with a single attempt for each blob, so that tests do not wait for retries."""

from device_agent.process.worker import Handler, serve_calls, start_worker
from device_agent.workers import blob_transfer, fetcher

blob_transfer.MAX_TRIES = 1  # type: ignore[misc]  # what the test changes

if __name__ == "__main__":
    handlers: dict[str, Handler] = {
        "configure": fetcher.configure,
        "get": fetcher.handle_get,
        "envelope": fetcher.handle_envelope,
        "blob": fetcher.fetch_blob,
    }
    serve_calls(start_worker(lambda _pace, _policy: fetcher.prepare_client())[0], handlers)
