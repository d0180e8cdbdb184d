"""`release.toml`: everything that a release is made from, in one file (docs/release-file.md).

Rules:
1. Read strictly: an unknown key, a wrong type or a value out of range is refused with its place; nothing is guessed.
2. Paths are relative to the file's own folder; every file that is named must be there.
3. What is not said has the default that is written here, in one place.
"""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Final, TypeAlias

from bundle import strict_json
from bundle.contract import SHADOW_LIMIT_FIELDS, Health
from bundle.errors import Malformed
from bundle.manifest import FEATURE_PATTERN, NUMERIC_VERSION_PATTERN, Requirements
from bundle.rollout import BASIS_POINTS
from bundle.strict_json import NAME_PATTERN, StrictObject, describe_pattern
from packager.errors import InputFileMissing, ReleaseFileInvalid
from packager.models.model_package import FILE_ROLES, ExtraFile

UNQUANTIZED_SCHEME: Final = "none"  # the scheme of a variant that ships its model unchanged
DEFAULT_SAMPLES: Final = 64  # random ones, where no inputs are given
DEFAULT_GOLDEN: Final = 8
DEFAULT_BASES: Final = 3
DEFAULT_MIN_AGENT: Final = "0.1"
MAX_RELEASE_FILE_BYTES: Final = 256 * 1024
MAX_BASES: Final = 60  # with the one from nothing below bundle.manifest.MAX_PATCHES
DRILLS: Final = (
    "damaged-weights",
    "live-nan",
)  # packager.release.fire_drill.DRILLS; not imported here, since that is heavy

GATE_LIMITS: Final = (
    "max_relative_rms",
    "min_top1_agreement",
    "min_cosine_p1",
    "max_over_baseline",
    "max_over_unchanged_base",
    "max_metric_loss",
)

DEFAULT_TARGET: Final = "any"
TARGETS: Final = (DEFAULT_TARGET, "arm")
ARM_ARCHITECTURES: Final = (
    "aarch64",
    "armv7l",
    "armv8l",
)  # `uname -m` of the devices that a variant for "arm" is offered to

Overrides: TypeAlias = tuple[tuple[str, int | str | tuple[str, ...] | None], ...]


@dataclass(frozen=True, slots=True)
class VariantPlan:
    """One variant to make.

    Attributes:
        name: of the variant.
        scheme: AS_IS, or a scheme of packager.quantize.
        model: its own model file where it has one, which is then compared with the release's; else None.
        required: refuse the whole release where this variant fails its gate.
        update_aware: choose its numbers near those of the last release's, so that the patch is small.
        requires: fields of Requirements that are said rather than measured.
        health: fields of Health that differ from the default.
        gate: thresholds that differ from the default.
        target: whose integer kernels to quantize for.
    """

    name: str
    scheme: str = UNQUANTIZED_SCHEME
    model: Path | None = None
    required: bool = False
    update_aware: bool = True
    requires: Overrides = ()
    health: Overrides = ()
    gate: tuple[tuple[str, float], ...] = ()
    target: str = DEFAULT_TARGET

    def apply_requires(self, measured: Requirements) -> Requirements:
        """`measured`, with what the file says instead; a variant for ARM is for nothing else."""
        if self.target == "arm":
            measured = replace(measured, arch=ARM_ARCHITECTURES)
        return replace(measured, **dict(self.requires))  # type: ignore[arg-type]  # parsed field by field below

    def apply_health(self, default: Health) -> Health:
        """`default`, with what the file says instead."""
        return replace(default, **dict(self.health))  # type: ignore[arg-type]  # parsed field by field below


@dataclass(frozen=True, slots=True)
class RolloutPlan:
    """What to say to devices once the release is published.

    Attributes:
        channels: whose rollout file to write.
        percent_bp: share of devices, basis points.
        cohorts: names; empty is all.
        note: for people.
    """

    channels: tuple[str, ...]
    percent_bp: int = BASIS_POINTS
    cohorts: tuple[str, ...] = ()
    note: str = ""


