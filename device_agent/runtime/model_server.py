"""The loop of a model process: it handles the front's requests and the supervisor's calls.

Rules:
1. The process starts as every worker does (device_agent.process.worker). Then the supervisor calls `load` once, with
   the bundle's memfds. The reply carries one end of the request channel (device_agent.runtime.wire).
2. `load` creates the session, checks the contract, and runs every golden input once, so that the first live request
   finds kernels and arenas warm. If another generation serves meanwhile, it pauses between these steps
   (device_agent.process.throttle). An error is the reply; the supervisor then ends the process.
3. One thread handles requests and calls in turn. While it parses a large body, or writes a large response, it handles
   the requests that arrive meanwhile (`_serve_others`). A model is unloaded by ending its process.
4. After the golden runs, the process limits its own memory, so that no request can use more than the supervisor allows.
   A request that would is an error of the client.
"""

import contextlib
import fcntl
import json
import logging
import mmap
import os
import resource
import select
import socket
import struct
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from bundle.contract import Contract
from bundle.errors import AirweightsError, Bug, Invalid
from bundle.providers import CPU
from bundle.strict_json import StrictObject
from device_agent.errors import InputsRejected, RequestInvalid
from device_agent.process.channel import ChannelClosed, JsonObject, Message
from device_agent.process.throttle import Throttle
from device_agent.process.worker import Handler, SupervisorChannel, handle_call
from device_agent.runtime import wire
from device_agent.runtime.bundle_fds import BundleFds
from device_agent.runtime.content_coding import compress, decompress
from device_agent.runtime.golden_check import check_golden_samples
from device_agent.runtime.inference import Inference, check_servable
from device_agent.runtime.loaded_model import LoadedModel, read_golden_samples, trim_heap
from device_agent.runtime.model_backends import load_model
from device_agent.runtime.oip import max_request_bytes
from device_agent.runtime.tensor_channel import TensorServer
from device_agent.runtime.wire import HEAD_BYTES, NO_JSON, FrameHead, Part, WireError

logger = logging.getLogger(__name__)

MAX_BUSY_US: Final = 2**32 - 1


@dataclass(frozen=True, slots=True)
class ServedModel:
    """One loaded model of the bundle.

    Attributes:
        model: the model.
        inference: handles its requests.
        max_body_bytes: largest request body after decompression.
    """

    model: LoadedModel
    inference: Inference
    max_body_bytes: int


