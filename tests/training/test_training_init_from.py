"""Test ``--init-from`` with a fabricated checkpoint of published names and shapes.

The reference computes on the published state dict, levels coarse to fine, with torch's layers.
Widths are those of ``large``; stacks are shorter.
"""

from __future__ import annotations

import math
import pickle
import shlex
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from rvos_deploy.errors import InputError
from rvos_deploy.networks.modules.position import pixel_centres, sine_position_2d
from rvos_deploy.networks.pan2024.config import ModelConfig, preset
from rvos_deploy.networks.pan2024.modules.clip import ImageFeatures
from rvos_deploy.networks.pan2024.modules.cross_modal_encoder import EncodedFrame
from rvos_deploy.networks.pan2024.modules.frame_query_decoder import (
    ramped_bias,
    resize_mask_features,
)
from rvos_deploy.networks.pan2024.modules.network import RvosNetwork
from rvos_deploy.training.init_from import InitReport, init_from
from rvos_deploy.training.published_names import name_map

State = dict[str, Tensor]

DIM, HEADS, POINTS, LEVELS = 256, 8, 4, 3
CONVNEXT_LARGE = (192, 384, 768, 1536)
RESNET_50 = (256, 512, 1024, 2048)
PIXEL, PREDICTOR = "sem_seg_head.pixel_decoder.", "sem_seg_head.predictor."
SMALL = replace(preset("large"), encoder_layers=2, frame_decoder_layers=3, video_decoder_layers=1)
PLAIN = replace(SMALL, text_fusion=False, mask_position=False, mask_content=False)
# Sums of up to 2304 float32 products, through at most three layers that each end in a norm.
CLOSE = {"rtol": 1e-4, "atol": 1e-4}


class FakeClip(nn.Module):
    """Provide what the network needs of CLIP when it is built."""

    def __init__(self) -> None:
        super().__init__()
        self.image_channels = list(CONVNEXT_LARGE)
        self.text_width = self.embed_dim = 768
        self.weight = nn.Parameter(torch.zeros(1))


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    """Use one thread: small tensors stall with more on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)


def make_network(config: ModelConfig = SMALL) -> RvosNetwork:
    torch.manual_seed(1)
    return RvosNetwork(config, FakeClip()).eval()


def published_shapes(
    encoder_layers: int, decoder_layers: int, queries: int, channels: tuple[int, ...]
) -> dict[str, tuple[int, ...]]:
    """Return names and shapes of FC-CLIP's head, as its modules define them."""
    shapes: dict[str, tuple[int, ...]] = {}

    def linear(name: str, outer: int, *inner: int) -> None:
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = (outer, *inner), (outer,)

    def attention(name: str) -> None:
        shapes[f"{name}.in_proj_weight"] = (3 * DIM, DIM)
        shapes[f"{name}.in_proj_bias"] = (3 * DIM,)
        linear(f"{name}.out_proj", DIM, DIM)

    for i, width in enumerate(reversed(channels[1:])):
        linear(f"{PIXEL}input_proj.{i}.0", DIM, width, 1, 1)
        linear(f"{PIXEL}input_proj.{i}.1", DIM)
    shapes[f"{PIXEL}transformer.level_embed"] = (LEVELS, DIM)
    for i in range(encoder_layers):
        layer = f"{PIXEL}transformer.encoder.layers.{i}."
        linear(f"{layer}self_attn.sampling_offsets", HEADS * LEVELS * POINTS * 2, DIM)
        linear(f"{layer}self_attn.attention_weights", HEADS * LEVELS * POINTS, DIM)
        for name in ("self_attn.value_proj", "self_attn.output_proj"):
            linear(layer + name, DIM, DIM)
        linear(f"{layer}norm1", DIM)
        linear(f"{layer}linear1", 1024, DIM)
        linear(f"{layer}linear2", DIM, 1024)
        linear(f"{layer}norm2", DIM)
    linear(f"{PIXEL}mask_features", DIM, DIM, 1, 1)
    for name, inner, kernel in (("adapter_1", channels[0], 1), ("layer_1", DIM, 3)):
        shapes[f"{PIXEL}{name}.weight"] = (DIM, inner, kernel, kernel)
        linear(f"{PIXEL}{name}.norm", DIM)
    for i in range(decoder_layers):
        for stack, name in (("self", "self_attn"), ("cross", "multihead_attn")):
            attention(f"{PREDICTOR}transformer_{stack}_attention_layers.{i}.{name}")
            linear(f"{PREDICTOR}transformer_{stack}_attention_layers.{i}.norm", DIM)
        linear(f"{PREDICTOR}transformer_ffn_layers.{i}.linear1", 2048, DIM)
        linear(f"{PREDICTOR}transformer_ffn_layers.{i}.linear2", DIM, 2048)
        linear(f"{PREDICTOR}transformer_ffn_layers.{i}.norm", DIM)
    linear(f"{PREDICTOR}decoder_norm", DIM)
    for name, rows in (("query_feat", queries), ("query_embed", queries), ("level_embed", LEVELS)):
        shapes[f"{PREDICTOR}{name}.weight"] = (rows, DIM)
    for i in range(3):
        linear(f"{PREDICTOR}mask_embed.layers.{i}", DIM, DIM)
        linear(f"{PREDICTOR}class_embed.layers.{i}", 768 if i == 2 else DIM, DIM)
    linear(f"{PREDICTOR}_mask_pooling_proj.0", DIM)
    linear(f"{PREDICTOR}_mask_pooling_proj.1", DIM, DIM)
    shapes[f"{PREDICTOR}logit_scale"] = ()
    shapes["void_embedding.weight"] = (1, 768)
    shapes["criterion.empty_weight"] = (134,)
    shapes["backbone.clip_model.visual.trunk.stem.0.weight"] = (192, 3, 4, 4)
    return shapes


