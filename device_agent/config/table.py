"""One TOML table, read strictly: an error names the key, the value and what was expected."""

import re
from collections.abc import Iterable
from pathlib import Path

from bundle.strict_json import describe_pattern
from device_agent.errors import ConfigInvalid


class Table:
    """One TOML table. Every getter raises ConfigInvalid if the value has a wrong type or is out of range."""

    def __init__(self, values: dict[str, object], where: str, known: Iterable[str], name: str = "") -> None:
        """Raise ConfigInvalid if `values` has a key that is not in `known`."""
        self._values, self._where, self._prefix = values, where, f"{name}." if name else ""
        for key in sorted(values.keys() - set(known)):
            from bundle.suggestion import suggest  # only to report the error: difflib would stay in the daemon's memory

            raise ConfigInvalid(
                f"{where}: unknown key {self._prefix + key!r}{suggest(key, known)}",
                hint=f"known keys{f' of {name}' if name else ''}: {', '.join(known)}",
            )

    def has(self, key: str) -> bool:
        """Return whether the table has a key."""
        return key in self._values

    def is_equal(self, key: str, value: object) -> bool:
        """Return whether a key has exactly this value.

        Args:
            key: the key.
            value: the value to compare with.
        """
        return self._values.get(key) == value

    def any_text(self, key: str, default: str | None) -> str:
        """Return a text of any form.

        Args:
            key: the key.
            default: value of a missing key; None if the key is required.
        """
        value = self._value(key, default)
        if not isinstance(value, str):
            raise self._type_error(key, value, "a text")
        return value

    def any_texts(self, key: str, max_items: int) -> tuple[str, ...]:
        """Return a list of texts of any form, () if it is missing; an error does not print it.

        Args:
            key: the key.
            max_items: maximum number of texts.
        """
        values = self._value(key, [])
        if not isinstance(values, list) or len(values) > max_items or not all(isinstance(one, str) for one in values):
            raise self.invalid(key, f"is not a list of at most {max_items} texts")
        return tuple(values)

    def items(self, key: str, max_items: int) -> tuple[tuple[str, object], ...]:
        """Return the keys and values of a table inside this one, unchecked; an error does not print them.

        Args:
            key: the key of the inner table.
            max_items: maximum number of its keys.
        """
        values = self._values.get(key, {})
        if not isinstance(values, dict) or len(values) > max_items:
            raise self.invalid(key, f"is not a table of at most {max_items} keys")
        return tuple(values.items())

    def text(self, key: str, default: str | None, pattern: re.Pattern[str], expected: str = "") -> str:
        """Return a text that matches a pattern as a whole.

        Args:
            key: the key.
            default: value of a missing key; None if the key is required.
            pattern: form of the text.
            expected: the form in words, for the error message; "" for the pattern.
        """
        value = self._value(key, default)
        if not isinstance(value, str) or not pattern.fullmatch(value):
            raise self._type_error(key, value, expected or describe_pattern(pattern))
        return value

    def texts(self, key: str, pattern: re.Pattern[str], max_items: int, expected: str = "") -> tuple[str, ...]:
        """Return a list of texts, () if it is missing.

        Args:
            key: the key.
            pattern: form of each text.
            max_items: maximum number of texts.
            expected: the form in words, for the error message; "" for the pattern.
        """
        value = self._value(key, [])
        if not isinstance(value, list) or len(value) > max_items:
            raise self._type_error(key, value, f"a list of at most {max_items} texts")
        for item in value:
            if not isinstance(item, str) or not pattern.fullmatch(item):
                raise self._type_error(key, item, expected or f"a match of {pattern.pattern}")
        return tuple(value)

    def path(self, key: str, folder: Path) -> Path:
        """Return a path; the key is required.

        Args:
            key: the key.
            folder: folder that a relative path starts at.
        """
        value = self._value(key, None)
        if not isinstance(value, str) or not value or "\0" in value:
            raise self._type_error(key, value, "a path")
        return (folder / value).absolute()

    def integer(self, key: str, default: int, low: int, high: int) -> int:
        """Return an integer from `low` to `high`.

        Args:
            key: the key.
            default: value of a missing key.
            low: the smallest value.
            high: the largest value.
        """
        value = self._value(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise self._type_error(key, value, f"an integer from {low} to {high}")
        return value

    def optional_integer(self, key: str, low: int, high: int) -> int | None:
        """Return an integer from `low` to `high`, or None if the key is missing.

        Args:
            key: the key.
            low: the smallest value.
            high: the largest value.
        """
        return self.integer(key, low, low, high) if key in self._values else None

    def flag(self, key: str, default: bool) -> bool:
        """Return true or false.

        Args:
            key: the key.
            default: value of a missing key.
        """
        value = self._value(key, default)
        if not isinstance(value, bool):
            raise self._type_error(key, value, "true or false")
        return value

    def table(self, key: str, known: Iterable[str]) -> "Table":
        """Return the table inside this one, an empty one if it is missing.

        Args:
            key: the key of the inner table.
            known: its possible keys.
        """
        value = self._values.get(key, {})
        if not isinstance(value, dict):
            raise self._type_error(key, value, "a table")
        return Table(value, self._where, known, f"{self._prefix}{key}")

    def named_tables(self, key: str, names: Iterable[str], known: Iterable[str]) -> "list[tuple[str, Table]]":
        """Return the tables `[key.NAME]` with their names, in the order of the file.

        Args:
            key: the key of the outer table.
            names: the possible names.
            known: possible keys of each table.
        """
        outer = self.table(key, names)
        return [(name, outer.table(name, known)) for name in outer._values]  # of the same class

    def tables(self, key: str, known: Iterable[str], max_items: int) -> "list[Table]":
        """Return the tables of an array, each headed by `[[key]]`.

        Args:
            key: the key of the array.
            known: possible keys of each table.
            max_items: maximum number of tables.
        """
        values = self._values.get(key, [])
        if (
            not isinstance(values, list)
            or len(values) > max_items
            or not all(isinstance(value, dict) for value in values)
        ):
            raise self._type_error(key, values, f"at most {max_items} tables, each headed [[{self._prefix}{key}]]")
        return [
            Table(value, self._where, known, f"{self._prefix}{key}[{number}]") for number, value in enumerate(values, 1)
        ]

    def _value(self, key: str, default: object) -> object:
        if key in self._values:
            return self._values[key]
        if default is None:
            raise ConfigInvalid(f"{self._where}: key {self._prefix + key!r} is missing")
        return default

    def invalid(self, key: str, problem: str, hint: str | None = None) -> ConfigInvalid:
        """Return the error of a key whose value must not be printed.

        Args:
            key: the key.
            problem: what is wrong with it.
            hint: what to do, or None.
        """
        return ConfigInvalid(f"{self._where}: {self._prefix}{key} {problem}", hint=hint)

    def _type_error(self, key: str, value: object, expected: str) -> ConfigInvalid:
        return ConfigInvalid(f"{self._where}: {self._prefix}{key} is {value!r}, expected {expected}")
