"""A client of the Open Inference Protocol v2 over one connection, with binary tensors."""

import http.client
import json
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from bundle.errors import Unavailable

Array = npt.NDArray[np.generic]

TIMEOUT_S: Final = 30.0
LENGTH_HEADER: Final = "Inference-Header-Content-Length"
# numpy type -> data type of the Open Inference Protocol v2
DATATYPES: Final = {
    "bool": "BOOL",
    "uint8": "UINT8",
    "uint16": "UINT16",
    "uint32": "UINT32",
    "uint64": "UINT64",
    "int8": "INT8",
    "int16": "INT16",
    "int32": "INT32",
    "int64": "INT64",
    "float16": "FP16",
    "float32": "FP32",
    "float64": "FP64",
}
_DTYPES: Final = {datatype: name for name, datatype in DATATYPES.items()}


class InferenceUnavailable(Unavailable):
    """The endpoint did not respond, or responded with an error. Check that the device agent is running."""

    reason = "inference-unavailable"


@dataclass(frozen=True, slots=True)
class InferenceResult:
    """One response of the endpoint.

    Attributes:
        version: release that responded.
        outputs: arrays by name.
    """

    version: str
    outputs: dict[str, Array]


class InferenceClient:
    """One connection to an endpoint; not thread-safe.

    Args:
        address: "unix:/path" or "tcp:HOST:PORT".
        family: the model's name.
    """

    def __init__(self, address: str, family: str) -> None:
        self._address = address
        self._path = f"/v2/models/{family}/infer"
        self._connection = self._connect()

    def infer(self, inputs: Mapping[str, Array]) -> InferenceResult:
        """Send one request. Raises InferenceUnavailable: no response, or an error."""
        body, header_length = encode_request(inputs)
        try:
            self._connection.request(
                "POST",
                self._path,
                body,
                {LENGTH_HEADER: str(header_length), "Content-Type": "application/octet-stream"},
            )
            response = self._connection.getresponse()
            data = response.read()
        except (OSError, http.client.HTTPException) as error:
            self._connection.close()
            self._connection = self._connect()
            raise InferenceUnavailable(f"no response from {self._address}: {error!r}") from error
        if response.status != http.client.OK:
            raise InferenceUnavailable(f"{self._address} responded {response.status}: {data[:200]!r}")
        return decode_response(data, int(response.headers.get(LENGTH_HEADER, len(data))))

    def get(self, path: str) -> tuple[int, bytes]:
        """Return status and body of a GET request. Raises InferenceUnavailable: no response."""
        try:
            self._connection.request("GET", path)
            response = self._connection.getresponse()
            return response.status, response.read()
        except (OSError, http.client.HTTPException) as error:
            self._connection.close()
            self._connection = self._connect()
            raise InferenceUnavailable(f"no response from {self._address}: {error!r}") from error

    def close(self) -> None:
        """Close the connection to the endpoint."""
        self._connection.close()

    def _connect(self) -> http.client.HTTPConnection:
        kind, _, place = self._address.partition(":")
        if kind == "unix":
            return _UnixConnection(place)
        host, _, port = place.rpartition(":")
        return _NoDelayConnection(host, int(port), timeout=TIMEOUT_S)


class _NoDelayConnection(http.client.HTTPConnection):
    def connect(self) -> None:
        super().connect()
        # header and body are two writes: with Nagle's algorithm, the second waits for the first's acknowledgment
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=TIMEOUT_S)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(TIMEOUT_S)
        self.sock.connect(self._path)


def encode_request(inputs: Mapping[str, Array]) -> tuple[bytes, int]:
    """Return the body of a request, and the length of its JSON header in bytes."""
    tensors, chunks = [], []
    for name, array in inputs.items():
        data = np.ascontiguousarray(array).tobytes()
        chunks.append(data)
        tensors.append(
            {
                "name": name,
                "datatype": DATATYPES[array.dtype.name],
                "shape": list(array.shape),
                "parameters": {"binary_data_size": len(data)},
            }
        )
    head = json.dumps({"inputs": tensors, "parameters": {"binary_data_output": True}}).encode()
    return head + b"".join(chunks), len(head)


def decode_response(data: bytes, header_length: int) -> InferenceResult:
    """Parse the body of a response.

    Args:
        data: the body.
        header_length: length of its JSON header, in bytes.

    Raises:
        InferenceUnavailable: the response does not follow the protocol.
    """
    try:
        head = json.loads(data[:header_length])
        offset = header_length
        outputs: dict[str, Array] = {}
        for tensor in head["outputs"]:
            dtype = np.dtype(_DTYPES[tensor["datatype"]])
            size = tensor.get("parameters", {}).get("binary_data_size")
            if size is None:
                outputs[tensor["name"]] = np.array(tensor["data"], dtype).reshape(tensor["shape"])
                continue
            outputs[tensor["name"]] = np.frombuffer(data[offset : offset + size], dtype).reshape(tensor["shape"])
            offset += size
        return InferenceResult(str(head.get("model_version", "")), outputs)
    except (ValueError, KeyError, TypeError) as error:
        raise InferenceUnavailable(f"the response does not follow the protocol: {error!r}") from error
