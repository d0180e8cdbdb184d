"""The release file, `release.toml`: reads and checks the plan of a release (docs/release-file.md).

Rules:
- The file is read strictly: an unknown key, a wrong type or a value out of range is an error that names its place.
- Unknown keys are reported before missing ones, with the nearest known key.
- Paths are relative to the folder of the file, and every named file must exist.
- Defaults are defined in packager.release.release_plan only.
- What depends on several keys, and on other files, is checked in packager.release.release_file_checks.
"""

import tomllib
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Final

from bundle import strict_json
from bundle.contract import SHADOW_LIMIT_FIELDS, Health
from bundle.errors import Malformed, TooLarge
from bundle.local_files import decode_text, missing_file_hint, read_local_file
from bundle.quantities import parse_duration, parse_share
from bundle.ramp import MAX_RAMP_SECONDS, MAX_RAMP_STEPS, RampStep, check_ramp
from bundle.requirements import FEATURE_PATTERN, NUMERIC_VERSION_PATTERN, PROVIDER_PATTERN
from bundle.rollout import BASIS_POINTS
from bundle.session_options import SESSION_OPTIONS
from bundle.strict_json import NAME_PATTERN, StrictObject
from bundle.suggestion import suggest
from bundle.variant import AT_REST
from packager.errors import ReleaseFileInvalid
from packager.models.model_package import FILES_ONLY_ROLES, ExtraFile
from packager.quantize.targets import ANY, TARGETS
from packager.release.release_file_checks import check_files, check_model_names, check_runtime
from packager.release.release_plan import (
    AUTO_SCHEME,
    DEFAULT_BASES,
    DEFAULT_GOLDEN,
    DEFAULT_MIN_AGENT,
    DEFAULT_MODEL_NAME,
    DEFAULT_RUNTIME,
    DEFAULT_SAMPLES,
    DRILLS,
    GATE_LIMITS,
    MAX_BASES,
    RELEASE_RUNTIMES,
    RUNTIME_KEYS,
    UNQUANTIZED_SCHEME,
    ModelPlan,
    Overrides,
    ReleasePlan,
    RolloutPlan,
    VariantPlan,
)
from packager.release.toml_table import SHOWN_CHARACTERS, TomlTable

MAX_RELEASE_FILE_BYTES: Final = 256 * 1024

RELEASE_KEYS: Final = (
    "family",
    "version",
    "channels",
    "runtime",
    "at_rest",
    "model",
    "models",
    "variants",
    "min_counter",
    "min_agent",
    "inputs",
    "samples",
    "seed",
    "golden",
    "golden_bytes",
    "metric",
    "files",
    "patches",
    "rollout",
    "ramp",
    "override_gate",
    "drill",
    "provenance",
)
VARIANT_KEYS: Final = (
    *("scheme", "model", "required", "update_aware", "optimize", "requires", "health", "gate", "target", "session"),
)
REQUIRES_KEYS: Final = (
    "arch",
    "cpu_features",
    *RUNTIME_KEYS,
    "memory_bytes",
    "storage_bytes",
)
SESSION_KEYS: Final = tuple(SESSION_OPTIONS)
HEALTH_KEYS: Final = tuple(field.name for field in fields(Health))
MODEL_KEYS: Final = ("name", "model", "inputs")
FILE_KEYS: Final = ("path", "role", "name")
PATCHES_KEYS: Final = ("from",)
ROLLOUT_KEYS: Final = ("channels", "percent", "cohorts", "note")


