"""The verifier: checks metadata signatures and decides which release is trusted (bundle.trust.check).

It is the only process that loads tuf and the only writer of the trust state; it has no network and no secret. It
requests files by URL from the supervisor, which lets the fetcher download them.

Call: `check` (fields: see `check_channel`) → {"release": VerifiedRelease.as_json()}. During the call it sends requests
{"url", "max_bytes", "etag", "last_modified"}; each response has the fields of the fetcher's call `get` and one
descriptor.
"""

import importlib
import os
from dataclasses import asdict, replace
from datetime import datetime
from pathlib import Path

if __name__ == "__main__":  # not where a program with keys imports it
    import device_agent.workers.verify_only  # noqa: F401  # before tuf

# isort: split
from bundle.acceptance import ReleaseCounter
from bundle.trust.check import CheckRequest
from bundle.trust.check import check as run_check
from bundle.trust.clock import ClockFacts
from bundle.trust.trust_state import TrustState, TrustStateStore
from bundle.trust.validators import Download, Validators
from device_agent.process.channel import JsonObject, Message
from device_agent.process.worker import SupervisorChannel, serve_calls, start_worker

# load now what is loaded at its first use otherwise, when the jail has closed the files: strptime, and ECDSA's backend
datetime.strptime("1970", "%Y")
importlib.import_module("cryptography.hazmat.backends.openssl.backend")


def check_channel(supervisor: SupervisorChannel, message: Message) -> JsonObject:
    """Check a channel once, and return the verified release.

    Args:
        supervisor: downloads files on request.
        message: fields `trust_dir`, `repository_url`, `family`, `channel`, `cohort`, `clock`, `agent_version`,
            `walk_root`, `has_timestamp`, `new_device`, and `known`: the floor and releases of the family's journal,
            which are used if the trust state is lost.

    Raises:
        Refused: signed metadata is wrong, or the release is not admitted (bundle.trust.check.check).
        Unavailable: a file could not be downloaded, or the metadata expired.
    """
    value = message.value
    trust = Path(value["trust_dir"])
    request = CheckRequest(
        cache_dir=trust / "cache",
        bootstrap_root=(trust / "root.json").read_bytes(),
        metadata_url=value["repository_url"] + "/metadata",
        targets_url=value["repository_url"] + "/targets",
        family=value["family"],
        channel=value["channel"],
        cohort=value["cohort"],
        clock=ClockFacts(**value["clock"]),
        agent_version=value["agent_version"],
        rebuilt_state=_rebuild_trust_state(value["family"], value["known"]),
        walk_root=bool(value["walk_root"]),
        has_timestamp=bool(value["has_timestamp"]),
        new_device=str(value["new_device"]),
    )

    def fetch_if_changed(url: str, max_bytes: int, validators: Validators) -> Download:
        response = supervisor.request({"url": url, "max_bytes": max_bytes, **asdict(validators)})
        try:
            reply = response.value
            found = Validators(str(reply["etag"]), str(reply["last_modified"]))
            # pread does not move the offset that the supervisor shares with this descriptor
            data = os.pread(response.fds[0], max_bytes + 1, 0) if reply["is_modified"] else None
            return Download(data, found)
        finally:
            response.close()

    def fetch(url: str, max_bytes: int) -> bytes:
        return fetch_if_changed(url, max_bytes, Validators()).data or b""

    release = run_check(request, fetch, TrustStateStore(trust / "slots"), fetch_if_changed)
    return {"release": release.as_json()}


def _rebuild_trust_state(family: str, known: JsonObject) -> TrustState:
    floor = ReleaseCounter(known["floor_epoch"], known["floor_counter"])
    counters = {ReleaseCounter(row["epoch"], row["counter"]): str(row["identity"]) for row in known["releases"]}
    return replace(TrustState(), floors={family: floor}, known_releases={family: counters})


if __name__ == "__main__":
    serve_calls(start_worker()[0], {"check": check_channel})
