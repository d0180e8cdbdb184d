"""Of two concurrent publishers one succeeds, and the other one gets an error that names the first."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from keys.passphrase import PASSPHRASE_VARIABLE
from tests.support.metadata_publisher import CHANNEL, FAMILY, PASSPHRASE, CheckClient, MetadataPublisher, create_client

WAIT_S = 120


def start_packager(publisher: MetadataPublisher, *words: str) -> subprocess.Popen[str]:
    environment = {
        **os.environ,
        PASSPHRASE_VARIABLE: PASSPHRASE.value.decode(),
        "PACKAGER_REPO": os.fspath(publisher.repository.root),
    }
    return subprocess.Popen(
        [sys.executable, "-m", "packager", *words, "--json"],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for_result(process: subprocess.Popen[str]) -> tuple[int, dict[str, Any]]:
    out, err = process.communicate(timeout=WAIT_S)
    return process.returncode, json.loads(out or err)


def run(publisher: MetadataPublisher, *words: str) -> tuple[int, int, dict[str, Any]]:
    process = start_packager(publisher, *words)
    return (process.pid, *wait_for_result(process))


def test_who_was_overtaken_between_signing_and_publishing_is_told_by_whom(
    publisher: MetadataPublisher, device: CheckClient
) -> None:
    keys = ("--keys", os.fspath(publisher.keys))
    assert run(publisher, "rollout", "set", FAMILY, CHANNEL, "1.0.0", "--percent", "10")[1] == 0
    assert run(publisher, "repo", "sign", *keys)[2]["complete"]
    winner, code, _ = run(publisher, "repo", "refresh", *keys)
    assert code == 0
    _, code, result = run(publisher, "repo", "publish")
    assert (code, result["error"]["reason"]) == (4, "publish-conflict")
    assert f"(process {winner}) published timestamp" in result["error"]["message"]
    assert device.check(publisher.published).rollout.percent_bp == 10_000
    assert run(publisher, "repo", "sign", *keys)[2]["complete"]
    assert run(publisher, "repo", "publish")[1] == 0
    assert device.check(publisher.published).rollout.percent_bp == 1000


def test_publishers_at_the_same_time_leave_one_whole_history(publisher: MetadataPublisher) -> None:
    """Refreshes and rollouts at once: each that reports success has a timestamp of its own, and said what went out."""
    keys = ("--keys", os.fspath(publisher.keys))
    before = publisher.repository.status().timestamp_version
    jobs: list[Sequence[str]] = [
        ("rollout", "set", FAMILY, CHANNEL, "1.0.0", "--percent", "10", *keys),
        ("repo", "refresh", *keys),
        ("rollout", "set", FAMILY, CHANNEL, "1.0.0", "--percent", "20", *keys),
        ("rollout", "halt", FAMILY, CHANNEL, *keys),
    ]
    processes = [start_packager(publisher, *job) for job in jobs]
    results = [wait_for_result(process) for process in processes]
    assert {code for code, _ in results} <= {0, 4}
    assert all(result["error"]["reason"] == "publish-conflict" for code, result in results if code)
    won = sorted(result.get("published", result)["timestamp_version"] for code, result in results if not code)
    assert won == list(range(before + 1, before + 1 + len(won)))
    assert publisher.repository.status().timestamp_version == won[-1]
    assert publisher.repository.status().is_sound
    last = next(
        result
        for code, result in results
        if not code and result.get("published", result)["timestamp_version"] == won[-1]
    )
    seen = create_client(publisher, "witness").check(publisher.published).rollout
    if "rollout" in last:
        assert seen.as_json() == last["rollout"]


def test_a_halt_goes_out_whatever_waits_for_signatures(publisher: MetadataPublisher, device: CheckClient) -> None:
    keys = ("--keys", os.fspath(publisher.keys))
    publisher.repository.stage_manifest(publisher.make_manifest("1.1.0", 2))
    assert run(publisher, "rollout", "set", FAMILY, CHANNEL, "1.1.0")[2]["published"] is None
    _, code, result = run(publisher, "rollout", "halt", FAMILY, CHANNEL, *keys)
    assert (code, result["rollout"]["version"]) == (0, "1.0.0")
    assert device.check(publisher.published).rollout.halted
    assert publisher.repository.published_manifest(FAMILY, "1.1.0") is None
    assert run(publisher, "repo", "sign", *keys)[2]["complete"]
    assert run(publisher, "repo", "publish")[1] == 0
    assert device.check(publisher.published).manifest.version == "1.1.0"
