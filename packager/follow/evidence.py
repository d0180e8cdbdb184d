"""The evidence of a decision: the signed lines that it rests on, so that anyone can compute it again.

A file `evidence/FAMILY.CHANNEL/TIME-WORD-DIGEST.jsonl.gz` of the follower's folder has the lines as they came with
their times of receipt, and last a statement: plan, rollout, time, revoked devices, counts and decision. Its digest is
the SHA-256 of the uncompressed content; the note of the rollout names it.
"""

import gzip
import hashlib
import os
import time
import zlib
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Final

from bundle import strict_json
from bundle.errors import Refused
from bundle.local_files import open_local_file
from bundle.plan import Plan, parse_plan
from bundle.rollout import Rollout, parse_rollout
from bundle.strict_json import JSON, SHA256_HEX_PATTERN, StrictObject
from fleet.census import Census, CensusDevice
from keys.registry_index import open_index
from packager.errors import EvidenceMismatch, LinesMalformed
from packager.follow.lines import FileLines, LineSource, is_utf8
from packager.follow.look import ChannelView, Look
from packager.repository.layout import sync_directory

SCHEMA: Final = "airweights.evidence/1"
MAX_DEVICES: Final = 1_000_000
MAX_STATEMENT_BYTES: Final = 128 * 1024 * 1024
LINES_AT_ONCE: Final = 1_000


@dataclass(frozen=True, slots=True)
class Evidence:
    """The statement of an evidence file.

    Attributes:
        repository: id of the repository.
        plan: the plan.
        rollout: the rollout that was looked at.
        now_s: time of the look, Unix seconds.
        registry_digest: digest of the registry at that time.
        revoked: ids of the devices that were revoked.
        members_without_lines: ids of members of the census whose lines of the days before are missing.
        others_with_lines: ids of devices that such lines would make members, and that are not.
        decision: the decision as a JSON object.
        counts: the counts as a JSON object.
    """

    repository: str
    plan: Plan
    rollout: Rollout
    now_s: int
    registry_digest: str
    revoked: tuple[str, ...]
    members_without_lines: tuple[str, ...]
    others_with_lines: tuple[str, ...]
    decision: JSON
    counts: JSON


def write_evidence(root: Path, view: ChannelView, source: LineSource, rollout: Rollout, now_s: int) -> tuple[Look, str]:
    """Write all lines of a rollout durably, with the look that follows from exactly these lines.

    Args:
        root: folder in which evidence is kept, that of the repository or of the follower.
        view: a view without lines; its members may be fixed.
        source: where the lines come from.
        rollout: the published rollout.
        now_s: the time, Unix seconds; later lines are left out.

    Returns:
        The look, and the digest of the evidence.
    """
    folder = root / "evidence" / f"{view.plan.family}.{view.plan.channel}"
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / f".part-{os.getpid()}"
    hashed = hashlib.sha256()
    try:
        with partial.open("wb") as file:
            with gzip.GzipFile(fileobj=file, mode="wb", mtime=0, filename="") as packed:

                def write(row: JSON) -> None:
                    data = strict_json.encode(row) + b"\n"
                    hashed.update(data)
                    packed.write(data)

                # the census refuses bytes that are no UTF-8, which a file of text cannot contain
                lines = (
                    line
                    for line in source.read(view.plan.family, view.census.since_s)
                    if line.received_s <= now_s and is_utf8(line.data)
                )
                while chunk := list(islice(lines, LINES_AT_ONCE)):
                    for line in chunk:
                        write({"received_s": line.received_s, "line": line.data.decode()})
                    view.add_lines(chunk)
                look = view.look(rollout, now_s)
                write(_statement(view, look))
            file.flush()
            os.fsync(file.fileno())
        when = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(now_s))
        partial.replace(folder / f"{when}-{look.decision.word}-{hashed.hexdigest()[:16]}.jsonl.gz")
        sync_directory(folder)
    finally:
        partial.unlink(missing_ok=True)
    return look, hashed.hexdigest()