def published(
    encoder_layers: int = 2,
    decoder_layers: int = 3,
    queries: int = 250,
    channels: tuple[int, ...] = CONVNEXT_LARGE,
) -> State:
    """Return unique weights with activations near 1 and offsets of a few pixels."""
    torch.manual_seed(2)
    state = {}
    for name, shape in published_shapes(encoder_layers, decoder_layers, queries, channels).items():
        value = torch.randn(shape)
        if "norm" in name and name.endswith("weight"):
            value = 1 + 0.1 * value
        elif len(shape) > 1 and "embed" not in name.split(".")[-2]:
            value = value / math.sqrt(math.prod(shape[1:]))
        state[name] = value
    return state


@pytest.fixture
def load(tmp_path: Path) -> Callable[..., InitReport]:
    def run(network: RvosNetwork, state: State) -> InitReport:
        file = tmp_path / "model_final.safetensors"
        save_file(state, file)
        return init_from(network, file)

    return run


class Loaded(NamedTuple):
    """Hold a checkpoint, and the network without text fusion that loaded it."""

    state: State
    network: RvosNetwork


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    state, network = published(), make_network(PLAIN)
    file = tmp_path_factory.mktemp("published") / "model_final.safetensors"
    save_file(state, file)
    init_from(network, file)
    return Loaded(state, network)


# --- The published layout, computed plainly -------------------------------------------------------


def under(state: State, prefix: str) -> State:
    return {
        name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)
    }


def linear(state: State, name: str, x: Tensor) -> Tensor:
    return F.linear(x, state[f"{name}.weight"], state[f"{name}.bias"])


def norm(state: State, name: str, x: Tensor) -> Tensor:
    return F.layer_norm(x, (DIM,), state[f"{name}.weight"], state[f"{name}.bias"])


def feed_forward(state: State, norm_name: str, x: Tensor) -> Tensor:
    return norm(state, norm_name, x + linear(state, "linear2", F.relu(linear(state, "linear1", x))))


def multihead_attention(state: State) -> nn.MultiheadAttention:
    module = nn.MultiheadAttention(DIM, HEADS, batch_first=True).eval()
    module.load_state_dict(state)
    return module


