"""Compare counts with values by hand and with PyTorch's counter, and rooflines with a division."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from rvos_deploy.benchmarks.gpu_specs import GPU_SPECS, Rates
from rvos_deploy.benchmarks.roofline import SAMPLING, GraphCost, count_model, roofline
from rvos_deploy.errors import InputError
from rvos_deploy.export.ms_deform_attn import attach_function

FLOAT, HALF, INT64 = TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.INT64


def model(
    nodes: list[onnx.NodeProto],
    inputs: dict[str, list[int | str]],
    weights: dict[str, tuple[int, ...]] | None = None,
    *,
    shape: list[int | str] | None = None,
    kind: int = FLOAT,
    constants: dict[str, list[int]] | None = None,
    opset: int = 18,
) -> onnx.ModelProto:
    """Make a graph of one output whose inputs and weights have one type."""
    dtype = helper.tensor_dtype_to_np_dtype(kind)
    stored = [
        numpy_helper.from_array(np.zeros(shape, dtype), name)
        for name, shape in (weights or {}).items()
    ] + [
        numpy_helper.from_array(np.array(values, np.int64), name)
        for name, values in (constants or {}).items()
    ]
    graph = helper.make_graph(
        nodes,
        "test",
        [helper.make_tensor_value_info(name, kind, shape) for name, shape in inputs.items()],
        [helper.make_tensor_value_info("y", kind, shape)],
        stored,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])


def count_file(path: Path, axes: dict[str, int]) -> GraphCost:
    return count_model(onnx.load(str(path), load_external_data=False), axes)


def test_matmul_with_broadcast_and_a_dynamic_axis() -> None:
    node = helper.make_node("MatMul", ["a", "b"], ["y"])
    cost = count_model(model([node], {"a": ["E", 3, 5, 7], "b": [1, 7, 11]}), {"E": 2})
    assert cost.macs == {"float32": 2 * 3 * 5 * 7 * 11}
    assert (cost.weight_bytes, cost.input_bytes) == (0, 4 * (2 * 3 * 5 * 7 + 7 * 11))
    assert cost.output_bytes == 4 * 2 * 3 * 5 * 11
    assert cost.total_bytes == cost.input_bytes + cost.output_bytes


@pytest.mark.parametrize(("transposed", "shape"), [(0, [5, 7]), (1, [7, 5])])
def test_gemm_in_either_order_of_its_first_operand(transposed: int, shape: list[int | str]) -> None:
    node = helper.make_node("Gemm", ["a", "w", "b"], ["y"], transA=transposed, transB=1)
    cost = count_model(model([node], {"a": shape}, {"w": (11, 7), "b": (11,)}, kind=HALF), {})
    assert cost.macs == {"float16": 5 * 7 * 11}
    assert cost.weight_bytes == 2 * (11 * 7 + 11)


def test_conv_with_groups_strides_padding_and_odd_sides() -> None:
    node = helper.make_node(
        "Conv", ["x", "w"], ["y"], group=2, strides=[2, 3], pads=[1, 0, 1, 0], dilations=[1, 2]
    )
    sizes = {"H": 13, "W": 17}
    cost = count_model(model([node], {"x": [3, 4, "H", "W"]}, {"w": (6, 2, 3, 5)}), sizes)
    # Rows: (13 + 2 - 3) // 2 + 1; columns: (17 - 9) // 3 + 1, a dilated 5 being 9 wide.
    assert cost.by_operator == {"Conv": 3 * 6 * 7 * 3 * (2 * 3 * 5)}
    assert cost.output_bytes == 4 * 3 * 6 * 7 * 3


def test_an_axis_over_a_number_and_a_depthwise_conv() -> None:
    node = helper.make_node("Conv", ["x", "w"], ["y"], group=4, pads=[3, 3, 3, 3])
    stored = {"w": (4, 1, 7, 7)}
    cost = count_model(model([node], {"x": [1, 4, "H/8", 9]}, stored), {"H": 40})
    assert cost.total_macs == 4 * 5 * 9 * 49


def test_transposed_conv() -> None:
    node = helper.make_node("ConvTranspose", ["x", "w"], ["y"], strides=[2, 2])
    cost = count_model(model([node], {"x": [1, 3, 5, 7]}, {"w": (3, 4, 2, 2)}), {})
    assert cost.total_macs == 3 * 5 * 7 * 4 * 2 * 2


def test_einsum() -> None:
    node = helper.make_node("Einsum", ["a", "b"], ["y"], equation="bqc,bchw->bqhw")
    cost = count_model(model([node], {"a": [2, 3, 5], "b": [2, 5, 7, "W"]}), {"W": 11})
    assert cost.macs == {"float32": 2 * 3 * 5 * 7 * 11}


def test_einsum_with_dots() -> None:
    """ONNX does not infer what dots stand for; the output's shape says it."""
    node = helper.make_node("Einsum", ["a", "b"], ["y"], equation="...ij,...jk->...ik")
    inputs: dict[str, list[int | str]] = {"a": [4, 1, 3, 5], "b": [6, 5, 7]}
    cost = count_model(model([node], inputs, shape=[4, 6, 3, 7]), {})
    assert cost.total_macs == 4 * 6 * 3 * 5 * 7
    with pytest.raises(InputError, match="the shape of output y does not follow"):
        count_model(model([node], inputs), {})


