"""Round products with weights to bfloat16, and leave everything else in float32.

OpenVINO's own hint (``INFERENCE_PRECISION_HINT=bf16``) also rounds normalisation, softmax,
positions and what goes into the operator of deformable attention, and OpenVINO 2026.4 offers Python
no way to except nodes. So its hint stays float32, and the model itself states each type.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from rvos_deploy.runtime.backends.openvino.operator import OPERATOR

if TYPE_CHECKING:
    from openvino import Dimension, Model, Node, Output

PRODUCTS = ("MatMul", "Convolution", "GroupConvolution")
FEW_ROWS = 64
"""Products over fewer rows stay in float32: they belong to a few queries per expression, whose
boxes, scores and mask embeddings decide much and cost little."""
LOCATIONS = (2, 3, 4)
"""Inputs of the operator that stay in float32: reference points, offsets, attention logits."""


def rounded_products(model: Model) -> Model:
    """Return a copy of a model in which products of activations with weights are rounded.

    Both factors and the result are bfloat16, and sums are float32. These float32 islands remain:

    - normalisation of pixels, layer norms, group norms and batch norms;
    - attention: logits, softmax and sums;
    - deformable attention: the products that give offsets and logits, locations, weights and sums;
    - positions in space and time, mask positions, hiding in masked attention;
    - products over fewer than ``FEW_ROWS`` rows: boxes, scores, mask embeddings, controllers;
    - products of two activations: mask logits, dynamic convolutions.

    Args:
        model: an ``openvino.Model`` in float32; the copy shares its weights.
    """
    import openvino

    convert = openvino.opset13.convert
    model = model.clone()
    nodes = model.get_ordered_ops()
    varying, islands = _varying(nodes), _before_locations(nodes)
    chosen = [
        node
        for node in nodes
        if node.get_type_name() in PRODUCTS
        and node.get_name() not in islands
        and _many_rows_by_weights(node, varying)
    ]
    rounded: dict[tuple[str, int], Output] = {}
    for node in chosen:
        readers = node.output(0).get_target_inputs()
        for factor in node.inputs():
            source = factor.get_source_output()
            key = (source.get_node().get_name(), source.get_index())
            if key not in rounded:
                rounded[key] = convert(source, "bf16").output(0)
            factor.replace_source_output(rounded[key])
        wide = convert(node.output(0), "f32").output(0)
        for reader in readers:
            reader.replace_source_output(wide)
    model.validate_nodes_and_infer_types()
    return model


def _varying(nodes: list[Node]) -> set[str]:
    """Return the names of the nodes that depend on the graph's inputs."""
    varying: set[str] = set()
    for node in nodes:
        sources = {value.get_node().get_name() for value in node.input_values()}
        if node.get_type_name() == "Parameter" or sources & varying:
            varying.add(node.get_name())
    return varying


def _before_locations(nodes: list[Node]) -> set[str]:
    """Return the names of the last products on each way to the operator's locations."""
    found: set[str] = set()
    seen: set[str] = set()
    waiting = [
        node.input_value(index).get_node()
        for node in nodes
        if node.get_type_name() == OPERATOR
        for index in LOCATIONS
    ]
    while waiting:
        node = waiting.pop()
        if node.get_name() in seen:
            continue
        seen.add(node.get_name())
        if node.get_type_name() in PRODUCTS:
            found.add(node.get_name())
        else:
            waiting += [value.get_node() for value in node.input_values()]
    return found


def _many_rows_by_weights(node: Node, varying: set[str]) -> bool:
    """Tell whether exactly one factor is a weight, and the other may have many rows."""
    factors = node.input_values()
    activations = [
        index for index, value in enumerate(factors) if value.get_node().get_name() in varying
    ]
    if len(activations) != 1:
        return False
    if node.get_type_name() != "MatMul":
        return True
    # The first factor's rows are the result's rows, the second factor's columns its columns.
    shape = node.output(0).get_partial_shape()
    axis = len(shape) - (2 if activations == [0] else 1)
    return axis >= 0 and _many(shape[axis])


def _many(side: Dimension) -> bool:
    """Tell whether a side may be long: open sides belong to pixels, frames or words."""
    return not side.is_static or side.get_length() >= FEW_ROWS
