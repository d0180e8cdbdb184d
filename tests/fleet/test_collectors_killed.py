"""Two collectors that are killed at random count each line once, lose none, and take none that is forged."""

import contextlib
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import select

from fleet.batch_rows import BatchRows
from fleet.database import Database
from fleet.device_index import fill_devices
from fleet.standing import TallyRow, tally_rows
from fleet.tables import LOG, REPORT, TALLY, VITAL
from tests.support.device_reports import REPOSITORY
from tests.support.fleet_collector import DONE
from tests.support.fleet_devices import SigningDevice, write_registry
from tests.support.postgresql import run_postgresql

REPORTS_OF_A_DEVICE = 20
FAILURE = {"outcome": "unfit", "state": "probing", "reason": "nan-output"}


@contextlib.contextmanager
def open_url(kind: str, folder: Path) -> Iterator[str]:
    if kind == "sqlite":
        yield f"sqlite:{folder / 'fleet.db'}"
    else:
        with run_postgresql() as url:
            yield url


def make_lines(devices: list[SigningDevice]) -> list[bytes]:
    lines = []
    for number, device in enumerate(devices):
        for n in range(1, REPORTS_OF_A_DEVICE):
            outcome = FAILURE if (number + n) % 7 == 0 else {}
            lines.append(device.report(release=f"1.{n}.0", counter=n, **outcome))
        lines.append(device.vital(release=f"1.{n}.0", offered=f"1.{n}.0", counter=n))
    return lines


@pytest.mark.parametrize(
    ("kind", "count"),
    [("sqlite", 2_000), ("sqlite", 100_000), ("postgresql", 2_000), ("postgresql", 100_000)],
    ids=lambda value: str(value),
)
def test_collectors_killed_at_random_count_each_line_once(kind: str, count: int, tmp_path: Path) -> None:
    devices = [SigningDevice(f"device-{n}") for n in range(count // REPORTS_OF_A_DEVICE)]
    chance = random.Random(24)
    lines = make_lines(devices)
    dropped = set(chance.sample(lines, len(lines) // 50))
    kept = [line for line in lines if line not in dropped]
    forged = [line.replace(b'"1.1.0"', b'"1.1.9"') for line in chance.sample(lines, 50)]
    forged = [line for line in forged if line not in set(lines)]
    sent = kept + chance.sample(kept, len(kept) // 2) + forged
    chance.shuffle(sent)
    batches = tmp_path / "batches"
    batches.mkdir()
    names = []
    for number, start in enumerate(range(0, len(sent), 100)):
        names.append(f"{number:05d}.batch")
        (batches / names[-1]).write_bytes(b"\n".join(sent[start : start + 100]))
    with open_url(kind, tmp_path) as url:
        digest = write_registry(tmp_path / "registry.jsonl", [device.registered() for device in devices])
        database = Database(url, REPOSITORY)
        fill_devices(database, tmp_path / "registry.jsonl", digest)
        rounds = 0
        while left := [name for name in names if not (batches / name).with_suffix(DONE).exists()]:
            rounds += 1
            command = [sys.executable, "-m", "tests.support.fleet_collector", url, str(batches)]
            # both take all batches, in opposite orders, so that they meet
            running = [subprocess.Popen([*command, *part]) for part in (left, left[::-1])]
            for process in running:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(chance.uniform(1.2, 2.5) if rounds <= 4 else 600)
            for process in running:
                process.kill()
                process.wait()
        with database.read() as connection:
            stored = {
                bytes(row[0]) for table in (REPORT, VITAL) for row in connection.execute(select(table.c.line)).all()
            }
            number = sum(len(connection.execute(select(table.c.digest)).all()) for table in (REPORT, VITAL))
            tally = {tuple(row[:5]): row.devices for row in connection.execute(select(TALLY)) if row.devices}
            highest = sum(row.highest for row in connection.execute(select(LOG)))
            standings = BatchRows(database, connection).read_standings([device.device_id for device in devices[:500]])
        database.close()
    assert stored == set(kept)
    assert number == len(kept), "none is counted twice"
    assert highest <= (REPORTS_OF_A_DEVICE - 1) * len(devices)
    if len(devices) <= 500:
        expected: Counter[TallyRow] = Counter()
        for (_, family), standing in standings.items():
            expected.update(tally_rows(standing, family, "default", is_suspect=False))
        assert tally == expected
