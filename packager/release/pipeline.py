"""The pipeline of a release: runs the steps in the order of STEPS, and reports.

Rules:
- Each step is a function of the draft and can be used alone.
- Temporary files are in one folder of the workspace, which is deleted when the pipeline ends, with or without an error.
- The step sign is the first that writes to the repository; a failure before it leaves no trace. A later failure
  discards the staged changes, unless further signatures or another run can complete them.
- A release needs at least one variant that passed its gate.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from packager.errors import (
    BelowThreshold,
    InvalidUsage,
    NoVariantLeft,
    PublishConflict,
    ReleaseFileInvalid,
    VersionTaken,
)
from packager.models.missing_values import load_inputs
from packager.models.model_package import external_data
from packager.models.provider_session import require_provider
from packager.models.random_inputs import random_samples
from packager.models.samples import Samples, no_samples
from packager.release.draft import Draft, Reporter, SilentReporter
from packager.release.release_plan import ReleasePlan
from packager.release.release_report import ReleaseReport, drop_reasons, make_report
from packager.release.steps import assemble, compare, diff, encrypt, probe, publish, quantize, record_golden, sign
from packager.repository.repository import Repository
from packager.repository.workspace import Workspace

if TYPE_CHECKING:
    from concurrent.futures import Executor

    from securesystemslib.signer import Signer


@dataclass(frozen=True, slots=True)
class Step:
    """A step of the pipeline: its name, and the function that runs it."""

    name: str
    run: Callable[[Draft], None]


STEPS: Final[tuple[Step, ...]] = (
    Step("quantize", quantize.run),
    Step("compare", compare.run),
    Step("golden", record_golden.run),
    Step("assemble", assemble.run),
    Step("probe", probe.run),
    Step("diff", diff.run),
    Step("encrypt", encrypt.run),
    Step("sign", sign.run),
    Step("publish", publish.run),
)
STEP_NAMES: Final = tuple(step.name for step in STEPS)
WRITING_STEPS: Final = ("sign", "publish")  # steps that change the repository


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
    """Run the steps that create a release.

    Args:
        plan: the contents of the release file.
        repository: repository to publish in.
        signers: private keys on this machine; keys of other machines sign later.
        progress: receives the progress; None reports nothing.
        until: last step to run, one of STEP_NAMES.
        executor: runs parts of the diffs; None runs them in this process.
        clock: returns the time of the manifest's `created`, in Unix seconds.

    Raises:
        InvalidUsage: `until` is not the name of a step.
        VersionTaken: the version is already released or staged.
        NoVariantLeft: every variant was left out.
        PublishConflict: another process creates a release in this repository.
        AirweightsError: a step failed; each step's `run` lists its errors.
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
            reporter=progress if progress is not None else SilentReporter(),
            executor=executor,
            further_samples=further_samples_for(plan),
        )
        for variant in plan.variants:
            draft.variant_folder(variant.name).mkdir()
        with _clean_staging_on_error(repository):
            seconds = run_steps(draft, STEPS[: STEP_NAMES.index(until) + 1])
        return make_report(draft, seconds)


def check_plan(plan: ReleasePlan, repository: Repository, counter: int) -> None:
    """Check everything that can be checked before the first step.

    Args:
        plan: the contents of the release file.
        repository: repository to publish in.
        counter: counter of the release.

    Raises:
        VersionTaken: the version is already released or staged.
        ReleaseFileInvalid: min_counter is above `counter`, or a scheme is unknown.
        CohortUnknown: the rollout names a cohort that the fleet does not have.
        BaseMissing: a listed base was never released.
        ModelUnreadable: a model is not an ONNX model.
        ExternalDataMissing: a file with a model's external weights is missing.
        BundleNameInvalid: a file name is not allowed in a bundle.
        FamilyUnknown: the repository delegates no such family.
        ProviderNotInstalled: a variant is for an execution provider that this machine lacks.
    """
    taken = repository.manifest(plan.family, plan.version)
    if taken is not None:
        raise VersionTaken(
            f"{plan.family} {plan.version} is already released or staged, with counter {taken.counter}",
            hint="choose another version; if it is staged: run `packager repo sign` or `packager repo unstage`",
        )
    if plan.min_counter is not None and plan.min_counter > counter:
        raise ReleaseFileInvalid(
            f"min_counter: found {plan.min_counter}, expected at most the release's counter, {counter}",
            hint=f"set min_counter = {counter} or less",
        )
    sign.check_cohorts(plan.rollout, tuple(cohort.name for cohort in repository.fleet().cohorts))
    diff.check_bases(plan, repository.releases(plan.family))
    quantize.check_schemes(plan)
    for provider in dict.fromkeys(variant.provider.name for variant in plan.variants):
        require_provider(provider)
    for model in plan.models:
        external_data(model)


def samples_for(plan: ReleasePlan) -> Samples:
    """Load the inputs that the release file names, or draw random ones.

    Raises:
        Invalid: an input cannot be read, or does not fit the model (packager.models.inputs).
    """
    if not plan.is_run_by_agent:
        return no_samples()
    model = plan.require_model()
    if plan.inputs is None:
        return random_samples(model, plan.samples, plan.seed)
    return load_inputs(model, plan.inputs)


def further_samples_for(plan: ReleasePlan) -> dict[str, Samples]:
    """Load or draw the inputs of the further models, by name.

    Raises:
        Invalid: an input cannot be read, or does not fit its model (packager.models.inputs).
    """
    return {
        each.name: random_samples(each.model, plan.samples, plan.seed)
        if each.inputs is None
        else load_inputs(each.model, each.inputs)
        for each in plan.further
    }


@contextmanager
def _clean_staging_on_error(repository: Repository) -> Iterator[None]:
    """Discard staged changes on an error, if nothing was staged before and no retry can complete them."""
    was_empty = repository.is_staging_empty
    try:
        yield
    except (BelowThreshold, PublishConflict):
        raise
    except BaseException:
        if was_empty:
            repository.discard()
        raise


def run_steps(draft: Draft, steps: tuple[Step, ...]) -> dict[str, float]:
    """Run steps in order, and return the seconds of each by its name.

    Args:
        draft: the release in progress.
        steps: the steps.

    Raises:
        NoVariantLeft: every variant was left out.
        AirweightsError: a step failed.
    """
    seconds: dict[str, float] = {}
    for number, step in enumerate(steps, start=1):
        draft.reporter.step(step.name, number, len(steps))
        start = time.monotonic()
        step.run(draft)
        seconds[step.name] = round(time.monotonic() - start, 3)
        if not draft.quantized:
            reasons = "; ".join(f"{name}: {reason}" for name, reason in drop_reasons(draft).items())
            raise NoVariantLeft(
                f"no variant is left to release: {reasons}",
                hint="fix the reasons; scheme = 'none' needs no gate, and golden = 0 no golden vectors",
            )
    return seconds
