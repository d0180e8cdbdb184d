"""A release from release.toml to published files, with real models, keys and repository, read like a device does."""

import hashlib
import shutil
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from bundle.envelope import CONTENT_KEY_PURPOSE, EnvelopeContext, check_commitment, open_envelope
from bundle.files import bundle_digest
from bundle.frames import BLOB_LABEL, FrameContext, FrameReader, Secret
from bundle.golden.golden_file import read_golden
from bundle.manifest import Manifest
from bundle.patch.apply import apply_patch
from bundle.variant import Variant
from keys.cohorts import load_private_key
from keys.errors import CohortUnknown
from keys.signers import load_folder_signers
from packager.diff.bundle_folder import DirectoryBase, DirectoryTarget, open_bundle
from packager.errors import (
    BaseMissing,
    GateFailed,
    GateInconclusive,
    MetricUnusable,
    NoVariantLeft,
    ReleaseFileInvalid,
    VariantUnknown,
    VersionTaken,
)
from packager.executors.processes import ProcessExecutor
from packager.models.model_package import open_package
from packager.release.add_patches import add_patches
from packager.release.pipeline import run_release
from packager.release.release_file import parse_release_file
from packager.release.release_plan import RolloutPlan
from packager.release.release_report import ReleaseReport
from packager.release.steps.sign import rollouts_of
from packager.repository.repository import Repository
from packager.repository.workspace import Workspace
from tests.support import tiny_models
from tests.support.envelope_files import content_envelope_of
from tests.support.packager_cli import read_all_files
from tests.support.release_fixtures import ReleaseSite, create_site

COHORT = "default"

WHOLE = """
channels = ["stable"]
model = "model.onnx"
inputs = "inputs.npz"
golden = 4
[[files]]
path = "labels.txt"
role = "labels"
[variants.fp32]
[variants.int8]
scheme = "int8"
[rollout]
percent = 10
"""


SMALL = """
channels = ["stable"]
model = "model.onnx"
inputs = "inputs.npz"
golden = 2
[variants.fp32]
[rollout]
"""


ALONE = SMALL.replace("[rollout]", "[[files]]\npath = 'labels.txt'\nrole = 'labels'\n[patches]\nfrom = 0\n[rollout]")


class ReleaseBench:
    """A repository with its keys and a folder for release files."""

    def __init__(self, site: ReleaseSite) -> None:
        self.folder, self.keys = site.folder, site.folder / "keys"
        self.repository = Repository.open(site.folder / "repo")
        self.signers = load_folder_signers(self.keys, None)

    def release(
        self,
        version: str,
        body: str = WHOLE,
        *,
        seed: int = 0,
        model: onnx.ModelProto | None = None,
        until: str = "publish",
    ) -> ReleaseReport:
        """Create one release of `model`, or of a model drawn from `seed`."""
        onnx.save(model or tiny_models.mlp(seed), self.folder / "model.onnx")
        place = self.folder / "release.toml"
        place.write_text(f'family = "kws"\nversion = "{version}"\n{body}')
        return run_release(parse_release_file(place), self.repository, self.signers, until=until)

    def published_manifest(self, version: str) -> Manifest:
        """Return a published manifest, and assert that its file has the name of its digest."""
        listed = self.repository.manifest("kws", version)
        assert listed is not None
        data = listed.as_bytes()
        name = f"{hashlib.sha256(data).hexdigest()}.{version}.json"
        assert (self.repository.published / "targets" / "bundles" / "kws" / name).read_bytes() == data
        return listed

    def open_content_key(self, manifest: Manifest, variant: Variant) -> Secret:
        """Open the envelope with the cohort's private key, check the commitment, and return the content key."""
        cohort = self.repository.fleet().cohort(COHORT)
        assert cohort is not None
        context = EnvelopeContext(
            CONTENT_KEY_PURPOSE, self.repository.repository_id, COHORT, cohort.epoch, "kws", manifest.counter
        )
        envelope = content_envelope_of(self.repository.published, "kws", manifest.counter, cohort)
        key = open_envelope(envelope, load_private_key(self.keys, cohort, None), context)
        check_commitment(key, variant.key_commitment)
        return key

    def install(self, manifest: Manifest, name: str, base: Path | None, out: Path) -> Path:
        """Decrypt and apply the published patch from `base`; return `out`."""
        variant = manifest.variant(name)
        assert variant is not None
        start = bundle_digest(open_package(base).files) if base is not None else None
        entry = next(patch for patch in variant.patches if patch.base == start)
        blob = self.repository.published / "blobs" / entry.blob[:2] / entry.blob
        assert hashlib.sha256(blob.read_bytes()).hexdigest() == entry.blob
        assert blob.stat().st_size == entry.size
        context = FrameContext(BLOB_LABEL, "kws", manifest.counter, name)
        with blob.open("rb") as stream, DirectoryTarget(out) as target:
            reader = FrameReader(stream, self.open_content_key(manifest, variant), context)
            if base is None:
                files = apply_patch(reader, None, target)
            else:
                with DirectoryBase(open_bundle(base)) as source:
                    files = apply_patch(reader, source, target)
            target.commit()
        assert files == variant.files
        assert bundle_digest(files) == variant.digest
        return out