def test_attention_multiplies_twice() -> None:
    node = helper.make_node("Attention", ["q", "k", "v"], ["y"])
    inputs: dict[str, list[int | str]] = {
        "q": [2, 4, 3, 8],
        "k": [2, 4, 5, 8],
        "v": [2, 4, 5, 6],
    }
    cost = count_model(model([node], inputs, opset=23), {})
    assert cost.total_macs == 2 * 4 * 3 * 5 * (8 + 6)


def test_attention_in_three_dimensions() -> None:
    node = helper.make_node("Attention", ["q", "k", "v"], ["y"], q_num_heads=4, kv_num_heads=4)
    inputs: dict[str, list[int | str]] = {"q": [2, 3, 32], "k": [2, 5, 32], "v": [2, 5, 24]}
    cost = count_model(model([node], inputs, opset=23), {})
    assert cost.total_macs == 2 * 4 * 3 * 5 * (8 + 6)


def test_shapes_that_the_graph_computes_are_known() -> None:
    """Shape, Gather, Mul and Concat compute the numbers that fold [E,3,4] to [E*3,4]."""
    nodes = [
        helper.make_node("Shape", ["x"], ["shape"]),
        helper.make_node("Gather", ["shape", "zero"], ["batch"]),
        helper.make_node("Mul", ["batch", "three"], ["rows"]),
        helper.make_node("Concat", ["rows", "four"], ["wanted"], axis=0),
        helper.make_node("Reshape", ["x", "wanted"], ["flat"]),
        helper.make_node("MatMul", ["flat", "w"], ["y"]),
    ]
    constants = {"zero": [0], "three": [3], "four": [4]}
    made = model(nodes, {"x": ["E", 3, 4]}, {"w": (4, 9)}, constants=constants)
    before = made.SerializeToString()
    cost = count_model(made, {"E": 5})
    assert cost.total_macs == 15 * 4 * 9
    assert cost.weight_bytes == 4 * 4 * 9 + 3 * 8
    assert made.SerializeToString() == before


def test_of_an_embedding_table_only_the_rows_that_are_read_count() -> None:
    ids = helper.make_tensor_value_info("ids", INT64, ["E", 7])
    table = numpy_helper.from_array(np.zeros((1000, 16), np.float32), "table")
    out = helper.make_tensor_value_info("y", FLOAT, None)
    node = helper.make_node("Gather", ["table", "ids"], ["y"])
    made = helper.make_model(helper.make_graph([node], "g", [ids], [out], [table]))
    cost = count_model(made, {"E": 2})
    assert cost.weight_bytes == 2 * 7 * 16 * 4
    assert cost.total_macs == 0


def test_weights_beside_the_graph_are_counted_but_not_read(tmp_path: Path) -> None:
    node = helper.make_node("MatMul", ["a", "w"], ["y"])
    path = tmp_path / "graph.onnx"
    onnx.save_model(
        model([node], {"a": ["E", 40]}, {"w": (40, 30)}),
        path,
        save_as_external_data=True,
        location="graph.data",
        size_threshold=64,
    )
    (tmp_path / "graph.data").unlink()
    cost = count_file(path, {"E": 2})
    assert (cost.total_macs, cost.weight_bytes) == (2 * 40 * 30, 4 * 40 * 30)


