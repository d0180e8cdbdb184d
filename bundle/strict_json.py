"""Canonical JSON, and a strict reader for documents from outside (docs/format.md section 2).

Rules:
- Canonical form: UTF-8, keys sorted by code point, no white space, integers only. Floats have no unique decimal form
  across languages, so ratios are parts per million, and times are integers with the unit in the field's name.
- The reader requires valid UTF-8, one value, no duplicate keys, no floats, integers within ±2^53, at most 16 levels of
  nesting, and at most as many bytes as the caller allows. White space and the order of keys are free, because digests
  are computed from the canonical form.
- A document is read field by field through `StrictObject`. `reject_unknown` refuses the fields that were not read.
"""

import hashlib
import json
import re
from collections.abc import Iterable
from typing import Final, NoReturn, TypeAlias

from bundle.errors import Malformed, TooLarge

JSON: TypeAlias = bool | int | str | list["JSON"] | dict[str, "JSON"] | None

MAX_DEPTH: Final = 16
SURROGATE: Final = re.compile("[\ud800-\udfff]")
MAX_INTEGER: Final = 2**53  # above it, readers that use IEEE doubles would round

NAME_PATTERN: Final = re.compile(r"[a-z0-9](?:[a-z0-9._-]{0,62}[a-z0-9])?")
SHA256_HEX_PATTERN: Final = re.compile(r"[0-9a-f]{64}")
VERSION_PATTERN: Final = re.compile(r"(?:0|[1-9][0-9]{0,5})(?:\.(?:0|[1-9][0-9]{0,5})){1,3}(?:-[0-9a-z.]{1,32})?")
TIMESTAMP_PATTERN: Final = re.compile(r"[0-9]{4}-[01][0-9]-[0-3][0-9]T[0-2][0-9]:[0-5][0-9]:[0-6][0-9]Z")

PATTERN_TEXT: Final = {
    NAME_PATTERN: "a plain name: at most 64 of a-z, 0-9, '.', '_' and '-', the first and last a letter or digit",
    SHA256_HEX_PATTERN: "64 digits of 0-9 and a-f",
    VERSION_PATTERN: "a version such as 1.2.0 or 1.2.0-rc.1",
    TIMESTAMP_PATTERN: "a time such as 2026-01-31T12:00:00Z",
}


def describe_pattern(pattern: re.Pattern[str]) -> str:
    """Describe in words what a pattern matches, for an error message."""
    return PATTERN_TEXT.get(pattern, f"a match of {pattern.pattern}")


def encode(value: JSON) -> bytes:
    """Return the canonical bytes of a value.

    Raises:
        TypeError: the value contains a float or another type without a canonical form.
        ValueError: an integer is beyond ±2^53.
    """
    _check_encodable(value)
    return json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":"), allow_nan=False).encode("utf-8")


def digest(value: JSON) -> str:
    """Return the SHA-256 of the canonical bytes of a value, in lower-case hexadecimal."""
    return hashlib.sha256(encode(value)).hexdigest()


def decode(data: bytes, *, what: str, max_bytes: int) -> JSON:
    """Parse a JSON document strictly.

    Args:
        data: the whole document.
        what: name of the document in error messages, for example "manifest".
        max_bytes: limit on `len(data)`.

    Raises:
        Malformed: the document is not JSON, or breaks a rule of the strict reader.
        TooLarge: the document is longer than `max_bytes`.
    """
    if len(data) > max_bytes:
        raise TooLarge(f"{what} is {len(data)} bytes, at most {max_bytes} are allowed")

    def refuse(why: str) -> NoReturn:
        raise Malformed(f"{what}: {why}")

    def unique(pairs: list[tuple[str, JSON]]) -> dict[str, JSON]:
        out = dict(pairs)
        if len(out) != len(pairs):
            names = [name for name, _ in pairs]
            refuse(f"duplicate key {next(n for n in names if names.count(n) > 1)!r}")
        return out

    def integer(text: str) -> int:
        if len(text) > 17 or abs(int(text)) > MAX_INTEGER:
            refuse(f"integer {text[:20]} is outside of ±2^53")
        return int(text)

    try:
        value: JSON = json.loads(
            data.decode("utf-8"),
            object_pairs_hook=unique,
            parse_int=integer,
            parse_float=lambda text: refuse(f"number {text[:20]} is not an integer"),
            parse_constant=lambda text: refuse(f"{text} is not JSON"),
        )
    except UnicodeDecodeError as error:
        raise Malformed(f"{what}: not UTF-8 at byte {error.start}") from error
    except json.JSONDecodeError as error:
        raise Malformed(f"{what}: {error.msg} at byte {error.pos}") from error
    except RecursionError as error:
        raise Malformed(f"{what}: nested too deep, at most {MAX_DEPTH} levels") from error
    wrong = _shape_problem(value)
    if wrong is not None:
        refuse(wrong)
    return value


