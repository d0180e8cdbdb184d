"""What a variant promises: its inputs and outputs, and the health that a device holds it to.

Rule: ratios are parts per million or percent, times have their unit in the name. No floats.
"""

import re
from dataclasses import dataclass
from typing import Final

from bundle.errors import Malformed
from bundle.strict_json import JSON, StrictObject

MAX_TENSORS: Final = 256
MAX_RANK: Final = 16
PPM: Final = 1_000_000
DTYPE_PATTERN: Final = re.compile(r"bool|u?int(?:8|16|32|64)|float(?:16|32|64)|bfloat16|string")
SHADOW_LIMIT_FIELDS: Final = ("shadow_agreement_ppm", "shadow_relative_rms_ppm")


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One input or output of a model.

    Attributes:
        name: as in the model.
        dtype: numpy's name ("float32"), or "string".
        shape: a size, or the name of a dynamic size, a dimension.
    """

    name: str
    dtype: str
    shape: tuple[int | str, ...]

    def as_json(self) -> dict[str, JSON]:
        """An object of `contract.inputs` or `contract.outputs`."""
        return {"name": self.name, "dtype": self.dtype, "shape": list(self.shape)}

    @classmethod
    def parse(cls, fields: StrictObject) -> "TensorSpec":
        """Inverse of `as_json`. Raises MalformedRefused."""
        name = fields.text("name", max_length=256)
        dtype = fields.text("dtype", DTYPE_PATTERN)
        shape = fields.value("shape")
        fields.reject_unknown()
        if not isinstance(shape, list) or len(shape) > MAX_RANK:
            raise Malformed(f"{fields.where}.shape: expected a list of at most {MAX_RANK} sizes")
        sizes: list[int | str] = []
        for size in shape:
            is_size = isinstance(size, int) and not isinstance(size, bool) and size >= 0
            is_name = isinstance(size, str) and 0 < len(size) <= 64
            if not (is_size or is_name) or not isinstance(size, int | str):
                raise Malformed(f"{fields.where}.shape: found {size!r}, expected a size or the name of one")
            sizes.append(size)
        return cls(name, dtype, tuple(sizes))


@dataclass(frozen=True, slots=True)
class Contract:
    """What goes into the model and what comes out."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    def as_json(self) -> dict[str, JSON]:
        """The `contract` object."""
        return {"inputs": [t.as_json() for t in self.inputs], "outputs": [t.as_json() for t in self.outputs]}

    @classmethod
    def parse(cls, fields: StrictObject) -> "Contract":
        """Inverse of `as_json`. Raises MalformedRefused."""
        out = cls(
            tuple(TensorSpec.parse(row) for row in fields.objects("inputs", max_items=MAX_TENSORS)),
            tuple(TensorSpec.parse(row) for row in fields.objects("outputs", max_items=MAX_TENSORS)),
        )
        fields.reject_unknown()
        if not out.outputs:
            raise Malformed(f"{fields.where}.outputs: found none, expected at least one")
        return out


@dataclass(frozen=True, slots=True)
class Health:
    """The signed health contract: what the probe and the probation hold a candidate to.

    Attributes:
        probe_deadline_s: wall clock for the whole probe; past it the child is killed and the verdict is fail.
        probe_latency_percent: median golden latency, at most this share of the running model's (300 = three times).
        probe_memory_percent: peak memory, at most this share of the running model's.
        golden_relative_rms_ppm: RMS of (answer - golden) over RMS of golden, at most, per output tensor.
        probation_window_s: how long the candidate is watched after the swap.
        probation_min_requests: fewer requests than this in the window is inconclusive.
        probation_error_ppm: failed requests, at most.
        probation_nan_ppm: answers with NaN or infinity where the goldens have none, at most.
        probation_latency_percent: median latency against the previous generation's, at most.
        inconclusive: what an inconclusive probation becomes: "commit", "extend" or "rollback".
        shadow_ppm: share of live inputs that also run on the candidate before the swap; 0 is off, and the two limits
            below are not written then.
        shadow_agreement_ppm: of the compared answers, at least.
        shadow_relative_rms_ppm: relative RMS difference up to which float answers agree; those that have their largest
            element at the same place agree too.
    """

    probe_deadline_s: int = 60
    probe_latency_percent: int = 400
    probe_memory_percent: int = 300
    golden_relative_rms_ppm: int = 1_000
    probation_window_s: int = 300
    probation_min_requests: int = 50
    probation_error_ppm: int = 10_000
    probation_nan_ppm: int = 0
    probation_latency_percent: int = 400
    inconclusive: str = "commit"
    shadow_ppm: int = 0
    shadow_agreement_ppm: int = 900_000
    shadow_relative_rms_ppm: int = 50_000

    def as_json(self) -> dict[str, JSON]:
        """The `health` object."""
        names = [name for name in self.__dataclass_fields__ if self.shadow_ppm or name not in SHADOW_LIMIT_FIELDS]
        return {name: getattr(self, name) for name in names}

    @classmethod
    def parse(cls, fields: StrictObject) -> "Health":
        """Inverse of `as_json`. Raises MalformedRefused."""
        shadow_ppm = fields.integer("shadow_ppm", 0, PPM)
        limits = {name: fields.integer(name, 0, PPM) for name in SHADOW_LIMIT_FIELDS} if shadow_ppm else {}
        out = cls(
            probe_deadline_s=fields.integer("probe_deadline_s", 1, 3600),
            probe_latency_percent=fields.integer("probe_latency_percent", 1, 1_000_000),
            probe_memory_percent=fields.integer("probe_memory_percent", 1, 1_000_000),
            golden_relative_rms_ppm=fields.integer("golden_relative_rms_ppm", 0, PPM),
            probation_window_s=fields.integer("probation_window_s", 0, 30 * 86400),
            probation_min_requests=fields.integer("probation_min_requests", 0, 10**9),
            probation_error_ppm=fields.integer("probation_error_ppm", 0, PPM),
            probation_nan_ppm=fields.integer("probation_nan_ppm", 0, PPM),
            probation_latency_percent=fields.integer("probation_latency_percent", 1, 1_000_000),
            inconclusive=fields.choice("inconclusive", ("commit", "extend", "rollback")),
            shadow_ppm=shadow_ppm,
            **limits,
        )
        fields.reject_unknown()
        return out
