"""Send requests to a device's endpoint over its Unix socket, with the standard library only."""

import http.client
import json
import socket
from typing import Any

from tests.support.publisher import FAMILY, DeviceUnderTest


class _Connection(http.client.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=60)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(60)
        self.sock.connect(self._path)


def get(device: DeviceUnderTest, path: str, expected_status: int = 200) -> bytes:
    """Return the body of a GET request; assert its status."""
    connection = _Connection(device.config.serve.listen.removeprefix("unix:"))
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        assert response.status == expected_status
        return response.read()
    finally:
        connection.close()


def infer(device: DeviceUnderTest, value: float = 0.5, family: str = FAMILY) -> dict[str, Any]:
    """Send one inference request and return the JSON of its response; assert status 200."""
    body = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 64], "data": [value] * 64}]}
    connection = _Connection(device.config.serve.listen.removeprefix("unix:"))
    try:
        connection.request("POST", f"/v2/models/{family}/infer", json.dumps(body), {"Content-Type": "application/json"})
        response = connection.getresponse()
        data = response.read()
        assert response.status == 200, data
        return dict(json.loads(data))
    finally:
        connection.close()
