"""Write the test vectors of signed documents: `python -m tests.vectors.documents`.

The folders are `manifest`, `rollout`, `plan`, `fleet`, `enrollment`, `report` and `vital`. Each file is one document
with one
defect, and is named for it. `expected` (JSON) has the reason of the expected refusal, or null for a document that must
be read and written back unchanged.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from bundle.contract import Contract, Health, TensorSpec
from bundle.device_report import DeviceReport
from bundle.enrollment import EnrollmentRequest
from bundle.envelope import derive_public_key
from bundle.files import BundleDigest, BundleFile
from bundle.fleet import Cohort, Fleet
from bundle.frames import Secret
from bundle.key_sizes import PRIVATE_BYTES
from bundle.manifest import Manifest
from bundle.plan import Plan, PlannedRelease
from bundle.ramp import RampStep
from bundle.requirements import Requirements, Runtime
from bundle.rollout import Rollout, Window
from bundle.variant import Measured, ModelEntry, PatchEntry, Quantization, Variant
from bundle.vital import Vital

READ_BY_AGENTS = ("airweights.manifest/", "airweights.rollout/", "airweights.fleet/")
FOLDER: Final = Path(__file__).parent
X_WING_PRIVATE: Final = Secret(bytes(range(PRIVATE_BYTES)))  # used by the vectors only
ED25519_PRIVATE: Final = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))  # used by the vectors only

Change = Callable[[dict[str, Any]], object]
Vectors = dict[str, tuple[bytes, str | None]]


def make_manifest() -> Manifest:
    """Return a valid manifest."""
    files = (
        BundleFile("labels.txt", "labels", 5, hashlib.sha256(b"a\nb\n\n").hexdigest()),
        BundleFile("model/model.onnx", "model", 4, hashlib.sha256(b"onnx").hexdigest()),
    )
    contract = Contract((TensorSpec("x", "float32", ("batch", 3)),), (TensorSpec("y", "float32", ("batch", 10)),))
    variant = Variant(
        runtime=Runtime(below_version="2.0"),
        requires=Requirements(arch=("x86_64",)),
        at_rest="sealed",
        files=files,
        models=(ModelEntry("model", "model/model.onnx", None, contract),),
        patches=(PatchEntry(None, "zstd", (), "a" * 64, 100, 50, 4096),),
        key_commitment="b" * 64,
        health=Health(),
        quantization=Quantization("int8-dynamic", "exact", None, "pass", 120, None),
        measured=Measured("a processor", "1.32.0", 990_000, 12_000_000, 30_000_000),
        provenance=(("source", "a model"),),
    )
    ramp, created = (RampStep(0, 100), RampStep(86_400, 10_000)), "2026-01-01T00:00:00Z"
    return Manifest("kws", "1.2.0", 7, 3, ("beta", "stable"), "0.1.0", created, ramp, (("int8", variant),))


def make_rollout() -> Rollout:
    """Return a valid rollout."""
    return Rollout(
        "kws",
        "stable",
        "1.2.0",
        7,
        "c" * 64,
        2500,
        "kws-7",
        ("default",),
        (Window(1_767_225_600, 1_767_229_200),),
        False,
        "a note",
    )


def make_fleet() -> Fleet:
    """Return a valid fleet document."""
    return Fleet("d" * 64, 12, (Cohort("default", 3, derive_public_key(X_WING_PRIVATE)),))


def make_enrollment() -> bytes:
    """Return a valid, signed enrollment request."""
    public = ED25519_PRIVATE.public_key().public_bytes_raw()
    return EnrollmentRequest("cam-1", derive_public_key(X_WING_PRIVATE), public, (("class", "camera"),)).encode(
        ED25519_PRIVATE
    )


def change_document(data: bytes, change: Change) -> bytes:
    """Return the document with one change, in canonical form if the changed document has one."""
    value = json.loads(data)
    change(value)
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def make_text_vectors(data: bytes) -> Vectors:
    """Return vectors with the textual defects that every kind of document can have."""
    text = data.decode()
    deep = "[" * 900 + "]" * 900
    return {
        "good": (data, None),
        "good-with-white-space": (json.dumps(json.loads(data), indent=1).encode(), None),
        "empty": (b"", "malformed"),
        "not-json": (b"{schema: 1}", "malformed"),
        "not-utf-8": (data[:-1] + b',"x":"\xff"}', "malformed"),
        "byte-order-mark": (b"\xef\xbb\xbf" + data, "malformed"),
        "trailing-byte": (data + b"x", "malformed"),
        "two-values": (data + data, "malformed"),
        "truncated": (data[: len(data) // 2], "malformed"),
        "not-an-object": (b"[" + data + b"]", "malformed"),
        "duplicate-key": ((text[:-1] + ',"schema":"x"}').encode(), "malformed"),
        "unknown-field": (change_document(data, lambda v: v.update(extra=1)), "malformed"),
        "unknown-field-of-no-character": (change_document(data, lambda v: v.update({"\ud800": 1})), "malformed"),
        "schema-of-tomorrow": (
            change_document(data, lambda v: v.update(schema=v["schema"].partition("/")[0] + "/99")),
            "agent-too-old" if json.loads(data)["schema"].startswith(READ_BY_AGENTS) else "malformed",
        ),
        "schema-missing": (change_document(data, lambda v: v.pop("schema")), "malformed"),
        "schema-a-number": (change_document(data, lambda v: v.update(schema=1)), "malformed"),
        "nan": ((text[:-1] + ',"x":NaN}').encode(), "malformed"),
        "float": ((text[:-1] + ',"x":1.0}').encode(), "malformed"),
        "exponent": ((text[:-1] + ',"x":1e3}').encode(), "malformed"),
        "integer-beyond-2-to-53": ((text[:-1] + ',"x":9007199254740993}').encode(), "malformed"),
        "integer-of-thousands-of-digits": ((text[:-1] + f',"x":{"9" * 5000}}}').encode(), "malformed"),
        "nested-900-deep": ((text[:-1] + f',"x":{deep}}}').encode(), "malformed"),
        "nested-10000-deep": ((text[:-1] + f',"x":{"[" * 10_000}').encode(), "malformed"),
    }


def _enable_shadow_mode(manifest: Any, **changes: int) -> None:
    """Enable shadow mode in a manifest; `changes` replace its default settings."""
    shadow = {"shadow_ppm": 100_000, "shadow_agreement_ppm": 950_000, "shadow_relative_rms_ppm": 50_000}
    manifest["variants"]["int8"]["health"].update({**shadow, **changes})


def make_manifest_vectors() -> Vectors:
    """Return the vectors of manifests by file name."""
    data = make_manifest().as_bytes()
    out = make_text_vectors(data)

    def top(**fields: Any) -> tuple[bytes, str]:
        return change_document(data, lambda v: v.update(fields)), "malformed"

    def variant(change: Change) -> tuple[bytes, str]:
        return change_document(data, lambda v: change(v["variants"]["int8"])), "malformed"

    def file(**fields: Any) -> tuple[bytes, str]:
        return variant(lambda v: v["files"][0].update(fields))

    def patch(**fields: Any) -> tuple[bytes, str]:
        return variant(lambda v: v["patches"][0].update(fields))

    out |= {
        "too-large": (change_document(data, lambda v: v.update(created="x" * 262_144)), "too-large"),
        "family-with-a-slash": top(family="kws/../x"),
        "family-in-capitals": top(family="KWS"),
        "version-of-one-number": top(version="1"),
        "version-with-a-leading-zero": top(version="1.02.0"),
        "counter-zero": top(counter=0),
        "counter-a-boolean": top(counter=True),
        "counter-a-string": top(counter="7"),
        "counter-negative": top(counter=-7),
        "min-counter-above-counter": top(min_counter=8),
        "channel-twice": top(channels=["stable", "stable"]),
        "channel-no-name": top(channels=["a b"]),
        "channels-no-list": top(channels="stable"),
        "min-agent-no-version": top(min_agent="new"),
        "created-no-time": top(created="yesterday"),
        "no-variants": top(variants={}),
        "variant-name-in-capitals": (
            change_document(data, lambda v: v["variants"].update(INT8=v["variants"].pop("int8"))),
            "malformed",
        ),
        "variant-no-object": top(variants={"int8": []}),
        "variant-unknown-field": variant(lambda v: v.update(command="rm")),
        "files-missing": variant(lambda v: v.pop("files")),
        "no-files": variant(lambda v: v.update(files=[])),
        "files-unsorted": variant(lambda v: v["files"].reverse()),
        "file-twice": variant(lambda v: v["files"].insert(0, v["files"][0])),
        "file-is-a-folder-too": variant(
            lambda v: v["files"].insert(1, {**v["files"][1], "path": "model", "role": "other"})
        ),
        "folder-in-another-case": variant(
            lambda v: v["files"].insert(0, {**v["files"][0], "path": "Model/other.txt", "role": "other"})
        ),
        "path-parent": file(path="../labels.txt"),
        "path-parent-inside": file(path="a/../labels.txt"),
        "path-absolute": file(path="/labels.txt"),
        "path-hidden": file(path=".labels"),
        "path-empty-segment": file(path="a//labels"),
        "path-backslash": file(path="a\\labels"),
        "path-with-nul": file(path="a\0labels"),
        "path-trailing-newline": file(path="labels.txt\n"),
        "path-nine-segments": file(path="a/b/c/d/e/f/g/h/i"),
        "path-of-201-characters": file(path="a" * 201),
        "path-not-ascii": file(path="étiquettes.txt"),
        "role-unknown": file(role="script"),
        "size-negative": file(size=-1),
        "size-beyond-a-tebibyte": file(size=2**40 + 1),
        "digest-in-capitals": file(sha256="A" * 64),
        "digest-short": file(sha256="a" * 63),
        "paths-that-differ-in-case-only": variant(
            lambda v: v["files"].insert(0, {**v["files"][0], "path": "LABELS.txt"})
        ),
        "model-of-another-role": variant(lambda v: v["files"][1].update(role="other")),
        "model-without-an-entry": variant(lambda v: v["files"][0].update(role="model")),
        "models-missing": variant(lambda v: v.pop("models")),
        "models-empty": variant(lambda v: v.update(models=[])),
        "models-of-one-name": variant(_add_second_model),
        "model-file-unknown": variant(lambda v: v["models"][0].update(file="model/other.onnx")),
        "model-golden-of-another-role": variant(lambda v: v["models"][0].update(golden="labels.txt")),
        "model-unknown-field": variant(lambda v: v["models"][0].update(command="rm")),
        "good-with-two-models": (
            change_document(data, lambda v: _add_second_model(v["variants"]["int8"], name="second")),
            None,
        ),
        "good-without-a-model": (change_document(data, lambda v: _remove_models(v["variants"]["int8"])), None),
        "runtime-app-with-models": variant(lambda v: _remove_models(v, models=v["models"])),
        "runtime-app-with-a-version": variant(lambda v: _remove_models(v)["runtime"].update(min="1.0")),
        "runtime-unknown": variant(lambda v: v["runtime"].update(name="tvm")),
        "runtime-no-version": variant(lambda v: v["runtime"].update(min="latest")),
        "runtime-without-a-version": variant(lambda v: v["runtime"].update(min=None)),
        "runtime-provider-with-a-slash": variant(lambda v: v["runtime"].update(providers=["a/b"])),
        "runtime-option-in-capitals": variant(lambda v: v["runtime"].update(options={"Session": "1"})),
        "runtime-option-a-number": variant(lambda v: v["runtime"].update(options={"session.x": 1})),
        "at-rest-unknown": variant(lambda v: v.update(at_rest="open")),
        "measured-missing": variant(lambda v: v.pop("measured")),
        "measured-ratio-zero": variant(lambda v: v["measured"].update(float_ratio_ppm=0)),
        "ramp-missing": (change_document(data, lambda v: v.pop("ramp")), "malformed"),
        "ramp-that-begins-late": top(ramp=[{"after_s": 1, "percent_bp": 100}]),
        "ramp-that-falls": top(ramp=[{"after_s": 0, "percent_bp": 100}, {"after_s": 9, "percent_bp": 50}]),
        "ramp-without-a-pause": top(ramp=[{"after_s": 0, "percent_bp": 1}, {"after_s": 0, "percent_bp": 50}]),
        "ramp-of-nobody": top(ramp=[{"after_s": 0, "percent_bp": 0}]),
        "good-without-a-ramp": (change_document(data, lambda v: v.update(ramp=[])), None),
        "no-patches": variant(lambda v: v.update(patches=[])),
        "patch-twice": variant(lambda v: v["patches"].append(dict(v["patches"][0]))),
        "patch-from-no-digest": patch(**{"from": "nothing"}),
        "patch-without-from": variant(lambda v: v["patches"][0].pop("from")),
        "patch-of-no-bytes": patch(size=0),
        "patch-features-twice": patch(features=["typed", "typed"]),
        "blob-no-digest": patch(blob="../../etc/passwd"),
        "commitment-missing": variant(lambda v: v.pop("key_commitment")),
        "commitment-short": variant(lambda v: v.update(key_commitment="b")),
        "no-outputs": variant(lambda v: v["models"][0]["contract"].update(outputs=[])),
        "dtype-unknown": variant(lambda v: v["models"][0]["contract"]["outputs"][0].update(dtype="complex64")),
        "shape-negative": variant(lambda v: v["models"][0]["contract"]["outputs"][0].update(shape=[-1])),
        "shape-no-list": variant(lambda v: v["models"][0]["contract"]["outputs"][0].update(shape=3)),
        "shape-a-boolean": variant(lambda v: v["models"][0]["contract"]["outputs"][0].update(shape=[True])),
        "shape-name-of-no-character": variant(
            lambda v: v["models"][0]["contract"]["outputs"][0].update(shape=["\ud800"])
        ),
        "shape-of-17-dimensions": variant(lambda v: v["models"][0]["contract"]["outputs"][0].update(shape=[1] * 17)),
        "health-missing": variant(lambda v: v.pop("health")),
        "health-ratio-above-one": variant(lambda v: v["health"].update(shadow_ppm=1_000_001)),
        "good-with-shadow": (change_document(data, _enable_shadow_mode), None),
        "health-shadow-without-its-limits": variant(lambda v: v["health"].update(shadow_ppm=1)),
        "health-shadow-limit-without-shadow": variant(lambda v: v["health"].update(shadow_agreement_ppm=1)),
        "health-shadow-limit-above-one": (
            change_document(data, lambda v: _enable_shadow_mode(v, shadow_agreement_ppm=1_000_001)),
            "malformed",
        ),
        "health-deadline-zero": variant(lambda v: v["health"].update(probe_deadline_s=0)),
        "health-unknown-verdict": variant(lambda v: v["health"].update(inconclusive="hope")),
        "quantization-verdict-unknown": variant(lambda v: v["quantization"].update(verdict="fail")),
        "quantization-scheme-with-a-space": variant(lambda v: v["quantization"].update(scheme="int 8")),
        "provenance-a-list": variant(lambda v: v.update(provenance=[])),
        "provenance-value-a-number": variant(lambda v: v.update(provenance={"source": 1})),
        "provenance-value-with-a-newline": variant(lambda v: v.update(provenance={"source": "a\nb"})),
        "provenance-name-of-no-character": variant(lambda v: v.update(provenance={"\ud800": "a"})),
        "requires-arch-twice": variant(lambda v: v["requires"].update(arch=["x86_64", "x86_64"])),
    }
    return out


def _add_second_model(variant: dict[str, Any], name: str = "model") -> None:
    variant["files"].append({**variant["files"][1], "path": "model/second.onnx"})
    variant["models"].append({**variant["models"][0], "name": name, "file": "model/second.onnx"})


def _remove_models(variant: dict[str, Any], models: Sequence[Any] = ()) -> dict[str, Any]:
    runtime: dict[str, Any] = {"name": "app", "min": None, "below": None, "providers": [], "options": {}}
    variant.update(runtime=runtime, models=list(models))
    return variant


def make_rollout_vectors() -> Vectors:
    """Return the vectors of rollouts by file name."""
    data = make_rollout().as_bytes()

    def top(**fields: Any) -> tuple[bytes, str]:
        return change_document(data, lambda v: v.update(fields)), "malformed"

    return make_text_vectors(data) | {
        "too-large": (change_document(data, lambda v: v.update(note="x" * 40_000)), "too-large"),
        "channel-missing": (change_document(data, lambda v: v.pop("channel")), "malformed"),
        "channel-with-a-slash": top(channel="a/b"),
        "counter-zero": top(counter=0),
        "percent-above-all": top(percent_bp=10_001),
        "percent-negative": top(percent_bp=-1),
        "percent-a-boolean": top(percent_bp=True),
        "digest-short": top(manifest_digest="c" * 63),
        "version-no-version": top(version="latest"),
        "salt-long": top(salt="x" * 65),
        "salt-with-nul": top(salt="a\0b"),
        "cohort-twice": top(cohorts=["a", "a"]),
        "cohort-a-number": top(cohorts=[1]),
        "window-backwards": top(windows=[{"start_s": 5, "end_s": 4}]),
        "window-empty": top(windows=[{"start_s": 5, "end_s": 5}]),
        "window-without-end": top(windows=[{"start_s": 5}]),
        "window-unknown-field": top(windows=[{"start_s": 5, "end_s": 6, "zone": "UTC"}]),
        "windows-65": top(windows=[{"start_s": n, "end_s": n + 1} for n in range(65)]),
        "halted-a-number": top(halted=1),
        "note-with-escape-sequence": top(note="\x1b[2J"),
        "good-with-a-plan": (change_document(data, lambda v: v.update(plan="d" * 64, raised_s=9)), None),
        "plan-short": top(plan="d" * 63),
        "plan-missing": (change_document(data, lambda v: v.pop("plan")), "malformed"),
        "raised-negative": top(raised_s=-1),
        "schema-1": top(schema="airweights.rollout/1"),
    }


def make_plan() -> Plan:
    """Return a valid plan."""
    release, before = PlannedRelease("1.2.0", 7, "c" * 64), PlannedRelease("1.1.0", 6, "b" * 64)
    return Plan("kws", "stable", release, (before,), "kws-7", ("default",))


def make_plan_vectors() -> Vectors:
    """Return the vectors of plans by file name."""
    data = make_plan().as_bytes()

    def top(**fields: Any) -> tuple[bytes, str]:
        return change_document(data, lambda v: v.update(fields)), "malformed"

    return make_text_vectors(data) | {
        "too-large": (change_document(data, lambda v: v.update(salt="x" * 40_000)), "too-large"),
        "good-of-one-stage": (change_document(data, lambda v: v.update(stages_bp=[10_000])), None),
        "good-without-fallbacks": (change_document(data, lambda v: v.update(fallbacks=[], cohorts=[])), None),
        "stages-missing": (change_document(data, lambda v: v.pop("stages_bp")), "malformed"),
        "stages-empty": top(stages_bp=[]),
        "stages-that-fall": top(stages_bp=[500, 100]),
        "stages-that-repeat": top(stages_bp=[100, 100]),
        "stage-of-nobody": top(stages_bp=[0, 100]),
        "stage-above-all": top(stages_bp=[100, 10_001]),
        "stages-17": top(stages_bp=list(range(1, 18))),
        "accept-zero": top(accept_ppm=0),
        "refuse-at-accept": top(refuse_ppm=10_000),
        "refuse-above-half": top(refuse_ppm=500_001),
        "alpha-zero": top(alpha_ppm=0),
        "beta-above-half": top(beta_ppm=600_000),
        "ceiling-above-half": top(base_ceiling_ppm=500_001),
        "soak-zero": top(soak_s=0),
        "grow-before-soak": top(grow_after_s=86_399),
        "release-without-a-digest": top(release={"version": "1.2.0", "counter": 7}),
        "fallback-to-itself": top(fallbacks=[make_plan().release.as_json()]),
        "fallback-unknown-field": top(fallbacks=[{**make_plan().fallbacks[0].as_json(), "note": ""}]),
        "channel-with-a-slash": top(channel="a/b"),
    }


def make_fleet_vectors() -> Vectors:
    """Return the vectors of fleet documents by file name."""
    data = make_fleet().as_bytes()
    key = make_fleet().cohorts[0].public_key.hex()

    def cohort(**fields: Any) -> tuple[bytes, str]:
        return change_document(data, lambda v: v["cohorts"]["default"].update(fields)), "malformed"

    return make_text_vectors(data) | {
        "good-without-cohorts": (change_document(data, lambda v: v.update(cohorts={})), None),
        "epoch-zero": cohort(epoch=0),
        "epoch-a-string": cohort(epoch="3"),
        "key-short": cohort(public_key=key[:-2]),
        "key-long": cohort(public_key=key + "00"),
        "key-in-capitals": cohort(public_key=key.upper()),
        "key-no-hexadecimal": cohort(public_key="g" + key[1:]),
        "cohort-unknown-field": cohort(private_key="00"),
        "shards-three": cohort(shards=3),
        "shards-zero": cohort(shards=0),
        "shards-too-many": cohort(shards=131_072),
        "shards-a-string": cohort(shards="1"),
        "shards-missing": (change_document(data, lambda v: v["cohorts"]["default"].pop("shards")), "malformed"),
        "cohort-name-with-a-slash": (
            change_document(data, lambda v: v["cohorts"].update({"a/b": v["cohorts"].pop("default")})),
            "malformed",
        ),
        "devices-negative": (change_document(data, lambda v: v.update(devices=-1)), "malformed"),
        "registry-digest-missing": (change_document(data, lambda v: v.pop("registry_digest")), "malformed"),
    }


def make_enrollment_vectors() -> Vectors:
    """Return the vectors of enrollment requests by file name."""
    data = make_enrollment()

    def top(reason: str, **fields: Any) -> tuple[bytes, str]:
        return change_document(data, lambda v: v.update(fields)), reason

    other = derive_public_key(Secret(bytes(range(1, PRIVATE_BYTES + 1)))).hex()
    signature = json.loads(data)["signature"]
    return make_text_vectors(data) | {
        "too-large": (data + b" " * 20_000, "too-large"),
        "label-changed": top("enrollment-refused", label="cam-2"),
        "label-with-a-space": top("malformed", label="cam 1"),
        "attributes-changed": top("enrollment-refused", attributes={"class": "server"}),
        "attributes-17": top("malformed", attributes={f"a{n}": "x" for n in range(17)}),
        "device-id-of-another": top("enrollment-refused", device_id="0" * 64),
        "x-wing-key-of-another": top("enrollment-refused", x_wing_public=other),
        "x-wing-key-short": top("malformed", x_wing_public=other[:-2]),
        "ed25519-key-of-zeros": top("enrollment-refused", ed25519_public="00" * 32),
        "signature-flipped": top("enrollment-refused", signature=f"{int(signature[0], 16) ^ 1:x}" + signature[1:]),
        "signature-short": top("malformed", signature=signature[:-2]),
        "signature-in-capitals": top("malformed", signature=signature.upper()),
        "signature-missing": (change_document(data, lambda v: v.pop("signature")), "malformed"),
    }


def make_report() -> bytes:
    """Return a valid, signed device report."""
    report = DeviceReport(
        log="1" * 32,
        sequence=2,
        previous="a" * 64,
        outcome="refused",
        reason="golden-mismatch",
        state="probing",
        repository="d" * 64,
        family="kws",
        channel="stable",
        rollout="e" * 64,
        release="1.2.0",
        counter_epoch=0,
        counter=7,
        variant="int8",
        bundle=BundleDigest("b" * 64),
        from_release="1.1.0",
        trigger="poll",
        started_ms=1_767_225_590_000,
        finished_ms=1_767_225_600_000,
        agent="0.1.0",
        runtime="1.32.0",
    )
    return report.encode("c" * 64, ED25519_PRIVATE.sign(report.signed_bytes("c" * 64)))


def make_report_vectors() -> Vectors:
    """Return the vectors of device reports by file name."""
    data = make_report()
    signature = json.loads(data)["signature"]

    def top(refusal: str | None = "malformed", **fields: Any) -> tuple[bytes, str | None]:
        return change_document(data, lambda v: v.update(fields)), refusal

    return make_text_vectors(data) | {
        "good-first": top(None, sequence=1, previous=None),
        "good-without-a-variant": top(None, variant=None, bundle=None, from_release=None, rollout=None),
        "too-large": (data + b" " * 20_000, "too-large"),
        "first-with-one-before": top(sequence=1),
        "second-with-none-before": top(previous=None),
        "sequence-zero": top(sequence=0, previous=None),
        "log-short": top(log="1" * 31),
        "outcome-of-no-end": top(outcome="waiting"),
        "outcome-unknown": top(outcome="fine"),
        "reason-with-a-space": top(reason="golden mismatch"),
        "release-no-version": top(release="latest"),
        "release-null": top(release=None),
        "repository-short": top(repository="d" * 63),
        "repository-null": top(repository=None),
        "channel-missing": (change_document(data, lambda v: v.pop("channel")), "malformed"),
        "state-unknown": top(state="idle"),
        "schema-of-yesterday": top(schema="airweights.report/1"),
        "bundle-short": top(bundle="b" * 63),
        "device-id-short": top(device_id="c" * 63),
        "agent-with-escape-sequence": top(agent="\x1b[2J"),
        "signature-short": top(signature=signature[:-2]),
        "signature-in-capitals": top(signature=signature.upper()),
        "signature-missing": (change_document(data, lambda v: v.pop("signature")), "malformed"),
    }


def make_vital() -> bytes:
    """Return a valid, signed vital."""
    vital = Vital(
        log="1" * 32,
        number=3,
        reports=2,
        day=20_454,
        repository="d" * 64,
        family="kws",
        channel="stable",
        rollout="e" * 64,
        offered="1.3.0",
        state="waiting",
        reason="not-eligible",
        release="1.2.0",
        counter_epoch=0,
        counter=7,
        variant="int8",
        probation="passed",
        served_days=4,
        restarts=0,
        requests=12,
        failed=2,
        free_storage=30,
        cpu="x86_64-avx2",
        agent="0.1.0",
        runtime="1.32.0",
    )
    return vital.encode("c" * 64, ED25519_PRIVATE.sign(vital.signed_bytes("c" * 64)))


def make_vital_vectors() -> Vectors:
    """Return the vectors of vitals by file name."""
    data = make_vital()

    def top(refusal: str | None = "malformed", **fields: Any) -> tuple[bytes, str | None]:
        return change_document(data, lambda v: v.update(fields)), refusal

    return make_text_vectors(data) | {
        "good-before-the-first-release": top(
            None, release=None, variant=None, counter=0, probation="none", state="stopped", rollout=None, offered=None
        ),
        "too-large": (data + b" " * 20_000, "too-large"),
        "number-zero": top(number=0),
        "log-short": top(log="1" * 31),
        "state-unknown": top(state="fine"),
        "reason-with-a-space": top(reason="not eligible"),
        "release-without-a-variant": top(variant=None),
        "probation-unknown": top(probation="good"),
        "requests-not-a-magnitude": top(requests=4096),
        "day-a-time": top(day=1_767_225_600),
        "served-negative": top(served_days=-1),
        "cpu-a-sentence": top(cpu="Intel(R) Core(TM) of Bob"),
        "address-added": top(address="192.0.2.1"),
        "repository-null": top(repository=None),
        "signature-short": top(signature="0" * 127),
        "signature-missing": (change_document(data, lambda v: v.pop("signature")), "malformed"),
    }


GENERATORS: Final[dict[str, Callable[[], Vectors]]] = {
    "manifest": make_manifest_vectors,
    "rollout": make_rollout_vectors,
    "plan": make_plan_vectors,
    "fleet": make_fleet_vectors,
    "enrollment": make_enrollment_vectors,
    "report": make_report_vectors,
    "vital": make_vital_vectors,
}


def main() -> None:
    """Write all files of all folders."""
    for kind, make in GENERATORS.items():
        folder = FOLDER / kind
        for path in folder.glob("*.json"):
            path.unlink()
        vectors = make()
        for name, (data, _) in vectors.items():
            (folder / f"{name}.json").write_bytes(data)
        expected = {name: reason for name, (_, reason) in sorted(vectors.items())}
        (folder / "expected").write_text(json.dumps(expected, indent=1) + "\n")


if __name__ == "__main__":
    main()