def parse_release_file(path: Path) -> ReleasePlan:
    """Read a release file.

    Raises:
        ReleaseFileInvalid: the file is missing, is not TOML, or has an unknown or invalid key.
        InputFileMissing: a file that it names does not exist.
    """
    try:
        text = decode_text(read_local_file(path, MAX_RELEASE_FILE_BYTES), where=str(path))
    except (FileNotFoundError, IsADirectoryError) as error:
        raise ReleaseFileInvalid(
            f"release file {path} does not exist",
            hint=f"{missing_file_hint(path)}; family, version, channels, model and [variants.NAME] are required",
        ) from error
    except TooLarge as error:
        raise ReleaseFileInvalid(error.message) from error
    except UnicodeDecodeError as error:
        raise ReleaseFileInvalid(f"{path}: not UTF-8 at byte {error.start}") from error
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ReleaseFileInvalid(f"{path}: not TOML: {error}") from error
    return plan_from_document(document, path.absolute().parent, where=str(path))


def plan_from_document(document: Mapping[str, object], folder: Path, *, where: str) -> ReleasePlan:
    """Return the plan of a parsed release file.

    Args:
        document: the parsed TOML.
        folder: folder that paths are relative to.
        where: name of the file, for messages.

    Raises:
        ReleaseFileInvalid: a key is unknown, missing or invalid.
        InputFileMissing: a named file does not exist.
    """
    _check_keys(document, where)
    try:
        plan = _parse_plan(TomlTable(dict(document), where), folder)
    except Malformed as error:
        raise ReleaseFileInvalid(error.message) from error
    check_files(plan, where)
    return plan


def _check_keys(document: Mapping[str, object], where: str) -> None:
    """Check the keys of all tables, before any value is read. Raises ReleaseFileInvalid: an unknown key."""
    _check_table(document, RELEASE_KEYS, where)
    variants = document.get("variants")
    for name, row in variants.items() if isinstance(variants, dict) else ():
        place = f"{where}: variants.{name}"
        _check_table(row, VARIANT_KEYS, place)
        tables = ("requires", REQUIRES_KEYS), ("health", HEALTH_KEYS), ("gate", GATE_LIMITS), ("session", SESSION_KEYS)
        for key, known in tables:
            _check_table(row.get(key) if isinstance(row, dict) else None, known, f"{place}: {key}")
    for key, known in (("files", FILE_KEYS), ("models", MODEL_KEYS)):
        rows = document.get(key)
        for number, row in enumerate(rows if isinstance(rows, list) else ()):
            _check_table(row, known, f"{where}: {key}[{number}]")
    _check_table(document.get("patches"), PATCHES_KEYS, f"{where}: patches")
    _check_table(document.get("rollout"), ROLLOUT_KEYS, f"{where}: rollout")


def _check_table(table: object, known: tuple[str, ...], where: str) -> None:
    for name in table if isinstance(table, Mapping) else ():
        if name not in known:
            raise ReleaseFileInvalid(
                f"{where}: unknown key {name[:SHOWN_CHARACTERS]!r}{suggest(name, known)}",
                hint=f"use one of the known keys: {', '.join(known)}",
            )


