"""The story of `packager demo`: one tuple of scenes, played in order, each adding to what is proven.

Rules:
1. Every part is the product's own: releases are made from a release.toml, the device is driven by its command line, the
   server is any static one. What an attacker does, an attacker could do.
2. A claim is proven by what was seen, never by having got so far. The demo succeeds only if every claim held.
3. Everything lies below one folder and listens on loopback; processes are stopped by their handles.
"""

import json
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from bundle.frames import Secret
from bundle.manifest import Manifest
from bundle.rollout import Rollout
from keys.signers import signers_from
from packager.demo.client import InferenceClient, InferenceUnavailable
from packager.demo.device import Device, DeviceSettings, Report
from packager.demo.disk import files_with_plain_model
from packager.demo.report import Claim, DemoReport
from packager.demo.site import Site
from packager.demo.subject import Prediction, Subject, live_samples
from packager.demo.traffic import Latency, Request, Traffic, now_s, split_at
from packager.release import ReleaseReport, run_release
from packager.release_file import parse_release_file
from packager.repository.devices import admit_device
from packager.repository.repository import Repository

if TYPE_CHECKING:
    from securesystemslib.signer import Signer

COHORT: Final = "default"
CHANNEL: Final = "stable"
RATE_HZ: Final = 40.0
PROBATION_WINDOW_S: Final = 4
PROBATION_MIN_REQUESTS: Final = 20
SETTLE_S: Final = 1.5  # of load before and after an update, to have something to compare with

Say = Callable[[str], None]


