"""The candidates of one prepared model, built on demand: int8 static, dynamic or weights only; int4; fp16.

Rules:
1. A builder that fails is a candidate that is not there, with its reason; it never ends the search.
2. A candidate must be well smaller than the float model, and hold at least one quantized weight: "succeeded and changed
   nothing" is a failure.
3. How it was made is written into the model's metadata, so that an update can be made the same way.
"""

from dataclasses import dataclass, field
from typing import Final, Literal

import onnx

from packager.errors import QuantizationRefused
from packager.models.graphs import METADATA_KEY, QUANTIZED_OPS, all_nodes, weight_uses
from packager.models.samples import Samples
from packager.models.sessions import RUNTIME_ERRORS, one_line_message
from packager.quantize.activation_ranges import ActivationRange
from packager.quantize.dynamic import dynamic_nodes, quantize_dynamic
from packager.quantize.fp16 import quantize_fp16
from packager.quantize.int4 import int4_nodes, quantize_int4
from packager.quantize.integer_weights import REDUCED_LEVELS, SIGNED_LEVELS, UNSIGNED_LEVELS, LevelRange
from packager.quantize.static import measure_activation_ranges, quantize_static, static_nodes
from packager.quantize.weight_only import MIN_ELEMENTS, quantize_weights

Method = Literal["static", "dynamic", "weights", "int4", "fp16"]

INT8_METHODS: Final[tuple[Method, ...]] = ("static", "dynamic", "weights")
# onnxruntime.quantization fails in all of these ways on published models
BUILD_ERRORS: Final[tuple[type[Exception], ...]] = (
    *RUNTIME_ERRORS,
    StopIteration,
    KeyError,
    TypeError,
    AttributeError,
    IndexError,
    AssertionError,
)
MAX_SIZE_SHARE: Final = 0.9  # of the float model's bytes: what is hardly smaller is not worth a variant


