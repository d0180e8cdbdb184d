"""Several families share one daemon, one front and one memory budget, and do not disturb each other."""

import contextlib
import json
import os
import shutil
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bundle.acceptance import ReleaseCounter
from bundle.errors import InvalidUsage
from bundle.trust.trust_state import TrustStateStore
from device_agent.commands.offline import update_offline
from device_agent.config.config import FurtherFamily, ProbationSettings
from device_agent.errors import NothingToRollBack
from device_agent.policy.attempt import Outcome
from device_agent.storage.bundle_store import BundleStore
from tests.support import faulty_http_server
from tests.support.daemon_workers import list_worker_pids
from tests.support.endpoint_client import get, infer
from tests.support.faulty_http_server import Site, serve_folder
from tests.support.json_schemas import check_schema
from tests.support.prometheus_text import parse_metrics
from tests.support.publisher import FAMILY, DeviceUnderTest, Publisher

OTHER = "vision"
FIRST = {FAMILY: "1.0.0", OTHER: "2.0.0"}
NEXT = {FAMILY: "1.1.0", OTHER: "2.1.0"}


@pytest.fixture(scope="module")
def installed_pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Publisher, DeviceUnderTest]:
    """Return a publisher of two families with two releases each, and a device that has installed the first ones."""
    folder = tmp_path_factory.mktemp("families")
    publisher = Publisher(folder / "site", families=(FAMILY, OTHER))
    for seed, versions in ((0, FIRST), (1, NEXT)):
        for number, (family, version) in enumerate(versions.items()):
            publisher.release(version, seed=seed + 10 * number, family=family)
    for family, version in FIRST.items():
        publisher.offer(version, family=family)
    with serve_folder(publisher.published) as site:
        device = DeviceUnderTest.create(folder / "lab", site.url, publisher.root)
        device.config = replace(device.config, further_families=(FurtherFamily(OTHER, variant="fp32"),))
        device.write_config()
        publisher.enroll(device.directory)
        device.start()
        try:
            assert device.call("update", family=FAMILY)["outcome"] == "updated"
            assert infer(device)["model_version"] == "1.0.0", "one that has nothing keeps no other from serving"
            get(device, "/v2/health/ready", expected_status=400)
            assert device.call("status")["ready"] is False
            rows = device.call("update")["families"]
            assert [(row["family"], row["outcome"]) for row in rows] == [(FAMILY, "nothing-new"), (OTHER, "updated")]
            assert infer(device, family=OTHER)["model_version"] == "2.0.0"
            get(device, "/v2/health/ready")
        finally:
            device.stop()
    return publisher, device


@pytest.fixture
def publisher(installed_pair: tuple[Publisher, DeviceUnderTest], tmp_path: Path) -> Publisher:
    """Return a copy of the publisher that the test may change."""
    return installed_pair[0].copy(tmp_path / "site")


@pytest.fixture
def device(installed_pair: tuple[Publisher, DeviceUnderTest], site: Site, tmp_path: Path) -> Iterator[DeviceUnderTest]:
    """Return a stopped copy of the device."""
    device = installed_pair[1].copy(tmp_path / "lab", site.url)
    yield device
    device.stop()


def serving_versions(device: DeviceUnderTest) -> dict[str, str]:
    """Return the serving version of both families."""
    return {family: infer(device, family=family)["model_version"] for family in (FAMILY, OTHER)}


