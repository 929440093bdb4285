"""Test the ONNX as TensorRT reads it: equal numbers, casts first, plugin nodes counted."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from rvos_deploy.bundle.folder import open_bundle
from rvos_deploy.bundle.onnx_file import OnnxFile
from rvos_deploy.engines.network import _parse_bytes
from rvos_deploy.engines.onnx_source import read_onnx
from rvos_deploy.graph_io.probe import probe_inputs


def save(path: Path, *nodes: onnx.NodeProto, outputs: tuple[str, ...] = ("y",)) -> Path:
    """A graph of a uint8 frame [1,H,W,3] through these nodes."""
    flat = any(node.op_type == "Flatten" for node in nodes)
    shape = ["A", "B"] if flat else ["A", "B", "C", "D"]
    graph = helper.make_graph(
        list(nodes),
        "g",
        [helper.make_tensor_value_info("x", TensorProto.UINT8, [1, "H", "W", 3])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in outputs],
    )
    opsets = [helper.make_opsetid("", 18)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), str(path))
    return path


def run(model: bytes | str, inputs: dict) -> list:
    return onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"]).run(None, inputs)


TRANSPOSE = helper.make_node("Transpose", ["x"], ["t"], perm=[0, 3, 1, 2])
FLATTEN = helper.make_node("Flatten", ["t"], ["f"])


def cast(name: str) -> onnx.NodeProto:
    return helper.make_node("Cast", [name], ["y"], to=TensorProto.FLOAT)


@pytest.mark.parametrize(
    ("nodes", "kinds"),
    [
        ((TRANSPOSE, cast("t")), ["Cast", "Transpose"]),
        ((TRANSPOSE, FLATTEN, cast("f")), ["Cast", "Transpose", "Flatten"]),
        ((cast("x"),), ["Cast"]),
    ],
)
def test_a_cast_moves_before_operators_that_only_move_elements(
    tmp_path: Path, nodes: tuple[onnx.NodeProto, ...], kinds: list[str]
) -> None:
    path = save(tmp_path / "g.onnx", *nodes)
    before = path.read_bytes()
    content = read_onnx(OnnxFile(path)).content
    model = onnx.load_model_from_string(content)
    onnx.checker.check_model(model, full_check=True)
    assert [node.op_type for node in model.graph.node] == kinds
    frame = np.random.RandomState(0).randint(0, 256, (1, 5, 7, 3)).astype(np.uint8)
    np.testing.assert_array_equal(run(content, {"x": frame}), run(str(path), {"x": frame}))
    assert path.read_bytes() == before, "the file stays as it was hashed"


def test_tensors_with_other_readers_stay_as_they_are(tmp_path: Path) -> None:
    other = helper.make_node("Cast", ["t"], ["z"], to=TensorProto.FLOAT)
    path = save(tmp_path / "g.onnx", TRANSPOSE, cast("t"), other, outputs=("y", "z"))
    model = onnx.load_model_from_string(read_onnx(OnnxFile(path)).content)
    assert [node.op_type for node in model.graph.node] == ["Transpose", "Cast", "Cast"]


def test_the_bundles_graphs_keep_their_numbers(tiny_bundle: Path) -> None:
    bundle = open_bundle(tiny_bundle)
    sizes = {"H": 64, "W": 96, "E": 2, "L": 5, "M": 3}
    plugins = {}
    for name, spec in bundle.graphs.items():
        source = read_onnx(bundle.graph_file(name))
        plugins[name] = len(source.plugin_nodes)
        inputs = probe_inputs(spec, {axis.name: sizes[axis.name] for axis in spec.axes}, seed=0)
        found, expected = (
            run(source.content, inputs),
            run(str(bundle.graph_file(name).path), inputs),
        )
        for one, other in zip(found, expected, strict=True):
            np.testing.assert_array_equal(one, other)
    assert plugins.pop("frame_decoder") == bundle.config.encoder_layers
    assert set(plugins.values()) == {0}


def test_old_parsers_take_the_weights_inside_the_model(tmp_path: Path) -> None:
    """TensorRT 10.9's parser cannot be given external weights from memory."""

    class OldParser:
        def parse(self, model: bytes) -> bool:
            self.model = model
            return True

    weights = np.random.default_rng(0).standard_normal((3, 400)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, 400])],
        [numpy_helper.from_array(weights, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    path = tmp_path / "graph.onnx"
    data = "graph.onnx.data"
    onnx.save(model, path, save_as_external_data=True, location=data, size_threshold=0)
    source = read_onnx(OnnxFile(path))
    assert list(source.external) == ["w"]
    parser = OldParser()
    assert _parse_bytes(parser, source)
    x = np.ones((2, 3), np.float32)
    (found,) = run(parser.model, {"x": x})
    np.testing.assert_allclose(found, x @ weights, rtol=1e-5)
