"""Rewrite a graph's ONNX in memory for TensorRT's parser; the hashed file stays as it is.

There is one rewrite. TensorRT accepts uint8 as a network input, but only a cast may read it ("first
input has type UInt8 but must have type Float, ..." for a Transpose, TensorRT-RTX 1.7.1). So a cast
behind operators that only move elements goes in front of them, which keeps every number.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import onnx

from rvos_deploy.bundle.onnx_file import MAXIMUM_MODEL_BYTES, OnnxFile, external_slices, put_inside
from rvos_deploy.errors import BackendError

PLUGIN_DOMAIN, PLUGIN_NODE = "rvos", "MSDeformAttn"
_MOVES_ONLY = {"Transpose", "Reshape", "Squeeze", "Unsqueeze", "Flatten", "Identity", "Slice"}


@dataclass(frozen=True)
class OnnxSource:
    """A serialised ONNX graph to parse.

    Args:
        path: of the original file, for messages.
        content: the serialised model without external weights.
        plugin_nodes: names of its ``rvos::MSDeformAttn`` nodes.
        external: bytes of the external weights by name.
    """

    path: Path
    content: bytes
    plugin_nodes: tuple[str, ...]
    external: Mapping[str, memoryview] = field(default_factory=dict)

    def whole(self) -> bytes:
        """Return the serialised model with its weights inside.

        Raises:
            BackendError: it exceeds protobuf's limit.
        """
        size = len(self.content) + sum(data.nbytes for data in self.external.values())
        if size >= MAXIMUM_MODEL_BYTES:
            raise BackendError(
                f"this TensorRT takes models of at most 2 GiB, {self.path.name} has "
                f"{size / 2**30:.1f} GiB; pip install --upgrade 'rvos-deploy[tensorrt]'"
            )
        model = onnx.load_model_from_string(self.content)
        put_inside(model, self.external)
        serialised: bytes = model.SerializeToString()
        return serialised


def read_onnx(file: OnnxFile) -> OnnxSource:
    """Read a graph's file and rewrite it for TensorRT's parser.

    Raises:
        BundleError: the bytes are not those that were hashed.
        BackendError: the file is not an ONNX model.
    """
    content = file.read()
    try:
        model = onnx.load_model_from_string(content.model)
    except (
        Exception
    ) as error:  # protobuf's error, which has no stubs and has moved between versions
        raise BackendError(f"{file.path} is not an ONNX model; export the bundle again") from error
    for tensor in list(model.graph.input):
        if tensor.type.tensor_type.elem_type == onnx.TensorProto.UINT8:
            _cast_first(model.graph, tensor.name)
    nodes = tuple(
        node.name
        for node in model.graph.node
        if (node.domain, node.op_type) == (PLUGIN_DOMAIN, PLUGIN_NODE)
    )
    slices = external_slices(model, content)
    return OnnxSource(file.path, model.SerializeToString(), nodes, slices)


def _cast_first(graph: onnx.GraphProto, name: str) -> None:
    """Move a cast of the input ``name`` in front of the operators that only move elements."""
    movers: list[onnx.NodeProto] = []
    tensor = name
    while (reader := _only_reader(graph, tensor)) is not None and reader.op_type in _MOVES_ONLY:
        movers.append(reader)
        tensor = reader.output[0]
    if reader is None or reader.op_type != "Cast" or not movers:
        return
    early = onnx.NodeProto()
    early.CopyFrom(reader)
    early.input[0], early.output[0] = name, f"{name}/cast"
    movers[0].input[0] = early.output[0]
    movers[-1].output[0] = reader.output[0]
    changed = {mover.output[0] for mover in movers} | {tensor}
    first = next(i for i, node in enumerate(graph.node) if early.output[0] in node.input)
    graph.node.remove(reader)
    graph.node.insert(first, early)
    for value in [value for value in graph.value_info if value.name in changed]:
        graph.value_info.remove(value)


def _only_reader(graph: onnx.GraphProto, name: str) -> onnx.NodeProto | None:
    """Return the node that reads a tensor as its first input, if no other node reads it."""
    readers: list[onnx.NodeProto] = [node for node in graph.node if name in node.input]
    named = any(output.name == name for output in graph.output)
    if named or len(readers) != 1 or readers[0].input[0] != name:
        return None
    return readers[0]
