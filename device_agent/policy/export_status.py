"""The part of `status` about exported files (device_agent.apps.export_folder)."""

from dataclasses import dataclass
from typing import Any

from bundle.strict_json import StrictObject


@dataclass(frozen=True, slots=True)
class ExportStatus:
    """Files of the serving release in a folder for applications.

    Attributes:
        path: path of the folder of the family.
        release: version of the release whose files are there, or None.
        filesystem: "tmpfs" or "ramfs".
        is_swappable: whether the kernel may write the files to swap space.
        error: why the serving release is not exported, or None.
    """

    path: str
    release: str | None
    filesystem: str
    is_swappable: bool
    error: str | None

    def as_json(self) -> dict[str, Any]:
        """Return the object `export` of `status --json`."""
        return {
            "path": self.path,
            "release": self.release,
            "filesystem": self.filesystem,
            "swappable": self.is_swappable,
            "error": self.error,
        }

    def as_line(self) -> str:
        """Return a line for a terminal."""
        swap = "swappable" if self.is_swappable else "not swappable"
        if self.release is None:
            return f"export: nothing in {self.path}{'' if self.error is None else f': {self.error}'}"
        return f"export: {self.release} in {self.path} ({self.filesystem}, {swap})"

    @classmethod
    def parse(cls, fields: StrictObject) -> "ExportStatus":
        """Parse the output of `as_json`.

        Raises:
            Malformed: a field is missing, unknown or has a wrong type.
        """
        found = cls(
            fields.text("path", max_length=4096),
            fields.optional_text("release"),
            fields.text("filesystem"),
            fields.flag("swappable"),
            fields.optional_text("error", max_length=2000),
        )
        fields.reject_unknown()
        return found
