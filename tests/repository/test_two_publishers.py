"""Two publishers in processes of their own: one wins, and the other is told who."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from keys.passphrase import PASSPHRASE_VARIABLE
from tests.support.metadata_publisher import CHANNEL, FAMILY, PASSPHRASE, CheckClient, MetadataPublisher, create_client

WAIT_S = 120


def start(shop: MetadataPublisher, *words: str) -> subprocess.Popen[str]:
    environment = {
        **os.environ,
        PASSPHRASE_VARIABLE: PASSPHRASE.value.decode(),
        "PACKAGER_REPO": os.fspath(shop.repository.root),
    }
    return subprocess.Popen(
        [sys.executable, "-m", "packager", *words, "--json"],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def end(process: subprocess.Popen[str]) -> tuple[int, dict[str, Any]]:
    out, err = process.communicate(timeout=WAIT_S)
    return process.returncode, json.loads(out or err)


def run(shop: MetadataPublisher, *words: str) -> tuple[int, int, dict[str, Any]]:
    process = start(shop, *words)
    return (process.pid, *end(process))


def test_who_was_overtaken_between_signing_and_publishing_is_told_by_whom(
    shop: MetadataPublisher, device: CheckClient
) -> None:
    keys = ("--keys", os.fspath(shop.keys))
    assert run(shop, "rollout", "set", FAMILY, CHANNEL, "1.0.0", "--percent", "10")[1] == 0
    assert run(shop, "repo", "sign", *keys)[2]["complete"]
    winner, code, _ = run(shop, "repo", "refresh", *keys)
    assert code == 0
    _, code, said = run(shop, "repo", "publish")
    assert (code, said["error"]["reason"]) == (4, "publish-conflict")
    assert f"(process {winner}) published timestamp" in said["error"]["message"]
    assert device.check(shop.published).rollout.percent_bp == 10_000
    assert run(shop, "repo", "sign", *keys)[2]["complete"]
    assert run(shop, "repo", "publish")[1] == 0
    assert device.check(shop.published).rollout.percent_bp == 1000


def test_publishers_at_the_same_time_leave_one_whole_history(shop: MetadataPublisher) -> None:
    """Refreshes and rollouts at once: each that reports success has a timestamp of its own, and said what went out."""
    keys = ("--keys", os.fspath(shop.keys))
    before = shop.repository.status().timestamp_version
    jobs: list[Sequence[str]] = [
        ("rollout", "set", FAMILY, CHANNEL, "1.0.0", "--percent", "10", *keys),
        ("repo", "refresh", *keys),
        ("rollout", "set", FAMILY, CHANNEL, "1.0.0", "--percent", "20", *keys),
        ("rollout", "halt", FAMILY, CHANNEL, *keys),
    ]
    processes = [start(shop, *job) for job in jobs]
    ended = [end(process) for process in processes]
    assert {code for code, _ in ended} <= {0, 4}
    assert all(said["error"]["reason"] == "publish-conflict" for code, said in ended if code)
    won = sorted(said.get("published", said)["timestamp_version"] for code, said in ended if not code)
    assert won == list(range(before + 1, before + 1 + len(won)))
    assert shop.repository.status().timestamp_version == won[-1]
    assert shop.repository.status().is_sound
    last = next(
        said for code, said in ended if not code and said.get("published", said)["timestamp_version"] == won[-1]
    )
    seen = create_client(shop, "witness").check(shop.published).rollout
    if "rollout" in last:
        assert seen.as_json() == last["rollout"]


def test_a_halt_goes_out_whatever_waits_for_signatures(shop: MetadataPublisher, device: CheckClient) -> None:
    keys = ("--keys", os.fspath(shop.keys))
    shop.repository.stage_manifest(shop.make_manifest("1.1.0", 2))
    assert run(shop, "rollout", "set", FAMILY, CHANNEL, "1.1.0")[2]["published"] is None
    _, code, said = run(shop, "rollout", "halt", FAMILY, CHANNEL, *keys)
    assert (code, said["rollout"]["version"]) == (0, "1.0.0")
    assert device.check(shop.published).rollout.halted
    assert shop.repository.published_manifest(FAMILY, "1.1.0") is None
    assert run(shop, "repo", "sign", *keys)[2]["complete"]
    assert run(shop, "repo", "publish")[1] == 0
    assert device.check(shop.published).manifest.version == "1.1.0"