def deformable(*, kind: int = FLOAT) -> onnx.ModelProto:
    """Deformable attention of 2 levels and 3 points on [E,20,4,8], then a product."""
    node = helper.make_node(
        "MSDeformAttn",
        ["value", "shapes", "reference", "offsets", "logits"],
        ["read"],
        domain="rvos",
        plugin_namespace="rvos",
        plugin_version="1",
        aot=1,
    )
    inputs = {
        "value": (kind, ["E", 20, 4, 8]),
        "shapes": (TensorProto.INT32, [2, 2]),
        "reference": (FLOAT, [5, 2]),
        "offsets": (kind, ["E", 5, 4, 2, 3, 2]),
        "logits": (kind, ["E", 5, 4, 6]),
    }
    weight = numpy_helper.from_array(np.zeros((32, 10), helper.tensor_dtype_to_np_dtype(kind)), "w")
    graph = helper.make_graph(
        [node, helper.make_node("MatMul", ["read", "w"], ["y"])],
        "g",
        [helper.make_tensor_value_info(name, *what) for name, what in inputs.items()],
        [helper.make_tensor_value_info("y", kind, None)],
        [weight],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])
    assert attach_function(made) == 1
    return made


def test_deformable_attention_is_samples_times_four_pixels_times_channels() -> None:
    cost = count_model(deformable(kind=HALF), {"E": 3})
    # Its sums are float32 whatever the values are; what follows it has the type of the values.
    samples = 3 * 5 * 4 * 2 * 3
    assert cost.macs == {SAMPLING: samples * 4 * 8, "float16": 3 * 5 * 32 * 10}


def test_deformable_attention_is_what_its_function_multiplies() -> None:
    """The body sums by one matrix product: [1, 4 points] by [4 points, channels]."""
    from onnx import inliner

    inlined = inliner.inline_local_functions(deformable())
    sums = next(node for node in inlined.graph.node if node.op_type == "MatMul")
    rows, weights = 3 * 5 * 4, 4 * 2 * 3
    assert "samples" in sums.input[1]
    assert count_model(deformable(), {"E": 3}).by_operator["MSDeformAttn"] == rows * weights * 8


def test_an_axis_without_a_size_is_named() -> None:
    node = helper.make_node("MatMul", ["a", "b"], ["y"])
    made = model([node], {"a": ["E", 5], "b": [5, 7]})
    with pytest.raises(InputError, match=r"a has an axis E; give it a size, for example E=2"):
        count_model(made, {"H": 32})


def test_a_size_that_is_not_whole_is_refused() -> None:
    node = helper.make_node("MatMul", ["a", "b"], ["y"])
    made = model([node], {"a": ["H/8", 5], "b": [5, 7]})
    with pytest.raises(InputError, match="axis H cannot be 12"):
        count_model(made, {"H": 12})


def test_a_shape_that_depends_on_data_is_refused() -> None:
    nodes = [
        helper.make_node("NonZero", ["a"], ["where"]),
        helper.make_node("Cast", ["where"], ["rows"], to=FLOAT),
        helper.make_node("MatMul", ["w", "rows"], ["y"]),
    ]
    made = model(nodes, {"a": [4, 4]}, {"w": (3, 2)})
    with pytest.raises(InputError, match=r"MatMul y: the shape of 'y' does not follow"):
        count_model(made, {})


def test_a_roofline_is_the_larger_of_two_divisions() -> None:
    rates = Rates(100.0, fp32_flops=10.0, fp16_flops=40.0, bf16_flops=None, tf32_flops=20.0)
    cost = GraphCost({"float16": 100, "float32": 10, SAMPLING: 5}, {}, 600, 50, 50)
    found = roofline(cost, rates, tf32=True)
    assert found.compute_seconds == pytest.approx(200 / 40 + 20 / 20 + 10 / 10)
    assert found.memory_seconds == found.seconds == 7.0
    without = roofline(cost, rates, tf32=False)
    assert (without.seconds, without.bound) == (200 / 40 + 20 / 10 + 10 / 10, "compute")


def test_a_type_that_the_gpu_lacks_is_refused() -> None:
    turing = next(card for card in GPU_SPECS if card.name == "T4")
    with pytest.raises(InputError, match="no rate is known for multiply-adds in bfloat16"):
        roofline(GraphCost({"bfloat16": 1}, {}, 0, 0, 0), turing.rates, tf32=True)