def _parse_plan(table: TomlTable, folder: Path) -> ReleasePlan:
    channels = table.texts("channels", NAME_PATTERN, max_items=64)
    if not channels:
        raise Malformed(f"{table.where}: channels: found none, expected at least one")
    first, further = _parse_models(table, folder)
    out = ReleasePlan(
        family=table.text("family", NAME_PATTERN),
        version=table.text("version", strict_json.VERSION_PATTERN),
        channels=channels,
        runtime=table.choice("runtime", RELEASE_RUNTIMES) if table.has("runtime") else DEFAULT_RUNTIME,
        at_rest=table.choice("at_rest", AT_REST) if table.has("at_rest") else "sealed",
        model=None if first is None else first.model,
        model_name=DEFAULT_MODEL_NAME if first is None else first.name,
        further=further,
        variants=_parse_variants(table, folder),
        min_counter=table.integer("min_counter") if table.has("min_counter") else None,
        min_agent=table.text("min_agent", NUMERIC_VERSION_PATTERN) if table.has("min_agent") else DEFAULT_MIN_AGENT,
        inputs=_parse_inputs(table, folder) if first is None else first.inputs,
        samples=table.integer("samples", 2, 100_000) if table.has("samples") else DEFAULT_SAMPLES,
        seed=table.integer("seed") if table.has("seed") else 0,
        golden=table.integer("golden", 0, 1000) if table.has("golden") else DEFAULT_GOLDEN,
        golden_bytes=table.integer("golden_bytes", 0) if table.has("golden_bytes") else None,
        metric=table.text("metric", max_length=1024) if table.has("metric") else None,
        files=tuple(_parse_file(row, folder) for row in table.tables_in_array("files")),
        bases=_parse_bases(table),
        rollout=_parse_rollout(table, channels),
        ramp=_parse_ramp(table),
        override_gate=table.text("override_gate", max_length=256) if table.has("override_gate") else None,
        drill=table.choice("drill", DRILLS) if table.has("drill") else None,
        provenance=_parse_provenance(table.table("provenance")),
    )
    table.reject_unknown()
    if not out.variants:
        raise Malformed(f"{table.where}: variants: found none, expected at least one [variants.NAME]")
    check_runtime(out, table.where)
    if out.override_gate == "":
        raise Malformed(f"{table.where}: override_gate: found '', expected the reason for the override")
    if out.drill == "live-nan" and not out.golden:
        raise Malformed(f"{table.where}: drill: 'live-nan' needs golden vectors, found golden = 0")
    return out


def _parse_inputs(table: TomlTable, folder: Path) -> Path | None:
    return table.path("inputs", folder) if table.has("inputs") else None


def _parse_models(table: TomlTable, folder: Path) -> tuple[ModelPlan | None, tuple[ModelPlan, ...]]:
    """Return the first model, or None, and the other ones."""
    if not table.has("models"):
        if not table.has("model"):
            return None, ()
        return ModelPlan(DEFAULT_MODEL_NAME, table.path("model", folder), _parse_inputs(table, folder)), ()
    found = [
        ModelPlan(row.text("name", NAME_PATTERN), row.path("model", folder), _parse_inputs(row, folder))
        for row in table.tables_in_array("models")
    ]
    for key in ("model", "inputs"):
        if table.has(key):
            raise Malformed(f"{table.where}: {key}: found beside [[models]], expected it in an entry of [[models]]")
    check_model_names([model.name for model in found], table.where)
    return found[0], tuple(found[1:])


def _parse_variants(table: TomlTable, folder: Path) -> tuple[VariantPlan, ...]:
    written = [_parse_variant(name, row, folder) for name, row in table.tables("variants").items()]
    out = tuple(variant for plan in written for variant in plan.expand())
    names = [variant.name for variant in out]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise Malformed(f"{table.where}: variants: found {twice!r} twice, once from scheme {AUTO_SCHEME!r}")
    return out


def _parse_variant(name: str, row: TomlTable, folder: Path) -> VariantPlan:
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
        target=row.choice("target", tuple(TARGETS)) if row.has("target") else ANY.name,
        optimize=row.flag("optimize") if row.has("optimize") else True,
        session=_parse_session(row.table("session")),
    )
    gate.reject_unknown()
    row.reject_unknown()
    if out.model is not None and out.scheme != UNQUANTIZED_SCHEME:
        raise Malformed(
            f"{row.where}: scheme: found {out.scheme!r} beside its own model, expected {UNQUANTIZED_SCHEME!r}"
        )
    return out


def _parse_requires(row: TomlTable) -> Overrides:
    """Return the fields of Requirements that the table has."""
    out: dict[str, int | str | tuple[str, ...] | None] = {}
    for name in row.remaining_names():
        match name:
            case "arch" | "cpu_features":
                out[name] = row.texts(name, FEATURE_PATTERN, max_items=64)
            case "runtime_min" | "runtime_below":
                out[name] = row.text(name, NUMERIC_VERSION_PATTERN)
            case "providers":
                names = row.texts(name, PROVIDER_PATTERN)
                if len(names) != 1:
                    raise Malformed(
                        f"{row.where}: providers: found {len(names)}, expected one execution provider; a model for "
                        "another one is another variant"
                    )
                out[name] = names
            case "memory_bytes" | "storage_bytes":
                out[name] = row.integer(name)
            case _:
                pass  # reported by reject_unknown
    row.reject_unknown()
    return tuple(out.items())


