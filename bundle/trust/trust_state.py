"""What a device remembers of trust, kept where a cut of power cannot take it.

python-tuf never syncs its cache, and accepts a rollback when timestamp and snapshot are both damaged; so this memory is
our own.

Rules:
1. Two slots, written in turn, each synced and with a checksum; the valid one with the higher sequence wins. A torn
   write damages only the slot that it was writing.
2. A remembered version of a role binds only while its document still verifies under the role's current keys, so that a
   fast-forward heals by rotating the keys. Therefore the public keys that signed it are remembered with it. Root's
   binds always.
3. A floor never falls; a known counter keeps its identity.
4. A memory that was made anew for one family knows nothing of the others: each of them brings its own back, from where
   else the device keeps it, before its first release is accepted.
"""

import hashlib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Final

from bundle import strict_json
from bundle.acceptance import ZERO_COUNTER, ReleaseCounter, VerifiedRelease, parse_counter
from bundle.errors import Malformed, Refused
from bundle.strict_json import JSON, NAME_PATTERN, SHA256_HEX_PATTERN, StrictObject
from bundle.trust.clock import TimeFloor

SCHEMA: Final = "airweights.trust-memory/1"
COPY_NAMES: Final = ("slot-a", "slot-b")
MAX_TRUST_STATE_BYTES: Final = 4 * 1024 * 1024
MAX_ROLES: Final = 4096
MAX_KNOWN_RELEASES: Final = 512  # counters a family; the highest stay, and what lies below the floor is refused anyway
CHECKSUM_BYTES: Final = 32
ROLE_NAME_PATTERN: Final = re.compile(r"[a-z0-9][a-z0-9._-]{0,127}")  # a family's name with a prefix


@dataclass(frozen=True, slots=True)
class RoleVersion:
    """The newest verified document of a role.

    Attributes:
        version: of the document.
        digest: SHA-256 of its signed part in canonical form.
        signers: SHA-256 of each public key that signed it, sorted.
    """

    version: int
    digest: str
    signers: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class TrustState:
    """Everything that is remembered.

    Attributes:
        repository_id: SHA-256 of the first root's bytes; "" before the first check.
        roles: name → newest version.
        floors: family → floor.
        known: family → counter → identity.
        time_floor: see bundle.trust.clock.
        sequence: of the slot that it came from; 0 for none.
    """

    repository_id: str = ""
    roles: Mapping[str, RoleVersion] = field(default_factory=lambda: MappingProxyType({}))
    floors: Mapping[str, ReleaseCounter] = field(default_factory=lambda: MappingProxyType({}))
    known_releases: Mapping[str, Mapping[ReleaseCounter, str]] = field(default_factory=lambda: MappingProxyType({}))
    time_floor: TimeFloor = field(default_factory=TimeFloor)
    sequence: int = 0

    def floor(self, family: str) -> ReleaseCounter:
        """Of a family; ZERO if none was ever accepted."""
        return self.floors.get(family, ZERO_COUNTER)

    def with_metadata(
        self, repository_id: str, roles: Mapping[str, RoleVersion], time_floor: TimeFloor
    ) -> "TrustState":
        """After metadata verified, whatever becomes of the release that it offers."""
        return replace(self, repository_id=repository_id, roles={**self.roles, **roles}, time_floor=time_floor)

    def with_release(self, release: VerifiedRelease) -> "TrustState":
        """After a release was accepted (rule 3)."""
        family = release.manifest.family
        floor = max(self.floor(family), release.floor)
        known = {**self.known_releases.get(family, {}), release.counter: release.manifest.digest_without_patches()}
        kept = {counter: known[counter] for counter in sorted(known)[-MAX_KNOWN_RELEASES:] if counter >= floor}
        return replace(
            self, floors={**self.floors, family: floor}, known_releases={**self.known_releases, family: kept}
        )

    def with_missing_families(self, rebuilt: "TrustState") -> "TrustState":
        """With the families that only another store of the device knows (rule 4)."""
        unknown = rebuilt.floors.keys() - self.floors.keys()
        floors = {family: rebuilt.floor(family) for family in unknown if rebuilt.floor(family) > ZERO_COUNTER}
        known = {family: rebuilt.known_releases.get(family, {}) for family in floors}
        return replace(self, floors={**self.floors, **floors}, known_releases={**self.known_releases, **known})

    def has_same_content(self, other: "TrustState") -> bool:
        """Equal but for the sequence."""
        return replace(self, sequence=0) == replace(other, sequence=0)

    def as_json(self) -> dict[str, JSON]:
        """The memory's object."""
        roles: dict[str, JSON] = {
            name: {"version": role.version, "digest": role.digest, "signers": list(role.signers)}
            for name, role in self.roles.items()
        }
        families: dict[str, JSON] = {
            family: {
                "floor": floor.as_json(),
                "known": [
                    {**counter.as_json(), "identity": identity}
                    for counter, identity in sorted(self.known_releases.get(family, {}).items())
                ],
            }
            for family, floor in self.floors.items()
        }
        return {
            "schema": SCHEMA,
            "sequence": self.sequence,
            "repository_id": self.repository_id,
            "roles": roles,
            "families": families,
            "time_floor": {
                "time_s": self.time_floor.time_s,
                "boot_id": self.time_floor.boot_id,
                "boot_elapsed_s": self.time_floor.boot_elapsed_s,
            },
        }


