"""Test ``--precision bf16``: strict types, float32 edges, proof without bfloat16 kernels."""

from __future__ import annotations

import copy
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, numpy_helper

from rvos_deploy.bundle.folder import open_bundle
from rvos_deploy.bundle.onnx_file import OnnxFile
from rvos_deploy.errors import InputError
from rvos_deploy.export.bundle_export import NOT_PROVED
from rvos_deploy.export.ms_deform_attn import NODE
from rvos_deploy.export.onnx_graph import export_graph
from rvos_deploy.export.pan2024 import export_bundle
from rvos_deploy.export.parity import check_graph, check_without_rounding
from rvos_deploy.export.weights import Weights
from rvos_deploy.graph_io.graph_spec import TOLERANCES
from rvos_deploy.graph_io.probe import probe_inputs
from rvos_deploy.networks.export_graph import WITHOUT_ROUNDING, Graph
from rvos_deploy.networks.pan2024.config import preset
from rvos_deploy.networks.pan2024.contract import GRAPHS
from rvos_deploy.networks.pan2024.graphs import graphs
from rvos_deploy.networks.pan2024.modules.network import RvosNetwork
from rvos_deploy.networks.pan2024.modules.precision import set_precision
from rvos_deploy.networks.pan2024.network import Pan2024
from rvos_deploy.parity.verification import verify
from rvos_deploy.runtime.backends.onnxruntime.bf16_reference import Bf16ReferenceBackend

NARROW, WIDE = TensorProto.BFLOAT16, TensorProto.FLOAT


@pytest.fixture(scope="module")
def narrow_network(tiny_network: RvosNetwork) -> RvosNetwork:
    return set_precision(copy.deepcopy(tiny_network), "bf16")


@pytest.fixture(scope="module")
def decoder(
    narrow_network: RvosNetwork, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Graph, Path]:
    """Return the video decoder's graph and file, which has every operator but convolutions."""
    graph = next(g for g in graphs(narrow_network) if g.spec.name == "video_decoder")
    (file,) = export_graph(graph, tmp_path_factory.mktemp("bf16"))
    return graph, file


def element_types(model: onnx.ModelProto) -> dict[str, int]:
    inferred = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True)
    values = (*inferred.graph.value_info, *inferred.graph.input, *inferred.graph.output)
    types = {value.name: value.type.tensor_type.elem_type for value in values}
    return types | {weight.name: weight.data_type for weight in inferred.graph.initializer}


def test_contracts_are_those_of_float32(
    narrow_network: RvosNetwork, tiny_network: RvosNetwork
) -> None:
    """The runtime has no bfloat16 and sees none."""
    for narrow, wide in zip(graphs(narrow_network), graphs(tiny_network), strict=True):
        assert (narrow.spec.inputs, narrow.spec.outputs) == (wide.spec.inputs, wide.spec.outputs)
        assert (narrow.spec.precision, wide.spec.precision) == ("bf16", "fp32")
        assert narrow.spec.tolerance == TOLERANCES["bf16"]


def test_outputs_of_a_graph_enter_the_next_one_unchanged(narrow_network: RvosNetwork) -> None:
    graph = graphs(narrow_network)[1]
    ids = torch.tensor([[49406, 518, 49407]])
    with torch.inference_mode():
        outer, inner = graph.module(ids), graph.module.module(ids)
    assert inner[0].dtype == torch.bfloat16
    assert outer[0].dtype == torch.float32
    assert torch.equal(outer[0].bfloat16(), inner[0])


def test_operators_are_typed_strictly(decoder: tuple[Graph, Path]) -> None:
    model = onnx.load(decoder[1])
    assert [entry.version for entry in model.opset_import if not entry.domain] == [22]
    types = element_types(model)
    multiplied = [types[n.input[0]] for n in model.graph.node if n.op_type in ("MatMul", "Gemm")]
    assert set(multiplied) == {NARROW}
    for node in model.graph.node:
        if node.op_type == "Softmax":
            assert types[node.input[0]] == WIDE
        if node.op_type == "LayerNormalization":
            assert types[node.input[0]] == NARROW
            assert {a.name: a.i for a in node.attribute}.get("stash_type", 1) == 1
    large = [w.data_type for w in model.graph.initializer if np.prod(w.dims) > 4096]
    assert large
    assert set(large) == {NARROW}


