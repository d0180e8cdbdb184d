"""The scenes of `packager demo`: methods that run in the order of SCENES and add checks to the report.

Rules:
- All parts are the product's own: releases are created from release files, the device is driven by its command line,
  and the web server is a static one. An attack uses only what an attacker would have.
- A check passes by observation, never because a scene was reached. The demo succeeds only if every check passes.
- All files are below one folder, all sockets on loopback. Processes are stopped by their handles.
"""

import os
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Final

from packager.demo.demo_device import DemoDevice, DeviceSettings
from packager.demo.demo_report import DemoReport
from packager.demo.file_type_model import INPUT_NAME
from packager.demo.http_site import HttpSite
from packager.demo.inference_client import InferenceClient
from packager.demo.plaintext_scan import find_plaintext_files
from packager.demo.traffic import monotonic_s, split_requests
from packager.demo.update_sizes import other_ways, size_lines
from packager.demo.world import (
    CHANNEL,
    COHORT,
    INT8_TOML,
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
    """The scenes, in the order of SCENES."""

    def play_all(self) -> DemoReport:
        """Run all scenes in order, stop all processes, and return the report."""
        start = time.monotonic()
        try:
            for scene in SCENES:
                scene(self)
        finally:
            if self._traffic is not None:
                self._traffic.kill()
            self._builder.shutdown()
            if self._device is not None:
                self._device.stop()
            if self._site is not None:
                self._site.stop()
            self.report.total_seconds = round(time.monotonic() - start, 2)
        return self.report

    def make_keys_and_repository(self) -> None:
        """Create a repository with keys of all roles, and serve its published folder."""
        self._print_title("Create keys and a repository")
        self._print_indented("creating and encrypting key files")
        with self._record_time("keys"):
            self._repository = create_repository_with_new_keys(
                self._repository_folder, self._keys, self._passphrase, families=[self._models.family], cohort=COHORT
            )
        rows = self._repository.status().roles
        for row in rows:
            self._print_indented(
                f"{row.name:<22} {row.threshold} of {row.classical} classical + {row.post_quantum} post-quantum keys"
            )
        is_hybrid = all(row.threshold > row.classical and row.threshold > row.post_quantum for row in rows)
        self._add_check("every role needs keys of both algorithms", is_hybrid and bool(rows), f"{len(rows)} roles")
        self._site = HttpSite(self._repository.published)
        self._print_indented(f"serving static files at {self._site.url}")

    def release_first_version(self) -> None:
        """Release version 1.0.0, and copy the published folder for the replay attack."""
        self._print_title(f"Release {self._models.family} 1.0.0: {self._models.title}")
        report = self._release("1.0.0", self._models.old_model, None)
        self._print_variants(report)
        if "int8" in report.variants:
            self._variants_toml = INT8_TOML  # the device installs int8, so 1.1.0 needs no patch between float models
        shutil.copytree(self._repo.published, self._folder / "mirror-of-then")

    def enroll_and_install(self) -> None:
        """Enroll a device, start its agent and install 1.0.0."""
        self._print_title("Enroll a device and install 1.0.0")
        settings = DeviceSettings(
            repository_url=self._running_site.url,
            family=self._models.family,
            cohort=COHORT,
            variant="auto",
            probation_window_s=PROBATION_WINDOW_S,
            probation_min_requests=PROBATION_MIN_REQUESTS,
        )
        device = self._device = DemoDevice(self._folder / "device", settings)
        self._print_indented("creating the device's identity")
        with self._record_time("enroll"):
            device.init(self._repo.published / "metadata" / "1.root.json")
            request = self._folder / "enrollment.json"
            enrollment = device.enroll(request)
            self._enroll(request, str(enrollment["fingerprint"]))
        self._print_indented(f"device {enrollment['device_id'][:16]}… joined cohort {COHORT!r}")
        # built while the device starts and installs; each needs one CPU
        self._print_indented("building release 1.1.0 in the background")
        self._next_release = self._start_release("1.1.0", self._models.new_model, "1.0.0", raises_floor=True)
        self._print_indented("starting the agent")
        with self._record_time("start"):
            device.start()
        self._print_indented("installing 1.0.0")
        with self._record_time("install"):
            update = self._update()
        self._installed_variant = str(update.get("variant"))
        self._print_update(update)
        self._add_check("first release installed", has_updated_to(update, "1.0.0"), describe_update(update))

    def predict_live_inputs(self) -> None:
        """Send the live samples to the device's endpoint."""
        self._print_title("Send requests to its endpoint (Open Inference Protocol v2)")
        self.report.predictions = self._predict()
        for prediction in self.report.predictions:
            self._print_indented(f"{prediction.file:<44} {prediction.label:<16} {prediction.score:.4f}")
        self._add_check(
            "endpoint responds", bool(self.report.predictions), f"{len(self.report.predictions)} predictions"
        )
        self._count_held_out()

    def update_under_load(self) -> None:
        """Release 1.1.0 and install it while requests keep coming."""
        self._print_title("Release 1.1.0 and update under load")
        self._print_indented("waiting for the build of release 1.1.0")
        report = self._finish_release(self._next_release)
        self._print_variants(report)
        with self._run_load() as load:
            time.sleep(SETTLE_TIME_S)
            start = monotonic_s()
            self._print_indented("publishing and updating, with requests in the background")
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
        self._set_seconds("publish-and-update-under-load", end - start)
        versions = sorted({request.version for request in requests if request.is_answered})
        self._add_check("update installed from a patch", has_updated_to(update, "1.1.0"), describe_update(update))
        self._add_check(
            "no request failed during the swap",
            bool(requests) and not failed,
            f"{len(requests)} sent, {failed} failed, responses from {' then '.join(versions) or 'no version'}",
        )
        # blob against blob: both downloads need the same metadata
        fetched, full = int(update.get("patch_bytes") or 0), int(update.get("full_download_bytes") or 0)
        self._add_check(
            "update no larger than the full download",
            0 < fetched <= full,
            f"{fetched:,} of {full:,} bytes ({update.get('variant')})",
        )
        variant = str(update.get("variant"))
        old, new = (self._shipped_model(version, variant) for version in ("1.0.0", "1.1.0"))
        received = int(update.get("download_bytes") or 0)
        self.report.update_bytes = {
            "patch": fetched,
            "downloaded": received,
            "full": full,
            **other_ways(old, new),
        }
        for line in size_lines(self.report.update_bytes)[1:]:
            self._print_indented(line)
        self._check_fine_tune()

    def _count_held_out(self) -> None:
        """Send the held-out samples to the endpoint, and count correct responses by release."""
        samples = self._models.held_out
        if samples is None:
            return
        client = InferenceClient(self._running_device.address, self._models.family)
        try:
            for tokens, label in zip(samples.tokens, samples.classes, strict=True):
                result = client.infer({INPUT_NAME: tokens[None]})
                (scores,) = result.outputs.values()
                correct = int(scores.argmax() == label)
                self.report.held_out[result.version] = self.report.held_out.get(result.version, 0) + correct
        finally:
            client.close()
        for version, count in self.report.held_out.items():
            self._print_indented(f"held-out snippets, {version}: {count} of {len(samples.classes)} correct")

    def _check_fine_tune(self) -> None:
        if self._models.held_out is None:
            return
        self._count_held_out()
        before, after = (self.report.held_out.get(version, 0) for version in ("1.0.0", "1.1.0"))
        self._add_check(
            "fine-tune is better on held-out snippets",
            after > before,
            f"{before} to {after} of {len(self._models.held_out.classes)} correct",
        )

    def refuse_damaged_weights(self) -> None:
        """Release a model with damaged weights; the probe must reject it."""
        self._print_title("Release 1.2.0 with damaged weights")
        self._release("1.2.0", self._models.new_model, None, reused_version="1.1.0", drill="damaged-weights")
        # built while the device rejects 1.2.0 for its golden outputs; that check measures no time
        self._next_release = self._start_release(
            "1.3.0", self._models.new_model, "1.1.0", reused_version="1.1.0", drill="live-nan"
        )
        self._print_indented("updating to 1.2.0")
        update = self._update()
        self._check_refusal("damaged weights", update, expected_version="1.1.0")

    def roll_back_live_failure(self) -> None:
        """Release a model that fails under live requests only; the probation must roll it back."""
        self._print_title("Release 1.3.0 that passes its probe and fails under live requests")
        self._finish_release(self._next_release)
        self._repo.publish()
        self._print_indented("updating to 1.3.0, with requests in the background")
        with self._run_load() as load:
            update = self._update()
        bad = sum(not (request.is_answered and request.is_finite) for request in load.requests)
        outcome, reason = str(update.get("outcome")), str(update.get("reason"))
        self.report.rollbacks.append({"attempt": "NaN under live requests", "reason": reason})
        self._print_indented(f"{outcome}: {reason}; {bad} of {len(load.requests)} responses failed before the rollback")
        serving = self._serving_version()
        self._add_check(
            "live failure rolled back in probation",
            outcome == "rolled-back" and serving == "1.1.0",
            f"{reason}, serving {serving}",
        )

    def refuse_tampering(self) -> None:
        """Change one byte of a manifest, then of blobs; the device must refuse both."""
        self._print_title("Attack: tampered files on the web server")
        self._release("1.4.0", self._models.old_model, None, reused_version="1.0.0")
        manifest = self._manifest("1.4.0")
        blobs = [patch.blob for _, variant in manifest.variants for patch in variant.patches]
        # the manifest first: a device that has verified a manifest does not download it again
        targets = self._repo.published / "targets" / "bundles" / self._models.family
        path = next(targets.glob("*.1.4.0.json")).relative_to(self._repo.published).as_posix()
        # archives carry the same documents: the attacker makes them unreadable, so that single files are asked for
        metadata = self._repo.published / "metadata"
        archives = [file.relative_to(self._repo.published).as_posix() for file in metadata.rglob("*.awz")]
        tampered = {path: self._flip_byte(path), **dict.fromkeys(archives, b"")}
        with replace_files(self._running_site, tampered):
            self._check_refusal("tampered manifest", self._update(), expected_version="1.1.0")
        with replace_files(
            self._running_site, {f"blobs/{b[:2]}/{b}": self._flip_byte(f"blobs/{b[:2]}/{b}") for b in blobs}
        ):
            self._check_refusal("tampered blob", self._update(), expected_version="1.1.0")

    def refuse_downgrade(self) -> None:
        """Replay old metadata, then sign a rollout of an old release; the device must refuse both."""
        self._print_title("Attack: return to an old release")
        mirror = self._folder / "mirror-of-then"
        for path in mirror.rglob("*"):
            os.utime(path)  # files that look new, so that no conditional request gets 304
        with self._running_site.serve_folder(mirror):
            self._check_refusal("replayed old metadata", self._update(), expected_version="1.1.0")
        old = self._manifest("1.0.0")
        current = self._repo.rollout(self._models.family, CHANNEL)
        # an attacker with the stolen online keys can sign this rollout, and would skip the client check
        self._sign_rollout(make_rollout(old), forged=True)
        self._check_refusal("older release (rollback attack)", self._update(), expected_version="1.1.0")
        assert current is not None
        self._sign_rollout(current)

    def update_after_attacks(self) -> None:
        """Install 1.4.0 after all attacks, and search the device's files for an unencrypted model."""
        self._print_title("Install 1.4.0 after the attacks")
        self._print_indented("updating to 1.4.0, with requests in the background")
        with self._run_load():
            update = self._update()
        self._print_update(update)
        self._add_check(
            "valid release installed after attacks", has_updated_to(update, "1.4.0"), describe_update(update)
        )
        shipped = (self._repository_folder / "private" / "bundles").rglob("model.onnx")
        models = [path.read_bytes() for path in (self._models.old_model, self._models.new_model, *shipped)]
        found = [path.name for model in models for path in find_plaintext_files(self._running_device.directory, model)]
        self._add_check("no unencrypted model on the device's disk", not found, ", ".join(found) or "none found")


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
