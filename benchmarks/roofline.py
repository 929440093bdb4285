"""Compute the roofline of a graph: the least time on a GPU for its multiply-adds and its bytes.

Both are counted in the ONNX file at given sizes of the axes. Multiply-adds are those of
convolutions, matrix products, einsums, attention and deformable attention's samples; adding,
normalising and moving are left out. Bytes are those that must cross the memory bus once: weights,
inputs and outputs. Tensors between two operators may stay in the cache, so they are left out. A
network whose weights stay in the cache from frame to frame can be faster than the share of its
bytes.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx

from rvos_deploy.benchmarks.gpu_specs import Rates
from rvos_deploy.benchmarks.onnx_shapes import Shapes, attribute, infer, with_sizes
from rvos_deploy.errors import InputError

SAMPLING = "sampling"
"""The kind of deformable attention's multiply-adds: in float32 outside tensor cores (see
kernel.cu).
"""

CORNERS = 4
"""Pixels that a bilinear sample blends."""


@dataclass(frozen=True)
class GraphCost:
    """The least work of a graph.

    Args:
        macs: multiply-adds by type of the operands (``float16``, ``float32``) or ``SAMPLING``.
        by_operator: multiply-adds by operator.
        weight_bytes: as stored in the file; of embedding tables only the rows that are looked up.
        input_bytes: of the graph's inputs.
        output_bytes: of the graph's outputs.
    """

    macs: Mapping[str, int]
    by_operator: Mapping[str, int]
    weight_bytes: int
    input_bytes: int
    output_bytes: int

    @property
    def total_macs(self) -> int:
        """Multiply-adds of every type."""
        return sum(self.macs.values())

    @property
    def total_bytes(self) -> int:
        """The bytes of weights, inputs and outputs, once each."""
        return self.weight_bytes + self.input_bytes + self.output_bytes


@dataclass(frozen=True)
class Roofline:
    """The least seconds for the arithmetic and for the bytes; the larger one is the bound."""

    compute_seconds: float
    memory_seconds: float

    @property
    def seconds(self) -> float:
        """The larger of the two."""
        return max(self.compute_seconds, self.memory_seconds)

    @property
    def bound(self) -> str:
        """The limiting resource: ``compute`` or ``memory``."""
        return "compute" if self.compute_seconds > self.memory_seconds else "memory"


def roofline(cost: GraphCost, rates: Rates, *, tf32: bool) -> Roofline:
    """Return the least time of a graph on a GPU.

    Args:
        cost: counted by :func:`count_model`.
        rates: of the GPU, published or measured.
        tf32: float32 products may run on tensor cores, as in graphs of half precision.

    Raises:
        InputError: the GPU has no rate for a type that the graph multiplies in.
    """
    seconds = sum(
        2 * count / _flops(kind, rates, tf32=tf32) for kind, count in cost.macs.items() if count
    )
    return Roofline(seconds, cost.total_bytes / rates.bytes_per_second)


def _flops(kind: str, rates: Rates, *, tf32: bool) -> float:
    by_kind = {
        SAMPLING: rates.fp32_flops,
        "float32": (rates.tf32_flops if tf32 else None) or rates.fp32_flops,
        "float16": rates.fp16_flops,
        "bfloat16": rates.bf16_flops,
    }
    found = by_kind.get(kind)
    if found is None:
        raise InputError(f"no rate is known for multiply-adds in {kind} on this card")
    return found


def count_model(model: onnx.ModelProto, axes: Mapping[str, int]) -> GraphCost:
    """Count a graph's multiply-adds and bytes; its weights are not read.

    Args:
        model: stays as it is. Axes of inputs are names (``E``) or names over numbers (``H/8``).
        axes: sizes of the named axes.

    Raises:
        InputError: an axis has no size, or a shape does not follow from the sizes.
    """
    fixed = with_sizes(model, axes)
    types, shapes = infer(fixed)
    macs: Counter[str] = Counter()
    by_operator: Counter[str] = Counter()
    for node in fixed.graph.node:
        counter = _COUNTERS.get(node.op_type)
        if counter is None:
            continue
        try:
            count = counter(node, shapes)
        except KeyError as error:
            raise InputError(
                f"{node.op_type} {node.name or node.output[0]}: the shape of {error} does not "
                "follow from the sizes of the axes, so its multiply-adds cannot be counted"
            ) from None
        kind = SAMPLING if node.op_type == "MSDeformAttn" else types[node.input[0]]
        macs[kind] += count
        by_operator[node.op_type] += count
    sizes = {
        name: math.prod(shape) * np.dtype(types[name]).itemsize for name, shape in shapes.items()
    }
    # Weights are those of the original model, because folded shapes are initializers too.
    graph = model.graph
    if unknown := [value.name for value in graph.output if value.name not in sizes]:
        raise InputError(
            f"the shape of output {unknown[0]} does not follow from the sizes of the axes, so its "
            "bytes cannot be counted"
        )
    weights = {tensor.name for tensor in graph.initializer}
    return GraphCost(
        macs=dict(macs),
        by_operator=dict(by_operator),
        weight_bytes=sum(_weight_bytes(graph, tensor, sizes) for tensor in graph.initializer),
        input_bytes=sum(sizes[value.name] for value in graph.input if value.name not in weights),
        output_bytes=sum(sizes[value.name] for value in graph.output),
    )


def _weight_bytes(
    graph: onnx.GraphProto, tensor: onnx.TensorProto, sizes: Mapping[str, int]
) -> int:
    """Count the bytes of a weight; of an embedding table only the rows that are looked up."""
    whole = sizes[tensor.name]
    readers = [node for node in graph.node if tensor.name in node.input]
    if readers and all(n.op_type == "Gather" and n.input[0] == tensor.name for n in readers):
        return min(whole, sum(sizes.get(node.output[0], whole) for node in readers))
    return whole


def _matmul(node: onnx.NodeProto, shapes: Shapes) -> int:
    """Count outputs times the length that is summed over."""
    return math.prod(shapes[node.output[0]]) * shapes[node.input[0]][-1]


def _gemm(node: onnx.NodeProto, shapes: Shapes) -> int:
    transposed = attribute(node, "transA", 0)
    rows = shapes[node.input[0]]
    return math.prod(shapes[node.output[0]]) * rows[0 if transposed else 1]


def _conv(node: onnx.NodeProto, shapes: Shapes) -> int:
    """Count outputs times a filter [out, in/groups, *kernel]; padded pixels count as read."""
    return math.prod(shapes[node.output[0]]) * math.prod(shapes[node.input[1]][1:])


def _conv_transpose(node: onnx.NodeProto, shapes: Shapes) -> int:
    """Count inputs times a filter [in, out/groups, *kernel]."""
    return math.prod(shapes[node.input[0]]) * math.prod(shapes[node.input[1]][1:])


def _einsum(node: onnx.NodeProto, shapes: Shapes) -> int:
    """Count the product of all letters' lengths, as one loop over everything."""
    equation = str(attribute(node, "equation", b"").decode()).replace(" ", "")
    terms = equation.partition("->")[0].split(",")
    sizes: dict[str, int] = {}
    for term, name in zip(terms, node.input, strict=True):
        shape = shapes[name]
        before, dots, after = term.partition("...")
        free = len(shape) - len(before) - len(after)
        # Axes under the dots are aligned from the right, and broadcast from 1.
        hidden = [f".{free - i}" for i in range(free)] if dots else []
        for letter, size in zip([*before, *hidden, *after], shape, strict=True):
            sizes[letter] = max(size, sizes.get(letter, 1))
    return math.prod(sizes.values()) if len(terms) > 1 else 0


