"""The environment of the demo: repository, web server, device, load; and the scenes' actions."""

import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Final

from bundle.frames import Secret
from bundle.manifest import Manifest
from bundle.rollout import Rollout
from keys.signers import load_folder_signers
from packager.demo.demo_device import PROBATION_TOML, DemoDevice, Report
from packager.demo.demo_models import DemoModels, Prediction, live_samples
from packager.demo.demo_report import DemoCheck, DemoReport, check_line
from packager.demo.http_site import HttpSite
from packager.demo.inference_client import InferenceClient, InferenceUnavailable
from packager.demo.traffic import Latency, LoadRequest, Traffic, monotonic_s
from packager.release.draft import Reporter, SilentReporter
from packager.release.pipeline import run_release
from packager.release.release_file import parse_release_file
from packager.release.release_report import ReleaseReport
from packager.repository.devices import enroll_device
from packager.repository.repository import Repository

if TYPE_CHECKING:
    from securesystemslib.signer import Signer

COHORT: Final = "default"
CHANNEL: Final = "stable"
FP32_TOML: Final = f"[variants.fp32]\n{PROBATION_TOML}"
INT8_TOML: Final = f'[variants.int8]\nscheme = "int8"\n{PROBATION_TOML}'
MAX_RATE_HZ: Final = 40.0
LOAD_SHARE: Final = 0.25  # of one model process's time: enough to notice a swap, without queueing
RATE_PROBES: Final = 5
PROBATION_WINDOW_S: Final = 2  # 16 requests at 8 Hz; a bad response ends the probation at once
PROBATION_MIN_REQUESTS: Final = 5
MAX_UPDATE_TRIES: Final = 4  # if a probe is inconclusive, because other programs use the CPU
SETTLE_TIME_S: Final = 1.0  # duration of load before and after an update, to compare latencies

PrintLine = Callable[[str], None]


