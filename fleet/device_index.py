"""The devices of the registry as an indexed table of the store.

Rules:
- The table is filled once for each registry: its digest must be the one that the fleet document signs. While the file
  is unchanged (size, time, inode), it is not read again.
- A device that is revoked, or left the registry, is in no count; its lines stay until retention deletes them.
"""

import hashlib
from itertools import islice
from pathlib import Path
from typing import Any, Final

from sqlalchemy import Connection, bindparam, delete, select

from fleet.batch_rows import BatchRows
from fleet.database import Database
from fleet.errors import RegistryUnsigned
from fleet.tables import DEVICE, FACT
from keys.registry import Device
from keys.registry_index import hashed_devices, registry_stamp

CHUNK: Final = 5_000
DIGEST_FACT: Final = "registry"
STAMP_FACT: Final = "registry-stamp"


def fill_devices(database: Database, registry: Path, signed_digest: str) -> bool:
    """Fill the table of devices if the registry changed, and return whether it did.

    Args:
        database: the store.
        registry: the registry file; a missing file is an empty registry.
        signed_digest: the digest in the published fleet document, hexadecimal.

    Raises:
        RegistryUnsigned: the registry has another digest.
        RegistryDamaged: the registry is damaged.
        FleetStoreUnavailable: the store cannot be written.
    """
    stamp = registry_stamp(registry)
    with database.read() as connection:
        facts = {row.name: row.value for row in connection.execute(select(FACT))}
    if facts.get(DIGEST_FACT) == signed_digest and facts.get(STAMP_FACT) == stamp:
        return False
    with database.write() as connection:
        hashed = hashlib.sha256()
        names = (DEVICE.c.device_id, DEVICE.c.cohort, DEVICE.c.is_suspect, DEVICE.c.is_revoked)
        known = {r.device_id: (r.cohort, r.is_suspect, r.is_revoked) for r in connection.execute(select(*names))}
        revoked: dict[str, tuple[str, bool]] = {}
        devices = hashed_devices(registry, hashed)
        while chunk := tuple(islice(devices, CHUNK)):
            _store(connection, database, chunk)
            for device in chunk:
                before = known.pop(device.device_id, None)
                if before is not None and device.is_revoked and not before[2]:
                    revoked[device.device_id] = before[:2]
        if hashed.hexdigest() != signed_digest:
            raise RegistryUnsigned(
                f"{registry}: found digest {hashed.hexdigest()[:16]}…, the fleet document signs {signed_digest[:16]}…",
                hint="restore the registry, or sign and publish the staged fleet document first",
            )
        BatchRows(database, connection).delete_standings(revoked | {name: row[:2] for name, row in known.items()})
        if known:
            row = delete(DEVICE).where(DEVICE.c.device_id == bindparam("gone"))
            connection.execute(row, [{"gone": device_id} for device_id in known])
        for name, value in ((DIGEST_FACT, signed_digest), (STAMP_FACT, stamp)):
            insert = database.insert(FACT).values(name=name, value=value)
            connection.execute(insert.on_conflict_do_update(index_elements=["name"], set_={"value": value}))
    return True


def _store(connection: Connection, database: Database, devices: tuple[Device, ...]) -> None:
    rows: list[dict[str, Any]] = [
        {
            "device_id": device.device_id,
            "label": device.label,
            "cohort": device.cohort,
            "ed25519_public": device.ed25519_public,
            "is_revoked": device.is_revoked,
            "is_suspect": False,
            "seen_s": 0,
        }
        for device in devices
    ]
    insert = database.insert(DEVICE)
    names = ("label", "cohort", "ed25519_public", "is_revoked")
    changed = {name: insert.excluded[name] for name in names}
    connection.execute(insert.on_conflict_do_update(index_elements=["device_id"], set_=changed), rows)