def deformable_attention(
    state: State, query: Tensor, value: Tensor, centres: Tensor, shapes: list[tuple[int, int]]
) -> Tensor:
    """Compute levels in the order of ``shapes``; offsets are divided by the level's (W, H)."""
    batch, count, _ = query.shape
    values = linear(state, "value_proj", value).view(batch, -1, HEADS, DIM // HEADS)
    offsets = linear(state, "sampling_offsets", query)
    offsets = offsets.view(batch, count, HEADS, LEVELS, POINTS, 2)
    weights = linear(state, "attention_weights", query).view(batch, count, HEADS, -1)
    weights = weights.softmax(-1).view(batch, count, HEADS, LEVELS, POINTS)
    output = torch.zeros(batch, count, HEADS, DIM // HEADS)
    first = 0
    for level, (height, width) in enumerate(shapes):
        pixels = values[:, first : first + height * width]
        first += height * width
        places = centres[:, None, None] + offsets[:, :, :, level] / torch.tensor([width, height])
        for head in range(HEADS):
            image = pixels[:, :, head].transpose(1, 2).reshape(batch, -1, height, width)
            samples = F.grid_sample(image, 2 * places[:, :, head] - 1, align_corners=False)
            output[:, :, head] += torch.einsum("bcqp,bqp->bqc", samples, weights[:, :, head, level])
    return linear(state, "output_proj", output.flatten(2))


def encoder_layer(state: State, x: Tensor, position: Tensor, *grid: Any) -> Tensor:
    read = deformable_attention(under(state, "self_attn."), x + position, x, *grid)
    return feed_forward(state, "norm2", norm(state, "norm1", x + read))


def group_norm(state: State, name: str, x: Tensor) -> Tensor:
    return F.group_norm(x, 32, state[f"{name}.weight"], state[f"{name}.bias"])


class Pyramid(NamedTuple):
    """Hold the concatenated tokens of three levels, and their positions."""

    tokens: Tensor
    position: Tensor
    centres: Tensor
    shapes: list[tuple[int, int]]


def make_pyramid(shapes: list[tuple[int, int]]) -> Pyramid:
    device = torch.device("cpu")
    area = sum(height * width for height, width in shapes)
    centres = torch.cat([pixel_centres(h, w, device) for h, w in shapes])
    return Pyramid(torch.randn(2, area, DIM), torch.randn(area, DIM), centres, shapes)


def reversed_levels(pyramid: Pyramid) -> Pyramid:
    """Return the pyramid with its levels reversed."""
    areas = [height * width for height, width in pyramid.shapes]

    def turn(x: Tensor, dim: int) -> Tensor:
        return torch.cat(x.split(areas, dim)[::-1], dim)

    return Pyramid(
        turn(pyramid.tokens, 1),
        turn(pyramid.position, 0),
        turn(pyramid.centres, 0),
        pyramid.shapes[::-1],
    )


FINE_TO_COARSE = [(8, 12), (4, 6), (2, 3)]


# --- What was loaded computes the same ------------------------------------------------------------


@pytest.mark.parametrize(("stack", "module"), [("self", "self_attn"), ("cross", "multihead_attn")])
@torch.no_grad()
def test_attention_equals_multihead_attention(plain: Loaded, stack: str, module: str) -> None:
    for i, layer in enumerate(plain.network.frame_decoder.layers):
        ours = layer.self_attention if stack == "self" else layer.memory_attention
        prefix = f"{PREDICTOR}transformer_{stack}_attention_layers.{i}.{module}."
        reference = multihead_attention(under(plain.state, prefix))
        query, key, value = torch.randn(2, 5, DIM), torch.randn(2, 7, DIM), torch.randn(2, 7, DIM)
        expected = reference(query, key, value, need_weights=False)[0]
        torch.testing.assert_close(ours.attention(query, key, value), expected, **CLOSE)


@torch.no_grad()
def test_deformable_layer_equals_the_published_level_order(plain: Loaded) -> None:
    """Our tokens have strides 8, 16, 32, and the published ones 32, 16, 8."""
    here = make_pyramid(FINE_TO_COARSE)
    there = reversed_levels(here)
    for i, layer in enumerate(plain.network.encoder.layers):
        state = under(plain.state, f"{PIXEL}transformer.encoder.layers.{i}.")
        expected = encoder_layer(state, there.tokens, there.position, there.centres, there.shapes)
        found = layer.deformable(
            here.tokens, here.position, here.centres, torch.tensor(here.shapes, dtype=torch.int32)
        )
        turned_back = reversed_levels(there._replace(tokens=expected)).tokens
        torch.testing.assert_close(found, turned_back, **CLOSE)


@torch.no_grad()
def test_feed_forward_and_norms_equal_the_published(plain: Loaded) -> None:
    x = torch.randn(2, 5, DIM)
    for i, layer in enumerate(plain.network.frame_decoder.layers):
        state = under(plain.state, f"{PREDICTOR}transformer_ffn_layers.{i}.")
        torch.testing.assert_close(layer.ffn(x), feed_forward(state, "norm", x), **CLOSE)
        for ours, stack in ((layer.self_attention, "self"), (layer.memory_attention, "cross")):
            prefix = f"{PREDICTOR}transformer_{stack}_attention_layers.{i}."
            expected = norm(under(plain.state, prefix), "norm", x)
            torch.testing.assert_close(ours.norm(x), expected, **CLOSE)


def published_pixel_decoder(state: State, features: ImageFeatures) -> tuple[Tensor, list[Tensor]]:
    """Compute mask features, and three levels [B,S,C] coarse to fine, with our sine positions."""
    pixel = under(state, PIXEL)
    maps = [
        group_norm(
            pixel,
            f"input_proj.{i}.1",
            F.conv2d(x, pixel[f"input_proj.{i}.0.weight"], pixel[f"input_proj.{i}.0.bias"]),
        )
        for i, x in enumerate(features[:0:-1])
    ]
    shapes = [tuple(x.shape[2:]) for x in maps]
    cpu = torch.device("cpu")
    position = torch.cat(
        [
            sine_position_2d(h, w, DIM, 1.0, cpu) + pixel["transformer.level_embed"][i]
            for i, (h, w) in enumerate(shapes)
        ]
    )
    centres = torch.cat([pixel_centres(h, w, cpu) for h, w in shapes])
    x = torch.cat([m.flatten(2).transpose(1, 2) for m in maps], 1)
    for i in range(SMALL.encoder_layers):
        layer = under(pixel, f"transformer.encoder.layers.{i}.")
        x = encoder_layer(layer, x, position, centres, shapes)
    levels = list(x.split([h * w for h, w in shapes], 1))
    lateral = group_norm(
        pixel, "adapter_1.norm", F.conv2d(features.res2, pixel["adapter_1.weight"])
    )
    finest = levels[-1].transpose(1, 2).unflatten(2, shapes[-1])
    y = lateral + F.interpolate(finest, size=lateral.shape[2:], mode="bilinear")
    y = F.conv2d(y, pixel["layer_1.weight"], padding=1)
    y = F.relu(group_norm(pixel, "layer_1.norm", y))
    return F.conv2d(y, pixel["mask_features.weight"], pixel["mask_features.bias"]), levels


@torch.no_grad()
def test_encoder_equals_the_published_pixel_decoder(plain: Loaded) -> None:
    """Projections, level embedding, all layers, FPN and mask features agree, without text."""
    features = ImageFeatures(
        *(torch.randn(2, width, 16 >> i, 24 >> i) for i, width in enumerate(CONVNEXT_LARGE))
    )
    found = plain.network.encoder(features, torch.zeros(2, 3, DIM), torch.zeros(2, 3).bool())
    mask_features, levels = published_pixel_decoder(plain.state, features)
    torch.testing.assert_close(found.mask_features, mask_features, **CLOSE)
    for ours, theirs in zip(found.levels[::-1], levels, strict=True):
        torch.testing.assert_close(ours, theirs, **CLOSE)


def published_decoder(state: State, frame: EncodedFrame, queries: Tensor) -> Tensor:
    """Compute the mask embeddings of every prediction, with our queries and attention bias."""
    head = under(state, PREDICTOR)
    position = head["query_embed.weight"][: queries.shape[1]]
    embeddings = []

    def predict() -> Tensor:
        x = norm(head, "decoder_norm", queries)
        for i in range(3):
            x = linear(head, f"mask_embed.layers.{i}", F.relu(x) if i else x)
        embeddings.append(x)
        return x

    predict()
    for i in range(SMALL.frame_decoder_layers):
        memory, shape = frame.levels[2 - i % 3], frame.shapes[2 - i % 3]
        memory = memory + head["level_embed.weight"][i % 3]
        key = memory + sine_position_2d(*shape, DIM, 1.0, torch.device("cpu"))
        mask = ramped_bias(embeddings[-1] @ resize_mask_features(frame.mask_features, shape))
        cross = under(head, f"transformer_cross_attention_layers.{i}.")
        attend = multihead_attention(under(cross, "multihead_attn."))
        read = attend(queries + position, key, memory, attn_mask=mask.repeat_interleave(HEADS, 0))[
            0
        ]
        queries = norm(cross, "norm", queries + read)
        own = under(head, f"transformer_self_attention_layers.{i}.")
        placed = queries + position
        read = multihead_attention(under(own, "self_attn."))(placed, placed, queries)[0]
        queries = norm(own, "norm", queries + read)
        queries = feed_forward(under(head, f"transformer_ffn_layers.{i}."), "norm", queries)
        predict()
    return torch.stack(embeddings)


@torch.no_grad()
def test_frame_decoder_equals_the_published_one(plain: Loaded) -> None:
    levels = [torch.randn(2, h * w, DIM) for h, w in FINE_TO_COARSE]
    text = torch.zeros(2, 3, DIM)
    # What CLIP sees is pooled under the masks, and changes none of them.
    seen = ImageFeatures(torch.empty(0), *(torch.randn(2, 3, *shape) for shape in FINE_TO_COARSE))
    frame = EncodedFrame(0.1 * torch.randn(2, DIM, 16, 24), levels, FINE_TO_COARSE, text, seen)
    sentence = torch.randn(2, DIM)
    found = plain.network.frame_decoder(frame, sentence, torch.zeros(2, 3).bool())
    queries = sentence[:, None].expand(-1, SMALL.num_queries, -1)
    expected = published_decoder(plain.state, frame, queries)
    torch.testing.assert_close(
        torch.stack([p.mask_embeddings for p in found.predictions]), expected, **CLOSE
    )


# --- What is loaded, what is not, and why ---------------------------------------------------------


def reasons(outs: tuple[Any, ...]) -> dict[str, str]:
    return {out.name: out.reason for out in outs}


def test_every_weight_and_every_entry_is_reported(load: Callable[..., InitReport]) -> None:
    network, state = make_network(), published()
    for convolution in (network.encoder.lateral[0], network.encoder.fpn[0]):
        nn.init.ones_(convolution.bias)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    report = load(network, state)
    loaded = [weight.name for weight in report.loaded]
    left = reasons(report.not_loaded)
    assert sorted([*loaded, *left]) == sorted(before)
    used = {weight.published for weight in report.loaded} & set(state)
    unused = reasons(report.unused)
    assert used | set(unused) == set(state)
    assert not used & set(unused)
    assert "no counterpart" not in {*left.values(), *unused.values()}
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name]) == (name in left), name
    assert "text" in left["encoder.layers.0.fusion.text_key.weight"]
    assert "text" in left["frame_decoder.layers.2.text_attention.norm.bias"]
    assert "sentence" in unused[f"{PREDICTOR}query_feat.weight"]
    assert "categories" in unused[f"{PREDICTOR}class_embed.layers.2.weight"]