class Story:
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

    def play(self) -> DemoReport:
        """All scenes, in order, then stop everything that runs."""
        try:
            for scene in SCENES:
                scene(self)
        finally:
            if self._traffic is not None:
                self._traffic.kill()
            if self._device is not None:
                self._device.stop()
            if self._site is not None:
                self._site.stop()
        return self.report

    # -- scenes ------------------------------------------------------------------------------------------------------

    def make_keys_and_repository(self) -> None:
        self._title("Keys and a repository")
        with self._timed("keys"):
            self._repository = Repository.create_with_new_keys(
                self._repository_folder, self._keys, self._passphrase, families=[self._subject.family], cohort=COHORT
            )
        rows = self._repository.status().roles
        for row in rows:
            self._line(
                f"{row.name:<22} {row.threshold} of {row.classical} classical + {row.post_quantum} post-quantum keys"
            )
        hybrid = all(row.threshold > row.classical and row.threshold > row.post_quantum for row in rows)
        self._claim(
            "no role's threshold can be met by one algorithm alone", hybrid and bool(rows), f"{len(rows)} roles"
        )
        self._site = Site(self._repository.published)
        self._line(f"static files at {self._site.url}")

    def release_the_first(self) -> None:
        self._title(f"Release 1.0.0 of {self._subject.family}: {self._subject.title}")
        report = self._release("1.0.0", self._subject.old, None)
        self._tell_variants(report)
        shutil.copytree(self._repo.published, self._folder / "mirror-of-then")

    def enrol_and_install(self) -> None:
        self._title("A device is enrolled and installs it")
        settings = DeviceSettings(
            repository_url=self._served.url,
            family=self._subject.family,
            cohort=COHORT,
            variant="auto",
            probation_window_s=PROBATION_WINDOW_S,
            probation_min_requests=PROBATION_MIN_REQUESTS,
        )
        device = self._device = Device(self._folder / "device", settings)
        with self._timed("enrol"):
            device.init(self._repo.published / "metadata" / "1.root.json")
            request = self._folder / "enrolment.json"
            enrolment = device.enrol(request)
            self._admit(request, str(enrolment["fingerprint"]))
        self._line(f"device {enrolment['device_id'][:16]}…, enrolled into cohort {COHORT!r}")
        device.start()
        with self._timed("install"):
            update = device.update()
        self._tell_update(update)
        self._claim("a device installs the first release: a patch from nothing", _is_on(update, "1.0.0"), _seen(update))

    def ask_for_answers(self) -> None:
        self._title("It answers through its endpoint (Open Inference Protocol v2)")
        self.report.predictions = self._ask()
        for prediction in self.report.predictions:
            self._line(f"{prediction.file:<44} {prediction.label:<16} {prediction.score:.4f}")
        self._claim(
            "the served model answers", bool(self.report.predictions), f"{len(self.report.predictions)} predictions"
        )

    def update_under_load(self) -> None:
        self._title("Release 1.1.0 arrives while requests keep coming")
        report = self._release("1.1.0", self._subject.new, "1.0.0", raises_floor=True, publishes=False)
        self._tell_variants(report)
        with self._load() as load:
            time.sleep(SETTLE_S)
            start = now_s()
            self._repo.publish()
            update = self._agent.update()
            end = now_s()
            time.sleep(SETTLE_S)
        requests = load.requests
        self._tell_update(update)
        failed = sum(not request.ok for request in requests)
        self.report.requests_sent, self.report.requests_failed = len(requests), failed
        before, during, after = split_at(requests, start, end)
        names = ("before", "during", "after")
        self.report.latency |= {name: asdict(x) for name, x in zip(names, (before, during, after), strict=True)}
        for name, latency in zip(names, (before, during, after), strict=True):
            self._line(f"latency {name:<7} {_latency(latency)}")
        self.report.seconds["publish-and-update-under-load"] = round(end - start, 2)
        versions = sorted({request.version for request in requests if request.ok})
        self._claim("the update arrives as a patch", _is_on(update, "1.1.0"), _seen(update))
        self._claim(
            "no request failed while the model was swapped",
            bool(requests) and not failed,
            f"{len(requests)} sent, {failed} failed, answered by {' then '.join(versions) or 'nobody'}",
        )
        fetched, full = int(update.get("download_bytes") or 0), int(update.get("full_bytes") or 0)
        self._claim(
            "an update costs no more than the full download, and a patch where that is smaller",
            0 < fetched <= full,
            f"{fetched:,} of {full:,} bytes ({update.get('variant')})",
        )

    def refuse_damaged_weights(self) -> None:
        self._title("A release whose weights were damaged after the gate")
        self._release("1.2.0", self._subject.new, "1.1.0", drill="damaged-weights")
        update = self._agent.update()
        self._refused("damaged weights", update, still="1.1.0")

    def roll_back_live_failure(self) -> None:
        self._title("A release that passes the trial and fails only under live requests")
        self._release("1.3.0", self._subject.new, "1.1.0", drill="live-nan")
        with self._load() as load:
            update = self._agent.update()
        bad = sum(not (request.ok and request.finite) for request in load.requests)
        outcome, reason = str(update.get("outcome")), str(update.get("reason"))
        self.report.rollbacks.append({"attempt": "NaN under live requests", "reason": reason})
        self._line(f"{outcome}: {reason}; {bad} of {len(load.requests)} answers were bad before it was taken back")
        self._claim(
            "a release that fails live is caught in probation and rolled back",
            outcome == "rolled-back" and self._served_version() == "1.1.0",
            f"{reason}, serving {self._served_version()}",
        )

    def refuse_tampering(self) -> None:
        self._title("Tampering on the way")
        self._release("1.4.0", self._subject.old, "1.1.0")
        manifest = self._manifest("1.4.0")
        blobs = [patch.blob for _, variant in manifest.variants for patch in variant.patches]
        # the manifest first: a device that has verified it once does not ask for it again
        targets = self._repo.published / "targets" / "bundles" / self._subject.family
        path = next(targets.glob("*.1.4.0.json")).relative_to(self._repo.published).as_posix()
        with self._served.replacing(path, self._flipped(path)):
            self._refused("tampered manifest", self._agent.update(), still="1.1.0")
        with _all_replaced(self._served, {f"blobs/{b[:2]}/{b}": self._flipped(f"blobs/{b[:2]}/{b}") for b in blobs}):
            self._refused("tampered blob", self._agent.update(), still="1.1.0")

    def refuse_going_back(self) -> None:
        self._title("Ways back to an old model that nobody decided on")
        with self._served.serving(self._folder / "mirror-of-then"):
            self._refused("replayed old metadata", self._agent.update(), still="1.1.0")
        old = self._manifest("1.0.0")
        now = self._repo.rollout(self._subject.family, CHANNEL)
        # whoever stole the online keys can sign this, and would not rehearse it first
        self._sign_rollout(_select(old), forged=True)
        self._refused("older release (rollback attack)", self._agent.update(), still="1.1.0")
        assert now is not None
        self._sign_rollout(now)

    def go_on_after_all_that(self) -> None:
        self._title("After all that, an honest release still arrives")
        with self._load():
            update = self._agent.update()
        self._tell_update(update)
        self._claim("the device still takes an honest release", _is_on(update, "1.4.0"), _seen(update))
        shipped = (self._repository_folder / "private" / "bundles").rglob("model.onnx")
        plain = [path.read_bytes() for path in (self._subject.old, self._subject.new, *shipped)]
        found = [path.name for model in plain for path in files_with_plain_model(self._agent.directory, model)]
        self._claim("no plain model lies on the device's disk", not found, ", ".join(found) or "none found")

    # -- what scenes are made of -------------------------------------------------------------------------------------

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
        drill: str | None = None,
        raises_floor: bool = False,
        publishes: bool = True,
    ) -> ReleaseReport:
        path = self._folder / f"release-{version}.toml"
        floor = self._repo.next_counter(self._subject.family) if raises_floor else None
        path.write_text(_release_toml(self._subject, version, model, drill, floor, base), "utf-8")
        with self._timed(f"release-{version}"):
            until = "publish" if publishes else "sign"
            report = run_release(parse_release_file(path), self._repo, self._signers(), until=until)
        assert report.manifest is not None
        self.report.bytes[version] = {name: _sizes(report.manifest, name) for name in report.variants}
        return report

    def _signers(self) -> "list[Signer]":
        return signers_from(self._keys, self._passphrase)

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
        self._traffic = Traffic(self._agent.address, self._subject.family, self._subject.live, RATE_HZ)
        yield load
        load.requests = self._traffic.stop()
        self._traffic = None

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


