"""Turn 1x1 convolutions of an ONNX graph into matrix products."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import helper, numpy_helper

TURNED = "/turned"
"""Suffix of the names of turned weights."""
_TO_LAST, _TO_FIRST = (0, 2, 3, 1), (0, 3, 1, 2)


def products_of_pointwise(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy in which every 1x1 convolution with constant weights is a MatMul.

    A transpose moves the channels last before each product and back after it. Optimisers cancel
    those between a product and another, or between a product and LayerNorm. Convolutions with
    strides, padding or groups stay.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    graph = copy.graph
    weights = {tensor.name: tensor for tensor in graph.initializer}
    nodes: list[onnx.NodeProto] = []
    turned: set[str] = set()
    for node in graph.node:
        if _is_pointwise(node, weights):
            nodes += _product(node)
            turned.add(node.input[1])
        else:
            nodes.append(node)
    kept = {name for node in nodes for name in node.input}
    tensors = [tensor for tensor in graph.initializer if tensor.name in kept]
    tensors += [_turned(weights[name]) for name in sorted(turned)]
    for field, values in ((graph.node, nodes), (graph.initializer, tensors)):
        del field[:]
        field.extend(values)
    del graph.value_info[:]  # shapes of tensors that are gone
    return copy


def _is_pointwise(node: onnx.NodeProto, weights: dict[str, onnx.TensorProto]) -> bool:
    if node.op_type != "Conv" or node.input[1] not in weights:
        return False
    given = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    return (
        list(weights[node.input[1]].dims[2:]) == [1, 1]
        and given.get("group", 1) == 1
        and set(given.get("strides", [1])) == {1}
        and not any(given.get("pads", [0]))
        and given.get("auto_pad", b"NOTSET") in (b"NOTSET", b"VALID")
    )


def _turned(weight: onnx.TensorProto) -> onnx.TensorProto:
    """Return weights [out,in,1,1] as [in,out]."""
    values = numpy_helper.to_array(weight)[:, :, 0, 0]
    return numpy_helper.from_array(np.ascontiguousarray(values.T), weight.name + TURNED)


def _product(node: onnx.NodeProto) -> list[onnx.NodeProto]:
    """Return the nodes that replace a convolution; the product keeps its name."""
    out = node.output[0]
    last, product, biased = f"{out}/channels_last", f"{out}/product", f"{out}/biased"
    weight = node.input[1] + TURNED
    nodes = [
        helper.make_node("Transpose", [node.input[0]], [last], f"{node.name}/in", perm=_TO_LAST),
        helper.make_node("MatMul", [last, weight], [product], node.name),
    ]
    if len(node.input) > 2 and node.input[2]:
        nodes.append(
            helper.make_node("Add", [product, node.input[2]], [biased], f"{node.name}/bias")
        )
    ends = nodes[-1].output[0]
    return [
        *nodes,
        helper.make_node("Transpose", [ends], [out], f"{node.name}/out", perm=_TO_FIRST),
    ]
