"""What a bfloat16 graph gives, on a CPU: numbers carried in float32 and rounded as the graph says.

ONNX Runtime has no bfloat16 kernels on the CPU for most operators (1.32: none for Add, Mul, MatMul,
Gemm, Conv, Relu, Erf, Resize). So the graph is rewritten in memory: its bfloat16 tensors become
float32, and behind every operator that computes stands a cast to bfloat16 and back. Each operator
then takes bfloat16 numbers, computes in float32 and rounds once, to nearest even: what tensor cores
do with float32 sums. It is a reference to prove a bundle by, and slow; no bfloat16 kernel runs, so
what a library's own kernels add to it is not seen here.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rvos_deploy.bundle.onnx_file import OnnxContent, OnnxFile, external_slices
from rvos_deploy.environment import usable_cores
from rvos_deploy.errors import BackendError, RvosError, one_line
from rvos_deploy.graph_io.graph_spec import GraphSpec, TensorSpec
from rvos_deploy.runtime.backends.base import Backend
from rvos_deploy.runtime.backends.onnxruntime.backend import (
    PROVIDERS,
    OnnxRuntimeBackend,
    OnnxRuntimeRunner,
)

NAME = "bf16-reference"

_MOVES_ONLY = (
    *("Transpose", "Reshape", "Squeeze", "Unsqueeze", "Flatten", "Identity", "Slice", "Split"),
    *("Concat", "Expand", "Gather", "GatherElements", "Tile", "Where", "Relu", "Neg"),
)
"""Operators that give none but numbers that they were given, or their opposites, or 0: what was
rounded stays so."""


@dataclass(frozen=True)
class Bf16ReferenceBackend(Backend):
    """ONNX Runtime on the CPU, bfloat16 rounded as the graph says.

    Args:
        threads: for one graph's arithmetic; None takes every core that the process may use.
        rounding: False leaves the rounding out: the same operators and weights in float32, which
            can be compared much more closely. It takes graphs of float16 too, whose inputs and
            outputs are then float32.
    """

    threads: int | None = None
    rounding: bool = True
    name = NAME

    def __post_init__(self) -> None:
        OnnxRuntimeBackend("cpu")  # says what is missing
        _onnx()

    def runner(self, spec: GraphSpec, file: OnnxFile) -> OnnxRuntimeRunner:
        """A runner, not yet active, of the graph in this file."""
        spec = spec if self.rounding else _float32_edges(spec)
        return _Runner(spec, file, self.threads or usable_cores(), rounding=self.rounding)

    def describe(self) -> dict[str, str]:
        """Library, version and device, and what stands for bfloat16."""
        how = "rounded after every operator" if self.rounding else "left out"
        return {
            **OnnxRuntimeBackend("cpu").describe(),
            "name": self.name,
            "bfloat16": f"carried in float32, {how}",
        }


class _Runner(OnnxRuntimeRunner):
    """A rewritten graph in an ONNX Runtime session."""

    def __init__(self, spec: GraphSpec, file: OnnxFile, threads: int, *, rounding: bool) -> None:
        super().__init__(spec, file, PROVIDERS["cpu"], threads)
        self._rounding = rounding

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
        """Nothing that is left in it is bfloat16."""


def _float32_edges(spec: GraphSpec) -> GraphSpec:
    def wide(tensors: tuple[TensorSpec, ...]) -> tuple[TensorSpec, ...]:
        return tuple(replace(t, dtype="float32") if t.dtype == "float16" else t for t in tensors)

    return replace(spec, inputs=wide(spec.inputs), outputs=wide(spec.outputs))


def widened(file: OnnxFile, *, rounding: bool = True) -> Any:
    """An ONNX graph with its bfloat16 tensors in float32.

    Args:
        file: of our exporter; its inputs and outputs are not bfloat16.
        rounding: cast what operators compute in bfloat16 to it and back. Without, tensors of
            float16 become float32 as well, inputs and outputs included.

    Returns:
        ``onnx.ModelProto``, functions inlined. A graph without bfloat16 keeps its numbers.

    Raises:
        BackendError: onnx is not installed, or the graph holds what is not foreseen.
        BundleError: the file is not the one that was hashed.
    """
    onnx, path = _onnx(), file.path
    narrow, wide = onnx.TensorProto.BFLOAT16, onnx.TensorProto.FLOAT
    halves = (narrow,) if rounding else (narrow, onnx.TensorProto.FLOAT16)
    model = onnx.inliner.inline_local_functions(_load(onnx, file))
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
            # Not to be taken for one that needs no rounding.
            raise BackendError(f"{path.name}: {unknown[0]} has no known type; export it again")
        casts = []
        if rounding and node.op_type not in _MOVES_ONLY:
            for index, name in enumerate(node.output):
                if types.get(name) == narrow:
                    exact, rounded = f"{name}/exact", f"{name}/bf16"
                    node.output[index] = exact
                    casts.append(onnx.helper.make_node("Cast", [exact], [rounded], to=narrow))
                    casts.append(onnx.helper.make_node("Cast", [rounded], [name], to=wide))
        graph.node.extend([node, *casts])
    return model


def _load(onnx: Any, file: OnnxFile) -> Any:
    """The model with its external data in it."""
    content = file.read()
    model = onnx.load_model_from_string(content.model)
    slices = external_slices(model, content)
    for tensor in model.graph.initializer:
        if tensor.name in slices:
            tensor.ClearField("external_data")
            tensor.ClearField("data_location")
            tensor.raw_data = bytes(slices[tensor.name])
    return model


def _widen_attributes(onnx: Any, node: Any, path: Path, halves: tuple[int, ...]) -> None:
    """Casts and constants of a node that name a type of half precision."""
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
    try:
        import onnx
        import onnx.inliner
    except ImportError:
        raise BackendError(
            f"onnx is not installed, which {NAME} rewrites graphs with; pip install 'onnx>=1.19'"
        ) from None
    return onnx
