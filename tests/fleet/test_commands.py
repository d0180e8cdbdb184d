"""`packager fleet` from the command line: files are taken, and counts, devices and exports are printed."""

import json
import os
import signal
import subprocess
import sys
import urllib.request
from dataclasses import replace
from pathlib import Path

import pytest

from bundle.enrollment import EnrollmentRequest
from bundle.envelope import derive_public_key, generate_private_key
from bundle.rendering import render_json
from keys.registry import Registry
from packager.repository.creation import create_repository_with_new_keys
from packager.repository.devices import enroll_device
from packager.repository.repository import Repository
from tests.support.fleet_devices import SigningDevice
from tests.support.json_schemas import check_schema
from tests.support.packager_cli import CommandResult, assert_refused, run_packager

LABELS = ("camera", "microphone")


class EnrolledDevice(SigningDevice):
    """A device with keys that can be enrolled."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.x_wing_public = derive_public_key(generate_private_key())
        request = EnrollmentRequest(name, self.x_wing_public, self.ed25519_public)
        self.request, self.device_id = request, request.device_id


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> tuple[Repository, list[EnrolledDevice]]:
    folder = tmp_path_factory.mktemp("site")
    repository = create_repository_with_new_keys(
        folder / "repo", folder / "keys", None, ["kws"], classical=True, insecure_plaintext=True
    )
    devices = [EnrolledDevice(label) for label in LABELS]
    for device in devices:
        data = device.request.encode(device.private)
        enroll_device(repository, data, device.request.fingerprint, "default", folder / "keys", None)
    lines = []
    for device in devices:
        lines.append(device.report(repository=repository.repository_id))
        lines.append(device.vital(repository=repository.repository_id))
    (folder / "lines.jsonl").write_bytes(b"\xef\xbb\xbf" + b"\r\n".join([*lines, b"nonsense", b""]))
    taken = run_packager("fleet", "ingest", folder / "lines.jsonl", "--repo", repository.root, "--json")
    assert taken.code == 0, taken.stderr
    check_schema("fleet-ingest", taken.json)
    assert (taken.json["new"], [row["line"] for row in taken.json["refused"]]) == (4, [5])
    return repository, devices


def run(site: tuple[Repository, list[EnrolledDevice]], *words: object) -> CommandResult:
    return run_packager("fleet", *words, "--repo", site[0].root, "--json")


def test_status_counts_devices_by_release(site: tuple[Repository, list[EnrolledDevice]]) -> None:
    found = run(site, "status").json
    check_schema("fleet-status", found)
    assert (found["totals"]["registered"], found["totals"]["heard"]) == (2, 2)
    assert [(row["release"], row["states"]) for row in found["releases"]] == [("1.0.0", {"serving": 2})]
    text = run_packager("fleet", "status", "--repo", site[0].root).stdout
    assert "kws stable 1.0.0: 2 devices: 2 serving" in text


def test_show_names_one_device(site: tuple[Repository, list[EnrolledDevice]]) -> None:
    found = run(site, "show", "camera").json
    check_schema("fleet-show", found)
    assert found["families"]["kws"]["release"] == "1.0.0"
    assert_refused(run(site, "show", "nobody"), code=2, reason="device-unknown")


def test_a_suspect_is_listed_until_it_is_cleared(site: tuple[Repository, list[EnrolledDevice]], tmp_path: Path) -> None:
    _, devices = site
    other = devices[1].sign(replace(devices[1].reports[0], agent="6"))
    (tmp_path / "fork.jsonl").write_bytes(other)
    assert_refused(run(site, "ingest", tmp_path / "fork.jsonl"), code=3, reason="line-refused", words=("line-forked",))
    found = run(site, "suspects").json
    check_schema("fleet-suspects", found)
    assert [row["label"] for row in found["suspects"]] == ["microphone"]
    check_schema("fleet-show", run(site, "show", "microphone").json)
    assert run(site, "suspects", "--clear", "microphone").json == {"suspects": []}
    assert run(site, "status").json["releases"][0]["devices"] == 2


def test_export_hides_small_groups_and_signed_lines_can_be_taken_again(
    site: tuple[Repository, list[EnrolledDevice]], tmp_path: Path
) -> None:
    check_schema("fleet-export", run(site, "export", "-o", tmp_path / "counts.json").json)
    assert json.loads((tmp_path / "counts.json").read_text()) == {"releases": []}
    assert run(site, "export", "--signed", "--family", "kws", "-o", tmp_path / "lines.jsonl").json["lines"] == 4
    elsewhere = ("--store", f"sqlite:{tmp_path / 'other.db'}")
    assert run(site, "ingest", tmp_path / "lines.jsonl", *elsewhere).json["new"] == 4
    assert_refused(run(site, "export", "--signed", "-o", tmp_path / "x"), code=2, reason="invalid-usage")


def test_forget_deletes_old_lines_and_repeats_stay_known(
    site: tuple[Repository, list[EnrolledDevice]], tmp_path: Path
) -> None:
    found = run(site, "forget", "--older", "1d").json
    check_schema("fleet-forget", found)
    assert found == {"reports": 0, "vitals": 0, "forks": 0}
    for words in (("--older", "x"), ("--older", "0d"), ("--vitals-older", "-1d")):
        assert_refused(run(site, "forget", *words), code=2, reason="invalid-usage")


def test_device_list_shows_where_each_device_stands(site: tuple[Repository, list[EnrolledDevice]]) -> None:
    store = f"sqlite:{site[0].root / 'private' / 'fleet.db'}"
    found = run_packager("device", "list", "--repo", site[0].root, "--store", store, "--json").json
    check_schema("device-list", found)
    assert {row["families"]["kws"]["state"] for row in found["devices"]} == {"serving"}
    text = run_packager("device", "list", "--repo", site[0].root, "--store", store).stdout
    assert "kws 1.0.0 serving updated" in text


def test_a_registry_that_is_not_the_signed_one_vouches_for_nobody(
    site: tuple[Repository, list[EnrolledDevice]],
) -> None:
    path = site[0].registry_path
    before = path.read_bytes()
    try:
        path.write_bytes(b"".join(before.splitlines(keepends=True)[:1]))
        assert_refused(run(site, "status"), code=3, reason="registry-unsigned")
    finally:
        path.write_bytes(before)
    assert len(Registry(path)) == 2


@pytest.mark.parametrize(
    "words",
    [
        ("serve", "--listen", "8600"),
        ("serve", "--listen", "127.0.0.1:99999"),
        ("serve", "--listen", "0.0.0.0:0"),
        ("serve", "--certificate", "x.pem"),
        ("status", "--store", "mysql://localhost/fleet"),
        ("ingest", "no-such-file"),
    ],
    ids=lambda words: " ".join(words),
)
def test_bad_input_is_one_line(site: tuple[Repository, list[EnrolledDevice]], words: tuple[str, ...]) -> None:
    result = run(site, *words)
    assert result.code == 2
    assert result.stdout == ""
    assert "Traceback" not in result.stderr


def test_serve_prints_its_url_and_stops_on_sigterm(site: tuple[Repository, list[EnrolledDevice]]) -> None:
    command = [
        sys.executable,
        "-m",
        "packager",
        "fleet",
        "serve",
        "--listen",
        "127.0.0.1:0",
        "--repo",
        str(site[0].root),
    ]
    with subprocess.Popen([*command, "--json"], stdout=subprocess.PIPE, env=os.environ, text=True) as process:
        assert process.stdout is not None
        text = ""
        while not text.rstrip().endswith("}"):
            line = process.stdout.readline()
            assert line, "it ended"
            text += line
        found = json.loads(text)
        check_schema("fleet-serve", found)
        with urllib.request.urlopen(found["url"] + "/health", timeout=120) as response:
            assert json.loads(response.read()) == {"ok": True, "problem": None}
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) in (0, -signal.SIGTERM)
    assert render_json(found)
