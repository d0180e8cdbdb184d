"""An agent takes over the state of an older one, and serves what is active from the state of a newer one."""

import hashlib
import json
import sqlite3
import tarfile
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from bundle import fleet, manifest, rollout
from bundle.document_schema import check_schema
from bundle.errors import AgentTooOld, AirweightsError, Malformed
from bundle.strict_json import StrictObject
from bundle.trust import trust_state
from device_agent.config.config import Config, ProbationSettings, UpdateSettings
from device_agent.config.serve import ServeSettings
from device_agent.errors import JournalTooNew
from device_agent.storage.device_directory import DeviceDirectory
from device_agent.storage.journal_schema import SCHEMA_VERSION, checksum
from device_agent.storage.newer_journal import copy_newer_journal
from tests.support.endpoint_client import infer
from tests.support.faulty_http_server import Site
from tests.support.publisher import COHORT, FAMILY, RELEASE_SETTINGS, DeviceUnderTest, Publisher

VECTOR = Path(__file__).parents[1] / "vectors" / "device" / "device-schema-4.tar.gz"


def test_the_state_of_an_older_agent_is_served_without_the_repository(tmp_path: Path) -> None:
    with tarfile.open(VECTOR) as archive:
        archive.extractall(tmp_path, filter="fully_trusted")
    config = Config(
        tmp_path / "device",
        "http://127.0.0.1:9",  # nobody listens there
        FAMILY,
        cohort=COHORT,
        serve=ServeSettings(listen=f"unix:{tmp_path}/serve.sock"),
        update=UpdateSettings(variant="fp32", automatic=False),
        probation=ProbationSettings(window_s=0, min_requests=0),
    )
    device = DeviceUnderTest(tmp_path, config)
    device.write_config()
    device.start()
    try:
        assert infer(device)["model_version"] == "1.0.0"
        assert device.call("status")["active"]["release"] == "1.0.0"
        assert [row["release"] for row in device.call("history")["history"]] == ["1.0.0"]
        assert device.call("update")["reason"] == "connection-failed"
    finally:
        device.stop()


def _make_newer(path: Path) -> bytes:
    """Turn a journal into one of the next schema, in which records have further fields, and return its bytes."""
    with sqlite3.connect(path) as db:
        for kind, key, body in db.execute("SELECT kind, key, body FROM record").fetchall():
            record = {**json.loads(body), "color": "blue"}
            text = json.dumps(record, sort_keys=True, separators=(",", ":"))
            row = (text, checksum(kind, key, text), kind, key)
            db.execute("UPDATE record SET body = ?, sha256 = ? WHERE kind = ? AND key = ?", row)
        db.execute("ALTER TABLE record ADD COLUMN added TEXT")
        db.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
    return path.read_bytes()


def test_an_agent_serves_what_a_newer_one_made_active_and_changes_nothing(
    updated: tuple[Publisher, DeviceUnderTest],
) -> None:
    publisher, device = updated
    newer = _make_newer(device.directory.journal_path)
    stored = sorted(path.name for path in (device.config.directory / "store").iterdir())
    publisher.release("1.2.0", seed=2, is_shared=True)
    device.start()
    assert infer(device)["model_version"] == "1.1.0"
    reason = device.call("status")["no_update_reason"]
    assert f"schema {SCHEMA_VERSION + 1}, this agent reads schemas up to {SCHEMA_VERSION}" in reason
    assert f"no updates: {reason}" in device.command("status").stdout
    for command in ("update", "plan", "rollback", "pause", "quarantine-clear"):
        with pytest.raises(JournalTooNew) as caught:
            device.call(command)
        assert caught.value.hint is not None
        assert "newer" in caught.value.hint
    assert device.command("update").returncode == 4
    assert device.stop() == 0
    assert device.directory.journal_path.read_bytes() == newer
    assert sorted(path.name for path in (device.config.directory / "store").iterdir()) == stored
    assert json.loads(device.command("update", "--json").stderr)["error"]["reason"] == "journal-too-new"


def test_an_agent_serves_the_first_release_that_a_newer_one_staged(
    installed: DeviceUnderTest,
) -> None:
    with sqlite3.connect(installed.directory.journal_path) as db:
        pointers = json.loads(
            db.execute("SELECT body FROM record WHERE kind='machine' AND key='pointers'").fetchone()[0]
        )
    active = pointers["active"]
    for found, state, expected in (
        ({"active": None, "candidate": active, "previous": None}, "staged", active),
        ({"active": None, "candidate": active, "previous": None}, "probing", None),
        (pointers, "staged", active),
    ):
        with sqlite3.connect(installed.directory.journal_path) as db:
            for key, body in (("pointers", json.dumps(found)), ("state", json.dumps({"state": state}))):
                db.execute("UPDATE record SET body = ? WHERE kind = 'machine' AND key = ?", (body, key))
        with closing(copy_newer_journal(DeviceDirectory(installed.config.directory))) as journal:
            assert journal.pointers.active == expected