def parse_trust_state(data: bytes) -> TrustState:
    """Read a memory strictly. Raises MalformedRefused, TooLargeRefused."""
    fields = StrictObject(
        strict_json.decode(data, what="trust memory", max_bytes=MAX_TRUST_STATE_BYTES), "trust memory"
    )
    if fields.text("schema") != SCHEMA:
        raise Malformed(f"trust memory: expected schema {SCHEMA!r}")
    roles = {}
    for name, row in fields.mapping("roles", ROLE_NAME_PATTERN, max_items=MAX_ROLES).items():
        roles[name] = RoleVersion(
            row.integer("version"), row.text("digest", SHA256_HEX_PATTERN), row.texts("signers", SHA256_HEX_PATTERN)
        )
        row.reject_unknown()
    floors, known = {}, {}
    for family, row in fields.mapping("families", NAME_PATTERN, max_items=MAX_ROLES).items():
        floors[family] = parse_counter(row.object("floor"))
        known[family] = dict(
            _parse_known_release(entry) for entry in row.objects("known", max_items=MAX_KNOWN_RELEASES)
        )
        row.reject_unknown()
    time = fields.object("time_floor")
    out = TrustState(
        repository_id=fields.text("repository_id", max_length=64),
        roles=roles,
        floors=floors,
        known_releases=known,
        time_floor=TimeFloor(time.integer("time_s"), time.text("boot_id"), time.integer("boot_elapsed_s")),
        sequence=fields.integer("sequence"),
    )
    time.reject_unknown()
    fields.reject_unknown()
    return out


class TrustStateStore:
    """The two slots in a directory (rule 1). One writer at a time.

    Args:
        directory: made when first saved to.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def load(self) -> TrustState | None:
        """The newest valid memory, or None: nothing was ever saved, or both slots are lost (`is_lost`)."""
        found = [memory for memory in (self._read_copy(name) for name in COPY_NAMES) if memory is not None]
        return max(found, key=lambda memory: memory.sequence, default=None)

    @property
    def is_lost(self) -> bool:
        """Is there a slot file, and no valid one?"""
        return self.load() is None and any((self.directory / name).exists() for name in COPY_NAMES)

    @property
    def damaged_copies(self) -> tuple[str, ...]:
        """Names of slots that are there and not valid."""
        return tuple(name for name in COPY_NAMES if (self.directory / name).exists() and self._read_copy(name) is None)

    def save(self, state: TrustState) -> TrustState:
        """Write the slot that is not the newest, and sync it. Returns the memory with its sequence. Raises OSError."""
        self.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        slots = {name: self._read_copy(name) for name in COPY_NAMES}
        sequences = {name: 0 if held is None else held.sequence for name, held in slots.items()}
        target = min(COPY_NAMES, key=lambda name: sequences[name])
        saved = replace(state, sequence=max(sequences.values()) + 1)
        body = strict_json.encode(saved.as_json())
        descriptor = os.open(self.directory / target, os.O_WRONLY | os.O_CREAT, 0o600)
        try:
            with open(descriptor, "wb", closefd=False) as slot:
                slot.write(hashlib.sha256(body).digest() + body)
                slot.truncate()
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        _sync_directory(self.directory)
        return saved

    def _read_copy(self, name: str) -> TrustState | None:
        try:
            with (self.directory / name).open("rb") as slot:
                data = slot.read(MAX_TRUST_STATE_BYTES + CHECKSUM_BYTES + 1)
        except FileNotFoundError:
            return None
        body = data[CHECKSUM_BYTES:]
        if hashlib.sha256(body).digest() != data[:CHECKSUM_BYTES]:
            return None
        try:
            return parse_trust_state(body)
        except Refused:
            return None


def _parse_known_release(row: StrictObject) -> tuple[ReleaseCounter, str]:
    identity = row.text("identity", SHA256_HEX_PATTERN)
    return parse_counter(row), identity


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
