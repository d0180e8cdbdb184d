"""Tensors between an app and its model process, without HTTP: in the message or in shared memory.

Theory of operation. A request is a frame of kind TENSORS. Its JSON has a row [name, dtype, shape, offset] for each
input, the names of the requested outputs, and the arena if there is one. The input bytes, each aligned to
ALIGNMENT_BYTES, follow the JSON, or lie in the arena at their offsets. The response has rows of the same form for the
outputs and says whether their bytes are in the arena.

An arena is one memfd, sealed against a change of size, that both sides keep mapped:

    [0, input_bytes)                               inputs, written by the app
    [input_bytes, input_bytes + output_bytes)      outputs, written by the model process

Since it stays mapped, a second large request causes no page faults. One request uses an arena at a time. Large results
are views of it. When the last view is gone, `weakref.finalize` returns the arena, and the next request can use it.

Rules:
1. An arena is used if the inputs, or the outputs of the largest response so far, exceed `wire.MAX_INLINE_BYTES`.
2. There are at most MAX_ARENAS. If all are in use, tensors are sent in a memfd of their own.
3. The app's arrays are numeric or Boolean numpy arrays. Strings cannot be sent.
"""

import fcntl
import json
import mmap
import os
import socket
import struct
import threading
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from device_agent.errors import InferenceFailed, RequestInvalid
from device_agent.runtime import wire
from device_agent.runtime.loaded_model import LoadedModel, OutputBinding
from device_agent.runtime.tensors import Array
from device_agent.runtime.wire import ALIGNMENT_BYTES, HEAD_BYTES, FrameHead, Part, WireError

MAX_ARENAS: Final = 4
PAGE_BYTES: Final = 4096

TensorRow = list[Any]  # name, dtype, shape, offset of the bytes after the JSON part or in the arena


