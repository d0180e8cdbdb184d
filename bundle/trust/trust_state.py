"""The trust state: what a device stores between trust checks, safe against power loss.

tuf does not sync its cache, and accepts older metadata after timestamp and snapshot were both damaged. The trust state
is therefore stored separately.

Rules:
- Two copies are written in turn, each with a checksum and synced to the disk. The valid copy with the higher sequence
  number counts. An interrupted write damages only the copy that was being written.
- A role's version is stored with the keys that signed it, because it binds only while the role's current keys still
  verify it (bundle.trust.check). The version of root binds always.
- A rollback floor never falls, and a known counter keeps its release digest.
- After the loss of both copies, a state that was rebuilt for one family has no floors of the others. Each family adds
  its own from the device's journal before its first release is accepted (`with_missing_families`).
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
from bundle.document_schema import check_schema
from bundle.errors import AgentTooOld, Refused
from bundle.strict_json import JSON, NAME_PATTERN, SHA256_HEX_PATTERN, StrictObject
from bundle.trust.clock import TimeFloor
from bundle.trust.sightings import MAX_SIGHTINGS, Sighting, parse_sighting

SCHEMA: Final = "airweights.trust-memory/2"
COPY_NAMES: Final = ("slot-a", "slot-b")
MAX_TRUST_STATE_BYTES: Final = 4 * 1024 * 1024
MAX_ROLES: Final = 4096
MAX_KNOWN_RELEASES: Final = 512  # per family; the highest counters stay, those below the floor are refused anyway
CHECKSUM_BYTES: Final = 32
ROLE_NAME_PATTERN: Final = re.compile(r"[a-z0-9][a-z0-9._-]{0,127}")  # a family name with a prefix


@dataclass(frozen=True, slots=True)
class RoleVersion:
    """The newest verified document of a role.

    Attributes:
        version: version of the document.
        digest: SHA-256 of its signed part in canonical form.
        signers: SHA-256 of each public key that signed it, sorted.
    """

    version: int
    digest: str
    signers: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class TrustState:
    """The trust state of one device.

    Attributes:
        repository_id: id of the repository (`bundle.trust.repository_id`); "" before the first check.
        roles: newest verified version by role name.
        floors: rollback floor by family.
        known_releases: digest of the manifest without its patches, by family and counter.
        time_floor: the latest time that signed metadata proved (bundle.trust.clock).
        sightings: for how long releases with a ramp were seen, by family and release digest (bundle.trust.sightings).
        sequence: number of the copy that the state was read from; 0 if it was never stored.
    """

    repository_id: str = ""
    roles: Mapping[str, RoleVersion] = field(default_factory=lambda: MappingProxyType({}))
    floors: Mapping[str, ReleaseCounter] = field(default_factory=lambda: MappingProxyType({}))
    known_releases: Mapping[str, Mapping[ReleaseCounter, str]] = field(default_factory=lambda: MappingProxyType({}))
    time_floor: TimeFloor = field(default_factory=TimeFloor)
    sightings: Mapping[str, Mapping[str, Sighting]] = field(default_factory=lambda: MappingProxyType({}))
    sequence: int = 0

    def floor(self, family: str) -> ReleaseCounter:
        """Return the rollback floor of a family, or ZERO_COUNTER if no release of it was ever accepted."""
        return self.floors.get(family, ZERO_COUNTER)

    def with_metadata(
        self, repository_id: str, roles: Mapping[str, RoleVersion], time_floor: TimeFloor
    ) -> "TrustState":
        """Return the state after metadata was verified, even if the release is refused later.

        Args:
            repository_id: id of the repository (`bundle.trust.repository_id`).
            roles: the verified versions by role name; other roles stay as they are.
            time_floor: the time floor after the check.
        """
        return replace(self, repository_id=repository_id, roles={**self.roles, **roles}, time_floor=time_floor)

    def with_release(self, release: VerifiedRelease) -> "TrustState":
        """Return the state after a release was accepted: its floor raised, its counter known."""
        family = release.manifest.family
        floor = max(self.floor(family), release.floor)
        known = {**self.known_releases.get(family, {}), release.counter: release.manifest.digest_without_patches()}
        kept = {counter: known[counter] for counter in sorted(known)[-MAX_KNOWN_RELEASES:] if counter >= floor}
        return replace(
            self, floors={**self.floors, family: floor}, known_releases={**self.known_releases, family: kept}
        )

    def with_sightings(self, family: str, sightings: Mapping[str, Sighting]) -> "TrustState":
        """Return the state with the sightings of a family replaced; an empty mapping changes nothing.

        Args:
            family: name of the family.
            sightings: by release digest.
        """
        return replace(self, sightings={**self.sightings, family: dict(sightings)}) if sightings else self

    def with_missing_families(self, rebuilt: "TrustState") -> "TrustState":
        """Return the state with the families that only `rebuilt` contains added."""
        unknown = rebuilt.floors.keys() - self.floors.keys()
        floors = {family: rebuilt.floor(family) for family in unknown if rebuilt.floor(family) > ZERO_COUNTER}
        known = {family: rebuilt.known_releases.get(family, {}) for family in floors}
        return replace(self, floors={**self.floors, **floors}, known_releases={**self.known_releases, **known})

    def has_same_content(self, other: "TrustState") -> bool:
        """Return whether two states are equal except for the sequence number."""
        return replace(self, sequence=0) == replace(other, sequence=0)

    def as_json(self) -> dict[str, JSON]:
        """Return the stored object (docs/format.md, On the device)."""
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
                "sightings": [
                    {"digest": digest, **sighting.as_json()}
                    for digest, sighting in sorted(self.sightings.get(family, {}).items())
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
    """Read a stored trust state strictly.

    Raises:
        Malformed: the document does not follow its schema.
        TooLarge: the document is longer than MAX_TRUST_STATE_BYTES.
    """
    fields = StrictObject(strict_json.decode(data, what="trust state", max_bytes=MAX_TRUST_STATE_BYTES), "trust state")
    check_schema(fields, SCHEMA)
    roles = {}
    for name, row in fields.mapping("roles", ROLE_NAME_PATTERN, max_items=MAX_ROLES).items():
        roles[name] = RoleVersion(
            row.integer("version"), row.text("digest", SHA256_HEX_PATTERN), row.texts("signers", SHA256_HEX_PATTERN)
        )
        row.reject_unknown()
    floors, known, sightings = {}, {}, {}
    for family, row in fields.mapping("families", NAME_PATTERN, max_items=MAX_ROLES).items():
        floors[family] = parse_counter(row.object("floor"))
        known[family] = dict(
            _parse_known_release(entry) for entry in row.objects("known", max_items=MAX_KNOWN_RELEASES)
        )
        sightings[family] = dict(parse_sighting(entry) for entry in row.objects("sightings", max_items=MAX_SIGHTINGS))
        row.reject_unknown()
    time = fields.object("time_floor")
    out = TrustState(
        repository_id=fields.text("repository_id", max_length=64),
        roles=roles,
        floors=floors,
        known_releases=known,
        time_floor=TimeFloor(time.integer("time_s"), time.text("boot_id"), time.integer("boot_elapsed_s")),
        sightings={family: found for family, found in sightings.items() if found},
        sequence=fields.integer("sequence"),
    )
    time.reject_unknown()
    fields.reject_unknown()
    return out


class TrustStateStore:
    """The two stored copies of a trust state. Only one process may write at a time.

    Args:
        directory: directory of the copies; created by the first `save`.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def load(self) -> TrustState | None:
        """Return the newest valid state, or None if none was ever saved or both copies are lost (`is_lost`)."""
        found = [state for state in (self._read_copy(name) for name in COPY_NAMES) if state is not None]
        return max(found, key=lambda state: state.sequence, default=None)

    @property
    def is_lost(self) -> bool:
        """True if copies exist and none of them is valid."""
        return self.load() is None and any((self.directory / name).exists() for name in COPY_NAMES)

    @property
    def damaged_copies(self) -> tuple[str, ...]:
        """Names of the copies that exist and are not valid."""
        return tuple(name for name in COPY_NAMES if (self.directory / name).exists() and self._read_copy(name) is None)

    def save(self, state: TrustState) -> TrustState:
        """Write the older copy, sync it, and return the state with its new sequence number.

        Raises:
            OSError: the copy cannot be written.
        """
        self.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        copies = {name: self._read_copy(name) for name in COPY_NAMES}
        sequences = {name: 0 if found is None else found.sequence for name, found in copies.items()}
        target = min(COPY_NAMES, key=lambda name: sequences[name])
        saved = replace(state, sequence=max(sequences.values()) + 1)
        body = strict_json.encode(saved.as_json())
        descriptor = os.open(self.directory / target, os.O_WRONLY | os.O_CREAT, 0o600)
        try:
            with open(descriptor, "wb", closefd=False) as copy:
                copy.write(hashlib.sha256(body).digest() + body)
                copy.truncate()
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        _sync_directory(self.directory)
        return saved

    def _read_copy(self, name: str) -> TrustState | None:
        try:
            with (self.directory / name).open("rb") as copy:
                data = copy.read(MAX_TRUST_STATE_BYTES + CHECKSUM_BYTES + 1)
        except FileNotFoundError:
            return None
        body = data[CHECKSUM_BYTES:]
        if hashlib.sha256(body).digest() != data[:CHECKSUM_BYTES]:
            return None
        try:
            return parse_trust_state(body)
        except AgentTooOld:
            raise  # a newer agent wrote it: it is neither damaged nor lost
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
