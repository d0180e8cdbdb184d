"""The messages of `apps.sock` (docs/apps/protocol.md), parsed strictly.

Rules:
- A message is a u32 big-endian length and that many bytes of JSON (device_agent.process.channel). Requests have at most
  MAX_REQUEST_BYTES; descriptors that a client sends are closed unread.
- Each request names the protocol's version. A server refuses versions that it does not know.
- A reply is {"ok": {...}} or {"error": {"reason", "message", "hint", ...}}. Files come in one or more replies of at
  most MAX_FILES_PER_MESSAGE files, with their descriptors in the same order; `is_last` is false in all but the last.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

from bundle.errors import Malformed
from bundle.files import MAX_FILES, PATH_PATTERN, ROLES, BundleFile
from bundle.strict_json import JSON, NAME_PATTERN, SHA256_HEX_PATTERN, StrictObject
from device_agent.policy.journal_records import BundleRecord

PROTOCOL_VERSION: Final = 1
MAX_REQUEST_BYTES: Final = 64 * 1024
MAX_FILES_PER_MESSAGE: Final = 250  # the kernel's limit of descriptors in a message is 253
MAX_LATENCY_US: Final = 2**53


@dataclass(frozen=True, slots=True)
class OpenRequest:
    """Borrow files of the serving release.

    Attributes:
        family: name of the family.
        roles: roles of the wanted files; empty means all roles.
        paths: paths of the wanted files; empty means all paths.
    """

    family: str
    roles: tuple[str, ...] = ()
    paths: tuple[str, ...] = ()

    def wants(self, file: BundleFile) -> bool:
        """Return whether a file of the bundle is wanted."""
        return (not self.roles or file.role in self.roles) and (not self.paths or file.path in self.paths)


@dataclass(frozen=True, slots=True)
class ListRequest:
    """List the files of the serving release, without borrowing any."""

    family: str


@dataclass(frozen=True, slots=True)
class WatchRequest:
    """Report the serving release now, and each change until the connection is closed."""

    family: str


@dataclass(frozen=True, slots=True)
class VerdictRequest:
    """A judge's verdict on the release whose files it borrowed.

    Attributes:
        family: name of the family.
        bundle: digest of the bundle that was lent.
        is_healthy: the verdict.
        reason: cause of an unhealthy verdict, a short printable text.
        latency_us: median latency of the application's inferences in microseconds, or None.
    """

    family: str
    bundle: str
    is_healthy: bool
    reason: str = ""
    latency_us: int | None = None


AppRequest: TypeAlias = OpenRequest | ListRequest | WatchRequest | VerdictRequest


def parse_request(value: Mapping[str, Any]) -> AppRequest:
    """Parse the JSON object of a request.

    Raises:
        Malformed: the object does not follow the protocol, or has another version.
    """
    fields = StrictObject(dict(value), "request")
    version = fields.integer("version")
    if version != PROTOCOL_VERSION:
        raise Malformed(f"request.version: found {version}, expected {PROTOCOL_VERSION}")
    command, family = (
        fields.choice("command", ("open", "list", "watch", "verdict")),
        fields.text("family", NAME_PATTERN),
    )
    out: AppRequest
    match command:
        case "open":
            roles = fields.texts("roles", max_items=len(ROLES)) if fields.has("roles") else ()
            paths = fields.texts("paths", PATH_PATTERN, max_items=MAX_FILES) if fields.has("paths") else ()
            out = OpenRequest(family, roles, paths)
        case "list":
            out = ListRequest(family)
        case "watch":
            out = WatchRequest(family)
        case _:
            out = VerdictRequest(
                family,
                bundle=fields.text("bundle", SHA256_HEX_PATTERN),
                is_healthy=fields.flag("is_healthy"),
                reason=fields.text("why", max_length=200) if fields.has("why") else "",
                latency_us=fields.integer("latency_us", 0, MAX_LATENCY_US) if fields.has("latency_us") else None,
            )
    fields.reject_unknown()
    return out


def release_fields(bundle: BundleRecord, generation: int) -> dict[str, JSON]:
    """Return the fields that identify the serving release in a reply.

    Args:
        bundle: record of its bundle.
        generation: number of the generation; grows with each swap.
    """
    return {
        "family": bundle.family,
        "release": bundle.version,
        "variant": bundle.variant,
        "bundle": bundle.digest,
        "generation": generation,
    }
