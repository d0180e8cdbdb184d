"""The contract of a variant: its inputs and outputs, and the health contract that a device checks.

All numbers are integers: ratios are parts per million (ppm) or percent, and names of times end in their unit.
"""

import re
from dataclasses import dataclass
from typing import Final

from bundle.errors import Malformed
from bundle.strict_json import JSON, StrictObject
from bundle.tensor_types import SERVED_TYPES

MAX_TENSORS: Final = 256
MAX_RANK: Final = 16
PPM: Final = 1_000_000
DTYPE_PATTERN: Final = re.compile("|".join(row.name for row in SERVED_TYPES))
SHADOW_LIMIT_FIELDS: Final = ("shadow_agreement_ppm", "shadow_relative_rms_ppm")


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One input or output of a model.

    Attributes:
        name: name of the tensor in the model.
        dtype: dtype as numpy names it ("float32"), or "string".
        shape: one entry per dimension: its size, or the name of a dynamic size.
    """

    name: str
    dtype: str
    shape: tuple[int | str, ...]

    def as_json(self) -> dict[str, JSON]:
        """Return the tensor as an object of `contract.inputs` or `contract.outputs`."""
        return {"name": self.name, "dtype": self.dtype, "shape": list(self.shape)}

    @classmethod
    def parse(cls, fields: StrictObject) -> "TensorSpec":
        """Parse the object that `as_json` returns.

        Raises:
            Malformed: the object does not follow its schema.
        """
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
                raise Malformed(
                    f"{fields.where}.shape: found {size!r}, expected a size or a name of at most 64 characters"
                )
            sizes.append(size)
        return cls(name, dtype, tuple(sizes))


@dataclass(frozen=True, slots=True)
class Contract:
    """The inputs and outputs of a model.

    Attributes:
        inputs: tensors that every request contains.
        outputs: tensors that every response contains; at least one.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    def as_json(self) -> dict[str, JSON]:
        """Return the `contract` object of a manifest."""
        return {"inputs": [t.as_json() for t in self.inputs], "outputs": [t.as_json() for t in self.outputs]}

    @classmethod
    def parse(cls, fields: StrictObject) -> "Contract":
        """Parse the object that `as_json` returns.

        Raises:
            Malformed: the object does not follow its schema.
        """
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
    """The signed health contract: limits for a candidate in probe, shadow mode and probation.

    Attributes:
        probe_deadline_s: maximum duration of the probe, in seconds of wall-clock time; a longer probe fails.
        probe_latency_percent: maximum median latency on the golden vectors, in percent of the running model's
            (300 = three times).
        probe_memory_percent: maximum peak memory, in percent of the running model's.
        golden_relative_rms_ppm: maximum relative RMS error of golden outputs (bundle.golden), in ppm.
        probation_window_s: duration of the probation after the switch, in seconds.
        probation_min_requests: minimum number of requests in the window; with fewer the probation is inconclusive.
        probation_error_ppm: maximum share of failed requests, in ppm.
        probation_nan_ppm: maximum share of responses to finite inputs with NaN or infinity, in ppm.
        probation_latency_percent: maximum median latency, in percent of the previous generation's.
        inconclusive: action after an inconclusive probation: "commit", "extend" or "rollback".
        first_latency_percent: maximum ratio to the reference graph on a first install, in percent of the ratio in the
            manifest; None for no limit, and then it is not written.
        shadow_ppm: share of live requests that also run on the candidate before the switch, in ppm; 0 disables shadow
            mode, and then the two limits below are not written.
        shadow_agreement_ppm: minimum share of compared responses that agree, in ppm.
        shadow_relative_rms_ppm: maximum relative RMS difference of two float responses that agree, in ppm; responses
            with the largest element at the same index agree, too.
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
    first_latency_percent: int | None = None
    shadow_ppm: int = 0
    shadow_agreement_ppm: int = 900_000
    shadow_relative_rms_ppm: int = 50_000

    def as_json(self) -> dict[str, JSON]:
        """Return the `health` object of a manifest."""
        left_out = set() if self.shadow_ppm else set(SHADOW_LIMIT_FIELDS)
        left_out |= {"first_latency_percent"} if self.first_latency_percent is None else set()
        return {name: getattr(self, name) for name in self.__dataclass_fields__ if name not in left_out}

    @classmethod
    def parse(cls, fields: StrictObject) -> "Health":
        """Parse the object that `as_json` returns.

        Raises:
            Malformed: the object does not follow its schema.
        """
        shadow_ppm = fields.integer("shadow_ppm", 0, PPM)
        limits = {name: fields.integer(name, 0, PPM) for name in SHADOW_LIMIT_FIELDS} if shadow_ppm else {}
        has_first = "first_latency_percent" in fields.remaining_names()
        out = cls(
            first_latency_percent=fields.integer("first_latency_percent", 1, 1_000_000) if has_first else None,
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