@dataclass(eq=False, slots=True)
class Arena:
    """Shared memory for one request at a time.

    Attributes:
        number: the app's number of the arena; the model process keeps its mapping by it.
        fd: the memfd; sent with the first request that uses the arena.
        memory: the mapping.
        input_bytes, output_bytes: sizes of the two parts, whole pages.
        is_known: the model process has mapped it.
    """

    number: int
    fd: int
    memory: mmap.mmap
    input_bytes: int
    output_bytes: int
    is_known: bool = False

    @classmethod
    def create(cls, number: int, input_bytes: int, output_bytes: int) -> "Arena":
        """Create an arena with a new memfd.

        Args:
            number: a number that was not used before.
            input_bytes, output_bytes: smallest sizes of the two parts.
        """
        input_bytes, output_bytes = (-(-size // PAGE_BYTES) * PAGE_BYTES for size in (input_bytes, output_bytes))
        fd = os.memfd_create("airweights-arena", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(fd, input_bytes + output_bytes)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
        return cls(number, fd, mmap.mmap(fd, input_bytes + output_bytes), input_bytes, output_bytes)

    def close(self) -> None:
        """Close the memfd and the mapping, which no array may still view."""
        os.close(self.fd)
        self.memory.close()


@dataclass(eq=False)
class TensorClient:
    """The app's end of the channel. Thread-safe; requests are sent one at a time.

    Args:
        channel: the socket's descriptor; duplicated here.
    """

    channel: int
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _arenas: list[Arena] = field(default_factory=list)
    _free_arenas: list[Arena] = field(default_factory=list)
    _dropped_arena_numbers: list[int] = field(default_factory=list)
    _next_number: int = 0
    _output_bytes: int = 0

    def __post_init__(self) -> None:
        self._socket = socket.socket(fileno=os.dup(self.channel))
        # filled by finalizers, which can run at any point of any thread, also while this thread holds the lock: so
        # finalizers append without it
        self._returned_arenas: list[Arena] = []
        self._is_open = True

    def run(self, inputs: Mapping[str, Array], outputs: Sequence[str] | None) -> dict[str, Array]:
        """Run one inference. Large results are views of shared memory.

        Args:
            inputs: an array for each of the model's inputs.
            outputs: names of the outputs to compute; None for all.

        Raises:
            RequestInvalid: the inputs do not fit the model, or an input is neither numeric nor Boolean.
            InferenceFailed: the model failed.
            WireError: the process is gone.
        """
        arrays = {name: np.asarray(array) for name, array in inputs.items()}
        for name, array in arrays.items():
            if array.dtype.kind not in "biuf":
                raise RequestInvalid(f"input {name!r} is {array.dtype}, which cannot be sent to a model process")
        with self._lock:
            size = sum(_align_size(array.nbytes) for array in arrays.values())
            arena = self._take_arena(size) if max(size, self._output_bytes) > wire.MAX_INLINE_BYTES else None
            self._send(arrays, outputs, arena)
            return self._receive(arena)

    def close(self) -> None:
        """Close the channel and the free arenas. Existing results stay valid."""
        with self._lock:
            self._is_open = False
            self._socket.close()
            self._reclaim()
            for arena in self._free_arenas:
                arena.close()
            self._free_arenas.clear()

    def _take_arena(self, input_bytes: int) -> Arena | None:
        self._reclaim()
        for arena in self._free_arenas:
            if arena.input_bytes >= input_bytes and arena.output_bytes >= self._output_bytes:
                self._free_arenas.remove(arena)
                return arena
        for arena in self._free_arenas[:1] if len(self._arenas) >= MAX_ARENAS else []:
            self._free_arenas.remove(arena)
            self._arenas.remove(arena)
            self._dropped_arena_numbers.append(arena.number)
            arena.close()
        if len(self._arenas) >= MAX_ARENAS:
            return None
        self._next_number += 1
        arena = Arena.create(self._next_number, input_bytes, self._output_bytes)
        self._arenas.append(arena)
        return arena

    def _reclaim(self) -> None:
        while self._returned_arenas:
            arena = self._returned_arenas.pop()
            self._free_arenas.append(arena)

    def _send(self, arrays: Mapping[str, Array], outputs: Sequence[str] | None, arena: Arena | None) -> None:
        rows: list[TensorRow] = []
        parts: list[Part] = []
        offset = 0
        for name, array in arrays.items():
            rows.append([name, array.dtype.str, array.shape, offset])
            size = _align_size(array.nbytes)
            if arena is not None:
                target: Array = np.frombuffer(arena.memory, array.dtype, array.size, offset)
                np.copyto(target.reshape(array.shape), array)
            else:
                parts += [np.ascontiguousarray(array).reshape(-1).view(np.uint8).data, bytes(size - array.nbytes)]
            offset += size
        head: dict[str, Any] = {"inputs": rows, "outputs": None if outputs is None else list(outputs)}
        fd = None
        if arena is not None:
            head["arena"] = [arena.number, arena.input_bytes, arena.output_bytes]
            fd = None if arena.is_known else arena.fd
            arena.is_known = True
        if self._dropped_arena_numbers:
            head["dropped"] = self._dropped_arena_numbers
            self._dropped_arena_numbers = []
        text = json.dumps(head, separators=(",", ":")).encode()
        size = len(text) + (0 if arena is not None else offset)
        frame = FrameHead(wire.TENSORS_KIND, 0, 0, len(text), 0, size)
        wire.send_frame(self._socket, frame, [text, *parts], fd=fd)

    def _receive(self, arena: Arena | None) -> dict[str, Array]:
        data, ancillary, _, _ = self._socket.recvmsg(wire.MESSAGE_BYTES, socket.CMSG_SPACE(4), socket.MSG_CMSG_CLOEXEC)
        fds = [struct.unpack_from("i", payload)[0] for *_, payload in ancillary]
        try:
            if not data:
                raise WireError("the model process closed the channel")
            head = FrameHead.unpack(data)
            body = memoryview(data)[HEAD_BYTES + head.padding :]
            if head.flags & wire.IN_MEMFD:
                body = memoryview(wire.read_memfd(fds[0], head, head.size))
        finally:
            for fd in fds:
                os.close(fd)
        if head.status != 200:
            self._release_arena(arena)
            kind = RequestInvalid if head.status == 400 else InferenceFailed
            raise kind(str(json.loads(bytes(body))["error"]))
        response = json.loads(bytes(body[: head.json_bytes]))
        sizes = sum(_align_size(np.dtype(row[1]).itemsize * int(np.prod(row[2]))) for row in response["outputs"])
        self._output_bytes = max(self._output_bytes, sizes)
        if arena is None or not response["in_arena"]:
            self._release_arena(arena)
            return _parse_arrays(response["outputs"], body[head.json_bytes :], 0)
        owner: Array = np.frombuffer(arena.memory, np.uint8)
        weakref.finalize(owner, _return_arena, weakref.ref(self), arena).atexit = False
        return {
            name: owner[start : start + np.dtype(dtype).itemsize * int(np.prod(shape))].view(dtype).reshape(shape)
            for name, dtype, shape, offset in response["outputs"]
            for start in (arena.input_bytes + offset,)
        }

    def _release_arena(self, arena: Arena | None) -> None:
        if arena is not None:
            self._free_arenas.append(arena)


def _return_arena(client: "weakref.ref[TensorClient]", arena: Arena) -> None:
    owner = client()
    if owner is not None and owner._is_open:
        owner._returned_arenas.append(arena)
    else:
        os.close(arena.fd)  # the mapping ends with its last view


class TensorServer:
    """The model process's end of the channel: it handles TENSORS frames.

    Args:
        model: the loaded model.
    """

    def __init__(self, model: LoadedModel) -> None:
        self._model = model
        self._binding = OutputBinding(model)
        self._arenas: dict[int, mmap.mmap] = {}

    def handle_request(self, body: memoryview, json_bytes: int, fds: Sequence[int]) -> tuple[int, Sequence[Part]]:
        """Run one request of the app.

        Args:
            body: the frame's body.
            json_bytes: length of its JSON part.
            fds: descriptors of the frame; an arena's memfd is mapped, and stays the caller's.

        Returns:
            Length of the response's JSON part, and the parts of its body.

        Raises:
            RequestInvalid: the inputs do not fit the model.
            InferenceFailed: the model failed, or an output is neither numeric nor Boolean.
        """
        head = json.loads(bytes(body[:json_bytes]))
        for number in head.get("dropped", ()):
            self._arenas.pop(number, None)
        memory: mmap.mmap | None = None
        input_bytes = output_bytes = 0
        if "arena" in head:
            number, input_bytes, output_bytes = head["arena"]
            if number not in self._arenas:
                self._arenas[number] = mmap.mmap(fds[0], input_bytes + output_bytes)
            memory = self._arenas[number]
        source = memoryview(memory) if memory is not None else body[json_bytes:]
        inputs = _parse_arrays(head["inputs"], source, 0)
        if memory is not None and (rows := self._run_in_place(inputs, head["outputs"], memory, input_bytes)):
            text = json.dumps({"outputs": rows, "in_arena": True}, separators=(",", ":")).encode()
            return len(text), [text]
        outputs = self._model.run(inputs, head["outputs"])
        if memory is not None:
            self._binding.record_outputs(inputs, head["outputs"], outputs)
        rows = []
        offset = 0
        for name, array in outputs.items():
            if array.dtype.kind not in "biuf":
                raise InferenceFailed(f"output {name!r} is {array.dtype}, which cannot be sent from a model process")
            rows.append([name, array.dtype.str, array.shape, offset])
            offset += _align_size(array.nbytes)
        in_arena = memory is not None and offset <= output_bytes
        text = json.dumps({"outputs": rows, "in_arena": in_arena}, separators=(",", ":")).encode()
        parts: list[Part] = [text]
        for array, row in zip(outputs.values(), rows, strict=True):
            if in_arena and memory is not None:
                target: Array = np.frombuffer(memory, array.dtype, array.size, input_bytes + row[3])
                np.copyto(target.reshape(array.shape), array)
            else:
                flat = np.ascontiguousarray(array).reshape(-1).view(np.uint8).data if array.size else b""
                parts += [flat, bytes(_align_size(array.nbytes) - array.nbytes)]
        return len(text), parts

    def _run_in_place(
        self, inputs: Mapping[str, Array], outputs: Sequence[str] | None, memory: mmap.mmap, input_bytes: int
    ) -> list[TensorRow] | None:
        expected = self._binding.expected_outputs(inputs, outputs)
        if expected is None:
            return None
        rows: list[TensorRow] = []
        targets: dict[str, Array] = {}
        offset = input_bytes
        for name, dtype, shape in expected:
            count = int(np.prod(shape))
            end = offset + _align_size(count * dtype.itemsize)
            if not count or dtype.kind not in "biuf" or end > len(memory):
                return None
            targets[name] = np.frombuffer(memory, dtype, count, offset).reshape(shape)
            rows.append([name, dtype.str, shape, offset - input_bytes])
            offset = end
        return rows if self._binding.run_into(inputs, targets) else None


def _parse_arrays(rows: Sequence[TensorRow], source: memoryview, start: int) -> dict[str, Array]:
    out: dict[str, Array] = {}
    for name, dtype, shape, offset in rows:
        count = int(np.prod(shape))
        if not count:
            out[name] = np.empty(shape, dtype)
            continue
        array: Array = np.frombuffer(source, dtype, count, start + offset).reshape(shape)
        out[name] = array if array.flags.aligned else array.copy()
    return out


def _align_size(size: int) -> int:
    return -(-size // ALIGNMENT_BYTES) * ALIGNMENT_BYTES
