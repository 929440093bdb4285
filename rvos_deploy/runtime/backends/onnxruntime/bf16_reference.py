"""Run bfloat16 graphs on a CPU: compute in float32, and round where the graph rounds.

ONNX Runtime has no bfloat16 kernels on the CPU for most operators (1.32: none for Add, Mul, MatMul,
Gemm, Conv, Relu, Erf, Resize). So this back end rewrites the graph in memory: bfloat16 tensors
become float32, and a cast to bfloat16 and back follows every operator that computes. Each operator
then reads bfloat16 numbers, computes in float32 and rounds once, to nearest even, as tensor cores
do with float32 sums. The result is a reference for parity checks. It is slow, and no bfloat16
kernel runs, so it shows nothing of what a library's own kernels add.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rvos_deploy.bundle.onnx_file import OnnxContent, OnnxFile, whole_model
from rvos_deploy.environment import usable_cores
from rvos_deploy.errors import BackendError, RvosError, one_line
from rvos_deploy.graph_io.graph_spec import GraphSpec, TensorSpec
from rvos_deploy.runtime.backends.base import Graph
from rvos_deploy.runtime.backends.imports import import_library
from rvos_deploy.runtime.backends.onnxruntime.backend import (
    CPU,
    OnnxRuntimeBackend,
    OnnxRuntimeGraph,
    Place,
)

NAME = "bf16-reference"

_MOVES_ONLY = (
    *("Transpose", "Reshape", "Squeeze", "Unsqueeze", "Flatten", "Identity", "Slice", "Split"),
    *("Concat", "Expand", "Gather", "GatherElements", "Tile", "Where", "Relu", "Neg"),
)
"""Operators whose outputs are inputs, their opposites, or 0: rounded numbers stay rounded."""


@dataclass(frozen=True)
class Bf16ReferenceBackend(OnnxRuntimeBackend):
    """ONNX Runtime on the CPU, which rounds to bfloat16 where the graph does.

    Args:
        rounding: False leaves the rounding out: the same operators and weights in float32, which
            can be compared much more closely. Graphs of float16 are supported too; their inputs and
            outputs become float32.
    """

    rounding: bool = True
    name = NAME

    def __post_init__(self) -> None:
        super().__post_init__()
        _onnx()

    def _graph(self, spec: GraphSpec, file: OnnxFile) -> Graph:
        spec = spec if self.rounding else _float32_edges(spec)
        return _WidenedGraph(spec, file, self.threads or usable_cores(), rounding=self.rounding)

    def describe(self) -> dict[str, str]:
        """Return the library, its version and the device, and how bfloat16 is computed."""
        how = "rounded after every operator" if self.rounding else "left out"
        return {**super().describe(), "bfloat16": f"carried in float32, {how}"}


class _WidenedGraph(OnnxRuntimeGraph):
    """A rewritten graph in an ONNX Runtime session."""

    def __init__(self, spec: GraphSpec, file: OnnxFile, threads: int, *, rounding: bool) -> None:
        self._rounding = rounding
        super().__init__(spec, file, Place(CPU), threads)

    def _content(self) -> OnnxContent:
        try:
            model = widened(self._file, rounding=self._rounding).SerializeToString()
        except RvosError:
            raise
        except Exception as error:  # of onnx and protobuf, which have many kinds
            reason = one_line(error) or type(error).__name__
            raise BackendError(f"onnx cannot read {self._file.path.name}: {reason}") from error
        return OnnxContent(self._file.path, model, {})

    def _check_precision(self) -> None:
        """Accept every precision, because the rewritten graph holds no bfloat16."""


def _float32_edges(spec: GraphSpec) -> GraphSpec:
    def wide(tensors: tuple[TensorSpec, ...]) -> tuple[TensorSpec, ...]:
        return tuple(replace(t, dtype="float32") if t.dtype == "float16" else t for t in tensors)

    return replace(spec, inputs=wide(spec.inputs), outputs=wide(spec.outputs))


def widened(file: OnnxFile, *, rounding: bool = True) -> Any:
    """Return an ONNX graph whose bfloat16 tensors are float32.

    Args:
        file: an ONNX file of our exporter; its inputs and outputs are not bfloat16.
        rounding: cast the results of bfloat16 operators to bfloat16 and back. Without it, float16
            tensors become float32 as well, inputs and outputs included.

    Returns:
        ``onnx.ModelProto``, functions inlined. A graph without bfloat16 keeps its numbers.

    Raises:
        BackendError: onnx is not installed, or the graph holds a type or node that is not
            supported.
        BundleError: the file is not the one that was hashed.
    """
    onnx, path = _onnx(), file.path
    narrow, wide = onnx.TensorProto.BFLOAT16, onnx.TensorProto.FLOAT
    halves = (narrow,) if rounding else (narrow, onnx.TensorProto.FLOAT16)
    model = onnx.inliner.inline_local_functions(whole_model(onnx, file.read()))
    inferred = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True)
    graph = model.graph
    edges = [*graph.input, *graph.output]
    types = {v.name: v.type.tensor_type.elem_type for v in (*inferred.graph.value_info, *edges)}
    if any(types[value.name] == narrow for value in edges):
        raise BackendError(f"{path.name} has bfloat16 at its edges; export the bundle again")
    for value in edges:
        if value.type.tensor_type.elem_type in halves:
            value.type.tensor_type.elem_type = wide
    del graph.value_info[:]
    for weight in graph.initializer:
        if weight.data_type in halves:
            weight.CopyFrom(_wide_tensor(onnx, weight))
    nodes = list(graph.node)
    del graph.node[:]
    for node in nodes:
        _widen_attributes(onnx, node, path, halves)
        unknown = [name for name in node.output if name and name not in types]
        if unknown:
            # A tensor of unknown type may need rounding.
            raise BackendError(f"{path.name}: {unknown[0]} has no known type; export it again")
        rounded = rounding and node.op_type not in _MOVES_ONLY
        casts = _round_outputs(onnx, node, types) if rounded else []
        graph.node.extend([node, *casts])
    return model


def _round_outputs(onnx: Any, node: Any, types: Mapping[str, int]) -> list[Any]:
    """Rename a node's bfloat16 outputs, and return the casts that round them to their old names."""
    casts = []
    for index, name in enumerate(node.output):
        if types.get(name) == onnx.TensorProto.BFLOAT16:
            exact, rounded = f"{name}/exact", f"{name}/bf16"
            node.output[index] = exact
            narrow, wide = onnx.TensorProto.BFLOAT16, onnx.TensorProto.FLOAT
            casts.append(onnx.helper.make_node("Cast", [exact], [rounded], to=narrow))
            casts.append(onnx.helper.make_node("Cast", [rounded], [name], to=wide))
    return casts


def _widen_attributes(onnx: Any, node: Any, path: Path, halves: tuple[int, ...]) -> None:
    """Widen the casts and constants of a node that name a type of half precision."""
    for attribute in node.attribute:
        if attribute.type in (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS):
            raise BackendError(f"{path.name}: {node.op_type} holds a graph; export it again")
        if (node.op_type, attribute.name) == ("Cast", "to") and attribute.i in halves:
            attribute.i = onnx.TensorProto.FLOAT
        if attribute.t.data_type in halves:
            attribute.t.CopyFrom(_wide_tensor(onnx, attribute.t))


def _wide_tensor(onnx: Any, tensor: Any) -> Any:
    numbers = onnx.numpy_helper.to_array(tensor).astype("float32")
    return onnx.numpy_helper.from_array(numbers, tensor.name)


def _onnx() -> Any:
    onnx = import_library("onnx", "onnx")
    if onnx is None or import_library("onnx.inliner", "onnx") is None:
        raise BackendError(
            f"onnx is not installed, which {NAME} rewrites graphs with; pip install 'onnx>=1.19'"
        )
    return onnx
