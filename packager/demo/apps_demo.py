"""`packager demo apps`: applications borrow the files of a release, and judge it.

1. A release of runtime "app" is installed. An unchanged program reads a file of it through `device-agent files exec`.
2. A Python application and, with a compiler, a C application borrow its files.
3. A second release comes as a patch. Both applications follow, and their verdict ends the probation.
4. A third release is bad. The agent rolls it back because of the verdict, and both applications follow.
5. No part of the files is found on the device's disk.
"""

import os
import random
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from bundle.frames import Secret
from keys.signers import load_folder_signers
from packager.demo.app_programs import DemoApp, c_command, python_command
from packager.demo.demo_device import DemoDevice, DeviceSettings
from packager.demo.demo_report import DemoCheck, check_line
from packager.demo.http_site import HttpSite
from packager.demo.plaintext_scan import find_plaintext_files
from packager.release.pipeline import run_release
from packager.release.release_file import parse_release_file
from packager.repository.creation import create_repository_with_new_keys
from packager.repository.devices import enroll_device
from packager.repository.repository import Repository

FAMILY: Final = "words"
WEIGHTS_BYTES: Final = 400_000
CHANGED_BYTES: Final = 400
PROBATION_WINDOW_S: Final = 60  # a verdict ends it at once
WORDS: Final = {"1.0.0": "yes\nno\n", "1.1.0": "yes\nno\nstop\n", "1.2.0": ""}
RELEASE_TOML: Final = """family = "{family}"
version = "{version}"
channels = ["stable"]
runtime = "app"
patches.from = 1
[[files]]
path = "words.txt"
role = "labels"
[[files]]
path = "weights.bin"
role = "model"
[variants.all]
[rollout]
percent = 100
"""


@dataclass(slots=True)
class AppsReport:
    """The object that `packager demo apps --json` prints.

    Attributes:
        has_compiler: whether a C application took part.
        patch_bytes: bytes of the update's patch.
        full_bytes: bytes of a full download instead.
        verdict: the application's reason against the bad release.
        checks: the checks, in order.
        seconds: duration of the demo.
    """

    has_compiler: bool = False
    patch_bytes: int = 0
    full_bytes: int = 0
    verdict: str = ""
    checks: list[DemoCheck] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def has_passed(self) -> bool:
        """True if there are checks and all passed."""
        return bool(self.checks) and all(check.passed for check in self.checks)


