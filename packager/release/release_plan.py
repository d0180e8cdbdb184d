"""The plan of a release: the contents of a release file as values, with all defaults."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, TypeAlias

from bundle.contract import Health
from bundle.errors import Bug
from bundle.providers import CPU
from bundle.ramp import RampStep
from bundle.requirements import AGENT_RUNTIMES, RUNTIMES, Requirements, Runtime
from bundle.rollout import BASIS_POINTS
from packager.models.model_package import ExtraFile
from packager.models.provider_session import Provider
from packager.quantize.targets import ANY, AUTO_TARGETS, TARGETS

UNQUANTIZED_SCHEME: Final = "none"  # scheme of a variant that ships its model unchanged
FLOAT_SCHEMES: Final = (UNQUANTIZED_SCHEME, "fp32", "fp16", "int4", "int8-weights")  # those with float arithmetic
DEFAULT_SAMPLES: Final = 64  # random samples, if no inputs are given
DEFAULT_GOLDEN: Final = 8
DEFAULT_BASES: Final = 3
DEFAULT_MIN_AGENT: Final = "0.1"
DEFAULT_RUNTIME: Final = "onnxruntime"
RELEASE_RUNTIMES: Final = RUNTIMES
MAX_BASES: Final = 60  # with the full downloads, fewer than bundle.manifest.MAX_PATCHES
DRILLS: Final = (
    "damaged-weights",
    "live-nan",
)  # packager.release.fire_drill.DRILLS; not imported, because that loads onnx

GATE_LIMITS: Final = (
    "max_relative_rms",
    "min_top1_agreement",
    "min_cosine_p1",
    "max_over_baseline",
    "max_over_unchanged_base",
    "max_metric_loss",
    "max_latency_ratio",
)

AUTO_SCHEME: Final = "auto"  # int8 weights, and an integer form for each target where that is faster

DEFAULT_MODEL_NAME: Final = "model"  # of the model of a release file without [[models]]
# keys of `requires` in a release file that are fields of the variant's runtime
RUNTIME_KEYS: Final = {"runtime_min": "min_version", "runtime_below": "below_version", "providers": "providers"}
Overrides: TypeAlias = tuple[tuple[str, int | str | tuple[str, ...] | None], ...]


@dataclass(frozen=True, slots=True)
class VariantPlan:
    """The table `[variants.NAME]` of a release file.

    Attributes:
        name: name of the variant.
        scheme: UNQUANTIZED_SCHEME, or a scheme of packager.quantize.
        model: model file of this variant, which is compared with the release's model; None uses the release's.
        required: fail the whole release if this variant fails its gate.
        update_aware: choose quantized weights near those of the last release, so that the patch is small.
        requires: fields of Requirements, and keys of RUNTIME_KEYS, that replace measured values.
        health: fields of Health that replace defaults.
        gate: thresholds that replace defaults.
        target: name of the CPUs that the variant is quantized for (packager.quantize.targets).
        optimize: simplify the graph before it is quantized.
        session: session options by name, sorted (bundle.session_options).
    """

    name: str
    scheme: str = UNQUANTIZED_SCHEME
    model: Path | None = None
    required: bool = False
    update_aware: bool = True
    requires: Overrides = ()
    health: Overrides = ()
    gate: tuple[tuple[str, float], ...] = ()
    target: str = ANY.name
    optimize: bool = True
    session: tuple[tuple[str, str], ...] = ()

    def apply_requires(self, measured: Requirements) -> Requirements:
        """Return `measured` with what the target needs, and then with the values of the file."""
        target = TARGETS[self.target]
        if self.is_bound_to_target:
            measured = replace(measured, arch=target.arch, cpu_features=target.cpu_features)
        given = {name: value for name, value in self.requires if name not in RUNTIME_KEYS}
        return replace(measured, **given)  # type: ignore[arg-type]  # the release file's parser checked each field

    def apply_runtime(self, found: Runtime) -> Runtime:
        """Return `found` with the versions, provider and session options of the file."""
        given = {RUNTIME_KEYS[name]: value for name, value in self.requires if name in RUNTIME_KEYS}
        found = replace(found, options=self.session)
        return replace(found, **given)  # type: ignore[arg-type]  # the release file's parser checked each field

    @property
    def provider(self) -> Provider:
        """The execution provider and the session options of the variant."""
        names = dict(self.requires).get("providers")
        return Provider(names[0] if isinstance(names, tuple) else CPU, self.session)

    @property
    def is_bound_to_target(self) -> bool:
        """True if only CPUs of the target may run the variant; float arithmetic runs on every CPU."""
        return self.scheme not in FLOAT_SCHEMES

    def expand(self) -> "tuple[VariantPlan, ...]":
        """Return the variants that this table stands for: itself, or those of the scheme "auto".

        They are NAME with int8 weights, and NAME-TARGET with static int8 for each target whose integer arithmetic is
        faster than float.
        """
        if self.scheme != AUTO_SCHEME:
            return (self,)
        targets = AUTO_TARGETS if self.target == ANY.name else (self.target,)
        integer = [
            replace(self, name=f"{self.name}-{name}", scheme="int8-static", target=name, required=False)
            for name in targets
            if TARGETS[name].is_integer_faster
        ]
        return (replace(self, scheme="int8-weights", target=ANY.name), *integer)

    def apply_health(self, default: Health) -> Health:
        """Return `default` with the values of the file."""
        return replace(default, **dict(self.health))  # type: ignore[arg-type]  # parsed field by field below


@dataclass(frozen=True, slots=True)
class ModelPlan:
    """An entry of `[[models]]` of a release file.

    Attributes:
        name: name of the model in the bundle.
        model: the model file, with its external data beside it.
        inputs: an `.npz` or a folder of them; None draws random samples.
    """

    name: str
    model: Path
    inputs: Path | None = None


@dataclass(frozen=True, slots=True)
class RolloutPlan:
    """The table `[rollout]` of a release file.

    Attributes:
        channels: channels to point at the release.
        percent_bp: share of devices, in basis points.
        cohorts: names of cohorts that may install it; empty allows all.
        note: text for people.
    """

    channels: tuple[str, ...]
    percent_bp: int = BASIS_POINTS
    cohorts: tuple[str, ...] = ()
    note: str = ""


@dataclass(frozen=True, slots=True)
class ReleasePlan:
    """The contents of a release file.

    Attributes:
        family, version, channels, min_agent: fields of the manifest.
        min_counter: rollback floor; None keeps that of the last release.
        runtime: what runs the release, one of RELEASE_RUNTIMES.
        at_rest: "sealed" or "plain", as in the manifest.
        model: the float model, with its external data beside it; None if the agent runs no model of the release.
        model_name: name of that model in the bundle.
        further: the other models of the bundle, released unchanged.
        inputs: an `.npz` or a folder of them; None draws `samples` random samples from `seed`.
        golden: number of golden vectors; 0 records none.
        golden_bytes: bytes that golden vectors may take of a download; None for the default budgets.
        metric: the user's metric beside the gate (packager.quantize.user_metric), or None.
        files: further files of the bundle.
        variants: the variants, in the order of the file.
        bases: number of last releases to create patches from, or their versions.
        rollout: None publishes the release without pointing any channel at it.
        ramp: how fast the release may spread at most (bundle.ramp); empty means no limit.
        override_gate: reason for ignoring a failed gate; recorded in the release.
        drill: a fire drill (packager.release.fire_drill), or None.
        provenance: printable strings to record.
    """

    family: str
    version: str
    channels: tuple[str, ...]
    model: Path | None
    variants: tuple[VariantPlan, ...]
    runtime: str = DEFAULT_RUNTIME
    at_rest: str = "sealed"
    model_name: str = DEFAULT_MODEL_NAME
    further: tuple[ModelPlan, ...] = ()
    min_counter: int | None = None
    min_agent: str = DEFAULT_MIN_AGENT
    inputs: Path | None = None
    samples: int = DEFAULT_SAMPLES
    seed: int = 0
    golden: int = DEFAULT_GOLDEN
    golden_bytes: int | None = None
    metric: str | None = None
    files: tuple[ExtraFile, ...] = ()
    bases: int | tuple[str, ...] = DEFAULT_BASES
    rollout: RolloutPlan | None = None
    ramp: tuple[RampStep, ...] = ()
    override_gate: str | None = None
    drill: str | None = None
    provenance: tuple[tuple[str, str], ...] = ()

    @property
    def is_run_by_agent(self) -> bool:
        """True if devices' agents run the release's model."""
        return self.runtime in AGENT_RUNTIMES

    @property
    def models(self) -> tuple[Path, ...]:
        """The release's models and those of its variants, each once."""
        named = (self.model, *(each.model for each in self.further), *(variant.model for variant in self.variants))
        return tuple(dict.fromkeys(model for model in named if model is not None))

    def require_model(self) -> Path:
        """Return the float model of a release whose model the agent runs."""
        if self.model is None:
            raise Bug(f"a release for runtime {self.runtime!r} has no model")
        return self.model