class ModelServer:
    """Runs the loop of a model process (rule 3).

    Args:
        supervisor: the channel.
        statm: descriptor of `/proc/self/statm`, opened before the jail closed; None for no limit of memory.
    """

    def __init__(self, supervisor: SupervisorChannel, statm: int | None = None) -> None:
        self._statm = statm
        self._supervisor = supervisor
        self._poll = select.poll()
        self._poll.register(supervisor.fileno(), select.POLLIN)
        self._requests: socket.socket | None = None
        self._models: list[ServedModel] = []
        self._tensors: TensorServer  # of the first model, for device_agent.runtime.model_runners
        self._others_ns = 0  # time in requests that were handled within others, which is not part of those
        buffer = np.empty(wire.MESSAGE_BYTES + wire.ALIGNMENT_BYTES, np.uint8)
        start_at = -buffer.ctypes.data % wire.ALIGNMENT_BYTES
        self._buffer = buffer.data[start_at : start_at + wire.MESSAGE_BYTES]

    def run(self) -> None:
        """Handle requests and calls until the supervisor or the front shuts its channel down."""
        handlers: dict[str, Handler] = {
            "load": self.load_model,
            "golden": self.check_golden,
            "reset": self.reset,
            "facts": self.facts,
        }
        while True:
            for fd, _ in self._poll.poll():
                if fd == self._supervisor.fileno():
                    try:
                        handle_call(self._supervisor, self._supervisor.receive(), handlers)
                    except ChannelClosed:
                        return
                else:
                    try:
                        self._serve_request()
                    except ChannelClosed:
                        return

    def load_model(self, _supervisor: SupervisorChannel, message: Message) -> Message:
        """Handle the call `load` (rules 1 and 2).

        Args:
            _supervisor: unused.
            message: the fields of GenerationSpec, "is_paced" and "bundle"; the bundle's descriptors.

        Raises:
            Unfit: a model does not load, breaks its contract, or fails on a golden input.
            Refused: the golden vectors are malformed.
        """
        value = message.value
        try:
            if self._models:
                raise Bug("this model process has loaded its models already")
            bundle = BundleFds.from_message(value["bundle"], message.fds)
            throttle = Throttle(is_paced=value["is_paced"])
            started = time.monotonic_ns()
            load_ns = 0
            for part, row in zip(bundle.each_model(), value["models"], strict=True):
                served, took_ns = self._load_one(part, row, value, throttle)
                self._models.append(served)
                load_ns += took_ns
        finally:
            message.close()
        self._tensors = TensorServer(self._models[0].model)
        warm_ns = time.monotonic_ns() - started - load_ns
        trim_heap()
        if self._statm is not None and value["request_memory_bytes"]:
            limit_memory(self._statm, value["request_memory_bytes"])
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._requests = ours
        self._poll.register(ours.fileno(), select.POLLIN)
        provider = self._models[0].model.process_facts().get("provider", CPU)
        facts = {"load_us": load_ns // 1000, "warm_us": warm_ns // 1000, "provider": provider}
        return Message(facts, (theirs.detach(),))

    def _load_one(
        self, bundle: BundleFds, row: Mapping[str, Any], value: Mapping[str, Any], throttle: Throttle
    ) -> tuple[ServedModel, int]:
        """Load and warm one model; return it, and the nanoseconds of loading."""
        started = time.monotonic_ns()
        model = load_model(bundle, threads=value["threads"])
        contract = Contract(model.inputs, model.outputs)
        if row["contract"] is not None:
            contract = Contract.parse(StrictObject(row["contract"], "contract"))
            model.check_contract(contract)
        check_servable(contract)
        load_ns = time.monotonic_ns() - started
        throttle.wait()
        samples = read_golden_samples(bundle)
        for sample in samples:
            model.infer(sample.inputs)
            throttle.wait()
        model.reset()
        inference = Inference(
            model,
            contract,
            row["name"],
            value["version"],
            [sample.inputs for sample in samples],
            max_response_bytes=wire.KEPT_BODIES * value["max_body_bytes"],
            on_pause=self._serve_others,
        )
        return ServedModel(model, inference, max_request_bytes(contract, value["max_body_bytes"])), load_ns

    def check_golden(self, _supervisor: SupervisorChannel, message: Message) -> JsonObject:
        """Handle the call `golden`: run golden inputs between two requests, and compare the outputs.

        Args:
            _supervisor: unused.
            message: fields "tolerance_ppm" and "model", a position in the bundle; the descriptor of its golden vectors.

        Raises:
            GoldenMismatch, NanOutput: an output differs from the golden one.
            InferenceFailed: a run failed.
            Malformed: the golden vectors are malformed.
        """
        try:
            samples = read_golden_samples(BundleFds({"golden": message.fds[0]}, "", "golden"))
        finally:
            message.close()
        model = self._models[message.value["model"]].model
        worst = check_golden_samples(model, samples, message.value["tolerance_ppm"])
        return {"worst_relative_rms_ppm": round(worst * 1e6)}

    def reset(self, _supervisor: SupervisorChannel, message: Message) -> JsonObject:
        """Handle the call `reset`: bring the models into their initial state.

        Args:
            _supervisor: unused.
            message: has no fields.
        """
        message.close()
        for served in self._models:
            served.model.reset()
        return {}

    def facts(self, _supervisor: SupervisorChannel, message: Message) -> JsonObject:
        """Handle the call `facts`: return modules, user id and the first model's facts, for tests."""
        message.close()
        model = self._models[0].model.process_facts() if self._models else {}
        return {"modules": sorted(sys.modules), "uid": os.geteuid(), "model": model}

    def _serve_others(self) -> None:
        """Handle the requests that wait, while a large one is parsed from bytes of its own (rule 3).

        At most MAX_IN_FLIGHT_REQUESTS are nested, because the front sends no more.
        """
        assert self._requests is not None
        waiting = select.poll()
        waiting.register(self._requests.fileno(), select.POLLIN)
        started, others_ns = time.monotonic_ns(), self._others_ns
        with contextlib.suppress(ChannelClosed):  # `run` notices it too
            while waiting.poll(0):
                self._serve_request()
        self._others_ns = others_ns + time.monotonic_ns() - started

    def _serve_request(self) -> None:
        assert self._requests is not None
        arrived, others_ns = time.monotonic_ns(), self._others_ns
        try:
            size, ancillary, _, _ = self._requests.recvmsg_into(
                [self._buffer], socket.CMSG_SPACE(4), socket.MSG_CMSG_CLOEXEC
            )
        except ConnectionError:
            size, ancillary = 0, []
        if not size:
            # the front shut the channel down on purpose: its crash would leave the supervisor's copy of its end open
            raise ChannelClosed
        fds = [struct.unpack("i", payload[:4])[0] for *_, payload in ancillary]
        try:
            head = FrameHead.unpack(self._buffer[:size])
            with contextlib.ExitStack() as cleanup:
                body = self._read_body(head, size, fds, cleanup)
                if head.kind == wire.TENSORS_KIND:
                    status, json_bytes, parts, flags = self._handle_tensors(head, body, fds)
                else:
                    status, json_bytes, parts, flags = self._handle_request(head, body)
                busy_ns = time.monotonic_ns() - arrived - (self._others_ns - others_ns)
                busy_us = min(busy_ns // 1000, MAX_BUSY_US)
                length = sum(len(part) for part in parts)
                reply = FrameHead(wire.RESPONSE_KIND, flags, 0, json_bytes, head.number, length, busy_us, status)
                wire.send_frame(self._requests, reply, parts)
        except WireError as error:
            logger.warning("request channel: %s", error)
        finally:
            for fd in fds:
                os.close(fd)

    def _read_body(self, head: FrameHead, size: int, fds: Sequence[int], cleanup: contextlib.ExitStack) -> memoryview:
        if not head.flags & wire.IN_MEMFD:
            return self._buffer[HEAD_BYTES + head.padding : min(HEAD_BYTES + head.padding + head.size, size)]
        if len(fds) != 1 or fcntl.fcntl(fds[0], fcntl.F_GETFD) < 0:
            raise WireError("a large body arrived without its memfd")
        # mapped: the front is trusted not to shrink it. It is unmapped after the arrays that view it are gone
        mapping = mmap.mmap(fds[0], head.padding + head.size, prot=mmap.PROT_READ)
        cleanup.callback(_close_when_free, mapping)
        return memoryview(mapping)[head.padding :]

    def _handle_request(self, head: FrameHead, body: memoryview) -> tuple[int, int, Sequence[Part], int]:
        try:
            if head.model >= len(self._models):
                raise RequestInvalid("this release has no such model")  # the front asks for models of the release only
            served = self._models[head.model]
            if head.flags & wire.GZIP_BODY:
                body = decompress(body, "gzip", served.max_body_bytes)
            elif head.flags & wire.DEFLATE_BODY:
                body = decompress(body, "deflate", served.max_body_bytes)
            elif len(body) > served.max_body_bytes and not head.flags & wire.SHADOW:
                raise RequestInvalid(f"body has {len(body)} bytes, at most {served.max_body_bytes} are allowed")
            if head.flags & wire.SHADOW:
                live_bytes, live_json, limit_ppm = wire.SHADOW_TRAILER.unpack(body[-wire.SHADOW_TRAILER.size :])
                request, live = (
                    body[: -wire.SHADOW_TRAILER.size - live_bytes],
                    body[-wire.SHADOW_TRAILER.size - live_bytes :],
                )
                live = live[:live_bytes]
                result = served.inference.compare_with_live(request, head.json_bytes, live, live_json, limit_ppm)
            else:
                result = served.inference.handle_request(body, head.json_bytes)
        except InputsRejected as error:
            return 400, NO_JSON, (_error_body(error.message),), wire.REJECTED
        except Invalid as error:
            return 400, NO_JSON, (_error_body(error.message),), 0
        except MemoryError:
            # flagged: another release may need less for the same request
            return 400, NO_JSON, (_error_body("the request needs more memory than requests may use"),), wire.REJECTED
        except AirweightsError as error:
            logger.warning("%s", error.message)
            return 500, NO_JSON, (_error_body(error.message),), 0
        except Exception as error:
            logger.exception("request failed")
            return 500, NO_JSON, (_error_body(f"internal error of the model process: {type(error).__name__}"),), 0
        flags = wire.HAS_NAN if result.has_nan else 0
        if head.flags & wire.GZIP_RESPONSE:
            return (
                200,
                result.json_bytes,
                (compress(result.parts, "gzip", self._serve_others),),
                flags | wire.GZIP_RESPONSE,
            )
        if head.flags & wire.DEFLATE_RESPONSE:
            return (
                200,
                result.json_bytes,
                (compress(result.parts, "deflate", self._serve_others),),
                flags | wire.DEFLATE_RESPONSE,
            )
        return 200, result.json_bytes, result.parts, flags

    def _handle_tensors(
        self, head: FrameHead, body: memoryview, fds: Sequence[int]
    ) -> tuple[int, int, Sequence[Part], int]:
        try:
            json_bytes, parts = self._tensors.handle_request(body, head.json_bytes, fds)
        except Invalid as error:
            return 400, NO_JSON, (_error_body(error.message),), 0
        except AirweightsError as error:
            return 500, NO_JSON, (_error_body(error.message),), 0
        return 200, json_bytes, parts, 0


def limit_memory(statm: int, request_bytes: int) -> None:
    """Limit the private memory of this process.

    Args:
        statm: descriptor of `/proc/self/statm`.
        request_bytes: what requests may use, in bytes, beyond the present size and the peak of the golden runs.
    """
    fields = os.pread(statm, 256, 0).split()
    data_bytes = int(fields[5]) * resource.getpagesize()
    peak_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    limit = data_bytes + peak_bytes + request_bytes
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    limit = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))


def _close_when_free(mapping: mmap.mmap) -> None:
    # BufferError: a traceback still refers to an array of the request; the garbage collector unmaps it later
    with contextlib.suppress(BufferError):
        mapping.close()


def _error_body(message: str) -> bytes:
    return json.dumps({"error": message}).encode()