@pytest.fixture
def shared(site: ReleaseSite) -> ReleaseBench:
    """Return the repository with releases 1.0.0 and 1.1.0; tests must not change it."""
    return ReleaseBench(site)


@pytest.fixture
def bench(tmp_path: Path) -> ReleaseBench:
    """Return a repository without releases."""
    return ReleaseBench(create_site(tmp_path))


@pytest.fixture(scope="module")
def four_releases(tmp_path_factory: pytest.TempPathFactory) -> ReleaseSite:
    """Releases 1.0.0 to 1.3.0, of the same model with other labels, and no patch between them; copied for each test."""
    site = create_site(tmp_path_factory.mktemp("four"))
    made = ReleaseBench(site)
    for number in range(4):
        (made.folder / "labels.txt").write_text("a\nb\n" * (number + 1))
        made.release(f"1.{number}.0", "min_counter = 1\n" + ALONE if number == 0 else ALONE)
    return site


@pytest.fixture
def released(four_releases: ReleaseSite, tmp_path: Path) -> ReleaseBench:
    """Return a copy of the repository with four releases."""
    folder = tmp_path / "site"
    shutil.copytree(four_releases.folder, folder)
    return ReleaseBench(ReleaseSite(folder))


def test_both_variants_are_published_and_install_from_nothing_and_by_patch(
    shared: ReleaseBench, tmp_path: Path
) -> None:
    first, second = shared.published_manifest("1.0.0"), shared.published_manifest("1.1.0")
    assert (first.counter, second.counter) == (1, 2)
    for name in ("fp32", "int8"):
        old = shared.install(first, name, None, tmp_path / f"{name}-old")
        new = shared.install(second, name, None, tmp_path / f"{name}-new")
        patched = shared.install(second, name, old, tmp_path / f"{name}-patched")
        assert read_all_files(patched) == read_all_files(new)


def test_the_manifest_says_what_a_device_must_know(shared: ReleaseBench, tmp_path: Path) -> None:
    manifest = shared.published_manifest("1.1.0")
    fp32, int8 = manifest.variant("fp32"), manifest.variant("int8")
    assert fp32 is not None
    assert int8 is not None
    assert [(t.name, t.dtype, t.shape) for t in fp32.require_model().contract.inputs] == [("x", "float32", (1, 64))]
    assert fp32.require_model().contract == int8.require_model().contract
    assert fp32.quantization.scheme == "none"
    assert int8.quantization.scheme.startswith("int8-")
    assert int8.quantization.verdict == "pass"
    assert int8.quantization.relative_rms_ppm is not None
    assert 0 < int8.quantization.relative_rms_ppm < 150_000
    assert fp32.requires.memory_bytes > 10_000_000
    assert fp32.runtime.min_version == "1.31"
    provenance = dict(int8.provenance)
    assert provenance["inputs"].startswith("npz:")
    assert "override_gate" not in provenance
    assert {file.role for file in int8.files} == {"model", "package", "golden", "labels"}
    root = shared.install(manifest, "int8", None, tmp_path / "out")
    golden = read_golden((root / str(int8.require_model().golden)).read_bytes())
    assert len(golden) == 4


def test_the_rollout_names_the_release_for_its_share_of_devices(shared: ReleaseBench) -> None:
    rollout = shared.repository.rollout("kws", "stable")
    assert rollout is not None
    assert (rollout.version, rollout.counter, rollout.percent_bp) == ("1.1.0", 2, 1000)
    assert rollout.manifest_digest == shared.published_manifest("1.1.0").digest_without_patches()


