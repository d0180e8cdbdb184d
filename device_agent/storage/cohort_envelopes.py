"""The cohort envelopes that opened on this device, kept for their epoch.

An envelope stays sealed to the device's key: the file is as public as the repository's. A damaged one is downloaded
again.
"""

from contextlib import suppress
from pathlib import Path
from typing import Final

from bundle.key_sizes import MAX_ENVELOPE_BYTES

FOLDER_NAME: Final = "envelopes"


class CohortEnvelopes:
    """The kept envelopes of a device directory.

    Args:
        root: the device directory.
    """

    def __init__(self, root: Path) -> None:
        self._folder = root / FOLDER_NAME

    def read(self, cohort: str, name: str) -> bytes | None:
        """Return a kept envelope, or None.

        Args:
            cohort: name of the cohort.
            name: name of the envelope, which depends on the epoch.
        """
        try:
            with self._path(cohort, name).open("rb") as file:
                return file.read(MAX_ENVELOPE_BYTES)
        except OSError:
            return None

    def keep(self, cohort: str, name: str, envelope: bytes) -> None:
        """Keep an envelope that opened, and delete those of the cohort's other epochs; errors are ignored.

        Args:
            cohort: name of the cohort.
            name: name of the envelope, which depends on the epoch.
            envelope: the envelope.
        """
        path = self._path(cohort, name)
        with suppress(OSError):
            self._folder.mkdir(mode=0o700, exist_ok=True)
            for other in self._folder.glob(f"{cohort}+*"):
                if other != path:
                    other.unlink()
            partial = path.with_suffix(".part")
            partial.write_bytes(envelope)
            partial.replace(path)

    def delete(self, cohort: str, name: str) -> None:
        """Delete a kept envelope that does not open.

        Args:
            cohort: name of the cohort.
            name: name of the envelope, which depends on the epoch.
        """
        self._path(cohort, name).unlink(missing_ok=True)

    def _path(self, cohort: str, name: str) -> Path:
        return self._folder / f"{cohort}+{name}"  # no name of a cohort contains "+"