def test_the_full_large_configuration_loads_every_published_layer() -> None:
    with torch.device("meta"):
        own = {n: tuple(p.shape) for n, p in make_network(preset("large")).state_dict().items()}
    sources = name_map(preset("large"))
    assert set(sources) <= set(own)
    for group in ("deformable", "projections", "lateral", "fpn", "memory_attention", "ffn"):
        lacking = [name for name in own if f".{group}." in name and name not in sources]
        assert all(name.startswith("video_decoder.") or "text" in name for name in lacking), group
    published_names = set(published_shapes(6, 9, 250, CONVNEXT_LARGE))
    lacking = {source.published for source in sources.values()} - published_names
    assert lacking == {f"{PIXEL}adapter_1.bias", f"{PIXEL}layer_1.bias"}
    left = {
        name.split(".")[-2] for name in published_names - {s.published for s in sources.values()}
    }
    assert left <= {"query_feat", "0", "1", "2", "predictor", "void_embedding", "criterion"}


def test_published_convolutions_without_bias_get_zeros(load: Callable[..., InitReport]) -> None:
    network = make_network()
    nn.init.ones_(network.encoder.lateral[0].bias)
    load(network, published())
    assert not network.encoder.lateral[0].bias.any()
    state = published() | {f"{PIXEL}adapter_1.bias": torch.full((DIM,), 3.0)}
    load(network, state)
    assert (network.encoder.lateral[0].bias == 3).all()


