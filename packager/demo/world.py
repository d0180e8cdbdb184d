"""The demo's world: a repository, a site, a device, traffic, and what scenes do with them."""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Final

from bundle.frames import Secret
from bundle.manifest import Manifest
from bundle.rollout import Rollout
from keys.signers import load_folder_signers
from packager.demo.demo_device import Device, Report
from packager.demo.demo_models import Prediction, Subject, live_samples
from packager.demo.demo_report import Claim, DemoReport
from packager.demo.http_site import Site
from packager.demo.inference_client import InferenceClient, InferenceUnavailable
from packager.demo.traffic import Latency, Request, Traffic, now_s
from packager.release.pipeline import ReleaseReport, run_release
from packager.release.release_file import parse_release_file
from packager.repository.devices import admit_device
from packager.repository.repository import Repository

if TYPE_CHECKING:
    from securesystemslib.signer import Signer

COHORT: Final = "default"
CHANNEL: Final = "stable"
VARIANTS: Final = '[variants.fp32]\n[variants.int8]\nscheme = "int8"\n'
MAX_RATE_HZ: Final = 40.0
LOAD_SHARE: Final = 0.25  # of one model process: the load is there to notice a swap, not to be the bottleneck
RATE_PROBES: Final = 5
PROBATION_WINDOW_S: Final = 4
PROBATION_MIN_REQUESTS: Final = 5
TRIES: Final = 4  # of an update whose trial was inconclusive, since the machine was busy with something else
SETTLE_S: Final = 1.5  # of load before and after an update, to have something to compare with

Say = Callable[[str], None]


