"""`device-agent bench` and `plan` report correct figures of a real device."""

import json
from pathlib import Path

import pytest

from bundle.rollout import Window
from device_agent.host.meters import ProcessMeter, open_energy_meters
from tests.support.faulty_http_server import Site
from tests.support.publisher import DeviceUnderTest, Publisher


def _update_outcome(device: DeviceUnderTest) -> str:
    return str(json.loads(device.command("update", "--json").stdout)["outcome"])


def _error(text: str) -> dict[str, str]:
    return dict(json.loads(text)["error"])


def test_active_and_staged_are_measured_under_golden_inputs_and_under_a_mix(
    installed: DeviceUnderTest, publisher: Publisher, tmp_path: Path
) -> None:
    publisher.offer("1.1.0")
    assert installed.update().outcome == "staged"
    done = installed.command("bench", "--seconds", "0.6", "--json")
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)["bundles"]
    assert [(row["role"], row["release"]) for row in rows] == [("active", "1.0.0"), ("candidate", "1.1.0")]
    for row in rows:
        assert row["requests"] > 0
        assert 0 < row["p50_ms"] <= row["p95_ms"] <= row["p99_ms"]
        assert row["peak_bytes"] >= row["resident_bytes"] > 10e6
        assert row["requests_per_s"] > 0
    mix = tmp_path / "mix.jsonl"
    good = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 64], "data": [0.5] * 64}]}
    mix.write_text(json.dumps(good) + "\n")
    done = installed.command("bench", "--seconds", "0.3", "--connections", "1", "--mix", str(mix))
    assert done.returncode == 0, done.stderr
    assert "candidate  1.1.0" in done.stdout
    mix.write_text(json.dumps({"inputs": []}) + "\n")
    done = installed.command("bench", "--seconds", "0.3", "--mix", str(mix), "--json")
    assert (done.returncode, _error(done.stderr)["reason"]) == (5, "bench-failed")
    assert "400" in _error(done.stderr)["message"]
    mix.write_text("nonsense\n")
    assert installed.command("bench", "--mix", str(mix)).returncode == 2


def test_a_device_without_a_bundle_has_nothing_to_measure(device: DeviceUnderTest) -> None:
    done = device.command("bench", "--json")
    assert (done.returncode, _error(done.stderr)["reason"]) == (2, "nothing-to-benchmark")


@pytest.mark.parametrize("with_daemon", [False, True])
def test_a_plan_says_which_variant_and_why(installed: DeviceUnderTest, publisher: Publisher, with_daemon: bool) -> None:
    publisher.offer("1.1.0")
    if with_daemon:
        installed.start()
    done = installed.command("plan", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["release"], found["installed"], found["chosen"]) == ("1.1.0", "1.0.0", "fp32")
    assert [row["name"] for row in found["variants"] if row["is_compatible"]] == ["fp32"]
    [step] = found["path"]["steps"]
    assert step["from"] == publisher.digest("1.0.0")
    assert 0 < found["path"]["fetch_bytes"] < found["path"]["full_download_bytes"]
    assert (found["outcome"], found["reason"]) == ("updated" if with_daemon else "staged", None)
    text = installed.command("plan", "--explain").stdout
    assert "-> fp32" in text
    assert "(CPU)" in text
    journal = installed.journal()
    assert journal.pointers.candidate is None
    journal.close()


def test_a_plan_says_why_no_variant_fits(installed: DeviceUnderTest, publisher: Publisher) -> None:
    publisher.release("1.2.0", seed=1, extra='\n[variants.fp32.requires]\ncpu_features = ["sparkle"]\n')
    found = json.loads(installed.command("plan", "--json").stdout)
    assert (found["chosen"], found["path"], found["reason"]) == (None, None, "no-variant")
    assert found["outcome"] == _update_outcome(installed)
    assert found["variants"][0]["explanation"] == "needs the processor features sparkle"


def test_a_plan_ends_as_the_update_does(
    installed: DeviceUnderTest, publisher: Publisher, site: Site, tmp_path: Path
) -> None:
    def both(device: DeviceUnderTest) -> tuple[str, str | None]:
        plan = json.loads(device.command("plan", "--json").stdout)
        result = device.update()
        assert (plan["outcome"], plan["reason"] or "") == (result.outcome, result.reason), (plan, result)
        assert f"an update now: {plan['outcome']}" in device.command("plan").stdout
        return plan["outcome"], plan["reason"]

    assert both(installed) == ("nothing-new", None)
    for changes in ({"percent_bp": 0}, {"halted": True}, {"windows": (Window(1, 2),)}, {"cohorts": ("others",)}):
        publisher.offer("1.1.0", **changes)
        assert both(installed) == ("waiting", "not-eligible")
    publisher.offer("1.1.0")
    assert installed.command("pause").returncode == 0
    plan = json.loads(installed.command("plan", "--json").stdout)
    update = installed.command("update", "--json")
    assert (plan["outcome"], plan["reason"]) == ("unavailable", _error(update.stderr)["reason"])
    assert installed.command("resume").returncode == 0
    stranger = DeviceUnderTest.create(tmp_path / "stranger", site.url, publisher.root)
    assert both(stranger) == ("unavailable", "not-enrolled")


def test_energy_is_read_where_the_kernel_has_a_counter(tmp_path: Path) -> None:
    package, part = tmp_path / "powercap/intel-rapl:0", tmp_path / "powercap/intel-rapl:0:0"
    sensor = tmp_path / "hwmon/hwmon3"
    for folder, name, joules in ((package, "package-0", 2_500_000), (part, "core", 1_000_000)):
        folder.mkdir(parents=True)
        (folder / "name").write_text(f"{name}\n")
        (folder / "energy_uj").write_text(f"{joules}\n")
        (folder / "max_energy_range_uj").write_text("10000000\n")
    sensor.mkdir(parents=True)
    (sensor / "name").write_text("board\n")
    (sensor / "energy1_input").write_text("7000000\n")
    meters = open_energy_meters(tmp_path)
    assert [(meter.zone, meter.read_joules()) for meter in meters] == [("package-0", 2.5), ("board", 7.0)]
    (package / "energy_uj").write_text("1500000\n")
    assert meters[0].joules_since(2.5) == 9.0, "the counter was full at 10 J"
    assert open_energy_meters(tmp_path / "none") == ()


def test_a_process_is_metered_from_files_that_stay_open() -> None:
    meter = ProcessMeter.open()
    before = meter.cpu_s()
    sum(range(3_000_000))
    assert meter.cpu_s() >= before
    assert meter.resident_bytes() > 10e6
    meter.close()
