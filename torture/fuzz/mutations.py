"""Changes of seeds: of bytes, of JSON documents, of lines of text. Each takes a seed and dice, and returns a case."""

import copy
import json
import random
from typing import Any, Final

CRITICAL_BYTES: Final = (b"\x00", b"\x01", b"\x7f", b"\x80", b"\xff", b"\xff" * 8 + b"\x7f", b"\x80\x80\x80\x80\x04")
CRITICAL_TEXTS: Final = (
    "0", "-1", "1e9", "1.5", "9223372036854775808", "99999999999999999999", "true", "null", "nan", "[]", "{}", '""',
    '"a/../b"', '"\u202e"', "'''", "[[", "]]", "=", "#", "\\u0000", "\x1b[2J", "1979-05-27",
)  # fmt: skip
CRITICAL_VALUES: Final[tuple[Any, ...]] = (
    None, True, False, 0, -1, 1, 2**31, 2**32, 2**53, 2**53 + 1, 2**63, 2**64, -(2**63), 1.5, 1e308, "", "a", "\0",
    "../..", "/", "\u202e\x1b[2J", "\ud800", "é" * 300, "9" * 5000, [], {}, [[]], [None], [0] * 300, {"": {}},
    {"name": "x"}, "0" * 64, "f" * 64, "2026-02-30T99:00:00Z", "1.0.0",
)  # fmt: skip


def change_bytes(data: bytes, dice: random.Random) -> bytes:
    """Flip a bit, insert a critical number, cut or repeat a piece; most often near the start."""
    if not data:
        return dice.choice(CRITICAL_BYTES)
    span = len(data) if dice.random() < 0.4 else min(len(data), 24)
    at = dice.randrange(span)
    match dice.randrange(5):
        case 0:
            return data[:at] + bytes([data[at] ^ 1 << dice.randrange(8)]) + data[at + 1 :]
        case 1:
            number = dice.choice(CRITICAL_BYTES)
            return data[:at] + number + data[at + len(number) :]
        case 2:
            return data[:at] + dice.choice(CRITICAL_BYTES) + data[at:]
        case 3:
            return data[:at] + data[at + dice.randint(1, 8) :]
        case _:
            return data[:at] + data[at : at + dice.randint(1, 40)] + data[at:]


def change_integers(data: bytes, dice: random.Random) -> bytes:
    """Change one to three bytes or aligned little-endian integers in the first KiB, the header."""
    for _ in range(dice.randint(1, 3)):
        if dice.random() < 0.5 or len(data) < 8:
            data = change_bytes(data, dice)
            continue
        width = dice.choice((1, 2, 4, 8))
        at = dice.randrange(min(len(data) - width + 1, 1024)) // width * width
        old = int.from_bytes(data[at : at + width], "little")
        number = dice.choice(
            (0, 1, old + 1, old - 1, old * 2, len(data), len(data) - at, 1 << 20, 1 << 31, (1 << 8 * width) - 1)
        )
        data = data[:at] + (number % (1 << 8 * width)).to_bytes(width, "little") + data[at + width :]
    return data


def change_json(data: bytes, dice: random.Random) -> bytes:
    """Change one to three values of a JSON document, or its bytes if it is none."""
    if dice.random() < 0.2:
        return change_bytes(data, dice)
    try:
        value = json.loads(data)
        for _ in range(dice.randint(1, 3)):
            value = change_value(value, dice)
        return json.dumps(value, ensure_ascii=dice.random() < 0.5).encode("utf-8", "surrogatepass")
    except (ValueError, RecursionError):  # a seed that is not JSON, or is nested thousands deep
        return change_bytes(data, dice)


def change_value(document: Any, dice: random.Random) -> Any:
    """Return a document with one value replaced, removed, moved or repeated."""
    document = copy.deepcopy(document)
    places = _list_places(document)
    if not places or dice.random() < 0.01:
        return copy.deepcopy(dice.choice(CRITICAL_VALUES))
    parent, key = dice.choice(places)
    match dice.randrange(6):
        case 0:
            del parent[key]
        case 1 if isinstance(parent, dict):
            parent[key + dice.choice("sx \0é")] = parent.pop(key)
        case 1:
            parent.insert(key, copy.deepcopy(parent[key]))
        case 2:
            other, other_key = dice.choice(places)
            if other_key in other if isinstance(other, dict) else other_key < len(other):
                parent[key] = copy.deepcopy(other[other_key])
        case 3 if isinstance(parent[key], int) and not isinstance(parent[key], bool):
            parent[key] += dice.choice((-1, 1, parent[key], 10**6))
        case 3 if isinstance(parent[key], str) and parent[key]:
            at = dice.randrange(len(parent[key]))
            parent[key] = parent[key][:at] + dice.choice(("", "\n", "/", "A", "é", "-" * 99)) + parent[key][at + 1 :]
        case _:
            parent[key] = copy.deepcopy(dice.choice(CRITICAL_VALUES))
    return document


def change_lines(data: bytes, dice: random.Random) -> bytes:
    """Change one to three lines of a text, or the value after an equals sign."""
    lines = data.split(b"\n")
    for _ in range(dice.randint(1, 3)):
        at = dice.randrange(len(lines))
        match dice.randrange(6):
            case 0:
                lines.insert(at, lines[dice.randrange(len(lines))])
            case 1 if len(lines) > 1:
                lines.pop(at)
            case 2:
                lines[at] = change_bytes(lines[at], dice)
            case _:
                key, equals, _ = lines[at].partition(b"=")
                lines[at] = key + equals + dice.choice(CRITICAL_TEXTS).encode()
    return b"\n".join(lines)


def _list_places(document: Any) -> list[tuple[Any, Any]]:
    """Return (container, key or index) of every value below the root."""
    places: list[tuple[Any, Any]] = []
    queue = [document]
    while queue:
        container = queue.pop()
        keys = (
            list(container)
            if isinstance(container, dict)
            else range(len(container))
            if isinstance(container, list)
            else ()
        )
        for key in keys:
            places.append((container, key))
            queue.append(container[key])
    return places