def test_published_rates_are_consistent() -> None:
    for card in GPU_SPECS:
        rates = card.rates
        assert rates.fp16_flops > rates.fp32_flops
        assert rates.bf16_flops is None or rates.bf16_flops <= rates.fp16_flops
        assert rates.tf32_flops is None or rates.tf32_flops < 0.51 * rates.fp16_flops
        assert "NVIDIA" in card.source


AXES = {"H": 96, "W": 160, "E": 3, "L": 9, "M": 4}


@pytest.mark.parametrize(
    "name", ["backbone", "text_encoder", "frame_decoder", "video_decoder", "mask_head"]
)
def test_counts_are_those_of_pytorch(name: str, tiny_bundle: Path, tiny_network) -> None:  # type: ignore[no-untyped-def]
    """PyTorch counts convolutions and matrix products as they run, but not sampling."""
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    from rvos_deploy.graph_io.probe import probe_inputs
    from rvos_deploy.networks.pan2024.graphs import graphs

    def vector_flops(matrix: list[int], *_: object, **__: object) -> int:
        return 2 * int(np.prod(matrix))

    graph = next(graph for graph in graphs(tiny_network) if graph.spec.name == name)
    axes = {axis.name: AXES[axis.name] for axis in graph.spec.axes}
    inputs = map(torch.from_numpy, probe_inputs(graph.spec, axes, seed=0).values())
    # It knows no product with a vector, nor the CPU's fused attention. Its tracker of modules
    # breaks without gradients.
    known = {torch.ops.aten.mv: vector_flops}
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False, custom_mapping=known) as ran:
        graph.module(*inputs)
    cost = count_file(tiny_bundle / f"{name}.onnx", axes)
    multiplied, ran_macs = cost.total_macs - cost.macs.get(SAMPLING, 0), ran.get_total_flops() // 2
    if name == "video_decoder":
        # Heads run after every layer for the losses; the export keeps those of the last.
        decoder = tiny_network.video_decoder
        head = decoder.referred_head
        of_slots = [*head.of_query.parameters(), *head.decide.parameters()]
        of_slots += decoder.mask_embedding.parameters()
        per_slot = sum(p.numel() for p in of_slots if p.ndim == 2)
        slots = tiny_network.config.num_queries
        of_text = head.of_text.weight.numel() + head.rivals.alone.weight.numel()
        per_layer = AXES["E"] * (slots * per_slot + of_text)
        assert multiplied + (len(decoder.layers) - 1) * per_layer == ran_macs
    elif name == "frame_decoder":
        # Heads run after every layer here, too, and a product is asked for twice: the export
        # keeps what is read, once.
        assert 0.9 * ran_macs < multiplied <= ran_macs
    else:
        assert multiplied == ran_macs


def test_the_cost_of_tokens_by_hand(tiny_bundle: Path, tiny_network) -> None:  # type: ignore[no-untyped-def]
    """Every token passes the tower and is resized, and so is its word. The referred head reads each
    of them by a perceptron of its own.
    """
    config, clip = tiny_network.config, tiny_network.clip
    dim, width, slots = config.dim, clip.text_width, config.num_queries
    expressions, length = 3, 9
    tokens = expressions * length
    # A block has four projections, and a perceptron of eight; scores and what they sum.
    block = tokens * ((4 + 8) * width**2 + 2 * length * width)
    tower = len(clip.model.transformer.resblocks) * block
    resized = tokens * (width * dim + width * dim)
    sentence = expressions * (width * clip.embed_dim + clip.embed_dim * dim)
    encoder = count_file(tiny_bundle / "text_encoder.onnx", {"E": expressions, "L": length})
    assert encoder.total_macs == tower + resized + sentence
    # The video decoder: one token more, all else the same. A layer makes a key and a value of it,
    # and slots compare themselves with one and sum the other; the head's perceptron is of two.
    layer = 2 * dim**2 + 2 * slots * dim
    one_more = len(tiny_network.video_decoder.layers) * layer + 2 * dim**2
    short, long = (
        count_file(tiny_bundle / "video_decoder.onnx", {"E": 3, "L": tokens, "M": 4}).total_macs
        for tokens in (length, length + 1)
    )
    assert long - short == 3 * one_more