def test_query_positions_are_the_first_ones(load: Callable[..., InitReport]) -> None:
    network, state = make_network(), published(queries=100)
    load(network, state)
    position = network.frame_decoder.query_position
    assert torch.equal(position, state[f"{PREDICTOR}query_embed.weight"][:20])
    report = load(make_network(), published(queries=10))
    expected = f"size [10, {DIM}] in the file, [20, {DIM}] needed"
    assert reasons(report.not_loaded)["frame_decoder.query_position"] == expected
    assert reasons(report.unused)[f"{PREDICTOR}query_embed.weight"] == expected


def test_projections_of_another_backbone_are_left_out(load: Callable[..., InitReport]) -> None:
    """A bias of another convolution is left out with it; the norm after it is loaded."""
    report = load(make_network(), published(channels=RESNET_50))
    left, unused = reasons(report.not_loaded), reasons(report.unused)
    expected = "size [256, 2048, 1, 1] in the file, [256, 1536, 1, 1] needed"
    assert left["encoder.projections.2.0.weight"] == expected
    assert unused[f"{PIXEL}input_proj.0.0.weight"] == expected
    assert left["encoder.projections.2.0.bias"] == "its weight was not loaded"
    assert left["encoder.lateral.0.bias"].startswith("the file has no")
    assert "encoder.projections.2.1.weight" in {weight.name for weight in report.loaded}
    lines = [line for line in report.summary().splitlines() if "size [" in line]
    assert len(lines) == 8
    assert any("2048" in line and "encoder.projections.2.0.weight" in line for line in lines)


