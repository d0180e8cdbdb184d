"""The benchmark of an abused endpoint runs, and its good client loses no request."""

import json
import subprocess
import sys
from pathlib import Path


def test_a_good_client_loses_no_request_beside_abusive_ones(tmp_path: Path) -> None:
    text = "--idle 1100 --slow 40 --held 5 --held-bytes 1000000 --busy 2 --large 1 --reconnects 20 --seconds 1"
    words = text.split()
    out = tmp_path / "out.json"
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.endpoint_abuse", *words, "--json", str(out)],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(out.read_text())
    for run in ("alone", "abuse", "busy", "large"):
        for client in ("keep_alive", "new_connections"):
            assert found[run][client]["failed"] == 0
            assert found[run][client]["requests"] > 0
    assert found["abuse"]["connections"] <= 1025
