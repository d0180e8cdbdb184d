"""The cohort benchmark writes the documented fields, and extrapolates linearly."""

import json
import os
import subprocess
import sys
from pathlib import Path

from benchmarks.cohort_rotation import extrapolate

FIELDS = {"devices", "seconds", "cpu_s", "bytes", "peak_bytes", "per_device_us"}
ENVELOPE_BYTES = 1240  # magic, encapsulated key, an X-Wing private key and its tag: bundle.envelope rule 2


def test_the_command_writes_one_object_of_the_fields_that_are_promised(tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    words = [
        sys.executable,
        "-m",
        "benchmarks.cohort_rotation",
        "--devices",
        "40",
        "--plan",
        "4000",
        "--json",
        os.fspath(out),
    ]
    subprocess.run(words, check=True, cwd=Path(__file__).parents[2], timeout=120)
    found = json.loads(out.read_text())
    assert found.keys() == FIELDS | {"plan"}
    assert found["plan"].keys() == FIELDS
    assert (found["devices"], found["bytes"]) == (40, 40 * ENVELOPE_BYTES)
    assert (found["plan"]["devices"], found["plan"]["bytes"]) == (4000, 4000 * ENVELOPE_BYTES)
    assert found["seconds"] > 0
    assert found["cpu_s"] > 0
    assert found["peak_bytes"] > 2**20


def test_a_plan_is_the_straight_line_through_both() -> None:
    small = {"devices": 10, "seconds": 2.0, "cpu_s": 3.0, "bytes": 100, "peak_bytes": 1000, "per_device_us": 0.0}
    large = {"devices": 110, "seconds": 12.0, "cpu_s": 13.0, "bytes": 1100, "peak_bytes": 2000, "per_device_us": 0.0}
    assert extrapolate(small, large, 1010) == {
        "devices": 1010,
        "seconds": 102.0,
        "cpu_s": 103.0,
        "bytes": 10_100,
        "peak_bytes": 11_000,
        "per_device_us": round(102e6 / 1010, 1),
    }
