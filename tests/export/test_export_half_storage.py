"""Test weights stored as float16: exact, half the size, otherwise unchanged."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from rvos_deploy.bundle.onnx_file import OnnxFile
from rvos_deploy.errors import InputError
from rvos_deploy.export.half_storage import round_to_half, store_as_half
from rvos_deploy.export.onnx_graph import export_graph
from rvos_deploy.graph_io.probe import probe_inputs
from rvos_deploy.networks.pan2024.config import preset
from rvos_deploy.networks.pan2024.graphs import graphs
from rvos_deploy.networks.pan2024.modules.network import RvosNetwork, build_network
from rvos_deploy.parity.comparison import compare
from rvos_deploy.runtime.backends.registry import make_backend


@pytest.fixture(scope="module")
def rounded() -> RvosNetwork:
    torch.manual_seed(3)
    network = build_network(preset("tiny")).eval()
    round_to_half(network)
    return network


def test_rounding_is_to_the_nearest_float16(rounded: RvosNetwork) -> None:
    torch.manual_seed(3)
    before = build_network(preset("tiny")).state_dict()
    for name, weight in rounded.state_dict().items():
        assert weight.dtype == before[name].dtype
        if weight.is_floating_point():
            assert torch.equal(weight, before[name].half().float())
            # Half a unit in the last place of 11 bits; below 2^-14 the step is fixed.
            bound = (before[name].abs() * 2.0**-11).clamp(min=2.0**-25)
            assert ((weight - before[name]).abs() <= bound).all()


def test_a_weight_beyond_float16_is_named(rounded: RvosNetwork) -> None:
    torch.manual_seed(3)
    network = build_network(preset("tiny"))
    with torch.no_grad():
        network.mask_head.projection.weight.view(-1)[0] = 1e5
    with pytest.raises(InputError, match=r"mask_head\.projection\.weight holds 1e\+05"):
        round_to_half(network)


@pytest.mark.parametrize("name", ["mask_head", "video_decoder"])
def test_a_graph_stored_as_float16_computes_the_same(
    rounded: RvosNetwork, tmp_path: Path, name: str
) -> None:
    graph = next(graph for graph in graphs(rounded) if graph.spec.name == name)
    (tmp_path / "half").mkdir()
    (wide,) = export_graph(graph, tmp_path)
    (half,) = export_graph(graph, tmp_path / "half", "fp16")
    assert half.stat().st_size < 0.56 * wide.stat().st_size
    axes = {"H": 64, "W": 96, "E": 2, "L": 5, "M": 3}
    inputs = probe_inputs(graph.spec, graph.spec.axis_sizes(axes), seed=5)
    outputs = []
    for file in (wide, half):
        with make_backend().open_files([(graph.spec, OnnxFile(file))]) as session:
            outputs.append(session.graphs[graph.spec.name].run(inputs))
    for tensor in graph.spec.outputs:
        # Not bit for bit: the library fuses nodes otherwise when weights come through a cast.
        assert compare(outputs[0][tensor.name], outputs[1][tensor.name]).max_abs <= 2e-6
    traced = [node for node in onnx.load(half).graph.node if node.metadata_props]
    assert not traced


def test_only_exact_weights_are_stored_as_float16() -> None:
    exact = np.arange(2048, dtype=np.float32)
    inexact, huge, small = exact + 0.1, exact * 100, exact[:10]
    given = {"exact": exact, "inexact": inexact, "huge": huge, "small": small}
    model = onnx.helper.make_model(
        onnx.helper.make_graph(
            [onnx.helper.make_node("Identity", [name], [f"{name}_out"]) for name in given],
            "g",
            [],
            [
                onnx.helper.make_tensor_value_info(f"{name}_out", onnx.TensorProto.FLOAT, [len(x)])
                for name, x in given.items()
            ],
            [onnx.numpy_helper.from_array(x, name) for name, x in given.items()],
        )
    )
    store_as_half(model)
    onnx.checker.check_model(model, full_check=True)
    types = {x.name: x.data_type for x in model.graph.initializer}
    assert types.pop("exact.fp16") == onnx.TensorProto.FLOAT16
    assert types == dict.fromkeys(("inexact", "huge", "small"), onnx.TensorProto.FLOAT)
    results = onnx.reference.ReferenceEvaluator(model).run(None, {})
    for found, expected in zip(results, given.values(), strict=True):
        np.testing.assert_array_equal(found, expected)