class AppsDemo:
    """A repository, a device and its applications.

    Args:
        folder: an empty folder; the caller removes it.
        print_line: prints one line of progress.
    """

    def __init__(self, folder: Path, print_line: Callable[[str], None]) -> None:
        self._folder, self._print_line = folder, print_line
        self._passphrase = Secret(b"a passphrase for the demo alone")
        self._weights = bytearray(random.Random(1).randbytes(WEIGHTS_BYTES))  # noqa: S311  # not a secret
        self._apps: list[DemoApp] = []
        self.report = AppsReport()

    def play(self) -> AppsReport:
        """Run the demo and return its report."""
        began = time.monotonic()
        with ExitStack() as stack:
            self._print_line("[1] a repository, a device, and release 1.0.0: a list of words and weights")
            repository, keys = self._folder / "repository", self._folder / "keys"
            create_repository_with_new_keys(repository, keys, self._passphrase, [FAMILY])
            self._signers = load_folder_signers(keys, self._passphrase)
            self._repository = Repository.open(repository)
            self._release("1.0.0")
            site = HttpSite(self._repository.published)
            stack.callback(site.stop)
            device = self._device = self._make_device(site.url, keys)
            stack.callback(device.stop)
            device.start()
            self._install("1.0.0")
            self._run_unchanged_program()
            self._print_line("[2] applications borrow the files")
            self._start_apps(stack)
            self._follow("1.0.0")
            self._print_line("[3] release 1.1.0, a patch; the applications judge it")
            self._update_by_patch()
            self._print_line("[4] release 1.2.0, without a word")
            self._refuse_bad_release()
            self._print_line("[5] the device's disk")
            self._search_plaintext()
        self.report.seconds = round(time.monotonic() - began, 1)
        return self.report

    def _release(self, version: str) -> None:
        folder = self._folder / f"release-{version}"
        folder.mkdir()
        changing = random.Random(version)  # noqa: S311  # not a secret
        for _ in range(CHANGED_BYTES):
            self._weights[changing.randrange(WEIGHTS_BYTES)] ^= 1 << changing.randrange(8)
        (folder / "weights.bin").write_bytes(self._weights)
        (folder / "words.txt").write_text(WORDS[version], "utf-8")
        (folder / "release.toml").write_text(RELEASE_TOML.format(family=FAMILY, version=version), "utf-8")
        run_release(parse_release_file(folder / "release.toml"), self._repository, self._signers, None, until="sign")
        self._repository.publish()

    def _make_device(self, url: str, keys: Path) -> DemoDevice:
        settings = DeviceSettings(url, FAMILY, "default", "auto", PROBATION_WINDOW_S, 0)
        device = DemoDevice(self._folder / "device", settings)
        device.init(self._repository.published / "metadata" / "1.root.json")
        device.allow_judges(FAMILY, [f"user:{os.getuid()}"])
        request = self._folder / "request.json"
        fingerprint = str(device.enroll(request)["fingerprint"])
        enroll_device(self._repository, request.read_bytes(), fingerprint, "default", keys, self._passphrase)
        self._repository.sign(self._signers)
        self._repository.publish()
        return device

    def _install(self, version: str) -> None:
        found = self._device.update()
        self._check(
            "the release is installed",
            (found.get("outcome"), found.get("release")) == ("updated", version),
            f"{found.get('outcome')} {found.get('release')} {found.get('detail') or ''}".strip(),
        )

    def _run_unchanged_program(self) -> None:
        shown = self._device.run_on_files("sort", "-r", "{labels}")
        self._check("an unchanged program reads a borrowed file", shown == "yes\nno\n", repr(shown))

    def _start_apps(self, stack: ExitStack) -> None:
        commands = {"Python": python_command(self._folder), "C": c_command(self._folder)}
        self.report.has_compiler = commands["C"] is not None
        for name, command in commands.items():
            if command is None:
                self._print_line(f"   no {name} application: there is no compiler")
                continue
            words = [*command, str(self._device.apps_socket), FAMILY]
            app = DemoApp(name, words, self._folder / f"app-{name}.log")
            stack.callback(app.stop)
            self._apps.append(app)

    def _follow(self, version: str) -> None:
        line = f"{version} {len(WORDS[version].splitlines())}"
        for app in self._apps:
            self._check(f"the {app.name} application has {version}", app.wait_for_line(line), f"printed {line!r}")

    def _update_by_patch(self) -> None:
        self._release("1.1.0")
        found, report = self._device.update(), self.report
        report.patch_bytes, report.full_bytes = int(found["patch_bytes"]), int(found["full_download_bytes"])
        probation = found.get("probation") or {}
        self._check(
            "the update is a patch, and an application's verdict ends its probation",
            (found.get("outcome"), probation.get("verdict"), probation.get("unit")) == ("updated", "passed", "verdicts")
            and report.patch_bytes < report.full_bytes / 10,
            f"{found.get('outcome')}, {found.get('detail')}; {report.patch_bytes:,} of {report.full_bytes:,} bytes",
        )
        self._follow("1.1.0")

    def _refuse_bad_release(self) -> None:
        self._release("1.2.0")
        found = self._device.update()
        self.report.verdict = str(found.get("detail") or "")
        self._check(
            "the bad release is rolled back by the application's own verdict",
            found.get("outcome") == "rolled-back" and self.report.verdict.endswith("no words"),
            f"{found.get('outcome')}: {self.report.verdict}",
        )
        self._follow("1.1.0")

    def _search_plaintext(self) -> None:
        files = list(find_plaintext_files(self._device.directory, bytes(self._weights)))
        checked = sum(path.is_file() for path in self._device.directory.rglob("*"))
        shown = f"0 of {checked} files contain a part of it" if not files else ", ".join(map(str, files))
        self._check("no plaintext is on the device's disk", not files and checked > 0, shown)

    def _check(self, name: str, passed: bool, observed: str) -> None:
        check = DemoCheck(name, passed, observed)
        self.report.checks.append(check)
        self._print_line(f"   {check_line(check)}")