def test_a_newer_journal_is_read_after_a_power_cut_and_below_any_path(
    installed: DeviceUnderTest, tmp_path: Path
) -> None:
    path = installed.directory.journal_path
    folder = tmp_path / "50%25 of #1?"
    folder.mkdir()
    device = DeviceDirectory(folder)
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        expected = json.loads(db.execute("SELECT body FROM record WHERE key = 'pointers'").fetchone()[0])["active"]
        db.execute("PRAGMA cache_size = 1")  # pages of the transaction are written before it ends
        db.execute("BEGIN IMMEDIATE")
        db.execute("UPDATE record SET body = hex(randomblob(4096))")
        db.execute("CREATE TABLE added AS SELECT hex(randomblob(65536)) AS body FROM record")
        for name in (path.name, f"{path.name}-journal"):
            (folder / name).write_bytes((path.parent / name).read_bytes())
        db.execute("ROLLBACK")
    device.journal_path = folder / path.name
    with closing(copy_newer_journal(device)) as journal:
        assert journal.pointers.active == expected


def test_a_release_of_a_newer_format_names_the_agent_that_it_needs_before_any_blob_is_fetched(
    installed: DeviceUnderTest, publisher: Publisher, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(manifest, "SCHEMA", "airweights.manifest/3")
    monkeypatch.setattr(manifest, "check_schema", lambda fields, _: fields.text("schema"))
    head = f'family = "{FAMILY}"\nversion = "1.2.0"\nmin_agent = "7.1"\n'
    (publisher.folder / "release.toml").write_text(head + RELEASE_SETTINGS)
    publisher.publish_release_file()
    monkeypatch.undo()
    result = installed.update()
    assert (result.outcome.value, result.reason) == ("refused", "agent-too-old")
    assert "agent 7.1 or newer is needed" in result.detail
    assert site.bytes_sent("blobs/") == 0
    installed.start()
    assert infer(installed)["model_version"] == "1.0.0"


@pytest.mark.parametrize(
    ("parse", "schema"),
    [
        (manifest.parse_manifest, manifest.SCHEMA),
        (rollout.parse_rollout, rollout.SCHEMA),
        (fleet.parse_fleet, fleet.SCHEMA),
        (trust_state.parse_trust_state, trust_state.SCHEMA),
    ],
)
def test_a_later_format_is_no_damage(parse: Callable[[bytes], Any], schema: str) -> None:
    name, _, version = schema.rpartition("/")
    document = {"schema": f"{name}/{int(version) + 1}", "min_agent": "2.5"}
    with pytest.raises(AgentTooOld, match=r"agent 2\.5 or newer is needed"):
        parse(json.dumps(document).encode())
    with pytest.raises(Malformed):
        parse(json.dumps({**document, "schema": f"{name}/0"}).encode())


@pytest.mark.parametrize(
    ("schema", "error"),
    [("a/2", None), ("a/3", AgentTooOld), ("a/1", Malformed), ("b/3", Malformed), ("a/03", Malformed), ("", Malformed)],
)
def test_only_a_later_version_of_the_same_format_is_newer(schema: str, error: type[AirweightsError] | None) -> None:
    fields = StrictObject({"schema": schema, "min_agent": "\x1b[31m"}, "x")
    if error is None:
        check_schema(fields, "a/2")
        return
    with pytest.raises(error) as caught:
        check_schema(fields, "a/2")
    assert "\x1b" not in caught.value.message


def test_trust_memory_of_a_newer_agent_is_not_taken_for_lost(installed: DeviceUnderTest, publisher: Publisher) -> None:
    publisher.offer("1.1.0")
    folder = installed.directory.trust_directory / "slots"
    name, _, number = trust_state.SCHEMA.rpartition("/")
    before, later = {}, f"{name}/{int(number) + 1}"
    for path in folder.iterdir():
        body = path.read_bytes()[trust_state.CHECKSUM_BYTES :].replace(trust_state.SCHEMA.encode(), later.encode())
        path.write_bytes(hashlib.sha256(body).digest() + body)
        before[path.name] = path.read_bytes()
    result = installed.update()
    assert (result.outcome.value, result.reason) == ("refused", "agent-too-old"), result
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