class Stage:
    """The demo's world while it is played.

    Args:
        folder: an empty folder, the caller's to remove.
        subject: models and inputs.
        say: takes each line of the story.
    """

    def __init__(self, folder: Path, subject: Subject, say: Say) -> None:
        self.report = DemoReport()
        self._folder, self._subject, self._say = folder, subject, say
        self._keys = folder / "keys"
        self._passphrase = Secret(b"a passphrase for the demo alone")
        self._repository_folder = folder / "repository"
        self._repository: Repository | None = None
        self._site: Site | None = None
        self._device: Device | None = None
        self._traffic: Traffic | None = None

    @property
    def _repo(self) -> Repository:
        assert self._repository is not None
        return self._repository

    @property
    def _served(self) -> Site:
        assert self._site is not None
        return self._site

    @property
    def _agent(self) -> Device:
        assert self._device is not None
        return self._device

    def _release(
        self,
        version: str,
        model: Path,
        base: str | None,
        *,
        again: str | None = None,
        drill: str | None = None,
        raises_floor: bool = False,
        publishes: bool = True,
    ) -> ReleaseReport:
        """Make a release; `again` names the one whose variant the device's kind gets once more, quantized as it is."""
        variants = VARIANTS if again is None else self._shipped_again(again)
        path = self._folder / f"release-{version}.toml"
        floor = self._repo.next_counter(self._subject.family) if raises_floor else None
        path.write_text(_release_toml(self._subject, version, model, variants, drill, floor, base), "utf-8")
        with self._timed(f"release-{version}"):
            until = "publish" if publishes else "sign"
            report = run_release(parse_release_file(path), self._repo, self._signers(), until=until)
        assert report.manifest is not None
        self.report.bytes[version] = {name: _sizes(report.manifest, name) for name in report.variants}
        return report

    def _shipped_again(self, version: str) -> str:
        name = str(self._agent.status()["active"]["variant"])
        if name == "fp32":
            return "[variants.fp32]\n"
        variant = self._manifest(version).variant(name)
        assert variant is not None
        kept = self._repository_folder / "private" / "bundles" / self._subject.family / variant.digest
        return f"[variants.{name}]\nmodel = {json.dumps(str(kept / variant.require_single_file('model').path))}\n"

    def _signers(self) -> "list[Signer]":
        return load_folder_signers(self._keys, self._passphrase)

    def _manifest(self, version: str) -> Manifest:
        manifest = self._repo.manifest(self._subject.family, version)
        assert manifest is not None
        return manifest

    def _sign_rollout(self, rollout: Rollout, *, forged: bool = False) -> None:
        self._repo.stage_rollout(rollout, forged=forged)
        self._repo.sign(self._signers())
        self._repo.publish(rehearse=not forged)

    def _admit(self, request: Path, fingerprint: str) -> None:
        admit_device(self._repo, request.read_bytes(), fingerprint, COHORT, self._keys, self._passphrase)
        self._repo.sign(self._signers())
        self._repo.publish()

    @contextmanager
    def _load(self) -> Iterator["Load"]:
        load = Load()
        self._traffic = Traffic(self._agent.address, self._subject.family, self._subject.live, self._rate_hz())
        yield load
        load.requests = self._traffic.stop()
        self._traffic = None

    def _update(self) -> Report:
        for _ in range(TRIES - 1):
            update = self._agent.update()
            if update.get("outcome") != "inconclusive":
                return update
            self._line(f"inconclusive, so it is tried again: {update.get('detail')}")
        return self._agent.update()

    def _rate_hz(self) -> float:
        client = InferenceClient(self._agent.address, self._subject.family)
        try:
            (sample,) = live_samples(self._subject.live, 1)
            times = []
            for _ in range(RATE_PROBES):
                start = now_s()
                client.infer(sample)
                times.append(now_s() - start)
            return min(MAX_RATE_HZ, LOAD_SHARE / median(times))
        finally:
            client.close()

    def _ask(self) -> list[Prediction]:
        client = InferenceClient(self._agent.address, self._subject.family)
        try:
            out = []
            samples = live_samples(self._subject.live, len(self._subject.names))
            for name, sample in zip(self._subject.names, samples, strict=True):
                label, score = self._subject.read(client.infer(sample).outputs)
                out.append(Prediction(name, label, round(score, 6)))
            return out
        finally:
            client.close()

    def _served_version(self) -> str:
        client = InferenceClient(self._agent.address, self._subject.family)
        try:
            return client.infer(live_samples(self._subject.live, 1)[0]).version
        except InferenceUnavailable as error:
            return error.message
        finally:
            client.close()

    def _flipped(self, path: str) -> bytes:
        data = bytearray((self._repo.published / path).read_bytes())
        data[len(data) // 2] ^= 1
        return bytes(data)

    def _refused(self, attempt: str, update: Report, *, still: str) -> None:
        outcome, reason = str(update.get("outcome")), str(update.get("reason"))
        self.report.refusals.append({"attempt": attempt, "reason": reason})
        self._line(f"{attempt}: {outcome}, {reason}: {update.get('detail') or ''}")
        serving = self._served_version()
        self._claim(
            f"refused and still serving: {attempt}",
            outcome in ("refused", "unfit", "unavailable") and serving == still,
            f"{reason}, serving {serving}",
        )

    def _tell_variants(self, report: ReleaseReport) -> None:
        for name, row in report.variants.items():
            sizes = self.report.bytes[report.version][name]
            self._line(
                f"{name}: {row['plain_size']:,} bytes plain, full download {sizes['full']:,}, patch {sizes['patch']:,}"
            )
            gate = row.get("gate")
            if isinstance(gate, dict):
                figures = ((k, gate.get(k)) for k in ("relative_rms", "top1_agreement"))
                told = ", ".join(f"{name.replace('_', ' ')} {x:.4f}" for name, x in figures if isinstance(x, float))
                self._line(f"    gate against the float model: {gate.get('verdict')}, {told}")
            built = row.get("report")
            if isinstance(built, dict) and isinstance(built.get("latency"), dict):
                times = built["latency"]
                self.report.latency[f"{report.version} {name} against float"] = times
                pace = "slower" if times["ratio"] > 1 else "faster"
                self._line(
                    f"    one at a time: float {times['float_ms']:.2f} ms, {name} {times['quantized_ms']:.2f} ms"
                    f" ({name} is {pace} on this machine)"
                )
        for name, why in report.dropped.items():
            self._line(f"{name} is left out: {why}")

    def _tell_update(self, update: Report) -> None:
        phases = ", ".join(f"{phase} {spent / 1000:.2f} s" for phase, spent in (update.get("phases_ms") or {}).items())
        fetched, full = update.get("download_bytes"), update.get("full_bytes")
        self._line(
            f"{update.get('outcome')}: {update.get('release')} {update.get('variant')}, {fetched} bytes of {full}"
        )
        self._line(f"phases: {phases}")

    @contextmanager
    def _timed(self, step: str) -> Iterator[None]:
        start = time.monotonic()
        yield
        self.report.seconds[step] = round(time.monotonic() - start, 2)
        self._line(f"({step}: {self.report.seconds[step]:.1f} s)")

    def _title(self, text: str) -> None:
        self._say(f"\n== {text}")

    def _line(self, text: str) -> None:
        self._say(f"   {text}")

    def _claim(self, claim: str, held: bool, seen: str) -> None:
        self.report.claims.append(Claim(claim, held, seen))
        self._line(f"{'proven' if held else 'NOT PROVEN'}: {claim} ({seen})")


@dataclass(slots=True)
class Load:
    """The record of one stretch of load, there when its context has ended."""

    requests: tuple[Request, ...] = ()


def _release_toml(
    subject: Subject, version: str, model: Path, variants: str, drill: str | None, floor: int | None, base: str | None
) -> str:
    def quoted(value: object) -> str:
        return json.dumps(str(value), ensure_ascii=False)  # a TOML basic string is written like a JSON string

    lines = [
        f"family = {quoted(subject.family)}",
        f"version = {quoted(version)}",
        f"channels = [{quoted(CHANNEL)}]",
        f"model = {quoted(model)}",
        f"inputs = {quoted(subject.inputs)}",
        *([f"min_counter = {floor}"] if floor is not None else []),
        *([f"drill = {quoted(drill)}"] if drill is not None else []),
        *(
            f"[[files]]\npath = {quoted(path)}\nrole = {quoted(role)}\nname = {quoted(name)}"
            for path, role, name in subject.files
        ),
        variants,
        "[patches]",
        f"from = [{quoted(base) if base else ''}]",
        "[rollout]",
        "percent = 100",
    ]
    return "\n".join(lines) + "\n"


def _sizes(manifest: Manifest, variant: str) -> dict[str, int]:
    found = manifest.variant(variant)
    assert found is not None
    full = min(patch.size for patch in found.patches if patch.base is None)
    return {"patch": min(patch.size for patch in found.patches), "full": full}


def select(manifest: Manifest) -> Rollout:
    return Rollout(
        family=manifest.family,
        channel=CHANNEL,
        version=manifest.version,
        counter=manifest.counter,
        manifest_digest=manifest.digest_without_patches(),
    )


@contextmanager
def all_replaced(site: Site, replaced: dict[str, bytes]) -> Iterator[None]:
    with ExitStack() as stack:
        for path, data in replaced.items():
            stack.enter_context(site.replacing(path, data))
        yield


def is_on(update: Report, version: str) -> bool:
    return update.get("outcome") == "updated" and update.get("release") == version


def seen(update: Report) -> str:
    reason = update.get("reason")
    return f"{update.get('outcome')} {update.get('release')}" + (f", {reason}" if reason else "")


def told(latency: Latency) -> str:
    return f"median {latency.median_ms:.1f} ms, worst {latency.worst_ms:.1f} ms over {latency.count} requests"
