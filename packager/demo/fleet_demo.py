"""`packager demo fleet`: a dozen real agents, and a release that fails live on one CPU class.

1. A release is installed on all devices; they send a vital to a collector.
2. A second release is rolled out under a signed plan. On CPU class B, its variant returns NaN for live requests, so the
   devices roll back and report it.
3. The follower halts the rollout by itself. Class A keeps the second release, class B serves the first one, and no
   request fails. The decision is computed again from its evidence.

The fleet is too small for the default rates: the plan states its own, and an advance would be a person's.
"""

import threading
import time
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from bundle.cpu_features import CPUINFO_VARIABLE, read_cpu_features
from bundle.frames import Secret
from keys.signers import load_folder_signers
from packager.demo.collector import Collector
from packager.demo.demo_device import PROBATION_TOML, AgentUnavailable, DemoDevice, DeviceSettings
from packager.demo.demo_report import DemoCheck
from packager.demo.fleet_models import live_input, write_models
from packager.demo.http_site import HttpSite
from packager.demo.inference_client import InferenceClient, InferenceUnavailable
from packager.follow.evidence import recompute
from packager.follow.follower import Follower
from packager.follow.lines import StoreLines
from packager.release.pipeline import run_release
from packager.release.release_file import parse_release_file
from packager.repository.creation import create_repository_with_new_keys
from packager.repository.devices import enroll_device
from packager.repository.planned_rollout import make_plan, next_rollout
from packager.repository.repository import Repository

FAMILY: Final = "fleet"
CHANNEL: Final = "stable"
DEVICES: Final = 12
WORKERS: Final = 4
IDLE_RATE_HZ: Final = 1.0
UPDATE_RATE_HZ: Final = 8.0  # enough requests for the probation
PREFERRED_FLAGS: Final = ("avx2", "sse4_2", "asimd")


@dataclass(slots=True)
class FleetReport:
    """The object that `packager demo fleet --json` prints.

    Attributes:
        halted_after_s: seconds from the publication of the rollout to that of the halt, or None.
        failing_devices: devices that installed the failing variant.
        spared_devices: devices of the failing class that the halt spared.
        requests_sent: requests to all devices.
        requests_failed: requests without outputs.
        evidence: digest of the halt's evidence.
        picture: the saved page of the collector, or None.
        checks: the checks, in order.
        seconds: duration of the demo.
    """

    halted_after_s: float | None = None
    failing_devices: int = 0
    spared_devices: int = 0
    requests_sent: int = 0
    requests_failed: int = 0
    evidence: str | None = None
    picture: str | None = None
    checks: list[DemoCheck] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def has_passed(self) -> bool:
        """True if there are checks and all passed."""
        return bool(self.checks) and all(check.passed for check in self.checks)