@dataclass(slots=True)
class CandidateBuilder:
    """Builds candidates of one model; ranges are measured once, when the first static candidate is asked for.

    `beyond_half` names the weights that fp16 cannot hold, once it was built. `signed_weights` alone makes them 7 bits
    (x86); with `signed_activations` they have the full range (ARM).
    """

    prepared: onnx.ModelProto
    calibration: Samples
    float_bytes: int
    per_channel: bool = True
    signed_weights: bool = False
    signed_activations: bool = False
    weights_beyond_fp16: tuple[str, ...] = ()
    _ranges: dict[str, ActivationRange] | None = field(default=None, repr=False)

    def numerics_of(self, method: Method) -> str:
        """What the kernels of `method` multiply: integers (activations, then weights), or floats."""
        if method not in ("static", "dynamic"):
            return "float"
        if self.signed_activations:
            return "s8s8" if method == "static" else "u8s8"  # DynamicQuantizeLinear gives unsigned levels only
        return "u8s7" if self.signed_weights else "u8u8"

    @property
    def levels(self) -> LevelRange:
        """Of the weights that integer kernels read."""
        if self.signed_activations:
            return SIGNED_LEVELS
        return REDUCED_LEVELS if self.signed_weights else UNSIGNED_LEVELS

    def applicable_methods(self) -> tuple[Method, ...]:
        """Methods that this model has anything for. Raises QuantizationRefused where it is none."""
        uses = [use for use in weight_uses(self.prepared) if use.elements >= MIN_ELEMENTS]
        if not uses:
            raise QuantizationRefused(
                f"found no constant weight of {MIN_ELEMENTS} or more numbers in a MatMul, Gemm, Conv, ConvTranspose, "
                "Gather, LSTM, GRU or RNN, in any graph",
                hint="ship the float variant alone",
            )
        found: list[Method] = []
        if static_nodes(self.prepared):
            found.append("static")
        if dynamic_nodes(self.prepared):
            found.append("dynamic")
        if int4_nodes(self.prepared):
            found.append("int4")
        return (*found, "weights", "fp16")

    def node_groups(self, method: Method) -> list[tuple[str, ...]]:
        """Names of the nodes that `method` would quantize, in graph order; those that share a weight come together."""
        uses = [use for use in weight_uses(self.prepared) if use.elements >= MIN_ELEMENTS]
        if method == "static":
            reached = {use.node.name for use in static_nodes(self.prepared)}
        elif method == "dynamic":
            reached = {use.node.name for use in dynamic_nodes(self.prepared)}
        else:
            reached = set()
        reached |= {use.node.name for use in uses}
        shared: dict[tuple[int, str], list[str]] = {}
        for use in uses:
            shared.setdefault((id(use.owner.graph), use.tensor.name), []).append(use.node.name)
        family = {name: {name} for name in reached}
        for names in shared.values():
            joined = set().union(*(family[name] for name in names))
            family.update(dict.fromkeys(joined, joined))
        found: dict[int, list[str]] = {}
        for node in all_nodes(self.prepared):
            if node.name in reached:
                found.setdefault(id(family[node.name]), []).append(node.name)
        return [tuple(names) for names in found.values()]

    def promotable_nodes(self, method: Method) -> list[str]:
        """Names of the nodes that `method` can give more bits short of float: 16 for the activation that they read
        (static), 8 for their weights (int4)."""
        match method:
            case "static":
                return [use.node.name for use in static_nodes(self.prepared)]
            case "int4":
                return [use.node.name for use in int4_nodes(self.prepared)]
            case _:
                return []

    def build(
        self,
        method: Method,
        float_nodes: frozenset[str] = frozenset(),
        promoted: frozenset[str] = frozenset(),
        *,
        is_partial: bool = False,
    ) -> onnx.ModelProto:
        """One candidate; a partial one (to measure a node's blame) may be large. Raises QuantizationRefused."""
        try:
            model = self._build(method, float_nodes, promoted)
        except BUILD_ERRORS as error:
            raise QuantizationRefused(f"{method}: {type(error).__name__}: {one_line_message(error)}") from error
        if method != "fp16" and not any(node.op_type in QUANTIZED_OPS for node in all_nodes(model)):
            raise QuantizationRefused(f"{method}: nothing was quantized")
        size = model.ByteSize()
        if size > MAX_SIZE_SHARE * self.float_bytes and not is_partial:
            is_beyond = method == "fp16" and self.weights_beyond_fp16
            beyond = f", since {len(self.weights_beyond_fp16)} weights are beyond half precision" if is_beyond else ""
            raise QuantizationRefused(
                f"{method}: {size} bytes, more than {MAX_SIZE_SHARE:.0%} of the float model's "
                f"{self.float_bytes}{beyond}"
            )
        entry = model.metadata_props.add()
        entry.key, entry.value = METADATA_KEY, f"{method} {self.numerics_of(method)}"
        return model

    def _build(self, method: Method, float_nodes: frozenset[str], promoted: frozenset[str]) -> onnx.ModelProto:
        match method:
            case "static":
                if self._ranges is None:
                    self._ranges = measure_activation_ranges(self.prepared, self.calibration)
                return quantize_static(
                    self.prepared,
                    self._ranges,
                    per_channel=self.per_channel,
                    levels=self.levels,
                    signed_activations=self.signed_activations,
                    float_nodes=float_nodes,
                    promoted=promoted,
                )
            case "dynamic":
                return quantize_dynamic(
                    self.prepared,
                    per_channel=self.per_channel,
                    levels=self.levels,
                    float_nodes=float_nodes,
                )
            case "int4":
                return quantize_int4(self.prepared, float_nodes, promoted)
            case "fp16":
                halved, self.weights_beyond_fp16 = quantize_fp16(self.prepared)
                return halved
            case "weights":
                copy = onnx.ModelProto()
                copy.CopyFrom(self.prepared)
                quantize_weights(copy, float_nodes)
                return copy
