"""Requirements of a variant: its runtime, and properties of the device (docs/format.md section 3)."""

import re
from dataclasses import dataclass
from typing import Final

from bundle.errors import Malformed
from bundle.providers import CPU
from bundle.strict_json import JSON, StrictObject

AGENT_RUNTIMES: Final = ("onnxruntime", "litert")
RUNTIMES: Final = (*AGENT_RUNTIMES, "app", "none")
PROVIDER_PATTERN: Final = re.compile(r"[A-Za-z][A-Za-z0-9]{0,63}")
OPTION_PATTERN: Final = re.compile(r"[a-z][a-z0-9_.]{0,63}")
NUMERIC_VERSION_PATTERN: Final = re.compile(r"(?:0|[1-9][0-9]{0,5})(?:\.(?:0|[1-9][0-9]{0,5})){0,3}")
FEATURE_PATTERN: Final = re.compile(r"[a-z0-9][a-z0-9_-]{0,31}")


@dataclass(frozen=True, slots=True)
class Runtime:
    """The runtime that a variant is made for.

    Attributes:
        name: one of RUNTIMES: "onnxruntime" and "litert" are run by the agent; "app" is run by an application, which
            also judges its health; "none" means files without a model.
        min_version: first version of the runtime that loads the variant, or None if `name` is "app" or "none".
        below_version: first version of the runtime that is no longer supported, or None.
        providers: the execution provider that the variant was checked on (bundle.providers); empty means the CPU.
        options: options of the runtime's session by name, sorted; a device takes those of bundle.providers.
    """

    name: str = "onnxruntime"
    min_version: str | None = "1.31"
    below_version: str | None = None
    providers: tuple[str, ...] = ()
    options: tuple[tuple[str, str], ...] = ()

    @property
    def provider(self) -> str:
        """The execution provider that the variant is for."""
        return self.providers[0] if self.providers else CPU

    @property
    def is_run_by_agent(self) -> bool:
        """True if the agent loads and serves the variant's models."""
        return self.name in AGENT_RUNTIMES

    @property
    def is_judged(self) -> bool:
        """True if a release is watched after it was activated: by the agent, or by applications."""
        return self.name != "none"

    def as_json(self) -> dict[str, JSON]:
        """Return the `runtime` object of a variant."""
        return {
            "name": self.name,
            "min": self.min_version,
            "below": self.below_version,
            "providers": list(self.providers),
            "options": dict(self.options),
        }

    @classmethod
    def parse(cls, fields: StrictObject) -> "Runtime":
        """Parse the object that `as_json` returns.

        Raises:
            Malformed: the object does not follow its schema.
        """
        options = fields.object("options")
        names = sorted(options.remaining_names())
        for name in names:
            if not OPTION_PATTERN.fullmatch(name):
                raise Malformed(f"{options.where}: found the name {name!r}, expected {OPTION_PATTERN.pattern}")
        out = cls(
            name=fields.choice("name", RUNTIMES),
            min_version=fields.optional_text("min", NUMERIC_VERSION_PATTERN),
            below_version=fields.optional_text("below", NUMERIC_VERSION_PATTERN),
            providers=fields.texts("providers", PROVIDER_PATTERN, max_items=1),
            options=tuple((name, options.text(name, max_length=64)) for name in names),
        )
        fields.reject_unknown()
        if not out.is_run_by_agent and (out.min_version or out.below_version or out.providers or out.options):
            raise Malformed(f"{fields.where}: runtime {out.name!r} has no versions, providers or options")
        if out.is_run_by_agent and out.min_version is None:
            raise Malformed(f"{fields.where}.min: found null, expected a version of {out.name}")
        return out


@dataclass(frozen=True, slots=True)
class Requirements:
    """The properties that a device must have for a variant.

    Attributes:
        arch: architectures as `uname -m` names them, of which the device must have one; empty means any.
        cpu_features: flags of /proc/cpuinfo, of which the device must have all.
        memory_bytes: resident memory while serving, in bytes.
        storage_bytes: required free space in the device's bundle store, in bytes.
    """

    arch: tuple[str, ...] = ()
    cpu_features: tuple[str, ...] = ()
    memory_bytes: int = 0
    storage_bytes: int = 0

    def as_json(self) -> dict[str, JSON]:
        """Return the `requires` object of a variant."""
        return {
            "arch": list(self.arch),
            "cpu_features": list(self.cpu_features),
            "memory_bytes": self.memory_bytes,
            "storage_bytes": self.storage_bytes,
        }

    @classmethod
    def parse(cls, fields: StrictObject) -> "Requirements":
        """Parse the object that `as_json` returns.

        Raises:
            Malformed: the object does not follow its schema.
        """
        out = cls(
            arch=fields.texts("arch", FEATURE_PATTERN, max_items=16),
            cpu_features=fields.texts("cpu_features", FEATURE_PATTERN, max_items=64),
            memory_bytes=fields.integer("memory_bytes"),
            storage_bytes=fields.integer("storage_bytes"),
        )
        fields.reject_unknown()
        return out
