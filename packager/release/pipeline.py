"""A release, from a plan to published files: one loop over one tuple of steps.

Rules:
1. Every step is a function of the draft and usable alone; the order is that of STEPS and of nothing else.
2. Work in progress lies in one folder of the workspace, which goes when the loop ends, however it ends. The repository
   is first written to by the sign step: what fails before leaves nothing behind. What fails later takes back what it
   staged, unless more signatures or another try can still complete it.
3. A release needs at least one variant that its gate let through.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Final

from bundle.files import bundle_digest
from bundle.manifest import Manifest
from packager.errors import (
    BelowThreshold,
    InvalidUsage,
    NoVariantLeft,
    PublishConflict,
    ReleaseFileInvalid,
    VersionTaken,
)
from packager.models.inputs import ModelInterface
from packager.models.model_package import external_data
from packager.models.random_inputs import random_samples
from packager.models.samples import Samples, folder_samples, load_samples
from packager.release.draft import Draft, Reporter, SilentReporter, VariantDraft
from packager.release.release_file import ReleasePlan, parse_release_file
from packager.release.steps import assemble, compare, diff, encrypt, publish, quantize, record_golden, sign
from packager.repository.repository import Repository
from packager.repository.workspace import Workspace

if TYPE_CHECKING:
    from concurrent.futures import Executor

    from securesystemslib.signer import Signer


@dataclass(frozen=True, slots=True)
class Step:
    """One step: the verb that names it, and what it does to the draft."""

    name: str
    run: Callable[[Draft], None]


STEPS: Final[tuple[Step, ...]] = (
    Step("quantize", quantize.run),
    Step("compare", compare.run),
    Step("golden", record_golden.run),
    Step("assemble", assemble.run),
    Step("diff", diff.run),
    Step("encrypt", encrypt.run),
    Step("sign", sign.run),
    Step("publish", publish.run),
)
STEP_NAMES: Final = tuple(step.name for step in STEPS)
WRITING_STEPS: Final = ("sign", "publish")  # steps that change the repository


@dataclass(frozen=True, slots=True)
class ReleaseReport:
    """What came out.

    Attributes:
        family, version, counter: of the release.
        manifest: as signed, or None where the loop ended before.
        variants: what is told of each kept variant, by name.
        dropped: reasons by name.
        envelopes: how many were sealed.
        seconds: of each step that ran, by name.
    """

    family: str
    version: str
    counter: int
    manifest: Manifest | None
    variants: dict[str, dict[str, object]]
    dropped: dict[str, str]
    envelopes: int
    seconds: dict[str, float]
    is_published: bool

    def as_json(self) -> dict[str, object]:
        """For `--json` (docs/schemas/release.json)."""
        return {
            "family": self.family,
            "version": self.version,
            "counter": self.counter,
            "manifest_digest": self.manifest.digest_without_patches() if self.manifest is not None else None,
            "published": self.is_published,
            "variants": self.variants,
            "dropped": self.dropped,
            "envelopes": self.envelopes,
            "seconds": self.seconds,
        }

    def as_text(self) -> str:
        """A table for a person."""
        state = "published" if self.is_published else "not published"
        lines = [f"{self.family} {self.version} (counter {self.counter}): {state}"]
        for name, row in self.variants.items():
            lines.append(f"  {name}: {row['plain_size']:,} bytes plain")
            patches = row["patches"]
            assert isinstance(patches, list)
            for patch in patches:
                size = patch["size"] if patch["size"] is not None else patch["plain_size"]
                lines.append(f"    from {patch['from_version'] or 'nothing'}: {size:,} bytes ({patch['codec']})")
        lines += [f"  {name}: left out, {why}" for name, why in self.dropped.items()]
        lines.append("  " + ", ".join(f"{name} {seconds:.1f} s" for name, seconds in self.seconds.items()))
        return "\n".join(lines)


def run_release(
    plan: ReleasePlan,
    repository: Repository,
    signers: "Sequence[Signer]",
    progress: Reporter | None = None,
    *,
    until: str = "publish",
    executor: "Executor | None" = None,
    clock: Callable[[], float] = time.time,
) -> ReleaseReport:
    """Make a release.

    Args:
        plan: what from.
        repository: where to.
        signers: keys that are here; the repository says which are missing.
        progress: is told what happens.
        until: the last step to run, one of STEP_NAMES.
        executor: runs parts of the diffs.
        clock: Unix seconds; for the manifest's `created`.

    Raises:
        VersionTaken, NoVariantLeft, PublishConflict (another release is being made here), and what the steps raise.
    """
    if until not in STEP_NAMES:
        raise InvalidUsage(f"step {until!r} is unknown, expected one of {', '.join(STEP_NAMES)}")
    workspace = Workspace(repository.root)
    with ExitStack() as stack:
        if until in WRITING_STEPS:
            stack.enter_context(workspace.lock_release())
        counter = max(repository.next_counter(plan.family), workspace.highest_counter(plan.family) + 1)
        check_plan(plan, repository, counter)
        folder = stack.enter_context(workspace.build_folder())
        draft = Draft(
            plan=plan,
            repository=repository,
            signers=signers,
            workspace=workspace,
            counter=counter,
            created=datetime.fromtimestamp(clock(), UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            folder=folder,
            samples=samples_for(plan),
            variants=_draft_variants(plan, folder),
            reporter=progress if progress is not None else SilentReporter(),
            executor=executor,
        )
        with _clean_staging_on_error(repository):
            seconds = _run_steps(draft, STEPS[: STEP_NAMES.index(until) + 1])
        return _make_report(draft, seconds)


def check_plan(plan: ReleasePlan, repository: Repository, counter: int) -> None:
    """All that can be told before any work is done.

    Raises:
        VersionTaken, CohortUnknown, BaseMissing, ReleaseFileInvalid, ModelUnreadable, ExternalDataMissing,
        BundleNameInvalid, and FamilyUnknown of the repository.
    """
    taken = repository.manifest(plan.family, plan.version)
    if taken is not None:
        raise VersionTaken(
            f"{plan.family} {plan.version} is released or staged already, as counter {taken.counter}",
            hint="choose another version; if it is staged: run `packager repo sign` or `packager repo unstage`",
        )
    if plan.min_counter is not None and plan.min_counter > counter:
        raise ReleaseFileInvalid(
            f"min_counter: found {plan.min_counter}, the release will have counter {counter}",
            hint="a floor is at most the release's own counter",
        )
    sign.check_cohorts(plan.rollout, tuple(cohort.name for cohort in repository.fleet().cohorts))
    diff.check_bases(plan, repository.releases(plan.family))
    quantize.check_schemes(plan)
    for model in dict.fromkeys((plan.model, *(v.model for v in plan.variants if v.model is not None))):
        external_data(model)


def samples_for(plan: ReleasePlan) -> Samples:
    """The inputs that the plan names, or random ones. Raises errors of packager.models.inputs."""
    if plan.inputs is None:
        return random_samples(plan.model, plan.samples, plan.seed)
    interface = ModelInterface.from_file(plan.model)
    return folder_samples(plan.inputs, interface) if plan.inputs.is_dir() else load_samples(plan.inputs, interface)


def _draft_variants(plan: ReleasePlan, folder: Path) -> list[VariantDraft]:
    out = []
    for variant in plan.variants:
        place = folder / variant.name
        place.mkdir()
        out.append(VariantDraft(variant, place, variant.model or plan.model))
    return out


@contextmanager
def _clean_staging_on_error(repository: Repository) -> Iterator[None]:
    """Rule 2: whatever fails, staging is as empty as it was."""
    was_empty = repository.is_staging_empty
    try:
        yield
    except (BelowThreshold, PublishConflict):
        raise
    except BaseException:
        if was_empty:
            repository.discard()
        raise


def _run_steps(draft: Draft, steps: tuple[Step, ...]) -> dict[str, float]:
    seconds: dict[str, float] = {}
    for number, step in enumerate(steps, start=1):
        draft.reporter.step(step.name, number, len(steps))
        start = time.monotonic()
        step.run(draft)
        seconds[step.name] = round(time.monotonic() - start, 3)
        if not draft.included_variants:
            why = "; ".join(f"{variant.name}: {variant.drop_reason}" for variant in draft.variants)
            raise NoVariantLeft(
                f"no variant is left to release: {why}",
                hint="mend what the reasons name; scheme = 'none' needs no gate, golden = 0 no golden vectors",
            )
    return seconds


def _make_report(draft: Draft, seconds: dict[str, float]) -> ReleaseReport:
    return ReleaseReport(
        family=draft.plan.family,
        version=draft.plan.version,
        counter=draft.counter,
        manifest=draft.manifest,
        variants={variant.name: _variant_row(variant) for variant in draft.included_variants},
        dropped={variant.name: variant.drop_reason for variant in draft.variants if variant.drop_reason is not None},
        envelopes=draft.envelopes,
        seconds=seconds,
        is_published=draft.publish_report is not None,
    )


def _variant_row(variant: VariantDraft) -> dict[str, object]:
    patches: list[dict[str, object]] = []
    for patch, entry in zip_longest(variant.patches, variant.entries):
        patches.append(
            {
                "from": patch.base.digest if patch.base is not None else None,
                "from_version": patch.base.version if patch.base is not None else None,
                "codec": patch.report.codec,
                "plain_size": patch.report.plain_size,
                "size": entry.size if entry is not None else None,
                "blob": entry.blob if entry is not None else None,
            }
        )
    files = variant.bundle.files if variant.bundle is not None else ()
    return {
        "bundle": bundle_digest(files) if files else None,
        "plain_size": sum(file.size for file in files),
        "files": len(files),
        "patches": patches,
        "quantization": variant.quantization.as_json(),
        "report": variant.report.as_json() if variant.report is not None else None,
        "update": _update_row(variant),
        "gate": variant.gate.as_json() if variant.gate is not None else None,
        "golden": variant.golden.as_json() if variant.golden is not None else None,
        "requires": variant.requires.as_json() if variant.requires is not None else None,
    }


def _update_row(variant: VariantDraft) -> dict[str, object] | None:
    return None if variant.update is None else {"of": variant.update.version, **variant.update.report.as_json()}


__all__ = ["STEPS", "STEP_NAMES", "ReleasePlan", "ReleaseReport", "Step", "parse_release_file", "run_release"]
