"""Infer the shapes of every tensor of an ONNX graph for given sizes of its axes; for
:mod:`roofline`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper, shape_inference
from onnx.reference import ReferenceEvaluator

from rvos_deploy.errors import InputError

Shape = tuple[int, ...]
Shapes = Mapping[str, Shape]

_SMALL = 4096
"""Elements up to which a tensor may be a shape, whose numbers inference must know."""

# fmt: off
_FOLDED = frozenset((
    "Add", "Cast", "Concat", "Constant", "ConstantOfShape", "Div", "Equal", "Expand", "Gather",
    "Identity", "Max", "Min", "Mod", "Mul", "Neg", "Range", "ReduceProd", "Reshape", "Slice",
    "Split", "Sqrt", "Squeeze", "Sub", "Transpose", "Unsqueeze", "Where",
))
# fmt: on
"""Operators that compute shapes."""


def with_sizes(model: onnx.ModelProto, axes: Mapping[str, int]) -> onnx.ModelProto:
    """Copy a model, set the sizes of its axes, and drop large weights' numbers and functions.

    Nodes that call a function are counted as they stand.

    Args:
        model: stays as it is.
        axes: sizes by name.

    Raises:
        InputError: an axis has no size, or a size that its expression cannot divide.
    """
    fixed = onnx.ModelProto()
    fixed.CopyFrom(model)
    del fixed.functions[:]
    del fixed.graph.value_info[:]
    for tensor in fixed.graph.initializer:
        if math.prod(tensor.dims) > _SMALL:
            tensor.ClearField("raw_data")
            tensor.ClearField("float_data")
    for value in (*fixed.graph.input, *fixed.graph.output):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param:
                dim.dim_value = _size(dim.dim_param, axes, value.name)
    return fixed


def _size(expression: str, axes: Mapping[str, int], tensor: str) -> int:
    name, _, divisor = expression.partition("/")
    if name not in axes:
        raise InputError(f"{tensor} has an axis {name}; give it a size, for example {name}=2")
    size, rest = divmod(axes[name], int(divisor or 1))
    if rest:
        raise InputError(f"axis {name} cannot be {axes[name]}: {expression} is not whole")
    return size


def infer(model: onnx.ModelProto) -> tuple[dict[str, str], dict[str, Shape]]:
    """Infer types and shapes of every tensor whose shape is determined.

    Two things stop ONNX's inference: it does not know deformable attention, and the graph computes
    shapes from other shapes. Both are filled in as far as they are known, and inference runs again
    until it finds nothing more.
    """
    while True:
        types, shapes = _inferred(model)
        if not _fold_shapes(model, shapes) and not _place_deformable(model, types, shapes):
            return types, shapes


def _place_deformable(model: onnx.ModelProto, types: Mapping[str, str], shapes: Shapes) -> bool:
    """Set the output shapes of deformable attention whose inputs have shapes; tell whether any was
    set.
    """
    found = [
        node
        for node in model.graph.node
        if node.op_type == "MSDeformAttn"
        and node.output[0] not in shapes
        and all(name in shapes for name in node.input)
    ]
    for node in found:
        batch, _, heads, width = shapes[node.input[0]]
        queries = shapes[node.input[3]][1]
        kind = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(types[node.input[0]]))
        shape = (batch, queries, heads * width)
        model.graph.value_info.append(
            onnx.helper.make_tensor_value_info(node.output[0], kind, shape)
        )
    return bool(found)


def _fold_shapes(model: onnx.ModelProto, shapes: Shapes) -> bool:
    """Replace values that follow from known shapes by constants; tell whether any was."""
    graph = model.graph
    known = {
        tensor.name: numpy_helper.to_array(tensor)
        for tensor in graph.initializer
        # External data are weights, which are not read.
        if math.prod(tensor.dims) <= _SMALL and tensor.data_location != onnx.TensorProto.EXTERNAL
    }
    folded: list[onnx.NodeProto] = []
    for node in graph.node:
        if node.op_type == "Shape" and node.input[0] in shapes:
            shape = shapes[node.input[0]]
            start, end = (attribute(node, name, None) for name in ("start", "end"))
            values = [np.array(shape[start:end], np.int64)]
        elif node.op_type in _FOLDED and all(not name or name in known for name in node.input):
            values = _evaluate(node, known, model.opset_import)
        else:
            continue
        if sum(value.size for value in values) > _SMALL:
            continue
        known.update(zip(node.output, values, strict=True))
        folded.append(node)
    for node in folded:
        graph.node.remove(node)
        for name in node.output:
            graph.initializer.append(numpy_helper.from_array(known[name], name))
    return bool(folded)


def _evaluate(
    node: onnx.NodeProto,
    known: Mapping[str, NDArray[Any]],
    opsets: Sequence[onnx.OperatorSetIdProto],
) -> list[NDArray[Any]]:
    """Run one node on constants with ONNX's reference evaluator."""
    named = {name: known[name] for name in node.input if name}
    inputs = [
        onnx.helper.make_tensor_value_info(
            name, onnx.helper.np_dtype_to_tensor_dtype(array.dtype), array.shape
        )
        for name, array in named.items()
    ]
    outputs = [onnx.ValueInfoProto(name=name) for name in node.output]
    graph = onnx.helper.make_graph([node], "one", inputs, outputs)
    model = onnx.helper.make_model(graph, opset_imports=list(opsets))
    return [np.asarray(value) for value in ReferenceEvaluator(model).run(None, named)]


def _inferred(model: onnx.ModelProto) -> tuple[dict[str, str], dict[str, Shape]]:
    graph = shape_inference.infer_shapes(model, data_prop=True).graph
    types: dict[str, str] = {}
    shapes: dict[str, Shape] = {}
    for value in (*graph.input, *graph.value_info, *graph.output):
        tensor = value.type.tensor_type
        if tensor.elem_type:
            types[value.name] = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type).name
        if tensor.HasField("shape") and all(d.HasField("dim_value") for d in tensor.shape.dim):
            shapes[value.name] = tuple(d.dim_value for d in tensor.shape.dim)
    for weight in graph.initializer:
        types[weight.name] = onnx.helper.tensor_dtype_to_np_dtype(weight.data_type).name
        shapes[weight.name] = tuple(weight.dims)
    return types, shapes


def attribute(node: onnx.NodeProto, name: str, default: Any) -> Any:
    """Return a node's attribute, or ``default`` where it has none of that name."""
    for found in node.attribute:
        if found.name == name:
            return onnx.helper.get_attribute_value(found)
    return default
