"""The story of `packager demo`: one tuple of scenes, played in order, each adding to what is proven.

Rules:
1. Every part is the product's own: releases are made from a release.toml, the device is driven by its command line, the
   server is any static one. What an attacker does, an attacker could do.
2. A claim is proven by what was seen, never by having got so far. The demo succeeds only if every claim held.
3. Everything lies below one folder and listens on loopback; processes are stopped by their handles.
"""

import shutil
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Final

from packager.demo.demo_device import DemoDevice, DeviceSettings
from packager.demo.demo_report import DemoReport
from packager.demo.http_site import HttpSite
from packager.demo.plaintext_scan import find_plaintext_files
from packager.demo.traffic import monotonic_s, split_requests
from packager.demo.world import (
    CHANNEL,
    COHORT,
    PROBATION_MIN_REQUESTS,
    PROBATION_WINDOW_S,
    SETTLE_TIME_S,
    DemoWorld,
    describe_latency,
    describe_update,
    has_updated_to,
    make_rollout,
    replace_files,
)
from packager.repository.creation import create_repository_with_new_keys


class Scenes(DemoWorld):
    """The scenes, in their order in SCENES."""

    def play_all(self) -> DemoReport:
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

    def make_keys_and_repository(self) -> None:
        self._print_title("Keys and a repository")
        with self._record_time("keys"):
            self._repository = create_repository_with_new_keys(
                self._repository_folder, self._keys, self._passphrase, families=[self._models.family], cohort=COHORT
            )
        rows = self._repository.status().roles
        for row in rows:
            self._print_indented(
                f"{row.name:<22} {row.threshold} of {row.classical} classical + {row.post_quantum} post-quantum keys"
            )
        hybrid = all(row.threshold > row.classical and row.threshold > row.post_quantum for row in rows)
        self._add_check(
            "no role's threshold can be met by one algorithm alone", hybrid and bool(rows), f"{len(rows)} roles"
        )
        self._site = HttpSite(self._repository.published)
        self._print_indented(f"static files at {self._site.url}")

    def release_first_version(self) -> None:
        self._print_title(f"Release 1.0.0 of {self._models.family}: {self._models.title}")
        report = self._release("1.0.0", self._models.old_model, None)
        self._print_variants(report)
        shutil.copytree(self._repo.published, self._folder / "mirror-of-then")

    def enroll_and_install(self) -> None:
        self._print_title("A device is enrolled and installs it")
        settings = DeviceSettings(
            repository_url=self._running_site.url,
            family=self._models.family,
            cohort=COHORT,
            variant="auto",
            probation_window_s=PROBATION_WINDOW_S,
            probation_min_requests=PROBATION_MIN_REQUESTS,
        )
        device = self._device = DemoDevice(self._folder / "device", settings)
        with self._record_time("enroll"):
            device.init(self._repo.published / "metadata" / "1.root.json")
            request = self._folder / "enrollment.json"
            enrollment = device.enroll(request)
            self._enroll(request, str(enrollment["fingerprint"]))
        self._print_indented(f"device {enrollment['device_id'][:16]}…, enrolled into cohort {COHORT!r}")
        device.start()
        with self._record_time("install"):
            update = self._update()
        self._print_update(update)
        self._add_check(
            "a device installs the first release: a patch from nothing",
            has_updated_to(update, "1.0.0"),
            describe_update(update),
        )

    def predict_live_inputs(self) -> None:
        self._print_title("It answers through its endpoint (Open Inference Protocol v2)")
        self.report.predictions = self._predict()
        for prediction in self.report.predictions:
            self._print_indented(f"{prediction.file:<44} {prediction.label:<16} {prediction.score:.4f}")
        self._add_check(
            "the served model answers", bool(self.report.predictions), f"{len(self.report.predictions)} predictions"
        )

    def update_under_load(self) -> None:
        self._print_title("Release 1.1.0 arrives while requests keep coming")
        report = self._release("1.1.0", self._models.new_model, "1.0.0", raises_floor=True, publishes=False)
        self._print_variants(report)
        with self._run_load() as load:
            time.sleep(SETTLE_TIME_S)
            start = monotonic_s()
            self._repo.publish()
            update = self._update()
            end = monotonic_s()
            time.sleep(SETTLE_TIME_S)
        requests = load.requests
        self._print_update(update)
        failed = sum(not request.is_answered for request in requests)
        self.report.requests_sent, self.report.requests_failed = len(requests), failed
        before, during, after = split_requests(requests, start, end)
        names = ("before", "during", "after")
        self.report.latency |= {name: asdict(x) for name, x in zip(names, (before, during, after), strict=True)}
        for name, latency in zip(names, (before, during, after), strict=True):
            self._print_indented(f"latency {name:<7} {describe_latency(latency)}")
        self.report.seconds["publish-and-update-under-load"] = round(end - start, 2)
        versions = sorted({request.version for request in requests if request.is_answered})
        self._add_check("the update arrives as a patch", has_updated_to(update, "1.1.0"), describe_update(update))
        self._add_check(
            "no request failed while the model was swapped",
            bool(requests) and not failed,
            f"{len(requests)} sent, {failed} failed, answered by {' then '.join(versions) or 'nobody'}",
        )
        fetched, full = int(update.get("download_bytes") or 0), int(update.get("full_download_bytes") or 0)
        self._add_check(
            "an update costs no more than the full download, and a patch where that is smaller",
            0 < fetched <= full,
            f"{fetched:,} of {full:,} bytes ({update.get('variant')})",
        )

    def refuse_damaged_weights(self) -> None:
        self._print_title("A release whose weights were damaged after the gate")
        self._release("1.2.0", self._models.new_model, "1.1.0", reused_version="1.1.0", drill="damaged-weights")
        update = self._update()
        self._check_refusal("damaged weights", update, expected_version="1.1.0")

    def roll_back_live_failure(self) -> None:
        self._print_title("A release that passes the trial and fails only under live requests")
        self._release("1.3.0", self._models.new_model, "1.1.0", reused_version="1.1.0", drill="live-nan")
        with self._run_load() as load:
            update = self._update()
        bad = sum(not (request.is_answered and request.is_finite) for request in load.requests)
        outcome, reason = str(update.get("outcome")), str(update.get("reason"))
        self.report.rollbacks.append({"attempt": "NaN under live requests", "reason": reason})
        self._print_indented(
            f"{outcome}: {reason}; {bad} of {len(load.requests)} answers were bad before it was taken back"
        )
        self._add_check(
            "a release that fails live is caught in probation and rolled back",
            outcome == "rolled-back" and self._serving_version() == "1.1.0",
            f"{reason}, serving {self._serving_version()}",
        )

    def refuse_tampering(self) -> None:
        self._print_title("Tampering on the way")
        self._release("1.4.0", self._models.old_model, "1.1.0", reused_version="1.0.0")
        manifest = self._manifest("1.4.0")
        blobs = [patch.blob for _, variant in manifest.variants for patch in variant.patches]
        # the manifest first: a device that has verified it once does not ask for it again
        targets = self._repo.published / "targets" / "bundles" / self._models.family
        path = next(targets.glob("*.1.4.0.json")).relative_to(self._repo.published).as_posix()
        with self._running_site.replace_file(path, self._flip_byte(path)):
            self._check_refusal("tampered manifest", self._update(), expected_version="1.1.0")
        with replace_files(
            self._running_site, {f"blobs/{b[:2]}/{b}": self._flip_byte(f"blobs/{b[:2]}/{b}") for b in blobs}
        ):
            self._check_refusal("tampered blob", self._update(), expected_version="1.1.0")

    def refuse_downgrade(self) -> None:
        self._print_title("Ways back to an old model that nobody decided on")
        with self._running_site.serve_folder(self._folder / "mirror-of-then"):
            self._check_refusal("replayed old metadata", self._update(), expected_version="1.1.0")
        old = self._manifest("1.0.0")
        now = self._repo.rollout(self._models.family, CHANNEL)
        # whoever stole the online keys can sign this, and would not rehearse it first
        self._sign_rollout(make_rollout(old), forged=True)
        self._check_refusal("older release (rollback attack)", self._update(), expected_version="1.1.0")
        assert now is not None
        self._sign_rollout(now)

    def update_after_attacks(self) -> None:
        self._print_title("After all that, an honest release still arrives")
        with self._run_load():
            update = self._update()
        self._print_update(update)
        self._add_check(
            "the device still takes an honest release", has_updated_to(update, "1.4.0"), describe_update(update)
        )
        shipped = (self._repository_folder / "private" / "bundles").rglob("model.onnx")
        plain = [path.read_bytes() for path in (self._models.old_model, self._models.new_model, *shipped)]
        found = [path.name for model in plain for path in find_plaintext_files(self._running_device.directory, model)]
        self._add_check("no plain model lies on the device's disk", not found, ", ".join(found) or "none found")


SCENES: Final[tuple[Callable[[Scenes], None], ...]] = (
    Scenes.make_keys_and_repository,
    Scenes.release_first_version,
    Scenes.enroll_and_install,
    Scenes.predict_live_inputs,
    Scenes.update_under_load,
    Scenes.refuse_damaged_weights,
    Scenes.roll_back_live_failure,
    Scenes.refuse_tampering,
    Scenes.refuse_downgrade,
    Scenes.update_after_attacks,
)