class StrictObject:
    """A JSON object that is read field by field; every method removes the field that it returns.

    All methods that read a field raise Malformed, with the field's path, if it is missing or has another form.

    Args:
        value: the JSON value, expected to be an object.
        where: path of the value in error messages, for example "manifest.variants.int8".

    Raises:
        Malformed: the value is not an object.
    """

    def __init__(self, value: JSON, where: str) -> None:
        if not isinstance(value, dict):
            raise Malformed(f"{where}: found {_describe_kind(value)}, expected an object")
        self._remaining = dict(value)
        self.where = where

    def has(self, name: str) -> bool:
        """Return whether the object has a field that was not read yet."""
        return name in self._remaining

    def remaining_names(self) -> tuple[str, ...]:
        """Return the names of the fields that were not read yet."""
        return tuple(self._remaining)

    def value(self, name: str) -> JSON:
        """Return a field of any type."""
        if name not in self._remaining:
            raise Malformed(f"{self.where}: field {name!r} is missing")
        return self._remaining.pop(name)

    def text(self, name: str, pattern: re.Pattern[str] | None = None, *, max_length: int = 1024) -> str:
        """Return a printable string.

        Args:
            name: name of the field.
            pattern: pattern that the whole string must match, or None for any string.
            max_length: maximum number of characters.
        """
        value = self.value(name)
        if not isinstance(value, str):
            self._reject(name, value, "a string")
        if len(value) > max_length or not value.isprintable():
            self._reject(name, value, f"a printable string of at most {max_length} characters")
        if pattern is not None and not pattern.fullmatch(value):
            self._reject(name, value, describe_pattern(pattern))
        return value

    def optional_text(self, name: str, pattern: re.Pattern[str] | None = None, *, max_length: int = 1024) -> str | None:
        """Return a printable string, or None if the field is null.

        Args:
            name: name of the field.
            pattern: pattern that the whole string must match, or None for any string.
            max_length: maximum number of characters.
        """
        if self._remaining.get(name, "") is None:
            self.value(name)
            return None
        return self.text(name, pattern, max_length=max_length)

    def choice(self, name: str, allowed: tuple[str, ...]) -> str:
        """Return a string that is one of the allowed values.

        Args:
            name: name of the field.
            allowed: the valid values.
        """
        value = self.text(name)
        if value not in allowed:
            self._reject(name, value, f"one of {', '.join(allowed)}")
        return value

    def integer(self, name: str, low: int = 0, high: int = MAX_INTEGER) -> int:
        """Return an integer within bounds.

        Args:
            name: name of the field.
            low: smallest valid value.
            high: largest valid value.
        """
        value = self.value(name)
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            self._reject(name, value, f"an integer from {low} to {high}")
        return value

    def optional_integer(self, name: str, low: int = 0, high: int = MAX_INTEGER) -> int | None:
        """Return an integer, or None if the field is null.

        Args:
            name: name of the field.
            low: smallest valid value.
            high: largest valid value.
        """
        if self._remaining.get(name, 0) is None:
            self.value(name)
            return None
        return self.integer(name, low, high)

    def flag(self, name: str) -> bool:
        """Return a Boolean field."""
        value = self.value(name)
        if not isinstance(value, bool):
            self._reject(name, value, "true or false")
        return value

    def objects(self, name: str, *, max_items: int) -> list["StrictObject"]:
        """Return a list of objects.

        Args:
            name: name of the field.
            max_items: maximum length of the list.
        """
        items = self._list_value(name, max_items)
        return [StrictObject(item, f"{self.where}.{name}[{i}]") for i, item in enumerate(items)]

    def texts(self, name: str, pattern: re.Pattern[str] | None = None, *, max_items: int = 256) -> tuple[str, ...]:
        """Return a list of distinct printable strings.

        Args:
            name: name of the field.
            pattern: pattern that each whole string must match, or None for any string.
            max_items: maximum length of the list.
        """
        items = self._list_value(name, max_items)
        row = StrictObject({str(i): item for i, item in enumerate(items)}, f"{self.where}.{name}")
        out = tuple(row.text(str(i), pattern) for i in range(len(items)))
        if len(set(out)) != len(out):
            raise Malformed(f"{self.where}.{name}: found the same entry twice, expected distinct ones")
        return out

    def integers(self, name: str, low: int = 0, high: int = MAX_INTEGER, *, max_items: int) -> tuple[int, ...]:
        """Return a list of integers.

        Args:
            name: name of the field.
            low: smallest allowed value.
            high: largest allowed value.
            max_items: maximum length of the list.
        """
        items = self._list_value(name, max_items)
        row = StrictObject({str(i): item for i, item in enumerate(items)}, f"{self.where}.{name}")
        return tuple(row.integer(str(i), low, high) for i in range(len(items)))

    def object(self, name: str) -> "StrictObject":
        """Return a nested object."""
        return StrictObject(self.value(name), f"{self.where}.{name}")

    def mapping(self, name: str, key: re.Pattern[str], *, max_items: int) -> dict[str, "StrictObject"]:
        """Return an object whose keys are data, such as names of variants, and whose values are objects.

        Args:
            name: name of the field.
            key: pattern that each whole key must match.
            max_items: maximum number of entries.
        """
        value = self.value(name)
        if not isinstance(value, dict) or len(value) > max_items:
            self._reject(name, value, f"an object of at most {max_items} entries")
        for entry in value:
            if not key.fullmatch(entry):
                raise Malformed(f"{self.where}.{name}: found key {entry[:80]!r}, expected {describe_pattern(key)}")
        return {entry: StrictObject(item, f"{self.where}.{name}.{entry}") for entry, item in value.items()}

    def reject_unknown(self) -> None:
        """Check that all fields were read.

        Raises:
            Malformed: the object has an unknown field.
        """
        if self._remaining:
            raise Malformed(f"{self.where}: unknown field {sorted(self._remaining)[0][:80]!r}")

    def _list_value(self, name: str, max_items: int) -> list[JSON]:
        value = self.value(name)
        if not isinstance(value, list) or len(value) > max_items:
            self._reject(name, value, f"a list of at most {max_items} entries")
        return value

    def _reject(self, name: str, value: JSON, expected: str) -> NoReturn:
        raise Malformed(f"{self.where}.{name}: found {_describe_kind(value)}, expected {expected}")