class FleetDemo:
    """A repository, a collector, a follower and a dozen agents.

    Args:
        folder: an empty folder; the caller removes it.
        print_line: prints one line of progress.
        devices: number of devices, every other one of the failing class, which has one more if the number is odd.
    """

    def __init__(self, folder: Path, print_line: Callable[[str], None], devices: int = DEVICES) -> None:
        self._count = devices
        self._folder, self._print_line = folder, print_line
        self._keys, self._repository_folder = folder / "keys", folder / "repository"
        self._passphrase = Secret(b"a passphrase for the demo alone")
        self.report = FleetReport()
        self._devices: list[FleetDevice] = []

    def play(self, picture: Path | None) -> FleetReport:
        """Run the demo and return its report.

        Args:
            picture: file for the collector's page, or None.
        """
        began = time.monotonic()
        with ExitStack() as stack:
            self._print_line("[1] a repository, and release 1.0.0")
            create_repository_with_new_keys(self._repository_folder, self._keys, self._passphrase, [FAMILY])
            self._signers = load_folder_signers(self._keys, self._passphrase)
            self._repository = Repository.open(self._repository_folder)
            self._release("1.0.0", 1, rolled_out=True, is_bad=False)
            site = HttpSite(self._repository.published)
            stack.callback(site.stop)
            self._print_line(f"[2] a collector and {self._count} agents, half of them without a CPU feature")
            self._make_devices(site.url)
            collector = Collector(self._repository_folder, self._folder / "fleet.db", self._folder / "collector.log")
            stack.callback(collector.stop)
            with ThreadPoolExecutor(WORKERS) as pool:
                for device in self._devices:
                    stack.callback(device.stop)
                list(pool.map(lambda device: device.install(collector.url), self._devices))
            self._print_line("[3] release 1.1.0, which fails live on one CPU class, under a plan")
            self._release("1.1.0", 2, rolled_out=False, is_bad=True)
            self._roll_out(collector, picture)
        self.report.seconds = round(time.monotonic() - began, 1)
        return self.report

    def _release(self, version: str, seed: int, *, rolled_out: bool, is_bad: bool) -> None:
        folder = self._folder / f"release-{version}"
        folder.mkdir()
        write_models(folder, seed, is_bad=is_bad)
        flags = read_cpu_features()
        self._flag = next((flag for flag in PREFERRED_FLAGS if flag in flags), min(flags, default=""))
        text = (
            f'family = "{FAMILY}"\nversion = "{version}"\nchannels = ["{CHANNEL}"]\nmodel = "fast.onnx"\n'
            'inputs = "inputs.npz"\ngolden = 4\n[variants.fast]\nmodel = "fast.onnx"\n'
            f'requires.cpu_features = ["{self._flag}"]\n{PROBATION_TOML}'
            f'[variants.basic]\nmodel = "basic.onnx"\n{PROBATION_TOML}'
        )
        (folder / "release.toml").write_text(text + ("[rollout]\npercent = 100\n" if rolled_out else ""), "utf-8")
        run_release(parse_release_file(folder / "release.toml"), self._repository, self._signers, None, until="sign")
        self._repository.publish()

    def _make_devices(self, url: str) -> None:
        masked = self._folder / "cpuinfo-b"
        text = Path("/proc/cpuinfo").read_text("utf-8", "replace")
        words = {
            self._flag,
            *(flag for flag in PREFERRED_FLAGS),
            "vnni",
            "avx512f",
            "avx512_vnni",
            "avx_vnni",
            "amx_int8",
        }
        masked.write_text(_without(text, words), "utf-8")
        root = self._repository.published / "metadata" / "1.root.json"
        self._devices = [
            FleetDevice(self._folder / f"device-{number:02}", url, None if number % 2 else masked)
            for number in range(self._count)
        ]
        with ThreadPoolExecutor(WORKERS) as pool:
            requests = list(pool.map(lambda device: device.create(root), self._devices))
        for request, fingerprint in requests:
            enroll_device(self._repository, request, fingerprint, "default", self._keys, self._passphrase)
        self._repository.sign(self._signers)
        self._repository.publish()

    def _roll_out(self, collector: Collector, picture: Path | None) -> None:
        repository, report = self._repository, self.report
        manifest = repository.manifest(FAMILY, "1.1.0")
        before = repository.published_rollout(FAMILY, CHANNEL)
        assert manifest is not None
        plan = make_plan(
            manifest,
            CHANNEL,
            before,
            stages_bp=(10_000,),
            accept_ppm=20_000,
            refuse_ppm=200_000,
            alpha_ppm=100_000,
            beta_ppm=100_000,
            base_ceiling_ppm=100_000,
            soak_s=86_400,
        )
        repository.stage_plan(plan)
        repository.sign(self._signers)
        repository.publish()
        time.sleep(1.1)  # the vitals were received before the rollout begins, in whole seconds
        rollout = next_rollout(manifest, CHANNEL, before, plan, int(time.time()))
        repository.publish_rollout(rollout, before, self._signers)
        began = time.monotonic()
        follower = Follower(repository, StoreLines(collector.store, repository.repository_id), self._signers)
        for device in self._devices:
            device.traffic.start()
        time.sleep(1)
        updated: list[FleetDevice] = []
        for device in self._devices:
            update = device.update()
            self._print_line(
                f"   {device.name} ({device.cpu_class}): {update.get('outcome')} {update.get('reason') or ''}"
            )
            if update.get("outcome") in ("updated", "rolled-back"):
                updated.append(device)
            device.send()
            action = follower.step([(FAMILY, CHANNEL)])[0]
            if action.published is not None and report.halted_after_s is None:
                report.halted_after_s = round(time.monotonic() - began, 1)
                report.evidence = action.evidence
                self._print_line(f"   HALTED: {action.look.decision.text if action.look else ''}")
        versions = {device.name: device.version() for device in self._devices}
        for device in self._devices:
            sent, failed = device.traffic.stop()
            report.requests_sent += sent
            report.requests_failed += failed
        self._judge(updated, versions)
        if picture is not None:
            with urllib.request.urlopen(f"{collector.url}/", timeout=30) as page:  # noqa: S310  # our own collector
                picture.write_bytes(page.read())
            report.picture = str(picture)

    def _judge(self, updated: list["FleetDevice"], versions: dict[str, str]) -> None:
        report = self.report
        class_b = [device for device in self._devices if device.cpu_class == "B"]
        hit = [device for device in updated if device.cpu_class == "B"]
        report.failing_devices = len(hit)
        report.spared_devices = len(class_b) - len(hit)
        kept = [device for device in updated if device.cpu_class == "A"]
        self._check("the rollout halted by itself", report.halted_after_s is not None, f"{report.halted_after_s} s")
        self._check("the halt spared devices of class B", report.spared_devices > 0, f"{report.spared_devices} spared")
        old = {versions[device.name] for device in class_b}
        self._check("class B serves the earlier release", old == {"1.0.0"}, ", ".join(sorted(old)))
        new = {versions[device.name] for device in kept}
        self._check("class A keeps its release", new == {"1.1.0"}, f"{len(kept)} devices: {', '.join(sorted(new))}")
        failed = f"{report.requests_failed} of {report.requests_sent}"
        self._check("no request failed", report.requests_sent > 0 and not report.requests_failed, failed)
        files = sorted((self._repository_folder / "evidence").rglob("*.gz"))
        if files:
            look, digest = recompute(files[0], self._repository.registry_path)
            is_same = look.decision.word == "halt" and digest == report.evidence
            self._check("the evidence leads to the halt again", is_same, digest[:16])

    def _check(self, name: str, passed: bool, observed: str) -> None:
        self.report.checks.append(DemoCheck(name, passed, observed))


