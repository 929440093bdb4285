"""Test the function body of ``rvos::MSDeformAttn`` against a loop in float64."""

from __future__ import annotations

from itertools import product

import numpy as np
import onnx
import onnx.checker
import onnx.inliner
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper

from rvos_deploy.export.graph_form import OPSETS
from rvos_deploy.export.ms_deform_attn import DOMAIN, NODE, attach_function

Inputs = dict[str, NDArray[np.generic]]


def one_node_model(real: int = TensorProto.FLOAT, opset: int = 18) -> onnx.ModelProto:
    """Return a model with only this node."""

    def tensor(name: str, kind: int, *shape: str | int) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, kind, list(shape))

    node = helper.make_node(
        NODE,
        ["value", "shapes", "reference", "offsets", "logits"],
        ["output"],
        domain=DOMAIN,
        plugin_namespace="rvos",
        plugin_version="1",
        aot=1,
    )
    graph = helper.make_graph(
        [node],
        "one_node",
        [
            tensor("value", real, "B", "S", "heads", "D"),
            tensor("shapes", TensorProto.INT32, "levels", 2),
            tensor("reference", TensorProto.FLOAT, "Q", 2),
            tensor("offsets", real, "B", "Q", "heads", "levels", "points", 2),
            tensor("logits", real, "B", "Q", "heads", "K"),
        ],
        [tensor("output", real, "B", "Q", "C")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)
    assert attach_function(model) == 1
    return model


def make_inputs(
    seed: int,
    shapes: list[tuple[int, int]],
    *,
    batch: int = 2,
    queries: int = 5,
    heads: int = 2,
    channels: int = 3,
    points: int = 2,
    spread: float = 2.0,
    sharpness: float = 1.0,
) -> Inputs:
    random = np.random.default_rng(seed)
    levels, pixels = len(shapes), sum(h * w for h, w in shapes)

    def normal(*shape: int) -> NDArray[np.float32]:
        return random.standard_normal(shape).astype(np.float32)

    return {
        "value": normal(batch, pixels, heads, channels),
        "shapes": np.array(shapes, dtype=np.int32),
        "reference": random.random((queries, 2)).astype(np.float32),
        "offsets": normal(batch, queries, heads, levels, points, 2) * np.float32(spread),
        "logits": normal(batch, queries, heads, levels * points) * np.float32(sharpness),
    }


def loop(inputs: Inputs) -> NDArray[np.float64]:
    """Compute sample by sample, corner by corner, in float64."""
    value, reference, offsets, logits = (
        inputs[name].astype(np.float64) for name in ("value", "reference", "offsets", "logits")
    )
    batch, queries, heads, _, points, _ = offsets.shape
    output = np.zeros((batch, queries, heads, value.shape[3]))
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    for b, q, h in np.ndindex(batch, queries, heads):
        start = 0
        for level, (rows, columns) in enumerate(inputs["shapes"].tolist()):
            for p in range(points):
                x, y = reference[q] * (columns, rows) + offsets[b, q, h, level, p] - 0.5
                left, top = int(np.floor(x)), int(np.floor(y))
                for row, column in product((top, top + 1), (left, left + 1)):
                    if 0 <= row < rows and 0 <= column < columns:
                        share = (1 - abs(x - column)) * (1 - abs(y - row))
                        weight = weights[b, q, h, level * points + p] * share
                        output[b, q, h] += weight * value[b, start + row * columns + column, h]
            start += rows * columns
    return output.reshape(batch, queries, -1)


def run(model: onnx.ModelProto, inputs: Inputs) -> NDArray[np.generic]:
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    return session.run(None, inputs)[0]


CASES = {
    "odd maps": make_inputs(0, [(5, 7), (3, 4), (1, 2)]),
    "one pixel": make_inputs(1, [(1, 1), (1, 1)], spread=0.7),
    "one level, one point, one head": make_inputs(2, [(4, 9)], heads=1, points=1, batch=1),
    "far outside": make_inputs(3, [(6, 3), (2, 2)], spread=1000.0),
    "huge logits": make_inputs(4, [(6, 3), (2, 2)], sharpness=1e4),
    "many levels": make_inputs(5, [(9, 8), (7, 6), (5, 4), (3, 2), (1, 1)], points=3),
    "wide map": make_inputs(6, [(2, 512)], spread=100.0),
}
BORDER = make_inputs(7, [(4, 4), (2, 2)])
BORDER["reference"] = np.array([[0, 0], [1, 1], [0.125, 0.125], [0.5, 0], [1, 0.5]], np.float32)
BORDER["offsets"] = np.round(BORDER["offsets"] * 2) / 2
CASES["borders and pixel centres"] = BORDER


@pytest.mark.parametrize("case", CASES)
def test_the_body_equals_the_loop(case: str) -> None:
    inputs = CASES[case]
    output = run(one_node_model(), inputs)
    # Pixel coordinates up to 512 carry 3e-5 of rounding in float32, times slopes of a few.
    np.testing.assert_allclose(output, loop(inputs), atol=2e-4 if case == "wide map" else 2e-5)


def test_half_precision_values_keep_float32_coordinates() -> None:
    """On a map of 512 columns, half coordinates would err by up to 1/4 pixel."""
    inputs = make_inputs(8, [(2, 512)], spread=3.0)
    half = {
        name: array.astype(np.float16) if name in {"value", "offsets", "logits"} else array
        for name, array in inputs.items()
    }
    output = run(one_node_model(TensorProto.FLOAT16), half)
    assert output.dtype == np.float16
    exact = loop(half)
    assert np.abs(output - exact).max() <= np.abs(exact).max() * 2**-10


@pytest.mark.parametrize("opset", OPSETS["fp32"])
def test_the_body_is_the_same_in_every_supported_opset(opset: int) -> None:
    model = one_node_model(opset=opset)
    onnx.checker.check_model(model, full_check=True)
    imports = [*model.opset_import, *model.functions[0].opset_import]
    assert {entry.version for entry in imports if not entry.domain} == {opset}
    inputs = CASES["odd maps"]
    np.testing.assert_array_equal(run(model, inputs), run(one_node_model(), inputs))


def test_inlining_leaves_standard_operators_with_the_same_result() -> None:
    model = one_node_model()
    inlined = onnx.inliner.inline_local_functions(model)
    assert {node.domain for node in inlined.graph.node} == {""}
    assert not {"GridSample"} & {node.op_type for node in inlined.graph.node}
    inputs = CASES["odd maps"]
    assert (run(inlined, inputs) == run(model, inputs)).all()
