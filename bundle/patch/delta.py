"""The op DELTA: bsdiff in frames of bounded memory (docs/format.md section 9.4).

Payload: target start (varint), base start (varint), then three sections: control, difference, extra. Control is a run
of triples (add, extra: varints; seek: signed varint). A triple makes `add` target bytes from base bytes plus difference
bytes, modulo 256, then takes `extra` target bytes from the extra section, then moves the base position by `add + seek`.

Rules:
1. A triple makes at least one byte, so a frame has at most as many triples as target bytes.
2. The difference and extra sections are used up exactly.

Source: Colin Percival, "Naive differences of executable code" (2003); the cut into frames is our addition.
"""

from typing import Final

from bundle.errors import PatchCorrupt
from bundle.patch.address_space import BaseBytes
from bundle.patch.byte_math import add_bytes
from bundle.patch.container import Frame
from bundle.patch.limits import DeclaredLimits
from bundle.patch.numbers import Cursor
from bundle.patch.sections import read_section

MAX_CONTROL_BYTES: Final = 1 << 18


def decode_delta(frame: Frame, base: BaseBytes, declared_limits: DeclaredLimits) -> tuple[int, memoryview]:
    """Decode a DELTA frame; return its target start and its target bytes.

    Args:
        frame: a DELTA frame.
        base: bundle that the triples read from.
        declared_limits: limits from the header of the patch.

    Raises:
        PatchCorrupt: the payload is damaged or does not make the announced bytes.
        PatchRangeInvalid: a triple reads outside the base.
        PatchLimitExceeded: a section is too long.
    """
    cursor = Cursor(frame.payload, frame.where)
    start, position = cursor.read_varint(), cursor.read_varint()
    control = Cursor(read_section(cursor, MAX_CONTROL_BYTES, "control"), f"{frame.where} control")
    out = bytearray(frame.decoded_bytes)
    difference = read_section(cursor, min(frame.decoded_bytes, declared_limits.pending_bytes), "difference")
    extra = read_section(cursor, frame.decoded_bytes - len(difference), "extra")
    cursor.check_end()
    done = added = inserted = 0
    while control.remaining_bytes():
        add, more, seek = control.read_varint(), control.read_varint(), control.read_signed_varint()
        if add + more == 0 or add > len(difference) - added or more > len(extra) - inserted:
            raise PatchCorrupt(
                f"{control.where}: triple ({add}, {more}, {seek}), {len(difference) - added} difference and "
                f"{len(extra) - inserted} extra bytes are left"
            )
        if add:
            base.check_range(position, add, frame.where)
            _add_difference(out, done, base.read(position, add), difference[added : added + add])
        out[done + add : done + add + more] = extra[inserted : inserted + more]
        done, added, inserted = done + add + more, added + add, inserted + more
        position += add + seek
    if done != frame.decoded_bytes or added != len(difference) or inserted != len(extra):
        raise PatchCorrupt(f"{frame.where}: control makes {done} bytes, expected {frame.decoded_bytes}")
    return start, memoryview(out)


def _add_difference(out: bytearray, position: int, base: bytes, difference: bytes | memoryview) -> None:
    out[position : position + len(base)] = add_bytes(base, difference)