def _parse_session(row: TomlTable) -> tuple[tuple[str, str], ...]:
    """Return the session options; true and false stand for "1" and "0"."""
    found: dict[str, str] = {}
    for name in row.remaining_names():
        value: object = row.value(name)
        found[name] = str(int(value)) if isinstance(value, bool) else str(value)[:SHOWN_CHARACTERS]
    return tuple(sorted(found.items()))


def _parse_health(row: TomlTable) -> Overrides:
    """Return the fields of Health that the table has, checked together with the defaults."""
    given = {name: row.value(name) for name in row.remaining_names() if name in HEALTH_KEYS}
    row.reject_unknown()
    # the shadow limits exist only with shadow_ppm; without it, a written limit is reported by the parser
    with_shadow = (
        replace(Health(), shadow_ppm=1) if given.get("shadow_ppm") or given.keys() & set(SHADOW_LIMIT_FIELDS) else None
    )
    defaults = {**(with_shadow or Health()).as_json(), "shadow_ppm": 0}
    checked = Health.parse(StrictObject({**defaults, **given}, row.where))
    return tuple((name, getattr(checked, name)) for name in HEALTH_KEYS if name in given)


def _parse_file(row: TomlTable, folder: Path) -> ExtraFile:
    source = row.path("path", folder)
    role = row.choice("role", FILES_ONLY_ROLES)
    name = row.text("name", max_length=200) if row.has("name") else source.name
    row.reject_unknown()
    return ExtraFile(source, role, name)


def _parse_bases(table: TomlTable) -> int | tuple[str, ...]:
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


def _parse_rollout(table: TomlTable, channels: tuple[str, ...]) -> RolloutPlan | None:
    if not table.has("rollout"):
        return None
    row = table.table("rollout")
    own = row.texts("channels", NAME_PATTERN, max_items=64) if row.has("channels") else channels
    percent = row.number("percent", 0, 100) if row.has("percent") else 100.0
    cohorts = row.texts("cohorts", NAME_PATTERN) if row.has("cohorts") else ()
    note = row.text("note", max_length=512) if row.has("note") else ""
    row.reject_unknown()
    unknown = sorted(set(own) - set(channels))
    if unknown:
        raise Malformed(f"{row.where}.channels: found {unknown[0]!r}, expected one of {', '.join(channels)}")
    return RolloutPlan(own, round(percent * BASIS_POINTS / 100), cohorts, note)


def _parse_ramp(table: TomlTable) -> tuple[RampStep, ...]:
    """Return the steps of a ramp, each written as "24h 10%"."""
    where = f"{table.where}: ramp"
    out = []
    for text in table.texts("ramp", max_items=MAX_RAMP_STEPS) if table.has("ramp") else ():
        after, _, share = text.partition(" ")
        out.append(RampStep(parse_duration(after, where), parse_share(share, where, per=BASIS_POINTS)))
    check_ramp(out, where)
    if any(not step.percent_bp >= 1 or step.after_s > MAX_RAMP_SECONDS for step in out):
        raise Malformed(f"{where}: found {out}, expected shares of at least 0.01% within a year")
    return tuple(out)


def _parse_provenance(row: TomlTable) -> tuple[tuple[str, str], ...]:
    out = tuple((name, row.text(name, max_length=512)) for name in sorted(row.remaining_names()))
    for name, _ in out:
        if not FEATURE_PATTERN.fullmatch(name):
            raise Malformed(f"{row.where}: found {name[:SHOWN_CHARACTERS]!r}, expected {FEATURE_PATTERN.pattern}")
    return out
