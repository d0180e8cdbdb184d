"""Rebuild a published release from its inputs, on another machine, before an engineer co-signs it.

Rules:
1. The steps up to `probe` run as for a release, with the counter and the time of the manifest. Nothing is staged,
   signed or published, and no key is needed.
2. Recomputed and compared, for each variant: the digest of every file, so the bundle digest; the contract,
   quantization, health contract, runtime and requirements.
3. Not reproduced: `created`, which must not be in the future; the key commitment and the blobs, which depend on a
   secret key; the measured figures, which depend on this machine. The report lists them. The required memory is
   measured, too: it must be plausible, at most MEMORY_RATIO times more or less than here.
4. Another processor or other library versions can round differently. The report names those of this machine and of the
   build machine.
"""

import time
from collections.abc import Iterator
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Final

from bundle.cpu_features import read_cpu_name
from bundle.files import bundle_digest
from bundle.manifest import Manifest
from bundle.variant import Variant
from packager.errors import InvalidUsage, NotReproduced
from packager.release.draft import AssembledVariant, Draft, Reporter, SilentReporter
from packager.release.pipeline import STEP_NAMES, STEPS, further_samples_for, run_steps, samples_for
from packager.release.release_plan import ReleasePlan
from packager.release.steps.sign import model_entries
from packager.repository.repository import Repository
from packager.repository.workspace import Workspace

LAST_STEP: Final = "probe"
NOT_REPRODUCED: Final = ("created", "key_commitment", "measured", "patches", "requires.memory_bytes")
MEMORY_RATIO: Final = 2


@dataclass(frozen=True, slots=True)
class ReproducedVariant:
    """One variant of the manifest, and what this machine made.

    Attributes:
        name: name of the variant.
        digest: bundle digest in the manifest.
        rebuilt: bundle digest of this machine's bundle; "" if it was left out here.
        differences: names of the fields and files that differ.
    """

    name: str
    digest: str
    rebuilt: str
    differences: tuple[str, ...]

    @property
    def is_equal(self) -> bool:
        """True if everything that is compared is equal."""
        return self.rebuilt == self.digest and not self.differences


@dataclass(frozen=True, slots=True)
class ReproduceReport:
    """The result of a rebuild.

    Attributes:
        family, version, counter: name the release.
        manifest_digest: its release digest, as rollouts name it.
        variants: each variant of the manifest.
        built_on: processor and runtime of the build machine, as far as the manifest names them.
        rebuilt_on: processor of this machine.
    """

    family: str
    version: str
    counter: int
    manifest_digest: str
    variants: tuple[ReproducedVariant, ...]
    built_on: str
    rebuilt_on: str

    def as_json(self) -> dict[str, object]:
        """Return the JSON object for `--json`."""
        return {
            "family": self.family,
            "version": self.version,
            "counter": self.counter,
            "manifest_digest": self.manifest_digest,
            "variants": [
                {"name": one.name, "digest": one.digest, "rebuilt": one.rebuilt, "differences": list(one.differences)}
                for one in self.variants
            ],
            "not_reproduced": list(NOT_REPRODUCED),
            "built_on": self.built_on,
            "rebuilt_on": self.rebuilt_on,
        }

    def as_lines(self) -> list[str]:
        """Return lines for a terminal."""
        lines = [f"{one.name}: the same bundle, {one.digest[:16]}…" for one in self.variants]
        return [*lines, f"not reproduced, copied from the manifest: {', '.join(NOT_REPRODUCED)}"]

    def check(self) -> None:
        """Check that every variant is equal.

        Raises:
            NotReproduced: one differs; the message names what differs, and both machines.
        """
        for one in self.variants:
            if not one.is_equal:
                what = ", ".join(one.differences) or "it was left out here"
                raise NotReproduced(
                    f"{self.family} {self.version}, variant {one.name}: {what}; built on {self.built_on}, rebuilt on"
                    f" {self.rebuilt_on}",
                    hint="compare input files and versions of libraries; another processor rounds differently",
                )


def reproduce_release(
    plan: ReleasePlan,
    repository: Repository,
    manifest: Manifest,
    progress: Reporter | None = None,
    executor: Executor | None = None,
) -> ReproduceReport:
    """Rebuild the bundles of a release, and compare them with its manifest.

    Args:
        plan: the contents of the release file.
        repository: the repository; earlier bundles are read from its workspace if the release needs them.
        manifest: the published or staged manifest.
        progress: receives the progress; None reports nothing.
        executor: not needed by the steps that run; passed on.

    Raises:
        InvalidUsage: the release file is for another release, or the manifest's time is in the future.
        AirweightsError: a step failed.
    """
    if (plan.family, plan.version) != (manifest.family, manifest.version):
        raise InvalidUsage(
            f"the release file is for {plan.family} {plan.version}, the manifest for {manifest.family}"
            f" {manifest.version}"
        )
    created = datetime.fromisoformat(manifest.created)
    if created.timestamp() > time.time():
        raise InvalidUsage(f"the manifest was created at {manifest.created}, which is in the future")
    workspace = Workspace(repository.root)
    with workspace.build_folder() as folder:
        draft = Draft(
            plan=plan,
            repository=repository,
            signers=(),
            workspace=workspace,
            counter=manifest.counter,
            created=manifest.created,
            folder=folder,
            samples=samples_for(plan),
            reporter=progress if progress is not None else SilentReporter(),
            executor=executor,
            further_samples=further_samples_for(plan),
        )
        for variant in plan.variants:
            draft.variant_folder(variant.name).mkdir()
        run_steps(draft, STEPS[: STEP_NAMES.index(LAST_STEP) + 1])
        rows = [
            _compare(name, variant, draft.assembled.get(name), plan.model_name) for name, variant in manifest.variants
        ]
        rows += [
            ReproducedVariant(name, "", bundle_digest(made.bundle.files), ("not in the manifest",))
            for name, made in draft.assembled.items()
            if manifest.variant(name) is None
        ]
    measured = manifest.variants[0][1].measured
    built_on = f"{measured.cpu or 'an unnamed processor'}, runtime {measured.runtime or 'unknown'}"
    return ReproduceReport(
        manifest.family,
        manifest.version,
        manifest.counter,
        manifest.digest_without_patches(),
        tuple(rows),
        built_on,
        read_cpu_name(),
    )


def _compare(name: str, signed: Variant, made: AssembledVariant | None, model_name: str) -> ReproducedVariant:
    if made is None:
        return ReproducedVariant(name, signed.digest, "", ())
    differences = tuple(_differences(signed, made, model_name))
    return ReproducedVariant(name, signed.digest, bundle_digest(made.bundle.files), differences)


def _differences(signed: Variant, made: AssembledVariant, model_name: str) -> Iterator[str]:
    here = {file.path: file for file in made.bundle.files}
    for file in signed.files:
        if here.pop(file.path, None) != file:
            yield f"file {file.path}"
    yield from (f"file {path}" for path in here)
    pairs = {
        "models": (signed.models, model_entries(made, model_name)),
        "health": (signed.health, made.checks.health),
        "quantization": (signed.quantization, made.quantized.quantization),
        "runtime": (signed.runtime, made.runtime),
        "requires": (replace(signed.requires, memory_bytes=0), replace(made.requires, memory_bytes=0)),
    }
    less, more = sorted((signed.requires.memory_bytes, made.requires.memory_bytes))
    if more > MEMORY_RATIO * less:
        yield f"requires.memory_bytes ({signed.requires.memory_bytes} signed, {made.requires.memory_bytes} here)"
    yield from (field for field, (found, expected) in pairs.items() if found != expected)
