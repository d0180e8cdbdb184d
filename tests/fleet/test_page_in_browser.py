"""A browser shows the collector's pages: no console error, nothing requested elsewhere, all text as text."""

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from bundle.rollout import Rollout
from tests.support.fleet_devices import SigningDevice
from tests.support.fleet_server import FleetServer, run_fleet_server

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
NOTE = "<script>document.title='hacked'</script>"
FAILURE = {"outcome": "rolled-back", "state": "probation", "reason": "probation-failed"}

pytestmark = pytest.mark.skipif(BROWSER is None, reason="Chromium is not installed (Debian: chromium)")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FleetServer]:
    devices = [SigningDevice(f"camera-{number}") for number in range(60)]
    rollout = Rollout("kws", "stable", "1.1.0", 2, "a" * 64, percent_bp=2_500, note=NOTE, halted=True)
    with run_fleet_server(tmp_path_factory.mktemp("fleet"), devices, (rollout,)) as running:
        lines = [device.report() for device in devices]
        for number, device in enumerate(devices[:40]):
            lines.append(device.report(release="1.1.0", counter=2, **(FAILURE if number < 15 else {})))
        assert running.request("/v1/lines", b"\n".join(lines)).status == 200
        yield running


def browse(url: str, profile: Path) -> tuple[str, str]:
    """Return the document as the browser has it, and its log."""
    command = [str(BROWSER), "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--dump-dom"]
    found = subprocess.run(
        [*command, f"--user-data-dir={profile}", url], capture_output=True, text=True, timeout=120, check=True
    )
    return found.stdout, found.stderr


@pytest.mark.parametrize("path", ["/", "/release/kws/stable/1.1.0"])
def test_a_browser_shows_the_page_without_an_error(server: FleetServer, path: str, tmp_path: Path) -> None:
    page, log = browse(server.url + path, tmp_path)
    assert "CONSOLE" not in log, log
    assert "hacked" not in re.findall("<title>(.*?)</title>", page)[0]
    assert "<script" not in page
    assert 'role="status"' in page
    assert page.count("<rect") >= 3
    assert "probation-failed" in page or "halted" in page
    addresses = set(re.findall(r'(?:src|href|action)="([^"]*)"', page))
    assert all(address.startswith(("/", "#")) for address in addresses), addresses


def test_every_page_can_be_used_with_the_keyboard_alone(server: FleetServer, tmp_path: Path) -> None:
    page, _ = browse(f"{server.url}/", tmp_path)
    assert page.index('class="skip"') < page.index("<nav"), "the first stop leads to the content"
    assert "onclick" not in page
    assert re.findall('tabindex="[1-9]', page) == []
    for table in re.findall("<table.*?</table>", page, re.DOTALL):
        assert 'scope="col"' in table
        assert 'scope="row"' in table
