"""The collector of the fleet demo: `packager fleet serve` in a process of its own."""

import json
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Final

from packager.demo.demo_device import AgentUnavailable

STOP_TIMEOUT_S: Final = 30


class Collector:
    """A running collector on a free loopback port.

    Args:
        repository: folder of the repository.
        store: file of its store.
        log: file for its log.

    Raises:
        AgentUnavailable: it did not start.
    """

    def __init__(self, repository: Path, store: Path, log: Path) -> None:
        self.store = f"sqlite:{store}"
        words = (
            "fleet",
            "serve",
            "--repo",
            str(repository),
            "--store",
            self.store,
            "--listen",
            "127.0.0.1:0",
            "--json",
        )
        with log.open("wb") as file:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "packager", *words], stdout=subprocess.PIPE, stderr=file
            )
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self.stop()
            raise AgentUnavailable(f"the collector did not start: {log.read_text('utf-8', 'replace')[-300:]}")
        text = line
        while True:
            try:
                self.url = str(json.loads(text)["url"])
                break
            except ValueError:
                more = self._process.stdout.readline()
                if not more:
                    self.stop()
                    raise AgentUnavailable(f"the collector printed {text[:200]!r}, expected JSON") from None
                text += more
        self._drain = threading.Thread(target=self._process.stdout.read, daemon=True)
        self._drain.start()

    def stop(self) -> None:
        """Stop the collector and wait for its end."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
