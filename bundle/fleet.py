"""The fleet document: the cohorts with their epochs and public keys, and the device registry's digest.

Rules:
- It is the target `fleet/fleet.json` of the `fleet` role. A device uses a cohort's private key only if its public half
  is the one in this document, for the same epoch.
- An epoch never falls: the version of the `fleet` role cannot (bundle.trust.check, step 4), and a lower epoch is
  refused when it is staged and shown when it is signed.
- It lists no devices. The registry stays with the release team; only its digest is signed.
"""

from dataclasses import dataclass
from typing import Final

from bundle import strict_json
from bundle.document_schema import check_schema
from bundle.errors import Malformed
from bundle.key_sizes import PUBLIC_BYTES
from bundle.strict_json import JSON, NAME_PATTERN, SHA256_HEX_PATTERN, StrictObject

SCHEMA: Final = "airweights.fleet/1"
FLEET_TARGET: Final = "fleet/fleet.json"
MAX_FLEET_BYTES: Final = 1024 * 1024
MAX_COHORTS: Final = 256
MAX_SHARDS: Final = 65_536  # 16 million devices


@dataclass(frozen=True, slots=True)
class Cohort:
    """The current key of one cohort.

    Attributes:
        name: name of the cohort.
        epoch: number of the key pair; grows with each rotation.
        public_key: X-Wing public key, PUBLIC_BYTES long.
        shards: number of shards of the epoch's envelopes, a power of two (bundle.envelope_shard).
    """

    name: str
    epoch: int
    public_key: bytes
    shards: int = 1


@dataclass(frozen=True, slots=True)
class Fleet:
    """The content of the fleet document.

    Attributes:
        registry_digest: SHA-256 of the canonical device registry, hexadecimal.
        devices: number of devices in the registry.
        cohorts: all cohorts, sorted by name.
    """

    registry_digest: str
    devices: int
    cohorts: tuple[Cohort, ...]

    def cohort(self, name: str) -> Cohort | None:
        """Return the cohort with a name, or None if the document has none."""
        return next((cohort for cohort in self.cohorts if cohort.name == name), None)

    def as_bytes(self) -> bytes:
        """Return the canonical bytes, as they are published."""
        cohorts: dict[str, JSON] = {
            c.name: {"epoch": c.epoch, "public_key": c.public_key.hex(), "shards": c.shards} for c in self.cohorts
        }
        return strict_json.encode(
            {"schema": SCHEMA, "registry_digest": self.registry_digest, "devices": self.devices, "cohorts": cohorts}
        )


def parse_fleet(data: bytes) -> Fleet:
    """Parse a fleet document strictly.

    Raises:
        AgentTooOld: the document has a later version of the format.
        Malformed: the document does not follow its schema.
        TooLarge: the document is longer than MAX_FLEET_BYTES.
    """
    fields = StrictObject(strict_json.decode(data, what="fleet", max_bytes=MAX_FLEET_BYTES), "fleet")
    check_schema(fields, SCHEMA)
    cohorts = []
    for name, row in sorted(fields.mapping("cohorts", NAME_PATTERN, max_items=MAX_COHORTS).items()):
        epoch = row.integer("epoch", 1)
        key = row.text("public_key", max_length=2 * PUBLIC_BYTES)
        shards = row.integer("shards", 1, MAX_SHARDS)
        row.reject_unknown()
        try:
            public_key = bytes.fromhex(key)
        except ValueError as error:
            raise Malformed(f"{row.where}.public_key: not hexadecimal") from error
        if len(public_key) != PUBLIC_BYTES or public_key.hex() != key:
            raise Malformed(f"{row.where}.public_key: expected {PUBLIC_BYTES} bytes in lower-case hexadecimal")
        if shards & (shards - 1):
            raise Malformed(f"{row.where}.shards: found {shards}, expected a power of two")
        cohorts.append(Cohort(name, epoch, public_key, shards))
    out = Fleet(fields.text("registry_digest", SHA256_HEX_PATTERN), fields.integer("devices"), tuple(cohorts))
    fields.reject_unknown()
    return out
