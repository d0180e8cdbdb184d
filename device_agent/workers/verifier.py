"""The verifier: decides what may be believed. The one process with tuf; it has no network and no secret.

It asks the supervisor for files by URL, and the supervisor asks the fetcher. It is the only writer of the trust memory.

Calls: `check` (see `check`) → {"release": VerifiedRelease.as_json()}; on the way it asks {"url", "max_bytes"}, which is
answered with one descriptor.
"""

import importlib
import os
from dataclasses import replace
from datetime import datetime
from pathlib import Path

from bundle.acceptance import ReleaseCounter
from bundle.trust.check import CheckRequest
from bundle.trust.check import check as run_check
from bundle.trust.clock import ClockFacts
from bundle.trust.trust_state import TrustState, TrustStateStore
from device_agent.process.channel import JsonObject, Message
from device_agent.process.worker import SupervisorChannel, serve_calls, start_worker

# loaded at their first use otherwise, when the jail has closed the files: strptime's module, and what ECDSA needs
datetime.strptime("1970", "%Y")
importlib.import_module("cryptography.hazmat.backends.openssl.backend")


def check_channel(supervisor: SupervisorChannel, message: Message) -> JsonObject:
    """One check. Fields of the call: `trust_dir`, `repository_url`, `family`, `channel`, `clock`, `agent_version`,
    `known` (what the family's journal remembers, should the slots know nothing of it). Raises what
    bundle.trust.check.check raises."""
    value = message.value
    trust = Path(value["trust_dir"])
    request = CheckRequest(
        cache_dir=trust / "cache",
        bootstrap_root=(trust / "root.json").read_bytes(),
        metadata_url=value["repository_url"] + "/metadata",
        targets_url=value["repository_url"] + "/targets",
        family=value["family"],
        channel=value["channel"],
        clock=ClockFacts(**value["clock"]),
        agent_version=value["agent_version"],
        rebuilt_state=_rebuild_trust_state(value["family"], value["known"]),
    )

    def fetch(url: str, max_bytes: int) -> bytes:
        answer = supervisor.request({"url": url, "max_bytes": max_bytes})
        try:
            # a file object would stop at max_bytes + 1 too, but only os.pread leaves the shared offset alone
            return os.pread(answer.fds[0], max_bytes + 1, 0)
        finally:
            answer.close()

    return {"release": run_check(request, fetch, TrustStateStore(trust / "slots")).as_json()}


def _rebuild_trust_state(family: str, known: JsonObject) -> TrustState:
    floor = ReleaseCounter(known["floor_epoch"], known["floor_counter"])
    counters = {ReleaseCounter(row["epoch"], row["counter"]): str(row["identity"]) for row in known["releases"]}
    return replace(TrustState(), floors={family: floor}, known_releases={family: counters})


if __name__ == "__main__":
    serve_calls(start_worker()[0], {"check": check_channel})
