"""The rollout: the signed JSON that selects the release of a channel and the devices that take it.

Rules:
- A rollout names version, counter and release digest (the manifest's digest without its patches). The manifest must
  match all three and list the channel: a stolen rollout key can only select a release made for the channel.
- Each device decides for itself whether it takes part: by share (`bucket(salt, device id) < percent_bp`), by cohort
  (an empty list means all) and by time window (an empty list means always).
- `halted` stops new activations; it never stops a release that already serves.
"""

import hashlib
from dataclasses import dataclass
from typing import Final

from bundle import strict_json
from bundle.document_schema import check_schema
from bundle.errors import Malformed
from bundle.strict_json import JSON, NAME_PATTERN, SHA256_HEX_PATTERN, StrictObject

SCHEMA: Final = "airweights.rollout/2"
MAX_ROLLOUT_BYTES: Final = 32 * 1024
BASIS_POINTS: Final = 10_000


@dataclass(frozen=True, slots=True)
class Window:
    """A time window in which devices may activate the release.

    Attributes:
        start_s: first second of the window, Unix seconds.
        end_s: first second after the window, Unix seconds.
    """

    start_s: int
    end_s: int


@dataclass(frozen=True, slots=True)
class Rollout:
    """The release that a channel runs, and the devices that take it.

    Attributes:
        family: family of the release.
        channel: channel that the rollout is for.
        version: version of the release.
        counter: counter of the release.
        manifest_digest: digest of the release's manifest without its patches, SHA-256 in hexadecimal.
        percent_bp: share of devices, 0 to 10,000 basis points.
        salt: printable text; a new salt selects another sample of devices.
        cohorts: names of the cohorts that take part; empty means all.
        windows: time windows for activation; empty means always.
        halted: True stops new activations.
        note: a remark for people.
        plan: digest of the plan that the rollout follows (bundle.plan), or None without one.
        began_s: when the rollout of this release began, Unix seconds; informative for devices.
        raised_s: when its share was last raised, Unix seconds; informative for devices.
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
    plan: str | None = None
    began_s: int = 0
    raised_s: int = 0

    def as_json(self) -> dict[str, JSON]:
        """Return the rollout as a JSON object."""
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
            "plan": self.plan,
            "began_s": self.began_s,
            "raised_s": self.raised_s,
        }

    def as_bytes(self) -> bytes:
        """Return the canonical bytes, as they are published."""
        return strict_json.encode(self.as_json())

    def digest(self) -> str:
        """Return the SHA-256 of the canonical bytes, hexadecimal; device reports and vitals name it."""
        return strict_json.digest(self.as_json())


def parse_rollout(data: bytes) -> Rollout:
    """Parse a rollout strictly.

    Raises:
        AgentTooOld: the document has a later version of the format.
        Malformed: the document does not follow its schema.
        TooLarge: the document is longer than MAX_ROLLOUT_BYTES.
    """
    fields = StrictObject(strict_json.decode(data, what="rollout", max_bytes=MAX_ROLLOUT_BYTES), "rollout")
    check_schema(fields, SCHEMA)
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
        plan=fields.optional_text("plan", SHA256_HEX_PATTERN),
        began_s=fields.integer("began_s"),
        raised_s=fields.integer("raised_s"),
    )
    fields.reject_unknown()
    return out


def bucket(salt: str, device_id: str) -> int:
    """Return the bucket of a device in the rollout, 0 to 9,999 basis points.

    Computed as the integer of SHA-256(salt ‖ 0x00 ‖ device id), big-endian, modulo 10,000.

    Args:
        salt: the rollout's salt.
        device_id: id of the device, 64 hexadecimal digits.
    """
    return int.from_bytes(hashlib.sha256(f"{salt}\0{device_id}".encode()).digest(), "big") % BASIS_POINTS


def _parse_window(row: StrictObject) -> Window:
    window = Window(row.integer("start_s"), row.integer("end_s"))
    row.reject_unknown()
    if window.end_s <= window.start_s:
        raise Malformed(f"{row.where}: ends at {window.end_s}, expected later than its start {window.start_s}")
    return window