class DemoWorld:
    """The environment of a running demo.

    Args:
        folder: an empty folder; the caller removes it.
        models: models and inputs.
        print_line: prints one line of progress.
    """

    def __init__(self, folder: Path, models: DemoModels, print_line: PrintLine) -> None:
        self.report = DemoReport()
        self._folder, self._models, self._print_line = folder, models, print_line
        self._keys = folder / "keys"
        self._passphrase = Secret(b"a passphrase for the demo alone")
        self._repository_folder = folder / "repository"
        self._repository: Repository | None = None
        self._site: HttpSite | None = None
        self._device: DemoDevice | None = None
        self._traffic: Traffic | None = None
        self._signers: list[Signer] = []
        self._next_release: Future[ReleaseReport]
        self._builder = ThreadPoolExecutor(1, thread_name_prefix="release")
        self._scene_number = 0
        self._installed_variant = ""
        self._variants_toml = FP32_TOML + INT8_TOML  # the next release builds these variants

    @property
    def _repo(self) -> Repository:
        assert self._repository is not None
        return self._repository

    @property
    def _running_site(self) -> HttpSite:
        assert self._site is not None
        return self._site

    @property
    def _running_device(self) -> DemoDevice:
        assert self._device is not None
        return self._device

    def _release(
        self,
        version: str,
        model: Path,
        base: str | None,
        *,
        reused_version: str | None = None,
        drill: str | None = None,
    ) -> ReleaseReport:
        """Create and publish a release.

        Args:
            version: version of the release.
            model: its float model.
            base: version to patch from.
            reused_version: release whose quantized model is shipped again, in the device's variant only; None quantizes
                the model.
            drill: fire drill of the release, or None.
        """
        steps = _StepPrinter(version, self._print_indented)
        report = self._finish_release(
            self._start_release(version, model, base, reused_version=reused_version, drill=drill, reporter=steps)
        )
        self._print_indented(f"release {version}: publish")
        self._repo.publish()
        return report

    def _start_release(
        self,
        version: str,
        model: Path,
        base: str | None,
        *,
        reused_version: str | None = None,
        drill: str | None = None,
        raises_floor: bool = False,
        reporter: Reporter | None = None,
    ) -> "Future[ReleaseReport]":
        """Create and sign a release in another thread, without publishing it; arguments as of `_release`."""
        variants = self._variants_toml if reused_version is None else self._reused_variant_toml(reused_version)
        path = self._folder / f"release-{version}.toml"
        floor = self._repo.next_counter(self._models.family) if raises_floor else None
        path.write_text(_release_toml(self._models, version, model, variants, drill, floor, base), "utf-8")
        return self._builder.submit(
            run_release, parse_release_file(path), self._repo, self._load_signers(), reporter, until="sign"
        )

    def _finish_release(self, started: "Future[ReleaseReport]") -> ReleaseReport:
        """Wait for a release to be signed, and record its sizes and seconds."""
        report = started.result()
        assert report.manifest is not None
        self._set_seconds(f"release-{report.version}", sum(report.seconds.values()))
        self.report.bytes[report.version] = {name: _download_sizes(report.manifest, name) for name in report.variants}
        return report

    def _reused_variant_toml(self, version: str) -> str:
        name = self._installed_variant
        if name == "fp32":
            return FP32_TOML
        return f"[variants.{name}]\nmodel = {json.dumps(str(self._shipped_model(version, name)))}\n{PROBATION_TOML}"

    def _shipped_model(self, version: str, variant_name: str) -> Path:
        """Return the model file of a release's bundle."""
        variant = self._manifest(version).variant(variant_name)
        assert variant is not None
        kept = self._repository_folder / "private" / "bundles" / self._models.family / variant.digest
        return kept / variant.require_model().file

    def _load_signers(self) -> "list[Signer]":
        """Return the signers of all keys; the key files are decrypted once."""
        if not self._signers:
            self._signers = load_folder_signers(self._keys, self._passphrase)
        return self._signers

    def _manifest(self, version: str) -> Manifest:
        manifest = self._repo.manifest(self._models.family, version)
        assert manifest is not None
        return manifest

    def _sign_rollout(self, rollout: Rollout, *, forged: bool = False) -> None:
        self._repo.stage_rollout(rollout, forged=forged)
        self._repo.sign(self._load_signers())
        self._repo.publish(check_clients=not forged)

    def _enroll(self, request: Path, fingerprint: str) -> None:
        enroll_device(self._repo, request.read_bytes(), fingerprint, COHORT, self._keys, self._passphrase)
        self._repo.sign(self._load_signers())
        self._repo.publish()

    @contextmanager
    def _run_load(self) -> Iterator["LoadRecord"]:
        load = LoadRecord()
        self._traffic = Traffic(
            self._running_device.address, self._models.family, self._models.live_inputs, self._rate_hz()
        )
        yield load
        load.requests = self._traffic.stop()
        self._traffic = None

    def _update(self) -> Report:
        """Run an update, again while its probe is inconclusive; return the last with all downloads."""
        downloads = dict.fromkeys(("download_bytes", "full_download_bytes"), 0)
        for attempt in range(1, MAX_UPDATE_TRIES + 1):
            update = self._running_device.update()
            for name in downloads:  # a second attempt finds the blobs of the first one, and downloads nothing
                downloads[name] = max(downloads[name], int(update.get(name) or 0))
            if update.get("outcome") != "inconclusive" or attempt == MAX_UPDATE_TRIES:
                break
            self._print_indented(f"inconclusive, trying again: {update.get('detail')}")
        return {**update, **downloads}

    def _rate_hz(self) -> float:
        client = InferenceClient(self._running_device.address, self._models.family)
        try:
            (sample,) = live_samples(self._models.live_inputs, 1)
            times = []
            for _ in range(RATE_PROBES):
                start = monotonic_s()
                client.infer(sample)
                times.append(monotonic_s() - start)
            return min(MAX_RATE_HZ, LOAD_SHARE / median(times))
        finally:
            client.close()

    def _predict(self) -> list[Prediction]:
        client = InferenceClient(self._running_device.address, self._models.family)
        try:
            out = []
            samples = live_samples(self._models.live_inputs, len(self._models.live_names))
            for name, sample in zip(self._models.live_names, samples, strict=True):
                label, score = self._models.read_prediction(client.infer(sample).outputs)
                out.append(Prediction(name, label, round(score, 6)))
            return out
        finally:
            client.close()

    def _serving_version(self) -> str:
        client = InferenceClient(self._running_device.address, self._models.family)
        try:
            return client.infer(live_samples(self._models.live_inputs, 1)[0]).version
        except InferenceUnavailable as error:
            return error.message
        finally:
            client.close()

    def _flip_byte(self, path: str) -> bytes:
        data = bytearray((self._repo.published / path).read_bytes())
        data[len(data) // 2] ^= 1
        return bytes(data)

    def _check_refusal(self, attempt: str, update: Report, *, expected_version: str) -> None:
        outcome, reason = str(update.get("outcome")), str(update.get("reason"))
        self.report.refusals.append({"attempt": attempt, "reason": reason})
        self._print_indented(f"{attempt}: {outcome}, {reason}: {update.get('detail') or ''}")
        serving = self._serving_version()
        self._add_check(
            f"rejected, old model serves: {attempt}",
            outcome in ("refused", "unfit", "unavailable") and serving == expected_version,
            f"{reason}, serving {serving}",
        )

    def _print_variants(self, report: ReleaseReport) -> None:
        for name, row in report.variants.items():
            sizes = self.report.bytes[report.version][name]
            self._print_indented(
                f"{name}: uncompressed {row['plain_size']:,} bytes, full download {sizes['full']:,} bytes"
                + (f", patch {sizes['patch']:,} bytes" if sizes["patch"] < sizes["full"] else "")
            )
            gate = row.get("gate")
            if isinstance(gate, dict):
                figures = ((k, gate.get(k)) for k in ("relative_rms", "top1_agreement"))
                shown = ", ".join(f"{key.replace('_', ' ')} {x:.4f}" for key, x in figures if isinstance(x, float))
                self._print_indented(f"    accuracy gate: {gate.get('verdict')}, {shown}")
            quantized = row.get("report")
            if isinstance(quantized, dict) and isinstance(quantized.get("latency"), dict):
                times = quantized["latency"]
                self.report.latency[f"{report.version} {name} against float"] = times
                self._print_indented(
                    f"    latency on this machine: float {times['float_ms']:.2f} ms, "
                    f"{name} {times['quantized_ms']:.2f} ms"
                )
        for name, reason in report.dropped.items():
            self._print_indented(f"{name} is left out: {reason}")

    def _print_update(self, update: Report) -> None:
        phases = ", ".join(f"{phase} {spent / 1000:.2f} s" for phase, spent in (update.get("phases_ms") or {}).items())
        fetched, full = update.get("download_bytes"), update.get("full_download_bytes")
        self._print_indented(
            f"{update.get('outcome')}: {update.get('release')} {update.get('variant')}, downloaded {fetched} bytes "
            f"(full download {full} bytes)"
        )
        self._print_indented(f"phases: {phases}")

    @contextmanager
    def _record_time(self, step: str) -> Iterator[None]:
        start = time.monotonic()
        yield
        self._set_seconds(step, time.monotonic() - start)

    def _set_seconds(self, step: str, seconds: float) -> None:
        self.report.seconds[step] = round(seconds, 2)
        self._print_indented(f"{step}: {seconds:.1f} s")

    def _print_title(self, text: str) -> None:
        self._scene_number += 1
        self._print_line("")
        self._print_line(f"[{self._scene_number}] {text}")

    def _print_indented(self, text: str) -> None:
        self._print_line(f"   {text}")

    def _add_check(self, name: str, passed: bool, observed: str) -> None:
        check = DemoCheck(name, passed, observed)
        self.report.checks.append(check)
        self._print_indented(check_line(check))


class _StepPrinter(SilentReporter):
    """Prints the name of each step of a release when it starts."""

    def __init__(self, version: str, print_line: PrintLine) -> None:
        self._version, self._print_line = version, print_line

    def step(self, name: str, number: int, count: int) -> None:
        self._print_line(f"release {self._version}: {name} ({number} of {count})")


@dataclass(slots=True)
class LoadRecord:
    """The requests of one load phase, available after its context has ended."""

    requests: tuple[LoadRequest, ...] = ()


def _release_toml(
    models: DemoModels, version: str, model: Path, variants: str, drill: str | None, floor: int | None, base: str | None
) -> str:
    def quoted(value: object) -> str:
        return json.dumps(str(value), ensure_ascii=False)  # a TOML basic string is written like a JSON string

    lines = [
        f"family = {quoted(models.family)}",
        f"version = {quoted(version)}",
        f"channels = [{quoted(CHANNEL)}]",
        f"model = {quoted(model)}",
        f"inputs = {quoted(models.build_inputs)}",
        *([f"min_counter = {floor}"] if floor is not None else []),
        *([f"drill = {quoted(drill)}"] if drill is not None else []),
        *(
            f"[[files]]\npath = {quoted(path)}\nrole = {quoted(role)}\nname = {quoted(name)}"
            for path, role, name in models.extra_files
        ),
        variants,
        "[patches]",
        f"from = [{quoted(base) if base else ''}]",
        "[rollout]",
        "percent = 100",
    ]
    return "\n".join(lines) + "\n"


def _download_sizes(manifest: Manifest, variant: str) -> dict[str, int]:
    found = manifest.variant(variant)
    assert found is not None
    full = min(patch.size for patch in found.patches if patch.base is None)
    return {"patch": min(patch.size for patch in found.patches), "full": full}


def make_rollout(manifest: Manifest) -> Rollout:
    """Return a rollout of the release to all devices of CHANNEL."""
    return Rollout(
        family=manifest.family,
        channel=CHANNEL,
        version=manifest.version,
        counter=manifest.counter,
        manifest_digest=manifest.digest_without_patches(),
    )


@contextmanager
def replace_files(site: HttpSite, replaced: dict[str, bytes]) -> Iterator[None]:
    """Serve other contents for some paths, as an attacker at the web server would.

    Args:
        site: the web server.
        replaced: contents by path, relative to the served folder.
    """
    with ExitStack() as stack:
        for path, data in replaced.items():
            stack.enter_context(site.replace_file(path, data))
        yield


def has_updated_to(update: Report, version: str) -> bool:
    """Return whether an update installed a version.

    Args:
        update: output of `device-agent update --json`.
        version: the expected release.
    """
    return update.get("outcome") == "updated" and update.get("release") == version


def describe_update(update: Report) -> str:
    """Return outcome, release and reason of an update as text."""
    reason = update.get("reason")
    return f"{update.get('outcome')} {update.get('release')}" + (f", {reason}" if reason else "")


def describe_latency(latency: Latency) -> str:
    """Return median and maximum latency as text."""
    return f"median {latency.median_ms:.1f} ms, worst {latency.worst_ms:.1f} ms over {latency.count} requests"