class FleetDevice:
    """One device of the fleet demo.

    Args:
        folder: folder to create.
        url: URL of the repository.
        cpuinfo: file with the processor that the agent sees, or None for the real one.
    """

    def __init__(self, folder: Path, url: str, cpuinfo: Path | None) -> None:
        self.name, self._folder = folder.name, folder
        self.cpu_class = "A" if cpuinfo is None else "B"
        environment = {} if cpuinfo is None else {CPUINFO_VARIABLE: str(cpuinfo)}
        settings = DeviceSettings(url, FAMILY, "default", "auto", 2, 5)
        self._device = DemoDevice(folder, settings, environment)
        self.traffic = FleetTraffic(self._device)

    def create(self, root: Path) -> tuple[bytes, str]:
        """Create the device and return its enrollment request and fingerprint."""
        self._device.init(root)
        request = self._folder / "request.json"
        fingerprint = str(self._device.enroll(request)["fingerprint"])
        return request.read_bytes(), fingerprint

    def install(self, collector_url: str) -> None:
        """Start the agent, install the release, and send a vital.

        Raises:
            AgentUnavailable: the agent failed, or installed nothing.
        """
        self._device.report_to(collector_url)
        self._device.start()
        for _ in range(3):
            update = self._device.update()
            if update.get("outcome") in ("updated", "nothing-new"):
                break
        else:
            raise AgentUnavailable(f"{self.name} installed nothing: {update.get('detail')}")
        self.send()

    def update(self) -> dict[str, object]:
        """Run an update under load, again while it is inconclusive, and return its result."""
        self.traffic.rate_hz = UPDATE_RATE_HZ
        for _ in range(3):
            found = self._device.update()
            if found.get("outcome") != "inconclusive":
                break
        self.traffic.rate_hz = IDLE_RATE_HZ
        return found

    def send(self) -> None:
        """Send reports and a vital to the collector now."""
        self._device.send_reports()

    def version(self) -> str:
        """Return the version that serves."""
        client = InferenceClient(self._device.address, FAMILY)
        try:
            return client.infer(live_input(0)).version
        except InferenceUnavailable as error:
            return error.message
        finally:
            client.close()

    def stop(self) -> None:
        """Stop the traffic and the agent."""
        self.traffic.stop()
        self._device.stop()


class FleetTraffic:
    """Requests to one device, from a thread.

    Args:
        device: the device.

    Attributes:
        rate_hz: requests per second; can be changed at any time.
    """

    def __init__(self, device: DemoDevice) -> None:
        self._device, self.rate_hz = device, IDLE_RATE_HZ
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self._sent = self._failed = 0

    def start(self) -> None:
        """Start to send requests."""
        self._thread = threading.Thread(target=self._run, name="traffic", daemon=True)
        self._thread.start()

    def stop(self) -> tuple[int, int]:
        """Stop the thread, and return the numbers of sent and failed requests."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join()
        return self._sent, self._failed

    def _run(self) -> None:
        client = InferenceClient(self._device.address, FAMILY)
        try:
            while not self._stopping.wait(1 / self.rate_hz):
                self._sent += 1
                try:
                    client.infer(live_input(self._sent))
                except InferenceUnavailable:
                    self._failed += 1
        finally:
            client.close()


def _without(text: str, words: set[str]) -> str:
    """Return a text without some words; line ends stay."""
    return "\n".join(" ".join(word for word in line.split(" ") if word not in words) for line in text.split("\n"))