def test_no_plain_model_and_no_key_is_among_the_published_files(shared: ReleaseBench) -> None:
    stored = Workspace(shared.repository.root).find_variant("kws", 2, "fp32")
    assert stored is not None
    model = (shared.folder / "1.1.0.onnx").read_bytes()
    secrets = (model[2000:2064], stored.content_key.value, stored.content_key.value.hex().encode())
    for path, data in read_all_files(shared.repository.published).items():
        assert not any(secret in data for secret in secrets), path


def test_a_version_is_released_once(shared: ReleaseBench) -> None:
    with pytest.raises(VersionTaken, match=r"kws 1\.1\.0"):
        shared.release("1.1.0")


def test_a_dry_run_tells_the_sizes_and_leaves_no_trace(shared: ReleaseBench) -> None:
    before = read_all_files(shared.repository.root)
    report = shared.release("1.2.0", seed=2, until="diff")
    assert not report.is_published
    rows = report.variants["int8"]["patches"]
    assert isinstance(rows, list)
    assert rows[0]["from_version"] is None
    assert all(row["plain_size"] > 0 for row in rows)
    assert read_all_files(shared.repository.root) == before


def test_a_base_that_was_never_released_is_told(shared: ReleaseBench) -> None:
    before = read_all_files(shared.repository.root)
    with pytest.raises(BaseMissing, match=r"kws 0\.9\.0"):
        shared.release("1.2.0", WHOLE.replace("[rollout]", '[patches]\nfrom = ["0.9.0"]\n[rollout]'), seed=2)
    assert read_all_files(shared.repository.root) == before


def test_an_unknown_cohort_is_told_before_anything_is_written(shared: ReleaseBench) -> None:
    before = read_all_files(shared.repository.root)
    with pytest.raises(CohortUnknown, match="garage"):
        shared.release("1.2.0", WHOLE + 'cohorts = ["garage"]\n', seed=2)
    assert read_all_files(shared.repository.root) == before


def test_patches_can_be_added_to_a_release_that_is_out_and_nothing_else_changes(
    released: ReleaseBench, tmp_path: Path
) -> None:
    before = released.published_manifest("1.3.0")
    with ProcessExecutor(2) as executor:  # each patch is a job
        added = add_patches(
            released.repository, "kws", "1.3.0", ["1.0.0", "1.1.0"], variants=["fp32"], executor=executor
        )
    assert {row.version for row in added} == {"1.0.0", "1.1.0"}
    released.repository.sign(released.signers)
    released.repository.publish()
    after = released.published_manifest("1.3.0")
    assert after.digest_without_patches() == before.digest_without_patches()
    old = released.install(released.published_manifest("1.0.0"), "fp32", None, tmp_path / "old")
    new = released.install(after, "fp32", old, tmp_path / "new")
    assert (new / "labels" / "labels.txt").read_text() == "a\nb\n" * 4
    assert add_patches(released.repository, "kws", "1.3.0", ["1.0.0"], variants=["fp32"]) == ()
    assert released.repository.is_staging_empty


def test_patches_can_be_added_to_a_release_that_others_came_after(released: ReleaseBench, tmp_path: Path) -> None:
    added = add_patches(released.repository, "kws", "1.2.0", [], last_releases=1)
    assert [row.version for row in added] == ["1.1.0"]
    added = add_patches(released.repository, "kws", "1.2.0", ["1.3.0"], last_releases=5)
    assert [row.version for row in added] == ["1.3.0", "1.0.0"]
    released.repository.sign(released.signers)
    released.repository.publish()
    later = released.install(released.published_manifest("1.3.0"), "fp32", None, tmp_path / "later")
    released.install(released.published_manifest("1.2.0"), "fp32", later, tmp_path / "back")
    assert released.repository.next_counter("kws") == 5


def test_patches_from_or_to_what_was_never_released_are_refused(shared: ReleaseBench) -> None:
    before = read_all_files(shared.repository.root)
    for version, base in (("9.0.0", "1.0.0"), ("1.1.0", "9.0.0")):
        with pytest.raises(BaseMissing, match=r"kws 9\.0\.0"):
            add_patches(shared.repository, "kws", version, [base])
    with pytest.raises(VariantUnknown, match="int4"):
        add_patches(shared.repository, "kws", "1.1.0", ["1.0.0"], variants=["int4"])
    assert read_all_files(shared.repository.root) == before