def test_stacks_of_another_depth(load: Callable[..., InitReport]) -> None:
    report = load(make_network(), published(encoder_layers=1, decoder_layers=4))
    left, unused = reasons(report.not_loaded), reasons(report.unused)
    assert left["encoder.layers.1.deformable.norm.weight"].startswith("the file has no")
    assert "beyond the 3" in unused[f"{PREDICTOR}transformer_ffn_layers.3.linear1.weight"]


def test_summary_counts_and_names(load: Callable[..., InitReport]) -> None:
    report = load(make_network(), published())
    text = report.summary()
    total = len(report.loaded) + len(report.not_loaded)
    assert f"loaded {len(report.loaded)} of {total} weights" in text
    assert "model_final.safetensors" in text
    assert "encoder.layers.*.fusion" in text
    assert "backbone" in text
    assert len(text.splitlines()) < 30


# --- Files ----------------------------------------------------------------------------------------


def save_nested(state: State, file: Path) -> None:
    torch.save({"model": state, "iteration": 9, "scheduler": {"base_lrs": [1e-4]}}, file)


def save_legacy(state: State, file: Path) -> None:
    torch.save(state, file, _use_new_zipfile_serialization=False)


def save_bare(state: State, file: Path) -> None:
    torch.save(state, file)


@pytest.mark.parametrize("save", [save_nested, save_legacy, save_bare, save_file])
def test_the_content_decides_the_file_format(
    tmp_path: Path, save: Callable[[State, Path], None]
) -> None:
    file = tmp_path / "checkpoint.bin"
    state, network = published(1, 1), make_network()
    save(state, file)
    report = init_from(network, file)
    assert len(report.loaded) > 60
    assert torch.equal(
        network.frame_decoder.layers[0].ffn.expand.weight,
        state[f"{PREDICTOR}transformer_ffn_layers.0.linear1.weight"],
    )


def test_half_precision_and_oldest_names(load: Callable[..., InitReport]) -> None:
    state = {
        name.replace(PIXEL, "sem_seg_head."): value.half()
        for name, value in published(1, 1).items()
    }
    network = make_network()
    report = load(network, state)
    assert "sem_seg_head.mask_features.weight" in {weight.published for weight in report.loaded}
    assert network.encoder.mask_features.weight.dtype == torch.float32
    expected = state["sem_seg_head.mask_features.weight"].float()
    assert torch.equal(network.encoder.mask_features.weight, expected)