def _attention(node: onnx.NodeProto, shapes: Shapes) -> int:
    """Count ONNX ``Attention``: queries with keys, then weights with values."""
    query, key, value = (shapes[name] for name in node.input[:3])
    if len(query) == 4:
        batch, heads, length, width = query
        return batch * heads * length * key[2] * (width + value[3])
    heads = int(attribute(node, "q_num_heads", 1))
    kept = int(attribute(node, "kv_num_heads", heads))
    batch, length, width = query
    return batch * length * key[1] * (width + heads * (value[2] // kept))


def _deformable(node: onnx.NodeProto, shapes: Shapes) -> int:
    """Count samples times four pixels times a head's channels."""
    offsets, width = shapes[node.input[3]], shapes[node.input[0]][3]
    return deformable_macs(offsets, width)


def deformable_macs(offsets: Sequence[int], head_width: int) -> int:
    """Return the multiply-adds of deformable attention with offsets [B,Q,heads,levels,points,2]."""
    return math.prod(offsets[:5]) * CORNERS * head_width


_COUNTERS: Mapping[str, Callable[[onnx.NodeProto, Shapes], int]] = {
    "MatMul": _matmul,
    "Gemm": _gemm,
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "Einsum": _einsum,
    "Attention": _attention,
    "MSDeformAttn": _deformable,
}