def test_a_device_without_the_optional_decoder_has_a_way_to_every_variant(shared: ReleaseBench) -> None:
    for _, variant in shared.published_manifest("1.1.0").variants:
        assert any(patch.base is None and "pcodec" not in patch.features for patch in variant.patches)


ONLY_INT8 = WHOLE.replace("[variants.fp32]\n", "")
IMPOSSIBLE = WHOLE.replace('scheme = "int8"', 'scheme = "int8"\ngate.max_relative_rms = 0.0')


def test_a_variant_that_fails_its_gate_is_left_out_with_the_reason(shared: ReleaseBench) -> None:
    report = shared.release("1.2.0", IMPOSSIBLE, seed=2, until="diff")
    assert list(report.variants) == ["fp32"]
    assert "relative RMS" in report.dropped["int8"]


def test_a_variant_for_arm_is_offered_to_arm_alone_and_says_where_it_is_exact(bench: ReleaseBench) -> None:
    report = bench.release("1.0.0", ONLY_INT8.replace('scheme = "int8"', 'scheme = "int8"\ntarget = "arm"'))
    int8 = bench.published_manifest("1.0.0").variant("int8")
    assert int8 is not None, report.dropped
    assert "aarch64" in int8.requires.arch
    assert "x86_64" not in int8.requires.arch
    assert int8.quantization.stability == "exact on ARM; saturates on x86 without VNNI"


def test_a_runtime_older_than_the_operators_cannot_be_claimed(shared: ReleaseBench) -> None:
    before = read_all_files(shared.repository.root)
    body = WHOLE.replace('scheme = "int8"', 'scheme = "int8"\nrequires.runtime_min = "1.5"')
    with pytest.raises(ReleaseFileInvalid, match=r"int8: requires.runtime_min: found 1.5, its .* came with 1.12"):
        shared.release("1.2.0", body, seed=2)
    assert read_all_files(shared.repository.root) == before


def test_a_metric_that_cannot_be_called_ends_the_release_before_any_work(shared: ReleaseBench) -> None:
    with pytest.raises(MetricUnusable, match="no_such_module"):
        shared.release("1.2.0", 'metric = "python:no_such_module:f"\n' + WHOLE, seed=2)


def test_a_variant_below_the_metric_is_left_out(shared: ReleaseBench) -> None:
    metric = f"{sys.executable} -c 'import os, sys; print(os.path.getsize(sys.argv[1]))'"
    report = shared.release("1.2.0", f'metric = "{metric}"\n' + WHOLE, seed=2, until="diff")
    assert "metric" in report.dropped["int8"]


def test_a_required_variant_that_fails_ends_the_release(shared: ReleaseBench) -> None:
    before = read_all_files(shared.repository.root)
    with pytest.raises(GateFailed, match="int8"):
        shared.release("1.2.0", IMPOSSIBLE.replace("gate.", "required = true\ngate."), seed=2)
    assert read_all_files(shared.repository.root) == before


def test_a_release_of_no_variant_at_all_is_refused(shared: ReleaseBench) -> None:
    with pytest.raises(NoVariantLeft, match="int8"):
        shared.release("1.2.0", IMPOSSIBLE.replace("[variants.fp32]\n", ""), seed=2)


def test_constant_answers_are_inconclusive_not_passed(shared: ReleaseBench) -> None:
    np.savez(shared.folder / "same.npz", x=np.ones((8, 1, 64), np.float32))
    body = WHOLE.replace("inputs.npz", "same.npz").replace('scheme = "int8"', 'scheme = "int8"\nrequired = true')
    with pytest.raises(GateInconclusive):
        shared.release("1.2.0", body, seed=2)


def test_an_override_is_recorded_in_what_is_signed(bench: ReleaseBench) -> None:
    bench.release("1.0.0", 'override_gate = "the old one was worse"\n' + IMPOSSIBLE.replace("[variants.fp32]\n", ""))
    int8 = bench.published_manifest("1.0.0").variant("int8")
    assert int8 is not None
    assert int8.quantization.verdict == "overridden"
    assert dict(int8.provenance)["override_gate"] == "the old one was worse"


