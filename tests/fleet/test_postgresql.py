"""The same rules hold on PostgreSQL, with collectors that write at the same time."""

import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import select

from fleet.database import Database
from fleet.errors import FleetStoreInvalid, FleetStoreUnavailable
from fleet.ingest import BatchResult, ingest
from fleet.queries import find_device, read_lines, read_release_counts, read_totals
from fleet.retention import forget
from fleet.suspects import clear_suspect
from fleet.tables import REPORT
from tests.support.device_reports import REPOSITORY
from tests.support.fleet_devices import SigningDevice, open_store
from tests.support.postgresql import run_postgresql


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with run_postgresql() as running:
        yield running


def test_lines_count_once_with_four_collectors_at_the_same_time(url: str, tmp_path: Path) -> None:
    devices = [SigningDevice(f"device-{number}") for number in range(20)]
    open_store(tmp_path, devices, url).close()
    lines = [device.report(release=f"1.{n}.0", counter=n + 1) for n in range(5) for device in devices]
    results: list[BatchResult] = []

    def collect(order: int) -> None:
        database = Database(url, REPOSITORY)
        mine = lines[order:] + lines[:order]
        for start in range(0, len(mine), 10):
            results.append(ingest(database, mine[start : start + 10]))
        database.close()

    threads = [threading.Thread(target=collect, args=(order * 25,)) for order in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(result.new for result in results) == 100
    assert sum(result.known for result in results) == 300
    database = Database(url, REPOSITORY)
    (counts,) = read_release_counts(database)
    assert (counts.release, counts.devices) == ("1.4.0", 20)
    assert read_totals(database, 0).heard == 20
    assert len(list(read_lines(database, "kws"))) == 100


def test_forks_gaps_clearing_and_retention_work_as_on_sqlite(url: str, tmp_path: Path) -> None:
    device = SigningDevice("lamp")
    database = open_store(tmp_path, [device], url)
    first, second, third = (device.report(agent=f"0.{number}") for number in range(3))
    assert ingest(database, [first, third]).logs[device.log].missing == ((2, 2),)
    other = device.sign(replace(device.reports[1], agent="6"))
    assert [one.reason for one in ingest(database, [other]).refused] == ["line-forked"]
    found = find_device(database, "lamp")
    assert found is not None
    assert found.is_suspect
    assert clear_suspect(database, device.device_id)
    assert ingest(database, [second, device.vital()]).new == 2
    assert forget(database, 2**40).reports >= 3
    with database.read() as connection:
        assert connection.execute(select(REPORT.c.digest)).all() == []
    assert ingest(database, [first, second, third]).known == 3, "a deleted line is known"


def test_a_store_of_another_repository_or_a_server_that_is_away_is_one_line(url: str) -> None:
    with pytest.raises(FleetStoreInvalid, match="found repository"):
        Database(url, "9" * 64)
    with pytest.raises(FleetStoreUnavailable):
        Database("postgresql://fleet@127.0.0.1:9/fleet", REPOSITORY)
