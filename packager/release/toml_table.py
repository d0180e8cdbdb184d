"""A TOML table, read strictly: a wrong type or a value out of range is an error that names its place."""

from pathlib import Path
from typing import Final

from bundle.errors import Malformed
from bundle.strict_json import NAME_PATTERN, StrictObject, describe_pattern

SHOWN_CHARACTERS: Final = 80  # length of a wrong value or key in a message


class TomlTable(StrictObject):
    """A TOML table, read like a JSON object; `number` is the only reader that accepts a float."""

    def __init__(self, value: object, where: str) -> None:
        super().__init__(value if isinstance(value, dict) else repr(value)[:SHOWN_CHARACTERS], where)

    def table(self, name: str) -> "TomlTable":
        """Return a nested table, empty if it is absent."""
        return TomlTable(self.value(name) if self.has(name) else {}, f"{self.where}: {name}")

    def tables(self, name: str) -> "dict[str, TomlTable]":
        """Return the tables of a table of tables, by name."""
        table = self.table(name)
        for entry in table.remaining_names():
            if not NAME_PATTERN.fullmatch(entry):
                raise Malformed(
                    f"{self.where}: {name}: found {entry[:SHOWN_CHARACTERS]!r}, "
                    f"expected {describe_pattern(NAME_PATTERN)}"
                )
        return {
            entry: TomlTable(table.value(entry), f"{self.where}: {name}.{entry}") for entry in table.remaining_names()
        }

    def tables_in_array(self, name: str) -> "list[TomlTable]":
        """Return an array of tables, empty if it is absent."""
        value: object = self.value(name) if self.has(name) else []
        if not isinstance(value, list):
            raise Malformed(f"{self.where}: {name}: found {value!r}, expected an array of tables")
        return [TomlTable(row, f"{self.where}: {name}[{i}]") for i, row in enumerate(value)]

    def number(self, name: str, low: float, high: float) -> float:
        """Return an integer or float.

        Args:
            name: its key.
            low, high: the accepted range, both included.

        Raises:
            Malformed: it is missing, of another type or out of range.
        """
        value: object = self.value(name)
        if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
            raise Malformed(f"{self.where}: {name}: found {value!r}, expected a number from {low} to {high}")
        return float(value)

    def path(self, name: str, folder: Path) -> Path:
        """Return a path, which can be relative to a folder.

        Args:
            name: its key.
            folder: where a relative path begins.

        Raises:
            Malformed: it is missing or no text.
        """
        return folder / self.text(name)
