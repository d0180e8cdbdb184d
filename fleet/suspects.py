"""Count a suspect device again, after a person looked at it."""

from collections import Counter

from sqlalchemy import delete, update

from fleet.batch_rows import BatchRows
from fleet.database import Database
from fleet.standing import TallyRow, tally_rows
from fleet.tables import DEVICE, FORK, TALLY


def clear_suspect(database: Database, device_id: str) -> bool:
    """Count a device again, and delete the lines that contradicted others; return whether it was suspect.

    Args:
        database: the store.
        device_id: id of the device.

    Raises:
        FleetStoreUnavailable: the store cannot be written.
    """
    with database.write() as connection:
        rows = BatchRows(database, connection)
        device = rows.read_devices([device_id]).get(device_id)
        if device is None or not device["is_suspect"]:
            return False
        tally: Counter[TallyRow] = Counter()
        for (_, family), standing in rows.read_standings([device_id]).items():
            tally.subtract(tally_rows(standing, family, device["cohort"], is_suspect=True))
            tally.update(tally_rows(standing, family, device["cohort"], is_suspect=False))
        rows.add_counts(TALLY, "devices", tally)
        connection.execute(delete(FORK).where(FORK.c.device_id == device_id))
        connection.execute(update(DEVICE).where(DEVICE.c.device_id == device_id).values(is_suspect=False))
    return True