def few_arrays() -> dict[str, np.ndarray]:
    return {name: value.numpy() for name, value in published(1, 1).items() if "level_embed" in name}


def save_pickle(arrays: dict[str, np.ndarray], file: Path) -> None:
    file.write_bytes(pickle.dumps({"model": arrays, "__author__": "Mask2Former"}))


def save_torch_arrays(arrays: dict[str, np.ndarray], file: Path) -> None:
    torch.save({"model": arrays}, file)


@pytest.mark.parametrize("save", [save_pickle, save_torch_arrays])
def test_pickled_arrays_are_refused_with_the_command_that_converts_them(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    save: Callable[[dict[str, np.ndarray], Path], None],
) -> None:
    """The test runs the printed program on a model-zoo .pkl and a torch.save file with arrays."""
    file = tmp_path / "model final.pkl"
    save(few_arrays(), file)
    network = make_network()
    with pytest.raises(InputError, match="could run code") as caught:
        init_from(network, file)
    message = str(caught.value)
    assert "\n" not in message
    command = shlex.split(message.split("convert it: ")[1])
    assert command[:2] == ["python", "-c"]
    monkeypatch.setattr(sys, "argv", ["-c", *command[3:]])
    exec(command[2], {})  # In this process: importing torch again takes seconds.
    report = init_from(network, file.with_suffix(".safetensors"))
    assert {weight.name for weight in report.loaded} == {
        "encoder.level_embedding",
        "frame_decoder.level_embedding",
    }


class Trap:
    """Create a file when unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.file,))


@pytest.mark.parametrize("save", [save_pickle, save_torch_arrays, save_legacy])
def test_no_code_in_a_file_runs(tmp_path: Path, save: Callable[[Any, Path], None]) -> None:
    sprung = tmp_path / "sprung"
    file = tmp_path / "model.pth"
    save({"model": Trap(sprung)}, file)
    with pytest.raises(InputError, match="could run code"):
        init_from(make_network(), file)
    assert not sprung.exists()


def write_text(file: Path) -> None:
    file.write_text("not a checkpoint")


def write_truncated(file: Path) -> None:
    save_nested(published(1, 1), file)
    file.write_bytes(file.read_bytes()[:4000])


def write_list(file: Path) -> None:
    torch.save([torch.zeros(1)], file)


def write_own(file: Path) -> None:
    save_file({"encoder.level_embedding": torch.zeros(3, DIM)}, file)


def write_nothing(file: Path) -> None:
    file.touch()


def write_strings(file: Path) -> None:
    torch.save({"model": {f"{PIXEL}mask_features.weight": "none"}}, file)


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (write_text, "neither a safetensors nor a torch.save file"),
        (write_truncated, "may be damaged"),
        (write_list, "holds a list"),
        (write_own, "--resume"),
        (write_nothing, "neither a safetensors nor a torch.save file"),
        (write_strings, "no floating-point tensor"),
        (lambda file: None, "does not exist"),
    ],
)
def test_wrong_files_are_refused_in_one_line(
    tmp_path: Path, write: Callable[[Path], None], message: str
) -> None:
    file = tmp_path / "wrong.pth"
    write(file)
    with pytest.raises(InputError) as caught:
        init_from(make_network(), file)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


# --- Configurations -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change", [{"num_heads": 4}, {"num_points": 8}, {"norm_groups": 16}, {"position_cycles": 4.0}]
)
def test_other_arithmetic_is_refused(load: Callable[..., InitReport], change: Any) -> None:
    """The weights would fit and compute something else."""
    ((name, value),) = change.items()
    with pytest.raises(InputError, match=f"{name} {value} instead of"):
        load(make_network(replace(SMALL, **change)), published(1, 1))


def test_other_widths_fit_and_change_no_weight(load: Callable[..., InitReport]) -> None:
    network = make_network(replace(SMALL, dim=128, fusion_dim=128))
    before = [value.clone() for value in network.state_dict().values()]
    with pytest.raises(InputError, match=r"nothing in .* fits .*size \[.*such as 'large'"):
        load(network, published(1, 1))
    for value, old in zip(network.state_dict().values(), before, strict=True):
        assert torch.equal(value, old)
