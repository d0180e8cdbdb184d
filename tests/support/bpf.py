"""An interpreter of the classic BPF instructions that seccomp filters use (linux/filter.h)."""

import struct
from collections.abc import Sequence


def run_filter(program: Sequence[tuple[int, int, int, int]], audit_arch: int, number: int, *arguments: int) -> int:
    """Return what a filter returns for a call.

    Args:
        program: its instructions.
        audit_arch: architecture of the call.
        number: of the call.
        arguments: at most six; the others are 0.
    """
    padded = [*arguments, *[0] * (6 - len(arguments))]
    data = struct.pack("=IIQ6Q", number, audit_arch, 0, *(value % 2**64 for value in padded))
    accumulator = position = 0
    while True:
        code, if_true, if_false, operand = program[position]
        position += 1
        match code:
            case 0x20:
                (accumulator,) = struct.unpack_from("=I", data, operand)
            case 0x54:
                accumulator &= operand
            case 0x05:
                position += operand
            case 0x15:
                position += if_true if accumulator == operand else if_false
            case 0x35:
                position += if_true if accumulator >= operand else if_false
            case 0x06:
                return operand
            case _:
                raise ValueError(f"instruction {code:#x}")
