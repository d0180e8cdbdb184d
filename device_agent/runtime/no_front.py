"""The front of a device without the extra `serve`: no endpoint, no process; files are still lent."""

import os
from typing import Any, Final

NO_ADDRESS: Final = "none"


class NoFront:
    """Stands where a FrontHandle would be, and does nothing.

    It is never asked to publish: device facts name no runtime without an endpoint.

    Attributes:
        address: NO_ADDRESS.
    """

    def __init__(self) -> None:
        self.address = NO_ADDRESS
        self._never = os.eventfd(0, os.EFD_CLOEXEC)

    def is_alive(self) -> bool:
        """Return True: there is no process that could end."""
        return True

    def fileno(self) -> int:
        """Return a descriptor that never becomes readable."""
        return self._never

    def push_metrics(self, text: str) -> None:
        """Drop the metrics: no endpoint shows them."""

    def set_access(self, *rules: Any) -> None:
        """Drop the rules for requests: there are none."""

    def resident_bytes(self) -> int:
        """Return 0: no process runs."""
        return 0

    def stop(self) -> None:
        """Close the descriptor; a second call does nothing."""
        if self._never >= 0:
            os.close(self._never)
            self._never = -1