def rows_by_family(found: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {row["family"]: row for row in found["families"]}


@contextlib.contextmanager
def send_requests(device: DeviceUnderTest) -> Iterator[Counter[tuple[str, str]]]:
    """Send requests to both families; yield the number of responses by family and version, and of failures."""
    answers: Counter[tuple[str, str]] = Counter()
    stop = threading.Event()

    def ask(family: str) -> None:
        while not stop.wait(0.01):
            try:
                answers[family, infer(device, family=family)["model_version"]] += 1
            except Exception as error:  # noqa: BLE001  whatever a client sees is the result
                answers[family, f"failed: {error!r}"] += 1

    clients = [threading.Thread(target=ask, args=(family,)) for family in (FAMILY, OTHER)]
    for client in clients:
        client.start()
    try:
        yield answers
    finally:
        stop.set()
        for client in clients:
            client.join()


def test_one_daemon_serves_both_and_tells_of_both(device: DeviceUnderTest, publisher: Publisher) -> None:
    device.start()
    assert serving_versions(device) == FIRST
    printed = json.loads(device.command("status", "--json").stdout)
    check_schema("agent-status", printed)
    assert (printed["family"], printed["ready"], printed["active"]["release"]) == (FAMILY, True, "1.0.0")
    assert {name: row["serving"]["release"] for name, row in rows_by_family(printed).items()} == FIRST
    for words, texts in (("status",), ("kws on", "vision on")), (("history",), ("updated 1.0.0", "updated 2.0.0")):
        text = device.command(*words).stdout
        assert all(found in text for found in texts), text
    for command in ("history", "plan"):
        check_schema("agent-families", json.loads(device.command(command, "--json").stdout))
    check_schema("agent-plan", json.loads(device.command("plan", "--family", OTHER, "--json").stdout))
    metrics = parse_metrics(get(device, "/metrics").decode())
    swaps = metrics["airweights_swaps_total"].samples
    assert {dict(labels)["family"] for _, labels in swaps} == {FAMILY, OTHER}
    stored = {
        place: BundleStore(place).digests()
        for place in (device.directory.root, device.directory.root / "families" / OTHER)
    }
    kept = {publisher.manifest(version, family).variants[0][1].digest for family, version in FIRST.items()}
    assert [len(found) for found in stored.values()] == [1, 1]
    assert set.union(*map(set, stored.values())) == kept


def test_one_is_updated_and_goes_back_under_load_and_nobody_notices(
    device: DeviceUnderTest, publisher: Publisher
) -> None:
    publisher.offer("2.1.0", family=OTHER)
    device.config = replace(device.config, probation=ProbationSettings(window_s=1, min_requests=5))
    device.write_config()
    device.start()
    with send_requests(device) as answers:
        assert device.call("update", family=OTHER)["outcome"] == "updated"
        assert serving_versions(device) == {FAMILY: "1.0.0", OTHER: "2.1.0"}
        with pytest.raises(InvalidUsage, match="follows 2 families"):
            device.call("rollback")
        back = device.call("rollback", family=OTHER)
    assert (back["outcome"], back["release"]) == ("rolled-back", "2.1.0")
    assert set(answers) == {(FAMILY, "1.0.0"), (OTHER, "2.0.0"), (OTHER, "2.1.0")}, answers
    assert serving_versions(device) == FIRST
    rows = rows_by_family(device.call("status"))
    assert [len(rows[family]["quarantine"]) for family in (FAMILY, OTHER)] == [0, 1]
    assert device.call("quarantine-clear") == {"cleared": 1}


def test_the_daemon_polls_for_both_and_a_failure_of_one_delays_only_its_own(
    device: DeviceUnderTest, publisher: Publisher
) -> None:
    device.config = replace(device.config, further_families=(FurtherFamily("ghost"), *device.config.further_families))
    device.write_config()
    text = device.config_path.read_text()
    device.config_path.write_text(text.replace("automatic = false", "automatic = true\npoll_interval_s = 1"))
    device.start()
    for family, version in NEXT.items():
        publisher.offer(version, family=family)
    deadline = time.monotonic() + 60
    while any(rows_by_family(device.call("status"))[family]["active"]["release"] != NEXT[family] for family in NEXT):
        assert time.monotonic() < deadline
    assert serving_versions(device) == NEXT
    rows = rows_by_family(device.call("status"))
    assert rows["ghost"]["last_error"] == "no-rollout"
    assert [rows[family]["last_update"]["trigger"] for family in (FAMILY, OTHER)] == ["poll", "poll"]


def test_a_release_that_one_refuses_keeps_no_other_from_its_own(device: DeviceUnderTest, publisher: Publisher) -> None:
    publisher.release("1.2.0", seed=2, drill="damaged-weights")
    publisher.offer("2.1.0", family=OTHER)
    device.start()
    done = device.command("update", "--json")
    printed = json.loads(done.stdout)
    check_schema("agent-families", printed)
    rows = rows_by_family(printed)
    assert (rows[FAMILY]["outcome"], rows[FAMILY]["reason"]) == ("unfit", "golden-mismatch")
    assert rows[OTHER]["outcome"] == "updated"
    assert done.returncode == 5
    assert serving_versions(device) == {FAMILY: "1.0.0", OTHER: "2.1.0"}


def _start_probation(device: DeviceUnderTest) -> tuple[threading.Thread, dict[str, Any]]:
    """Start an update of FAMILY that waits in probation; return its thread and the dict that gets its result."""
    device.config = replace(device.config, probation=ProbationSettings(window_s=3600, min_requests=10**6))
    device.write_config()
    device.start()
    result: dict[str, Any] = {}
    update = threading.Thread(target=lambda: result.update(device.call("update", family=FAMILY)))
    update.start()
    deadline = time.monotonic() + 60
    while rows_by_family(device.call("status"))[FAMILY]["state"] != "probation":
        assert time.monotonic() < deadline
    return update, result


def test_within_a_probation_what_dies_elsewhere_is_back_at_once(device: DeviceUnderTest, publisher: Publisher) -> None:
    publisher.offer("1.1.0")
    update, result = _start_probation(device)
    before = _model_process_pid(device, OTHER)
    os.kill(before, signal.SIGKILL)
    assert infer(device, family=OTHER)["model_version"] == "2.0.0", "the request waits for the next process"
    (front,) = list_worker_pids(device, "device_agent.front")
    os.kill(front, signal.SIGKILL)
    _wait_until_served(device, OTHER)
    assert rows_by_family(device.call("status"))[FAMILY]["state"] == "probation"
    assert _model_process_pid(device, OTHER) != before
    back = device.call("rollback", family=FAMILY)
    update.join(120)
    assert (result["outcome"], result["reason"]) == ("rolled-back", "operator-rollback")
    assert (back["outcome"], back["release"]) == ("rolled-back", "1.1.0")
    assert serving_versions(device) == FIRST


def test_what_dies_while_another_is_fetched_for_is_back_at_once(
    device: DeviceUnderTest, publisher: Publisher, site: Site
) -> None:
    publisher.offer("1.1.0")
    release, arrived = threading.Event(), threading.Event()
    site.faults = [faulty_http_server.only_below("blobs/", faulty_http_server.hang(release, arrived))]
    device.start()
    result: dict[str, Any] = {}
    update = threading.Thread(target=lambda: result.update(device.call("update", family=FAMILY)))
    update.start()
    try:
        assert arrived.wait(60)
        for family in FIRST:
            os.kill(_model_process_pid(device, family), signal.SIGKILL)
            # the request waits for the next process, which cannot be that of the release whose fetch hangs
            assert infer(device, family=family)["model_version"] == FIRST[family]
        assert not result
    finally:
        site.faults = []
        release.set()
        update.join(120)
    assert serving_versions(device) == {FAMILY: "1.1.0", OTHER: "2.0.0"}, result


def test_one_is_sent_back_while_another_is_in_its_probation(device: DeviceUnderTest, publisher: Publisher) -> None:
    for family, version in NEXT.items():
        publisher.offer(version, family=family)
    device.start()
    assert device.call("update", family=OTHER)["outcome"] == "updated"
    device.stop()
    update, update_result = _start_probation(device)
    assert device.call("rollback", family=OTHER)["outcome"] == "rolled-back"
    assert serving_versions(device) == {FAMILY: "1.1.0", OTHER: "2.0.0"}
    assert rows_by_family(device.call("status"))[FAMILY]["state"] == "probation"
    device.call("rollback", family=FAMILY)
    update.join(120)
    assert update_result["outcome"] == "rolled-back"
    assert serving_versions(device) == FIRST


@pytest.mark.parametrize("standby", [False, True])
def test_the_budget_is_for_all_and_of_running_models_only_the_own_one_makes_room(
    device: DeviceUnderTest, publisher: Publisher, standby: bool
) -> None:
    publisher.offer("1.1.0")
    device.start()
    stored = sum(row["serving"]["resident_bytes"] for row in rows_by_family(device.call("status")).values())
    device.stop()
    # room for a candidate beside one model, not beside two; or, where there are standbys, beside two without them
    budget = stored * (2 if standby else 1) + (10 if standby else 60) * 2**20
    device.config = replace(device.config, probation=ProbationSettings(window_s=1, min_requests=1))
    device.write_config()
    settings = f"[serve]\nmemory_bytes = {budget}\nstandby = {json.dumps(standby)}"
    device.config_path.write_text(device.config_path.read_text().replace("[serve]", settings))
    device.start()
    device.call("resume")  # answered in turn: standbys are in their places
    assert _count_model_processes(device) == (4 if standby else 2)
    before = _model_process_pid(device, OTHER)
    with send_requests(device) as answers:
        update_result = device.call("update", family=FAMILY)
    assert (update_result["outcome"], update_result["downtime_ms"] > 0) == ("updated", not standby), update_result
    assert set(answers) == {(FAMILY, "1.0.0"), (FAMILY, "1.1.0"), (OTHER, "2.0.0")}, answers
    assert _model_process_pid(device, OTHER) == before


def test_a_family_whose_journal_does_not_open_is_told_and_the_other_serves(device: DeviceUnderTest) -> None:
    journal = device.directory.root / "families" / OTHER / "state.db"
    kept = journal.with_name("kept")
    journal.rename(kept)
    journal.mkdir()
    device.start()
    assert infer(device)["model_version"] == "1.0.0"
    status = device.call("status")
    assert (status["ready"], rows_by_family(status)[OTHER]["error"]["reason"]) == (False, "journal-unreadable")
    assert rows_by_family(device.call("update"))[OTHER]["error"]["reason"] == "journal-unreadable"
    get(device, "/v2/health/ready", expected_status=400)
    journal.rmdir()
    kept.rename(journal)
    assert device.call("update", family=OTHER)["outcome"] == "nothing-new"
    assert serving_versions(device) == FIRST


def test_a_damaged_journal_of_one_is_made_anew_and_the_other_keeps_its_own(device: DeviceUnderTest) -> None:
    journal = device.directory.root / "families" / OTHER / "state.db"
    journal.write_bytes(b"x" * journal.stat().st_size)
    device.start()
    assert serving_versions(device) == FIRST
    rows = rows_by_family(device.call("history"))
    assert [len(rows[family]["history"]) for family in (FAMILY, OTHER)] == [1, 0]


def test_by_hand_each_command_knows_both(device: DeviceUnderTest, publisher: Publisher) -> None:
    for family, version in NEXT.items():
        publisher.offer(version, family=family)

    def says(*words: str, code: int = 0) -> Any:
        done = device.command(*words, "--json")
        assert done.returncode == code, (done.stdout, done.stderr)
        return json.loads(done.stdout or done.stderr)

    check_schema("agent-status", says("status"))
    check_schema("agent-check-config", says("check-config"))
    assert "kws, vision" in says("update", "--family", "nobody", code=2)["error"]["hint"]
    for words in (("rollback",), ("adapter", "list"), ("adapter", "detach"), ("report", "list", "--after", "1")):
        error = says(*words, code=2)["error"]
        assert (error["reason"], error["hint"]) == ("invalid-usage", "name one with --family: kws, vision"), words
    assert rows_by_family(says("plan"))[OTHER]["release"] == "2.1.0"
    assert says("pause") == {"paused": True}
    assert [row["paused"] for row in says("status")["families"]] == [True, True]
    assert says("update", "--family", OTHER, code=4)["error"]["reason"] == "updates-paused"
    says("resume")
    assert {family: row["outcome"] for family, row in rows_by_family(says("update")).items()} == dict.fromkeys(
        NEXT, "staged"
    )
    device.start()
    assert serving_versions(device) == NEXT
    device.stop()
    assert says("rollback", "--family", OTHER)["release"] == "2.1.0"
    assert says("quarantine", "clear", "--family", FAMILY) == {"cleared": 0}
    quarantined = says("quarantine", "list")
    check_schema("agent-families", quarantined)
    rows = rows_by_family(quarantined)
    assert [len(rows[family]["quarantine"]) for family in (FAMILY, OTHER)] == [0, 1]
    check_schema("agent-quarantine-list", says("quarantine", "list", "--family", OTHER))
    assert says("quarantine", "clear") == {"cleared": 1}
    assert says("adapter", "list", "--family", OTHER) == {"adapters": []}
    assert {row["family"] for row in says("report", "list")["reports"]} == {FAMILY, OTHER}
    assert {row["family"] for row in says("report", "list", "--family", OTHER)["reports"]} == {OTHER}
    device.start()
    assert serving_versions(device) == {FAMILY: "1.1.0", OTHER: "2.0.0"}


def test_no_family_loses_its_floor_with_the_trust_memory(device: DeviceUnderTest, publisher: Publisher) -> None:
    floors = {FAMILY: 2, OTHER: 3}
    for number, (family, floor) in enumerate(floors.items()):
        publisher.release(f"3.0.{number}", seed=3 + number, head=f"min_counter = {floor}\n", family=family)
    assert device.command("update").returncode == 0
    slots = device.directory.trust_directory / "slots"

    def remembered() -> dict[str, ReleaseCounter]:
        memory = TrustStateStore(slots).load()
        return {} if memory is None else dict(memory.floors)

    before = remembered()
    assert {family: counter.counter for family, counter in before.items()} == floors
    shutil.rmtree(slots)
    assert device.command("update", "--family", FAMILY).returncode == 0
    assert remembered() == {FAMILY: before[FAMILY]}
    assert device.command("update", "--family", OTHER).returncode == 0
    assert remembered() == before


def test_a_device_that_learns_of_a_second_family_keeps_what_it_has(device: DeviceUnderTest) -> None:
    alone = replace(device.config, further_families=())
    both, device.config = device.config, alone
    shutil.rmtree(device.directory.root / "families")
    device.write_config()
    device.start()
    assert device.call("status")["active"]["release"] == "1.0.0"
    assert "families" not in device.call("status")
    device.stop()
    device.config = both
    device.write_config()
    device.start()
    assert infer(device)["model_version"] == "1.0.0"
    assert rows_by_family(device.call("update"))[OTHER]["outcome"] == "updated"
    assert serving_versions(device) == FIRST


def test_a_place_that_another_family_had_serves_nothing_under_a_wrong_name(device: DeviceUnderTest) -> None:
    device.config = replace(device.config, family=OTHER, further_families=(FurtherFamily(FAMILY, variant="fp32"),))
    device.write_config()
    device.start()
    status = device.call("status")
    assert (status["family"], status["serving"], status["ready"]) == (OTHER, None, False)
    assert all(row["outcome"] == "updated" for row in device.call("update")["families"])
    assert serving_versions(device) == FIRST
    with pytest.raises(NothingToRollBack):
        device.call("rollback", family=OTHER)


def _model_process_pid(device: DeviceUnderTest, family: str) -> int:
    """Return the process id of the serving model process."""
    return int(rows_by_family(device.call("status"))[family]["serving"]["pid"])


def _count_model_processes(device: DeviceUnderTest) -> int:
    """Return the number of the daemon's model processes."""
    return len(list_worker_pids(device, "device_agent.workers.model_process"))


def _wait_until_served(device: DeviceUnderTest, family: str) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            infer(device, family=family)
        except OSError:
            time.sleep(0.05)
        else:
            return
    raise AssertionError("the front did not come back")


def test_families_share_one_request_for_the_timestamp(
    installed_pair: tuple[Publisher, DeviceUnderTest], tmp_path: Path
) -> None:
    publisher, installed = installed_pair
    with serve_folder(publisher.published) as site:
        device = installed.copy(tmp_path / "lab", site.url)
        for _ in range(2):
            site.requests.clear()
            results = update_offline(device.config, None, lambda _label: lambda _done, _total: None)
            assert {result.outcome for result in results.values()} == {Outcome.NOTHING_NEW}
        assert [request.path for request in site.requests] == ["metadata/timestamp.awz"]
        publisher = publisher.copy(tmp_path / "site")
        publisher.offer(NEXT[OTHER], family=OTHER)
        site.folder = publisher.published
        site.requests.clear()
        update_offline(device.config, None, lambda _label: lambda _done, _total: None)
        counts = Counter(request.path for request in site.requests)
        assert counts["metadata/timestamp.awz"] == 2, "once for both families, and once before the release serves"
