"""Test ``--precision fp16``: PyTorch's types, float32 islands, unchanged masks."""

from __future__ import annotations

import copy
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto

from rvos_deploy.bundle.folder import open_bundle
from rvos_deploy.errors import InputError
from rvos_deploy.export.ms_deform_attn import NODE
from rvos_deploy.graph_io.frame_geometry import letterbox, resize_frame
from rvos_deploy.graph_io.graph_spec import Precision
from rvos_deploy.graph_io.probe import PROBE_BOX, probe_clip
from rvos_deploy.networks.modules.float32_islands import WideGroupNorm
from rvos_deploy.networks.pan2024.contract import GRAPHS
from rvos_deploy.networks.pan2024.modules.inference import decode_clip
from rvos_deploy.networks.pan2024.modules.network import RvosNetwork
from rvos_deploy.networks.pan2024.modules.precision import set_precision
from rvos_deploy.runtime.segmenter import load

HALF, WIDE = TensorProto.FLOAT16, TensorProto.FLOAT


def element_types(model: onnx.ModelProto) -> dict[str, int]:
    """Return the element type of every tensor that shape inference knows."""
    inferred = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True)
    values = (*inferred.graph.value_info, *inferred.graph.input, *inferred.graph.output)
    types = {value.name: value.type.tensor_type.elem_type for value in values}
    return types | {weight.name: weight.data_type for weight in inferred.graph.initializer}


def test_contracts_and_weights_are_half(tiny_bundle_fp16: Path) -> None:
    bundle = open_bundle(tiny_bundle_fp16)
    assert bundle.precision == "fp16"
    dtypes = Counter(t.dtype for g in bundle.graphs.values() for t in (*g.inputs, *g.outputs))
    assert dtypes["float16"] > dtypes["float32"]
    # Scores, thresholds, ages, places of masks and mask logits stay wide.
    wide = {
        tensor.name
        for graph in bundle.graphs.values()
        for tensor in (*graph.inputs, *graph.outputs)
        if tensor.dtype == "float32"
    }
    assert wide == {
        "scores", "threshold", "memory_ages", "mask_logits", "slot_position", "slot_score",
    }  # fmt: skip
    for name in GRAPHS:
        weights = onnx.load(bundle.graph_file(name).path).graph.initializer
        large = [w.data_type for w in weights if np.prod(w.dims) > 4096]
        # Positions along the memory are not known before there is one; nothing large is left wide.
        assert set(large) <= {HALF}, name


@pytest.mark.parametrize("name", GRAPHS)
def test_no_operator_mixes_types(tiny_bundle_fp16: Path, name: str) -> None:
    """ONNX and TensorRT share this rule; ``strict_mode`` raises where an operator breaks it."""
    model = onnx.load(open_bundle(tiny_bundle_fp16).graph_file(name).path)
    types = element_types(model)
    for node in model.graph.node:
        if node.op_type == "LayerNormalization":
            stash = {a.name: a.i for a in node.attribute}.get("stash_type", 1)
            assert stash == 1, "sums of a layer norm are float32"
        if node.op_type == NODE:
            value, _, reference, offsets, logits = (types[i] for i in node.input)
            assert (value, reference, offsets, logits) == (HALF, WIDE, HALF, HALF)
        if node.op_type == "Softmax" and name != "text_encoder":
            assert types[node.input[0]] == WIDE
        if node.op_type == "InstanceNormalization":
            assert types[node.input[0]] == WIDE, "group norms are float32"


def test_half_masks_are_those_of_float32(tiny_bundle: Path, tiny_bundle_fp16: Path) -> None:
    """The masks come from the runtime.

    Random weights give many logits near 0, so a few pixels may differ.
    """
    masks = []
    for folder in (tiny_bundle, tiny_bundle_fp16):
        with (
            load(folder) as segmenter,
            segmenter.stream(["the square moving to the right"]) as stream,
        ):
            results = [r for frame in probe_clip() for r in stream.push(frame)]
            masks.append(np.stack([r.masks for r in (*results, *stream.flush())]))
            scores = np.stack([r.scores for r in results])
        masks[-1] = (masks[-1], scores)
    (wide, wide_scores), (half, half_scores) = masks
    assert wide.shape == half.shape
    assert (wide != half).mean() < 0.01
    np.testing.assert_allclose(half_scores, wide_scores, atol=5e-3)


@pytest.mark.slow
def test_the_network_in_half_is_near_the_network(tiny_network: RvosNetwork) -> None:
    """Each of some tens of operators rounds to 2^-11, which is a few thousandths of the scale."""
    half = set_precision(copy.deepcopy(tiny_network), "fp16")
    clip = probe_clip(2)
    geometry = letterbox(clip.shape[1:3], PROBE_BOX)
    frames = [torch.from_numpy(resize_frame(frame, geometry)) for frame in clip]
    ids = torch.tensor([[49406, 518, 1929, 2761, 49407]])
    wide, narrow = (decode_clip(network, frames, ids) for network in (tiny_network, half))
    for name in ("mask_features", "queries", "mask_embeddings"):
        ours, theirs = getattr(narrow.frames[0], name), getattr(wide.frames[0], name)
        assert ours.dtype == torch.float16
        assert (ours.float() - theirs).abs().max() < 0.02 * theirs.abs().max(), name
    for name, ours in narrow.frames[0].descriptors._asdict().items():
        theirs = getattr(wide.frames[0].descriptors, name)
        assert ours.dtype == (torch.float32 if name in ("position", "score") else torch.float16)
        assert (ours.float() - theirs).abs().max() < 0.02 * theirs.abs().max(), name
    assert half.clip.mean.dtype == torch.float32


def test_group_norm_keeps_maps_beyond_the_range_of_half() -> None:
    """4096 pixels of 60 sum to more than 65504, and so do their squares."""
    norm = WideGroupNorm(2, 4).half()
    x = (60.0 + torch.randn(1, 4, 64, 64)).half()
    expected = torch.nn.functional.group_norm(x.double(), 2)
    torch.testing.assert_close(norm(x).double(), expected, rtol=0, atol=2e-3)


@pytest.mark.parametrize(("precision", "value"), [("fp16", 1e5), ("bf16", 3.4e38)])
def test_weights_beyond_the_range_are_refused(
    tiny_network: RvosNetwork, precision: Precision, value: float
) -> None:
    """3.4e38 is below float32's maximum and rounds to infinity in bfloat16."""
    network = copy.deepcopy(tiny_network)
    with torch.no_grad():
        network.mask_head.projection.weight.view(-1)[0] = value
    with pytest.raises(InputError, match=r"mask_head\.projection\.weight holds .*--precision fp32"):
        set_precision(network, precision)


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_pixels_are_normalised_by_the_unrounded_mean(
    tiny_network: RvosNetwork, precision: Precision
) -> None:
    """bfloat16 has 122.5 and 123, but not the mean 122.77."""
    half = set_precision(copy.deepcopy(tiny_network), precision)
    torch.testing.assert_close(half.clip.mean, tiny_network.clip.mean, rtol=0, atol=0)
    torch.testing.assert_close(half.clip.std, tiny_network.clip.std, rtol=0, atol=0)


def test_an_unknown_precision_lists_the_known(tiny_network: RvosNetwork) -> None:
    with pytest.raises(InputError, match="unknown precision 'fp8'; known: fp32, fp16, bf16"):
        set_precision(tiny_network, "fp8")
