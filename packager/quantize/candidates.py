"""Build the candidates of one prepared model on demand.
Methods are static, dynamic and weights (all int8), int4 and fp16.

1. A builder that fails is one candidate less, with its reason; it never ends the search.
2. A candidate must be at most MAX_SIZE_SHARE of the float model's bytes and have a quantized weight: a quantizer that
   succeeds without changing anything is a failure.
3. Method and numerics are written into the model's metadata, so that an update can be made in the same way.
"""

from dataclasses import dataclass, field
from typing import Final, Literal

import onnx

from packager.errors import QuantizationRefused
from packager.models.graphs import METADATA_KEY, WeightUse, all_nodes, is_quantized, weight_uses
from packager.models.samples import Samples
from packager.models.sessions import one_line_message
from packager.quantize.activation_ranges import ActivationRange
from packager.quantize.dynamic import dynamic_nodes, quantize_dynamic
from packager.quantize.fp16 import quantize_fp16
from packager.quantize.int4 import int4_nodes, quantize_int4
from packager.quantize.integer_weights import REDUCED_LEVELS, SIGNED_LEVELS, UNSIGNED_LEVELS, LevelRange
from packager.quantize.moved_weights import moved_weight_uses
from packager.quantize.static import measure_activation_ranges, quantize_static, static_nodes
from packager.quantize.weight_only import MIN_ELEMENTS, quantize_weights

Method = Literal["static", "dynamic", "weights", "int4", "fp16"]

INT8_METHODS: Final[tuple[Method, ...]] = ("static", "dynamic", "weights")
FLOAT32_METHODS: Final[tuple[Method, ...]] = ("static", "dynamic", "int4")
MAX_SIZE_SHARE: Final = 0.9  # of the float model's bytes; a model that is hardly smaller is not worth a variant