def read_evidence(path: Path) -> tuple[Evidence, str]:
    """Return the statement of an evidence file, and the digest of its content.

    Raises:
        FileNotRegular: it is a FIFO, a device or a socket.
        LinesMalformed: the file is not an evidence file.
    """
    hashed, last = hashlib.sha256(), b""
    try:
        with open_local_file(path) as stream, gzip.open(stream) as file:
            for line in iter(lambda: file.readline(MAX_STATEMENT_BYTES + 1), b""):
                hashed.update(line)
                last = line
        fields = StrictObject(strict_json.decode(last, what="evidence", max_bytes=MAX_STATEMENT_BYTES), "evidence")
        schema = fields.text("schema")
        if schema != SCHEMA:
            raise LinesMalformed(f"{path}: the last line has schema {schema!r}, expected {SCHEMA!r}")
        out = Evidence(
            repository=fields.text("repository", SHA256_HEX_PATTERN),
            plan=parse_plan(strict_json.encode(fields.value("plan"))),
            rollout=parse_rollout(strict_json.encode(fields.value("rollout"))),
            now_s=fields.integer("now_s"),
            registry_digest=fields.text("registry_digest", SHA256_HEX_PATTERN),
            revoked=fields.texts("revoked", SHA256_HEX_PATTERN, max_items=MAX_DEVICES),
            members_without_lines=fields.texts("members_without_lines", SHA256_HEX_PATTERN, max_items=MAX_DEVICES),
            others_with_lines=fields.texts("others_with_lines", SHA256_HEX_PATTERN, max_items=MAX_DEVICES),
            decision=fields.value("decision"),
            counts=fields.value("counts"),
        )
        fields.reject_unknown()
    except (Refused, OSError, EOFError, zlib.error) as error:
        raise LinesMalformed(f"{path}: not an evidence file: {error}") from error
    return out, hashed.hexdigest()


def recompute(path: Path, registry: Path) -> tuple[Look, str]:
    """Compute the decision of an evidence file again, and return the look and the digest of the file.

    Args:
        path: the evidence file.
        registry: the registry; devices that were enrolled later change nothing.

    Raises:
        LinesMalformed: the file is not an evidence file.
        EvidenceMismatch: its lines lead to other counts or to another decision.
    """
    evidence, digest = read_evidence(path)
    revoked = set(evidence.revoked)
    with open_index(registry) as index:
        devices = [
            CensusDevice(one.device_id, one.cohort, one.ed25519_public)
            for one in index.devices()
            if one.device_id not in revoked
        ]
    census = Census(evidence.plan, devices, evidence.rollout.began_s)
    view = ChannelView(
        evidence.plan, evidence.rollout.began_s, evidence.registry_digest, census, evidence.repository, evidence.revoked
    )
    view.add(FileLines(path), evidence.now_s)
    shown = census.shown_members()
    census.fix_members((shown | set(evidence.members_without_lines)) - set(evidence.others_with_lines))
    look = view.look(evidence.rollout, evidence.now_s)
    if look.counts.as_json() != evidence.counts or look.decision.as_json() != evidence.decision:
        raise EvidenceMismatch(
            f"{path}: its lines lead to {look.decision.word} ({look.decision.text}), the file says"
            f" {strict_json.encode(evidence.decision).decode()[:200]}",
            hint="compare the file's digest with the note of the rollout",
        )
    return look, digest


def _statement(view: ChannelView, look: Look) -> dict[str, JSON]:
    members, shown = view.census.members(), view.census.shown_members()
    hidden, others = sorted(members - shown), sorted(shown - members)
    return {
        "schema": SCHEMA,
        "repository": view.repository_id,
        "plan": look.plan.as_json(),
        "rollout": look.rollout.as_json(),
        "now_s": look.now_s,
        "registry_digest": look.registry_digest,
        "revoked": list(view.revoked),
        "members_without_lines": list(hidden),
        "others_with_lines": list(others),
        "decision": look.decision.as_json(),
        "counts": look.counts.as_json(),
    }