@dataclass(frozen=True, slots=True)
class ReleasePlan:
    """What a release.toml says.

    Attributes:
        family, version, channels, min_agent: of the manifest.
        min_counter: the floor; None leaves it where the last release set it.
        model: the float model, with its external data beside it.
        inputs: an `.npz` or a folder; None draws `samples` random ones from `seed`.
        golden: how many golden vectors; 0 ships none.
        metric: the user's own measure beside the gate (packager.quantize.user_metric), or None.
        files: that travel with the model.
        variants: in the order of the file.
        bases: how many of the last releases to make patches from, or which versions.
        rollout: None publishes without offering it to any device.
        override_gate: why a failing gate is ignored; recorded in the release.
        drill: a fire drill (packager.release.fire_drill), or None.
        provenance: printable strings to record.
    """

    family: str
    version: str
    channels: tuple[str, ...]
    model: Path
    variants: tuple[VariantPlan, ...]
    min_counter: int | None = None
    min_agent: str = DEFAULT_MIN_AGENT
    inputs: Path | None = None
    samples: int = DEFAULT_SAMPLES
    seed: int = 0
    golden: int = DEFAULT_GOLDEN
    metric: str | None = None
    files: tuple[ExtraFile, ...] = ()
    bases: int | tuple[str, ...] = DEFAULT_BASES
    rollout: RolloutPlan | None = None
    override_gate: str | None = None
    drill: str | None = None
    provenance: tuple[tuple[str, str], ...] = ()


