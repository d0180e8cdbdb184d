"""The command line of the TUF conformance suite, against a real server: exit 0 or 1, and what the suite looks for."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bundle.trust.role_names import rollout_target
from tests.support.metadata_publisher import CHANNEL, FAMILY, MetadataPublisher, start_server

TARGET = rollout_target(FAMILY, CHANNEL)


class ConformanceClient:
    """The command line of the conformance suite with one metadata folder."""

    def __init__(self, folder: Path, url: str, root: Path) -> None:
        self.metadata, self.targets = folder / "metadata", folder / "targets"
        self.metadata.mkdir(parents=True)
        self.targets.mkdir()
        self._url, self._root = url, root

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        command = [
            sys.executable,
            "-m",
            "device_agent.workers.tuf_conformance",
            "--metadata-dir",
            os.fspath(self.metadata),
        ]
        return subprocess.run([*command, *words], capture_output=True, text=True, check=False)

    def init(self) -> int:
        return self.run("init", os.fspath(self._root)).returncode

    def refresh(self) -> subprocess.CompletedProcess[str]:
        return self.run("--metadata-url", f"{self._url}/metadata", "refresh")

    def download(self, name: str) -> int:
        words = ["--metadata-url", f"{self._url}/metadata", "--target-name", name, "--target-base-url"]
        return self.run(*words, f"{self._url}/targets", "--target-dir", os.fspath(self.targets), "download").returncode

    def version(self, role: str) -> int:
        return int(json.loads((self.metadata / f"{role}.json").read_bytes())["signed"]["version"])


@pytest.fixture
def url(publisher: MetadataPublisher) -> Iterator[str]:
    address, stop = start_server(publisher.published)
    yield address
    stop()


@pytest.fixture
def client(publisher: MetadataPublisher, url: str) -> ConformanceClient:
    return ConformanceClient(publisher.folder / "client", url, publisher.published / "metadata" / "1.root.json")


def test_init_refresh_and_download_leave_what_the_suite_looks_for(
    publisher: MetadataPublisher, client: ConformanceClient
) -> None:
    assert client.init() == 0
    assert client.version("root") == 1
    assert client.refresh().returncode == 0
    assert sorted(path.name for path in client.metadata.glob("*.json")) == [
        "root.json",
        "snapshot.json",
        "targets.json",
        "timestamp.json",
    ]
    assert client.download(TARGET) == 0
    (downloaded,) = client.targets.iterdir()
    rollout = publisher.repository.rollout(FAMILY, CHANNEL)
    assert rollout is not None
    assert downloaded.read_bytes() == rollout.as_bytes()
    assert client.download("nothing of that name") == 1


def test_a_rollback_is_refused_in_one_line(publisher: MetadataPublisher, client: ConformanceClient) -> None:
    assert client.init() == 0
    old = publisher.copy_published("then")
    publisher.repository.refresh(publisher.signers)
    assert client.refresh().returncode == 0
    before = client.version("timestamp")
    for name in ("timestamp.json", "timestamp.awz"):
        copy = shutil.copy(old / "metadata" / name, publisher.published / "metadata" / name)
        os.utime(copy, (time.time() + 60,) * 2)  # a server says "not modified" of two files of the same second
    refused = client.refresh()
    assert refused.returncode == 1
    assert refused.stderr.startswith("RollbackRefused: ")
    assert refused.stderr.count("\n") == 1
    assert client.version("timestamp") == before


def test_a_bad_initial_root_fails_at_refresh(client: ConformanceClient) -> None:
    assert client.init() == 0
    path = client.metadata / "shipped-root"
    document = json.loads(path.read_bytes())
    del document["signed"]["version"]
    path.write_text(json.dumps(document))
    assert client.refresh().returncode == 1


def test_a_changed_target_is_not_stored(publisher: MetadataPublisher, client: ConformanceClient) -> None:
    assert client.init() == 0
    path = next((publisher.published / "targets" / "rollouts" / FAMILY).glob(f"*.{CHANNEL}.json"))
    path.write_bytes(path.read_bytes().replace(b"10000", b"00001"))
    assert client.download(TARGET) == 1
    assert list(client.targets.iterdir()) == []