def test_the_graph_equals_pytorch_with_and_without_rounding(
    decoder: tuple[Graph, Path], narrow_network: RvosNetwork
) -> None:
    graph, file = decoder
    reference: dict[str, np.ndarray] = {}
    rounded = check_graph(
        graph, Pan2024(narrow_network.config), file, Bf16ReferenceBackend(), reference
    )
    plain = check_without_rounding(
        graph, Pan2024(narrow_network.config), file, WITHOUT_ROUNDING["bf16"]
    )
    assert len(rounded) == len(plain) == 8
    for check in (*rounded, *plain):
        assert check.passed, check
    assert all(
        check.tolerance == WITHOUT_ROUNDING["bf16"] < graph.spec.tolerance for check in plain
    )
    assert set(reference) == {check.name for check in rounded}
    # Rounding shows: the two are not the same check.
    assert max(c.comparison.max_abs for c in rounded) > max(c.comparison.max_abs for c in plain)


def test_outputs_hold_bfloat16_numbers(decoder: tuple[Graph, Path]) -> None:
    graph, file = decoder
    inputs = probe_inputs(graph.spec, {"E": 2, "L": 5, "M": 3}, 1)
    with Bf16ReferenceBackend().open_files([(graph.spec, OnnxFile(file))]) as session:
        outputs = session.graphs[graph.spec.name].run(inputs)
    embeddings = outputs["mask_embeddings"]
    assert np.array_equal(embeddings, embeddings.astype(ml_dtypes.bfloat16).astype(np.float32))
    scores = outputs["scores"]
    assert not np.array_equal(scores, scores.astype(ml_dtypes.bfloat16).astype(np.float32))


def test_a_wrong_weight_is_found_without_rounding(
    decoder: tuple[Graph, Path], narrow_network: RvosNetwork, tmp_path: Path
) -> None:
    """A matrix of the mask embedding is too large by one eighth."""
    graph, file = decoder
    model = onnx.load(file)
    bias = "module.network.video_decoder.mask_embedding.4.bias"
    product = next(n.input[0] for n in model.graph.node if bias in n.input)
    matrix = next(n.input[1] for n in model.graph.node if product in n.output)
    weight = next(w for w in model.graph.initializer if w.name == matrix)
    values = (numpy_helper.to_array(weight).astype(np.float32) * 1.125).astype(ml_dtypes.bfloat16)
    weight.CopyFrom(numpy_helper.from_array(values, weight.name))
    wrong = tmp_path / file.name
    onnx.save(model, wrong)
    known, limit = Pan2024(narrow_network.config), WITHOUT_ROUNDING["bf16"]
    assert any(not check.passed for check in check_without_rounding(graph, known, wrong, limit))


def test_bf16_with_stored_float16_is_refused(tmp_path: Path) -> None:
    weights = Weights(random=True, store="fp16", precision="bf16")
    with pytest.raises(InputError, match=r"exclude each other.*leave --store out"):
        export_bundle(preset("tiny"), tmp_path / "b", weights)
    assert not (tmp_path / "b").exists()


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_whole_bundle_passes_and_records_what_is_not_proved(tmp_path: Path) -> None:
    weights = Weights(random=True, precision="bf16")
    report = export_bundle(preset("tiny"), tmp_path / "bundle", weights)
    bundle = open_bundle(report.path)
    parity = bundle.manifest.parity
    assert parity.not_proved == NOT_PROVED["bf16"]
    assert bundle.manifest.as_dict()["versions"]["backend"]["name"] == "bf16-reference"
    assert any(check.name.endswith(", without rounding") for check in parity.checks)
    for name in GRAPHS:
        model = onnx.load(bundle.graph_file(name).path)
        types = element_types(model)
        for node in model.graph.node:
            if node.op_type == "Conv":
                assert types[node.input[0]] == NARROW
            if node.op_type == NODE:
                value, _, points, offsets, logits = (types[i] for i in node.input)
                assert (value, points, offsets, logits) == (NARROW, WIDE, NARROW, NARROW)
    assert all(result.passed for result in verify(bundle, Bf16ReferenceBackend()))
