"""Devices of one image get identities of their own; a copied identity is recognized."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bundle.enrollment import parse_enrollment
from device_agent.storage import machine
from tests.support.json_schemas import check_schema
from tests.support.publisher import DeviceUnderTest, Publisher

WORDS = ("--repository-url", "http://127.0.0.1:9", "--family", "kws")


def _agent(folder: Path, *words: str, code: int = 0) -> dict[str, Any]:
    command = [sys.executable, "-m", "device_agent", "--config", str(folder / "config.toml"), *words, "--json"]
    found = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert found.returncode == code, found.stderr
    return dict(json.loads(found.stdout or found.stderr))


def test_each_device_of_an_image_creates_its_identity_at_its_first_boot(
    first_publisher: Publisher, tmp_path: Path
) -> None:
    root = ("--root", str(first_publisher.root))
    ids, labels = set(), set()
    for name in ("a", "b"):
        folder = tmp_path / name
        folder.mkdir()
        directory = ("--directory", str(folder / "device"))
        assert _agent(folder, "init", "--image", "--label", "x", *root, *WORDS, *directory, code=2)["error"]
        made = _agent(folder, "init", "--image", *root, *WORDS, *directory)
        check_schema("agent-init", made)
        assert made["device_id"] is None
        assert not (folder / "device" / "identity").exists()
        refused = _agent(folder, "enroll", code=2)["error"]
        assert (refused["reason"], refused["hint"]) == ("not-initialized", "run `device-agent first-boot` first")
        found = _agent(folder, "first-boot", "--output", str(folder / "request.json"))
        check_schema("agent-first-boot", found)
        assert (found["created"], len(found["fingerprint"].split())) == (True, 10)
        again = _agent(folder, "first-boot", "--output", str(folder / "request.json"))
        assert again == {**found, "created": False, "fingerprint": None}
        request = parse_enrollment((folder / "request.json").read_bytes())
        assert (request.device_id, request.label) == (found["device_id"], found["label"])
        ids.add(found["device_id"])
        labels.add(found["label"])
    assert (len(ids), len(labels)) == (2, 2)


def test_a_copied_identity_is_named_and_not_enrolled(installed: DeviceUnderTest) -> None:
    identity = installed.directory.read_public_identity()
    recorded = installed.directory.root / machine.FILE_NAME
    assert not machine.is_copied(installed.directory, identity.device_id)
    assert json.loads(installed.command("status", "--json").stdout)["identity_copied"] is False
    recorded.write_text("0" * 64 + "\n")
    if not machine.MACHINE_ID_PATH.exists() or not machine.MACHINE_ID_PATH.read_bytes().strip():
        pytest.skip("this machine has no machine id")
    assert "identity copied" in installed.command("status").stdout
    refused = json.loads(installed.command("enroll", "--json").stderr)["error"]
    assert refused["reason"] == "identity-copied"
