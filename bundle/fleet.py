"""The fleet document: which cohorts there are, their epochs and public keys, and the digest of the device registry.

Rules:
1. The target `fleet/fleet.json` of the `fleet` role. A device believes a cohort private key only if its public half is
   the one here, for this epoch. Epochs do not go back because the document's version does not (bundle.trust.check rule
   3), and because what goes back is refused where it is staged and shown where it is signed.
2. It lists no device: the registry itself stays with the release team, only its digest is signed.
"""

from dataclasses import dataclass
from typing import Final

from bundle import strict_json
from bundle.errors import Malformed
from bundle.strict_json import JSON, NAME_PATTERN, SHA256_HEX_PATTERN, StrictObject

SCHEMA: Final = "airweights.fleet/1"
FLEET_TARGET: Final = "fleet/fleet.json"
MAX_FLEET_BYTES: Final = 1024 * 1024
MAX_COHORTS: Final = 256
PUBLIC_BYTES: Final = 1184 + 32  # bundle.envelope rule 1; said again here to keep `cryptography` out of the supervisor


@dataclass(frozen=True, slots=True)
class Cohort:
    """One cohort's current key.

    Attributes:
        name: of the cohort.
        epoch: grows when its members change by revocation or on schedule.
        public_key: X-Wing public key, PUBLIC_BYTES.
    """

    name: str
    epoch: int
    public_key: bytes


@dataclass(frozen=True, slots=True)
class Fleet:
    """The whole document.

    Attributes:
        registry_digest: SHA-256 of the canonical device registry, hexadecimal.
        devices: how many it lists.
        cohorts: sorted by name.
    """

    registry_digest: str
    devices: int
    cohorts: tuple[Cohort, ...]

    def cohort(self, name: str) -> Cohort | None:
        """The cohort of that name, or None."""
        return next((cohort for cohort in self.cohorts if cohort.name == name), None)

    def as_bytes(self) -> bytes:
        """Canonical bytes, as published."""
        cohorts: dict[str, JSON] = {c.name: {"epoch": c.epoch, "public_key": c.public_key.hex()} for c in self.cohorts}
        return strict_json.encode(
            {"schema": SCHEMA, "registry_digest": self.registry_digest, "devices": self.devices, "cohorts": cohorts}
        )


def parse_fleet(data: bytes) -> Fleet:
    """Read a fleet document strictly. Raises MalformedRefused, TooLargeRefused."""
    fields = StrictObject(strict_json.decode(data, what="fleet", max_bytes=MAX_FLEET_BYTES), "fleet")
    schema = fields.text("schema")
    if schema != SCHEMA:
        raise Malformed(f"fleet.schema: found {schema!r}, expected {SCHEMA!r}")
    cohorts = []
    for name, row in sorted(fields.mapping("cohorts", NAME_PATTERN, max_items=MAX_COHORTS).items()):
        epoch = row.integer("epoch", 1)
        key = row.text("public_key", max_length=2 * PUBLIC_BYTES)
        row.reject_unknown()
        try:
            public_key = bytes.fromhex(key)
        except ValueError as error:
            raise Malformed(f"{row.where}.public_key: not hexadecimal") from error
        if len(public_key) != PUBLIC_BYTES or public_key.hex() != key:
            raise Malformed(f"{row.where}.public_key: expected {PUBLIC_BYTES} bytes in lower-case hexadecimal")
        cohorts.append(Cohort(name, epoch, public_key))
    out = Fleet(fields.text("registry_digest", SHA256_HEX_PATTERN), fields.integer("devices"), tuple(cohorts))
    fields.reject_unknown()
    return out
