"""The rollout: the signed JSON that says which release a channel runs now, and for whom.

Rules:
1. It names version, counter and the release's identity (manifest digest without patches); the manifest must match all
   three and list the channel. So a stolen rollout key can only select again something already released for the channel.
2. Devices decide for themselves: `bucket(salt, device id) < percent_bp`; cohorts (none = all); windows (none = always);
   `halted` stops new activations and never what already serves.
"""

import hashlib
from dataclasses import dataclass
from typing import Final

from bundle import strict_json
from bundle.errors import Malformed
from bundle.strict_json import JSON, NAME_PATTERN, SHA256_HEX_PATTERN, StrictObject

SCHEMA: Final = "airweights.rollout/1"
MAX_ROLLOUT_BYTES: Final = 32 * 1024
BASIS_POINTS: Final = 10_000


@dataclass(frozen=True, slots=True)
class Window:
    """A stretch of time in which activation is allowed: Unix seconds, start included, end not."""

    start_s: int
    end_s: int


@dataclass(frozen=True, slots=True)
class Rollout:
    """What a channel runs now.

    Attributes:
        family, channel, version, counter: of the release.
        manifest_digest: identity of the release, SHA-256 hexadecimal.
        percent_bp: share of devices in basis points.
        salt: printable; a new one draws the devices anew.
        cohorts: names; empty means every cohort.
        windows: empty means always.
        halted: no new activation.
        note: for people.
    """

    family: str
    channel: str
    version: str
    counter: int
    manifest_digest: str
    percent_bp: int = BASIS_POINTS
    salt: str = ""
    cohorts: tuple[str, ...] = ()
    windows: tuple[Window, ...] = ()
    halted: bool = False
    note: str = ""

    def as_json(self) -> dict[str, JSON]:
        """The rollout's object."""
        return {
            "schema": SCHEMA,
            "family": self.family,
            "channel": self.channel,
            "version": self.version,
            "counter": self.counter,
            "manifest_digest": self.manifest_digest,
            "percent_bp": self.percent_bp,
            "salt": self.salt,
            "cohorts": list(self.cohorts),
            "windows": [{"start_s": window.start_s, "end_s": window.end_s} for window in self.windows],
            "halted": self.halted,
            "note": self.note,
        }

    def as_bytes(self) -> bytes:
        """Canonical bytes, as published."""
        return strict_json.encode(self.as_json())


def parse_rollout(data: bytes) -> Rollout:
    """Read a rollout strictly. Raises MalformedRefused, TooLargeRefused."""
    fields = StrictObject(strict_json.decode(data, what="rollout", max_bytes=MAX_ROLLOUT_BYTES), "rollout")
    schema = fields.text("schema")
    if schema != SCHEMA:
        raise Malformed(f"rollout.schema: found {schema!r}, expected {SCHEMA!r}")
    out = Rollout(
        family=fields.text("family", NAME_PATTERN),
        channel=fields.text("channel", NAME_PATTERN),
        version=fields.text("version", strict_json.VERSION_PATTERN),
        counter=fields.integer("counter", 1),
        manifest_digest=fields.text("manifest_digest", SHA256_HEX_PATTERN),
        percent_bp=fields.integer("percent_bp", 0, BASIS_POINTS),
        salt=fields.text("salt", max_length=64),
        cohorts=fields.texts("cohorts", NAME_PATTERN, max_items=256),
        windows=tuple(_parse_window(row) for row in fields.objects("windows", max_items=64)),
        halted=fields.flag("halted"),
        note=fields.text("note", max_length=512),
    )
    fields.reject_unknown()
    return out


def bucket(salt: str, device_id: str) -> int:
    """Where a device falls: 0 to 9,999, `int(SHA-256(salt ‖ 0x00 ‖ device id)) mod 10,000`."""
    return int.from_bytes(hashlib.sha256(f"{salt}\0{device_id}".encode()).digest(), "big") % BASIS_POINTS


def _parse_window(row: StrictObject) -> Window:
    window = Window(row.integer("start_s"), row.integer("end_s"))
    row.reject_unknown()
    if window.end_s <= window.start_s:
        raise Malformed(f"{row.where}: ends at {window.end_s}, expected later than its start {window.start_s}")
    return window
