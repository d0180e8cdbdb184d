"""Parse the JSON of a request body in bounded memory.

A Python object for each value takes 20 to 60 times the bytes of the text: 57 MiB of `{},{},…` would take 1.7 GB. Rules:
1. A list of numbers that is the value of "data" and longer than MIN_LIST_BYTES is cut out of the text and stays text:
   `NumberList`. It is converted to an array in pieces of CHUNK_BYTES, each parsed by the json module. Between two
   pieces, `on_pause` can serve other requests.
2. All other values are counted before they are parsed; more than MAX_VALUES are refused. Larger tensors than that are
   lists of numbers, or binary data.
3. The dialects that are accepted beyond RFC 8259: a byte order mark. NaN and Infinity are not.
"""

import json
import re
import secrets
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from typing import Any, Final, NoReturn

import numpy as np

from device_agent.errors import RequestInvalid
from device_agent.runtime.tensors import DATATYPES, Array, count_elements, numbers_from_list

BYTE_ORDER_MARK: Final = b"\xef\xbb\xbf"
MIN_LIST_BYTES: Final = 64 * 1024
CHUNK_BYTES: Final = 256 * 1024
MAX_VALUES: Final = 2**18  # about 0.1 s and 30 MB
MAX_NESTING: Final = 32
# a string, a run that can be lists of numbers, or one more value
_TOKEN: Final = re.compile(
    rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"[ \t\r\n]*+,?+|\[[\[\]0-9eE+\-., \t\r\nnultrfas]*+|[{,]', re.DOTALL
)
_DATA_KEY: Final = re.compile(rb'"data"[ \t\r\n]*:[ \t\r\n]*\Z')
_MAX_KEY_BYTES: Final = 64  # "data", the colon, and white space
_SHAPE_CHARACTERS: Final = b"[],"
_OTHER_CHARACTERS: Final = bytes(byte for byte in range(256) if byte not in _SHAPE_CHARACTERS)


class NumberList:
    """A long list of numbers that was not parsed yet (rule 1).

    Args:
        text: its JSON, from the first bracket to the last.
    """

    def __init__(self, text: bytes) -> None:
        self._text = text

    def to_array(
        self, datatype: str, shape: Sequence[int], name: str, on_pause: Callable[[], None] = lambda: None
    ) -> Array:
        """Convert the list to an array, as device_agent.runtime.tensors.from_json does.

        Args:
            datatype: a name in DATATYPES.
            shape: sizes of the dimensions.
            name: the input, for error messages.
            on_pause: called between two pieces, each of which takes about 10 ms.

        Raises:
            RequestInvalid: the list is not JSON, or does not fit datatype and shape.
        """
        count = count_elements(shape, name)
        if datatype == "BYTES":
            raise RequestInvalid(f"input {name!r}: data has numbers, expected strings")
        skeleton = self._text.translate(None, _OTHER_CHARACTERS)
        depth = _check_regular(skeleton, name)
        found = skeleton.count(b",") + 1
        del skeleton
        if found != count:
            raise RequestInvalid(f"input {name!r}: {found} elements of data, expected {count} for shape {list(shape)}")
        array: Array = np.empty(count, DATATYPES[datatype])
        filled = 0
        for values in self._pieces(depth, name):
            part = numbers_from_list(values, datatype, name)
            if part.ndim != 1 or filled + part.size > count:
                raise RequestInvalid(f"input {name!r}: data is ragged")
            array[filled : filled + part.size] = part
            filled += part.size
            on_pause()
        if filled != count:
            raise RequestInvalid(f"input {name!r}: {filled} elements of data, expected {count} for shape {list(shape)}")
        return array.reshape(tuple(shape))

    def _pieces(self, depth: int, name: str) -> Iterator[list[Any]]:
        """Yield the values in order, as flat lists; each piece of the text ends before a comma."""
        start, level = 0, 0
        while start < len(self._text):
            end = self._text.find(b",", start + CHUNK_BYTES)
            end = len(self._text) if end < 0 else end
            piece = self._text[start:end]
            before, level = level, level + piece.count(b"[") - piece.count(b"]")
            try:
                values = json.loads(b"[" * before + piece + b"]" * level, parse_constant=refuse_constant)
                for _ in range(depth - 1):
                    values = list(chain.from_iterable(values))
            except (ValueError, TypeError, RecursionError) as error:
                raise RequestInvalid(f"input {name!r}: data is not JSON, or is ragged") from error
            yield values
            start = end + 1


def parse_json(text: memoryview) -> Any:
    """Parse the JSON of a request; long lists of numbers become NumberList.

    Args:
        text: the JSON, in UTF-8.

    Raises:
        RequestInvalid: the text is not JSON, or has too many values.
    """
    if text[:3].tobytes() == BYTE_ORDER_MARK:
        text = text[3:]
    lists: dict[str, NumberList] = {}
    if len(text) > MIN_LIST_BYTES:
        text = _cut_out_lists(bytes(text), lists)
    try:
        value = json.loads(str(text, "utf-8"), parse_constant=refuse_constant)
    except (ValueError, RecursionError) as error:
        where = f" at character {error.pos}" if isinstance(error, json.JSONDecodeError) and not lists else ""
        raise RequestInvalid(f"body is not JSON{where}") from error
    if lists and isinstance(value, dict) and isinstance(value.get("inputs"), list):
        for item in value["inputs"]:
            if isinstance(item, dict) and isinstance(item.get("data"), str):
                item["data"] = lists.get(item["data"], item["data"])
    return value


def refuse_constant(constant: str) -> NoReturn:
    """Refuse NaN and Infinity, which the json module would accept."""
    raise RequestInvalid(f"body: {constant} is not JSON")


def _cut_out_lists(text: bytes, lists: dict[str, NumberList]) -> memoryview:
    """Replace each long list of numbers by a string, and store the list under that string."""
    token, parts, copied, values = secrets.token_hex(8), [], 0, 0
    for match in _TOKEN.finditer(text):
        start, end = match.span()
        if text[start] == ord("["):
            end = text.rfind(b"]", start, end) + 1
            is_data = _DATA_KEY.search(text, max(start - _MAX_KEY_BYTES, 0), start)
            if end - start > MIN_LIST_BYTES and is_data:
                key = f"{token}:{len(lists)}"
                lists[key] = NumberList(text[start:end])
                parts += [text[copied:start], f'"{key}"'.encode()]
                copied = end
                continue
            values += text.count(b",", *match.span()) + text.count(b"[", *match.span())
        values += 1
        if values > MAX_VALUES:
            raise RequestInvalid(
                f"body has more than {MAX_VALUES} values beside lists of numbers; send large tensors as binary data"
            )
    return memoryview(b"".join([*parts, text[copied:]]))


def _check_regular(skeleton: bytes, name: str) -> int:
    """Return the depth of a list from its brackets and commas; all lists of a level have one length."""
    depth = len(skeleton) - len(skeleton.lstrip(b"["))
    if not 1 <= depth <= MAX_NESTING:
        raise RequestInvalid(f"input {name!r}: data is nested too deeply")
    row = b""
    for level in range(depth, 0, -1):
        # the first list of this level ends where so many brackets close at once
        end = skeleton.find(b"]" * (depth - level + 1)) + depth - level + 1
        length = end - (level - 1)
        count, rest = divmod(length - 1, len(row) + 1)
        row = b"[" + ((row + b",") * count)[:-1] + b"]" if not rest and count > 0 else b""
        if not row:
            break
    if row != skeleton:
        raise RequestInvalid(f"input {name!r}: data is ragged")
    return depth