def parse_release_file(path: Path) -> ReleasePlan:
    """Read a release.toml.

    Raises:
        ReleaseFileInvalid: missing, not TOML, or rule 1.
        ReleaseFileMissing: a file that it names is not there.
    """
    try:
        data = path.read_bytes()
    except (FileNotFoundError, IsADirectoryError) as error:
        raise ReleaseFileInvalid(
            f"release file {path} is not there", hint="start from examples/release.toml"
        ) from error
    if len(data) > MAX_RELEASE_FILE_BYTES:
        raise ReleaseFileInvalid(f"{path} is {len(data)} bytes, at most {MAX_RELEASE_FILE_BYTES} are allowed")
    try:
        document = tomllib.loads(data.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise ReleaseFileInvalid(f"{path}: not UTF-8 at byte {error.start}") from error
    except tomllib.TOMLDecodeError as error:
        raise ReleaseFileInvalid(f"{path}: not TOML: {error}") from error
    return plan_from_document(document, path.absolute().parent, where=str(path))


def plan_from_document(document: Mapping[str, object], folder: Path, *, where: str) -> ReleasePlan:
    """The plan that a parsed document says; paths are relative to `folder`. Raises as parse_release_file."""
    try:
        plan = _parse_plan(_Table(dict(document), where), folder)
    except Malformed as error:
        raise ReleaseFileInvalid(error.message, hint="docs/release-file.md lists every key") from error
    _check_files(plan, where)
    return plan


class _Table(StrictObject):
    """A TOML table, read like a JSON object; a float is taken only where one is asked for."""

    def __init__(self, value: object, where: str) -> None:
        super().__init__(value if isinstance(value, dict) else repr(value)[:80], where)

    def table(self, name: str) -> "_Table":
        """A nested table, empty where it is absent."""
        return _Table(self.value(name) if self.has(name) else {}, f"{self.where}: {name}")

    def tables(self, name: str) -> "dict[str, _Table]":
        """A table of tables, by NAME."""
        table = self.table(name)
        for entry in table.remaining_names():
            if not NAME_PATTERN.fullmatch(entry):
                raise Malformed(
                    f"{self.where}: {name}: found {entry[:80]!r}, expected {describe_pattern(NAME_PATTERN)}"
                )
        return {entry: _Table(table.value(entry), f"{self.where}: {name}.{entry}") for entry in table.remaining_names()}

    def tables_in_array(self, name: str) -> "list[_Table]":
        """An array of tables, empty where it is absent."""
        value: object = self.value(name) if self.has(name) else []
        if not isinstance(value, list):
            raise Malformed(f"{self.where}: {name}: found {value!r}, expected an array of tables")
        return [_Table(row, f"{self.where}: {name}[{i}]") for i, row in enumerate(value)]

    def number(self, name: str, low: float, high: float) -> float:
        """An integer or a float within `low` and `high`."""
        value: object = self.value(name)
        if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
            raise Malformed(f"{self.where}: {name}: found {value!r}, expected a number from {low} to {high}")
        return float(value)

    def path(self, name: str, folder: Path) -> Path:
        """A path, relative to `folder`."""
        return folder / self.text(name)


def _parse_plan(table: _Table, folder: Path) -> ReleasePlan:
    channels = table.texts("channels", NAME_PATTERN, max_items=64)
    if not channels:
        raise Malformed(f"{table.where}: channels: found none, expected at least one")
    out = ReleasePlan(
        family=table.text("family", NAME_PATTERN),
        version=table.text("version", strict_json.VERSION_PATTERN),
        channels=channels,
        model=table.path("model", folder),
        variants=tuple(_parse_variant(name, row, folder) for name, row in table.tables("variants").items()),
        min_counter=table.integer("min_counter") if table.has("min_counter") else None,
        min_agent=table.text("min_agent", NUMERIC_VERSION_PATTERN) if table.has("min_agent") else DEFAULT_MIN_AGENT,
        inputs=table.path("inputs", folder) if table.has("inputs") else None,
        samples=table.integer("samples", 2, 100_000) if table.has("samples") else DEFAULT_SAMPLES,
        seed=table.integer("seed") if table.has("seed") else 0,
        golden=table.integer("golden", 0, 1000) if table.has("golden") else DEFAULT_GOLDEN,
        metric=table.text("metric", max_length=1024) if table.has("metric") else None,
        files=tuple(_parse_file(row, folder) for row in table.tables_in_array("files")),
        bases=_parse_bases(table),
        rollout=_parse_rollout(table, channels),
        override_gate=table.text("override_gate", max_length=256) if table.has("override_gate") else None,
        drill=table.choice("drill", DRILLS) if table.has("drill") else None,
        provenance=_parse_provenance(table.table("provenance")),
    )
    table.reject_unknown()
    if not out.variants:
        raise Malformed(f"{table.where}: variants: found none, expected at least one [variants.NAME]")
    if out.override_gate == "":
        raise Malformed(f"{table.where}: override_gate: found '', expected the reason for it")
    if out.drill == "live-nan" and not out.golden:
        raise Malformed(f"{table.where}: drill: 'live-nan' needs golden vectors, found golden = 0")
    return out


def _parse_variant(name: str, row: _Table, folder: Path) -> VariantPlan:
    gate = row.table("gate")
    out = VariantPlan(
        name=name,
        scheme=row.text("scheme", NAME_PATTERN) if row.has("scheme") else UNQUANTIZED_SCHEME,
        model=row.path("model", folder) if row.has("model") else None,
        required=row.flag("required") if row.has("required") else False,
        update_aware=row.flag("update_aware") if row.has("update_aware") else True,
        requires=_parse_requires(row.table("requires")),
        health=_parse_health(row.table("health")),
        gate=tuple((limit, gate.number(limit, 0, 1000)) for limit in GATE_LIMITS if gate.has(limit)),
        target=row.choice("target", TARGETS) if row.has("target") else DEFAULT_TARGET,
    )
    gate.reject_unknown()
    row.reject_unknown()
    if out.model is not None and out.scheme != UNQUANTIZED_SCHEME:
        raise Malformed(
            f"{row.where}: scheme: found {out.scheme!r} beside its own model, expected {UNQUANTIZED_SCHEME!r}"
        )
    return out


def _parse_requires(row: _Table) -> Overrides:
    """The fields of Requirements that are there."""
    out: dict[str, int | str | tuple[str, ...] | None] = {}
    for name in row.remaining_names():
        match name:
            case "arch" | "cpu_features":
                out[name] = row.texts(name, FEATURE_PATTERN, max_items=64)
            case "onnxruntime_min" | "onnxruntime_below":
                out[name] = row.text(name, NUMERIC_VERSION_PATTERN)
            case "memory_bytes" | "storage_bytes":
                out[name] = row.integer(name)
            case _:
                pass  # `end` says which key it is
    row.reject_unknown()
    return tuple(out.items())


def _parse_health(row: _Table) -> Overrides:
    """The fields of Health that are there; its own parser checks them in the company of the defaults."""
    names = [field.name for field in fields(Health)]
    given = {name: row.value(name) for name in row.remaining_names() if name in names}
    row.reject_unknown()
    # limits of a shadow are there where one is asked for, or where somebody wrote one without asking for it
    shadowed = (
        replace(Health(), shadow_ppm=1) if given.get("shadow_ppm") or given.keys() & set(SHADOW_LIMIT_FIELDS) else None
    )
    defaults = {**(shadowed or Health()).as_json(), "shadow_ppm": 0}
    checked = Health.parse(StrictObject({**defaults, **given}, row.where))
    return tuple((field.name, getattr(checked, field.name)) for field in fields(Health) if field.name in given)


def _parse_file(row: _Table, folder: Path) -> ExtraFile:
    source = row.path("path", folder)
    role = row.choice("role", FILE_ROLES)
    name = row.text("name", max_length=200) if row.has("name") else source.name
    row.reject_unknown()
    return ExtraFile(source, role, name)


def _parse_bases(table: _Table) -> int | tuple[str, ...]:
    patches = table.table("patches")
    if not patches.has("from"):
        patches.reject_unknown()
        return DEFAULT_BASES
    value: object = patches.value("from")
    patches.reject_unknown()
    where = f"{table.where}: patches.from"
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MAX_BASES:
        return value
    if isinstance(value, list) and len(value) <= MAX_BASES:
        return StrictObject({"from": value}, f"{table.where}: patches").texts("from", strict_json.VERSION_PATTERN)
    raise Malformed(f"{where}: found {value!r}, expected a number of releases up to {MAX_BASES} or a list of versions")


def _parse_rollout(table: _Table, channels: tuple[str, ...]) -> RolloutPlan | None:
    if not table.has("rollout"):
        return None
    row = table.table("rollout")
    chosen = row.texts("channels", NAME_PATTERN, max_items=64) if row.has("channels") else channels
    percent = row.number("percent", 0, 100) if row.has("percent") else 100.0
    cohorts = row.texts("cohorts", NAME_PATTERN) if row.has("cohorts") else ()
    note = row.text("note", max_length=512) if row.has("note") else ""
    row.reject_unknown()
    unknown = sorted(set(chosen) - set(channels))
    if unknown:
        raise Malformed(f"{row.where}.channels: found {unknown[0]!r}, expected one of {', '.join(channels)}")
    return RolloutPlan(chosen, round(percent * BASIS_POINTS / 100), cohorts, note)


def _parse_provenance(row: _Table) -> tuple[tuple[str, str], ...]:
    out = tuple((name, row.text(name, max_length=512)) for name in sorted(row.remaining_names()))
    for name, _ in out:
        if not FEATURE_PATTERN.fullmatch(name):
            raise Malformed(f"{row.where}: found {name[:80]!r}, expected {FEATURE_PATTERN.pattern}")
    return out


def _check_files(plan: ReleasePlan, where: str) -> None:
    """Rule 2, before any work is done. Raises ReleaseFileMissing."""
    named = [("model", plan.model), *((f"variants.{v.name}.model", v.model) for v in plan.variants)]
    named += [(f"files {extra.name!r}", extra.source) for extra in plan.files]
    for key, path in named:
        if path is not None and not path.is_file():
            raise InputFileMissing(
                f"{where}: {key}: {path} is not there", hint="paths are relative to the release file"
            )
    if plan.inputs is not None and not plan.inputs.exists():
        raise InputFileMissing(
            f"{where}: inputs: {plan.inputs} is not there", hint="an .npz with one array per model input, or a folder"
        )


__all__ = [
    "UNQUANTIZED_SCHEME",
    "ReleasePlan",
    "RolloutPlan",
    "VariantPlan",
    "parse_release_file",
    "plan_from_document",
]
