"""A graph's ONNX as TensorRT can read it, changed in memory only; the file stays as it was hashed.

One pre-pass. TensorRT takes uint8 as a network input, but nothing else than a cast may read it
("first input has type UInt8 but must have type Float, ..." for a Transpose, TensorRT-RTX 1.7.1).
So a cast that follows an operator which only moves elements is moved before it: the same numbers.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import onnx

PLUGIN_DOMAIN, PLUGIN_NODE = "rvos", "MSDeformAttn"
_MOVES_ONLY = {"Transpose", "Reshape", "Squeeze", "Unsqueeze", "Flatten", "Identity", "Slice"}


@dataclass(frozen=True)
class OnnxSource:
    """A serialised ONNX graph to parse.

    Args:
        path: of the file it was read from; external weights are found beside it.
        content: the serialised model, external weights not in it.
        plugin_nodes: names of its ``rvos::MSDeformAttn`` nodes.
    """

    path: Path
    content: bytes
    plugin_nodes: tuple[str, ...]


def read_onnx(path: Path) -> OnnxSource:
    """Read a graph's file and make it fit for TensorRT's parser."""
    model = onnx.load(str(path), load_external_data=False)
    for tensor in list(model.graph.input):
        if tensor.type.tensor_type.elem_type == onnx.TensorProto.UINT8:
            _cast_first(model.graph, tensor.name)
    nodes = tuple(
        node.name
        for node in model.graph.node
        if (node.domain, node.op_type) == (PLUGIN_DOMAIN, PLUGIN_NODE)
    )
    return OnnxSource(path, model.SerializeToString(), nodes)


def _cast_first(graph: onnx.GraphProto, name: str) -> None:
    """Where ``name`` goes through moving operators alone into a cast, put the cast before them."""
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
    """The node that reads a tensor as its first input, where nobody else reads it."""
    readers: list[onnx.NodeProto] = [node for node in graph.node if name in node.input]
    named = any(output.name == name for output in graph.output)
    if named or len(readers) != 1 or readers[0].input[0] != name:
        return None
    return readers[0]