def _describe_kind(value: JSON) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return str(value).lower()
        case int():
            return str(value)
        case str():
            return repr(value[:80])
        case list():
            return f"a list of {len(value)}"
        case dict():
            return f"an object of {len(value)}"


def _shape_problem(value: JSON) -> str | None:
    # iterate by level: a recursive walk would raise RecursionError on nesting that the JSON parser accepts
    level: list[JSON] = [value]
    for depth in range(MAX_DEPTH + 1):
        inner: list[JSON] = []
        for item in level:
            texts: Iterable[str] = ()
            if isinstance(item, str):
                texts = (item,)
            elif isinstance(item, dict):
                inner += item.values()
                texts = item
            elif isinstance(item, list):
                inner += item
            for text in texts:
                if not text.isascii() and SURROGATE.search(text):
                    return "found half of a surrogate pair, which is not a character"
        if depth == MAX_DEPTH and any(isinstance(item, list | dict) for item in level):
            return f"nested too deep, at most {MAX_DEPTH} levels"
        level = inner
    return None


def _check_encodable(value: JSON) -> None:
    waiting: list[JSON] = [value]
    while waiting:
        item = waiting.pop()
        if item is None or isinstance(item, str | bool):
            continue
        if isinstance(item, int):
            if abs(item) > MAX_INTEGER:
                raise ValueError(f"integer {item} is outside of ±2^53")
        elif isinstance(item, list):
            waiting += item
        elif isinstance(item, dict):
            for key in item:
                if not isinstance(key, str):
                    raise TypeError(f"key {key!r} is not a string")
            waiting += item.values()
        else:
            raise TypeError(f"{type(item).__name__} has no canonical form")