SCENES: Final[tuple[Callable[[Story], None], ...]] = (
    Story.make_keys_and_repository,
    Story.release_the_first,
    Story.enrol_and_install,
    Story.ask_for_answers,
    Story.update_under_load,
    Story.refuse_damaged_weights,
    Story.roll_back_live_failure,
    Story.refuse_tampering,
    Story.refuse_going_back,
    Story.go_on_after_all_that,
)


def _release_toml(
    subject: Subject, version: str, model: Path, drill: str | None, floor: int | None, base: str | None
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
        "[variants.fp32]",
        "[variants.int8]",
        'scheme = "int8"',
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


def _select(manifest: Manifest) -> Rollout:
    return Rollout(
        family=manifest.family,
        channel=CHANNEL,
        version=manifest.version,
        counter=manifest.counter,
        manifest_digest=manifest.digest_without_patches(),
    )


@contextmanager
def _all_replaced(site: Site, replaced: dict[str, bytes]) -> Iterator[None]:
    with ExitStack() as stack:
        for path, data in replaced.items():
            stack.enter_context(site.replacing(path, data))
        yield


def _is_on(update: Report, version: str) -> bool:
    return update.get("outcome") == "updated" and update.get("release") == version


def _seen(update: Report) -> str:
    reason = update.get("reason")
    return f"{update.get('outcome')} {update.get('release')}" + (f", {reason}" if reason else "")


def _latency(latency: Latency) -> str:
    return f"median {latency.median_ms:.1f} ms, worst {latency.worst_ms:.1f} ms over {latency.count} requests"