def test_a_drill_ships_other_weights_than_its_golden_vectors_came_from(bench: ReleaseBench, tmp_path: Path) -> None:
    bench.release("1.0.0", 'drill = "damaged-weights"\n' + SMALL)
    manifest = bench.published_manifest("1.0.0")
    fp32 = manifest.variant("fp32")
    assert fp32 is not None
    assert dict(fp32.provenance)["drill"] == "damaged-weights"
    root = bench.install(manifest, "fp32", None, tmp_path / "out")
    shipped = (root / fp32.require_model().file).read_bytes()
    assert shipped != (bench.folder / "model.onnx").read_bytes()


def test_external_data_and_a_supplied_variant_travel_with_the_release(bench: ReleaseBench, tmp_path: Path) -> None:
    onnx.save(
        tiny_models.mlp(), bench.folder / "own.onnx", save_as_external_data=True, location="own.bin", size_threshold=0
    )
    body = WHOLE.replace('scheme = "int8"', 'model = "own.onnx"')
    bench.release("1.0.0", body)
    manifest = bench.published_manifest("1.0.0")
    own = manifest.variant("int8")
    assert own is not None
    assert own.quantization.scheme == "supplied"
    assert own.quantization.verdict == "pass"
    assert [file.path for file in own.files if file.role == "external-data"] == ["kws/int8/own.bin"]
    bench.install(manifest, "int8", None, tmp_path / "out")


def test_the_floor_stays_where_the_last_release_set_it(released: ReleaseBench) -> None:
    floors = [released.published_manifest(f"1.{number}.0").min_counter for number in range(4)]
    assert floors == [1, 1, 1, 1]  # only the first release file sets it


def test_a_counter_is_not_used_again_after_a_withdrawal(released: ReleaseBench) -> None:
    assert [released.published_manifest(version).counter for version in ("1.2.0", "1.3.0")] == [3, 4]
    released.repository.stage_rollout(rollouts_of(RolloutPlan(("stable",)), released.published_manifest("1.2.0"))[0])
    released.repository.withdraw("kws", "1.3.0")
    released.repository.sign(released.signers)
    released.repository.publish()
    workspace = Workspace(released.repository.root)
    withdrawn, stored = (workspace.find_variant("kws", counter, "fp32") for counter in (4, 3))
    assert released.release("1.4.0", SMALL, seed=1).counter == 5
    assert withdrawn is not None
    assert stored is not None
    listed = {"kws": released.repository.releases("kws")}
    assert workspace.delete_unlisted_bundles(listed, dry_run=True) == (withdrawn.bundle,)
    assert workspace.delete_unlisted_bundles(listed) == (withdrawn.bundle,)
    assert workspace.open_bundle("kws", withdrawn.bundle) is None
    assert workspace.open_bundle("kws", stored.bundle) is not None


def test_an_int8_variant_of_a_fine_tuned_model_is_an_update_of_the_last_release(
    bench: ReleaseBench, tmp_path: Path
) -> None:
    body = ONLY_INT8
    rng = np.random.default_rng(3)
    np.savez(bench.folder / "inputs.npz", x=rng.standard_normal((256, 1, 64)).astype(np.float32))
    bench.release("1.0.0", body)
    tuned = tiny_models.mlp()
    for tensor in tuned.graph.initializer:
        weights = numpy_helper.to_array(tensor)
        if weights.ndim == 2:
            moved = weights + 0.002 * weights.std() * rng.standard_normal(weights.shape)
            tensor.CopyFrom(numpy_helper.from_array(moved.astype(np.float32), tensor.name))
    report = bench.release("1.1.0", body, model=tuned)
    assert report.variants["int8"]["update"] is not None
    int8 = bench.published_manifest("1.1.0").variant("int8")
    assert int8 is not None
    assert dict(int8.provenance)["update_of"] == "1.0.0"
    assert int8.quantization.verdict == "pass"
    sizes = {patch.base is None: patch.size for patch in int8.patches}
    assert sizes[False] < sizes[True] / 2
    afresh = bench.release("1.2.0", body.replace('"int8"\n', '"int8"\nupdate_aware = false\n'), model=tuned)
    assert afresh.variants["int8"]["update"] is None