@dataclass(slots=True)
class CandidateBuilder:
    """Builds candidates of one model; ranges are measured once, for the first static candidate.

    Attributes:
        prepared: the float model after `prepare`.
        calibration: calibration samples.
        float_bytes: bytes of the float model.
        per_channel: use one scale per channel of a weight, instead of one per weight.
        signed_weights: 7-bit signed weights (x86 without VNNI); full range with `signed_activations` (ARM).
        signed_activations: int8 activations.
        integer_model: the float model for methods with integer arithmetic; `prepared` if None.
        weights_beyond_fp16: names of the weights that fp16 cannot represent, once it was built.
    """

    prepared: onnx.ModelProto
    calibration: Samples
    float_bytes: int
    per_channel: bool = True
    signed_weights: bool = False
    signed_activations: bool = False
    integer_model: onnx.ModelProto | None = None
    weights_beyond_fp16: tuple[str, ...] = ()
    _ranges: dict[str, ActivationRange] | None = field(default=None, repr=False)

    def numerics_of(self, method: Method) -> str:
        """Return the types that the kernels multiply, for example "u8s8": uint8 activations, int8 weights."""
        if method not in ("static", "dynamic"):
            return "float"
        if self.signed_activations:
            return "s8s8" if method == "static" else "u8s8"  # DynamicQuantizeLinear gives unsigned levels only
        return "u8s7" if self.signed_weights else "u8u8"

    def source(self, method: Method) -> onnx.ModelProto:
        """Return the float model that `method` quantizes."""
        if method in ("static", "dynamic") and self.integer_model is not None:
            return self.integer_model
        return self.prepared

    @property
    def levels(self) -> LevelRange:
        """Level range of the weights that integer kernels read."""
        if self.signed_activations:
            return SIGNED_LEVELS
        return REDUCED_LEVELS if self.signed_weights else UNSIGNED_LEVELS

    def applicable_methods(self) -> tuple[Method, ...]:
        """Return the methods that this model has a node for.

        Raises:
            QuantizationRefused: there is none.
        """
        uses = _large_uses(self.prepared)
        if not uses:
            raise QuantizationRefused(
                f"found no constant weight of {MIN_ELEMENTS} or more numbers in a MatMul, Gemm, Conv, ConvTranspose, "
                "Gather, LSTM, GRU or RNN, in any graph",
                hint="ship the float variant only",
            )
        found: list[Method] = []
        if static_nodes(self.source("static")):
            found.append("static")
        if dynamic_nodes(self.source("dynamic")):
            found.append("dynamic")
        if int4_nodes(self.prepared):
            found.append("int4")
        return (*found, "weights", "fp16")

    def other_type_message(self, method: Method) -> str | None:
        """Return why a method that needs float32 weights does not fit; None if that is not why."""
        kinds = sorted(
            {
                onnx.TensorProto.DataType.Name(use.tensor.data_type).lower()
                for use in weight_uses(self.source(method))
                if use.elements >= MIN_ELEMENTS and use.tensor.data_type != onnx.TensorProto.FLOAT
            }
        )
        if method not in FLOAT32_METHODS or not kinds:
            return None
        return (
            f"{method} needs float32 weights, those of this model are {', '.join(kinds)}; export the model in float32, "
            "or use int8-weights"
        )

    def node_groups(self, method: Method) -> list[tuple[str, ...]]:
        """Return the names of the nodes that `method` would quantize, in graph order.
        Nodes that share a weight form one group.
        """
        uses = _large_uses(self.source(method))
        if method == "static":
            reached = {use.node.name for use in static_nodes(self.source("static"))}
        elif method == "dynamic":
            reached = {use.node.name for use in dynamic_nodes(self.source("dynamic"))}
        else:
            reached = set()
        reached |= {use.node.name for use in uses}
        shared: dict[tuple[int, str], list[str]] = {}
        for use in uses:
            shared.setdefault((id(use.owner.graph), use.tensor.name), []).append(use.node.name)
        group_of = {name: {name} for name in reached}
        for names in shared.values():
            joined = set().union(*(group_of[name] for name in names))
            group_of.update(dict.fromkeys(joined, joined))
        found: dict[int, list[str]] = {}
        for node in all_nodes(self.source(method)):
            if node.name in reached:
                found.setdefault(id(group_of[node.name]), []).append(node.name)
        return [tuple(names) for names in found.values()]

    def promotable_nodes(self, method: Method) -> list[str]:
        """Return the names of the nodes that can be promoted.
        They get 16-bit activations (static) or 8-bit weights (int4); other methods have none.
        """
        match method:
            case "static":
                return [use.node.name for use in static_nodes(self.source("static"))]
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
        """Build one candidate and record its method in the metadata.

        Args:
            method: name of the method.
            float_nodes: names of nodes that stay float.
            promoted: names of nodes that get more bits (`promotable_nodes`).
            is_partial: allow any size: the model only measures a node error.

        Raises:
            QuantizationRefused: the builder failed, nothing was quantized, or the model is too large.
        """
        try:
            model = self._build(method, float_nodes, promoted)
        except Exception as error:  # published models break builders in many ways
            raise QuantizationRefused(f"{method}: {type(error).__name__}: {one_line_message(error)}") from error
        if method != "fp16" and not is_quantized(model):
            raise QuantizationRefused(f"{method}: nothing was quantized")
        size = model.ByteSize()
        if size > MAX_SIZE_SHARE * self.float_bytes and not is_partial:
            is_beyond = method == "fp16" and self.weights_beyond_fp16
            beyond = f"; {len(self.weights_beyond_fp16)} weights exceed the range of fp16" if is_beyond else ""
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
                    self._ranges = measure_activation_ranges(self.source(method), self.calibration)
                return quantize_static(
                    self.source(method),
                    self._ranges,
                    per_channel=self.per_channel,
                    levels=self.levels,
                    signed_activations=self.signed_activations,
                    float_nodes=float_nodes,
                    promoted=promoted,
                )
            case "dynamic":
                return quantize_dynamic(
                    self.source(method),
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


def _large_uses(model: onnx.ModelProto) -> list[WeightUse]:
    every = (*weight_uses(model), *moved_weight_uses(model))
    return [use for use in every if use.elements >= MIN_ELEMENTS]
