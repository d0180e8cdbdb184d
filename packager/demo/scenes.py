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

from packager.demo.demo_device import Device, DeviceSettings
from packager.demo.demo_report import DemoReport
from packager.demo.http_site import Site
from packager.demo.plaintext_scan import files_with_plain_model
from packager.demo.traffic import now_s, split_at
from packager.demo.world import (
    CHANNEL,
    COHORT,
    PROBATION_MIN_REQUESTS,
    PROBATION_WINDOW_S,
    SETTLE_S,
    Stage,
    all_replaced,
    is_on,
    seen,
    select,
    told,
)
from packager.repository.repository import Repository


class Story(Stage):
    """The scenes, in their order in SCENES."""

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
            update = self._update()
        self._tell_update(update)
        self._claim("a device installs the first release: a patch from nothing", is_on(update, "1.0.0"), seen(update))

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
            update = self._update()
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
            self._line(f"latency {name:<7} {told(latency)}")
        self.report.seconds["publish-and-update-under-load"] = round(end - start, 2)
        versions = sorted({request.version for request in requests if request.ok})
        self._claim("the update arrives as a patch", is_on(update, "1.1.0"), seen(update))
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
        self._release("1.2.0", self._subject.new, "1.1.0", again="1.1.0", drill="damaged-weights")
        update = self._update()
        self._refused("damaged weights", update, still="1.1.0")

    def roll_back_live_failure(self) -> None:
        self._title("A release that passes the trial and fails only under live requests")
        self._release("1.3.0", self._subject.new, "1.1.0", again="1.1.0", drill="live-nan")
        with self._load() as load:
            update = self._update()
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
        self._release("1.4.0", self._subject.old, "1.1.0", again="1.0.0")
        manifest = self._manifest("1.4.0")
        blobs = [patch.blob for _, variant in manifest.variants for patch in variant.patches]
        # the manifest first: a device that has verified it once does not ask for it again
        targets = self._repo.published / "targets" / "bundles" / self._subject.family
        path = next(targets.glob("*.1.4.0.json")).relative_to(self._repo.published).as_posix()
        with self._served.replacing(path, self._flipped(path)):
            self._refused("tampered manifest", self._update(), still="1.1.0")
        with all_replaced(self._served, {f"blobs/{b[:2]}/{b}": self._flipped(f"blobs/{b[:2]}/{b}") for b in blobs}):
            self._refused("tampered blob", self._update(), still="1.1.0")

    def refuse_going_back(self) -> None:
        self._title("Ways back to an old model that nobody decided on")
        with self._served.serving(self._folder / "mirror-of-then"):
            self._refused("replayed old metadata", self._update(), still="1.1.0")
        old = self._manifest("1.0.0")
        now = self._repo.rollout(self._subject.family, CHANNEL)
        # whoever stole the online keys can sign this, and would not rehearse it first
        self._sign_rollout(select(old), forged=True)
        self._refused("older release (rollback attack)", self._update(), still="1.1.0")
        assert now is not None
        self._sign_rollout(now)

    def go_on_after_all_that(self) -> None:
        self._title("After all that, an honest release still arrives")
        with self._load():
            update = self._update()
        self._tell_update(update)
        self._claim("the device still takes an honest release", is_on(update, "1.4.0"), seen(update))
        shipped = (self._repository_folder / "private" / "bundles").rglob("model.onnx")
        plain = [path.read_bytes() for path in (self._subject.old, self._subject.new, *shipped)]
        found = [path.name for model in plain for path in files_with_plain_model(self._agent.directory, model)]
        self._claim("no plain model lies on the device's disk", not found, ", ".join(found) or "none found")


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
