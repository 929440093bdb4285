"""Test the cross-modal encoder: text and image affect each other, and padding affects nothing."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from rvos_deploy.networks.modules.float32_islands import additive_mask
from rvos_deploy.networks.modules.position import sine_position_2d
from rvos_deploy.networks.pan2024.modules.clip import ImageFeatures, TextFeatures
from rvos_deploy.networks.pan2024.modules.cross_modal_encoder import (
    BidirectionalAttention,
    EncodedFrame,
)
from rvos_deploy.networks.pan2024.modules.network import RvosNetwork

# Float32 rounding through three layers; batches and longer rows are summed in another order.
ROUNDING = {"rtol": 0, "atol": 2e-5}


@pytest.fixture
def features() -> ImageFeatures:
    """Return features of two frames of 64x96, at the tiny trunk's widths."""
    return ImageFeatures(
        torch.randn(2, 40, 16, 24),
        torch.randn(2, 80, 8, 12),
        torch.randn(2, 160, 4, 6),
        torch.randn(2, 320, 2, 3),
    )


@torch.no_grad()
def encode(network: RvosNetwork, features: ImageFeatures, text: TextFeatures) -> EncodedFrame:
    encoded: EncodedFrame = network.encoder(features, text.tokens, text.padding)
    return encoded


def assert_same(a: EncodedFrame, b: EncodedFrame) -> None:
    torch.testing.assert_close(a.mask_features, b.mask_features, **ROUNDING)
    for ours, theirs in zip(a.levels, b.levels, strict=True):
        torch.testing.assert_close(ours, theirs, **ROUNDING)


def test_bidirectional_attention_against_loops() -> None:
    dim, inner, heads = 8, 12, 3
    layer = BidirectionalAttention(dim, inner, heads, layer_scale=0.5).double()
    layer.requires_grad_(False)
    for parameter in layer.parameters():
        parameter += 0.2 * torch.randn_like(parameter)
    image, text = (torch.randn(2, n, dim, dtype=torch.float64) for n in (5, 4))
    padding = torch.tensor([[False] * 4, [False, False, True, True]])
    image_out, text_out = layer(image, text, additive_mask(padding)[:, None, None])
    each = inner // heads
    for b in range(2):
        v, x = layer.image_norm(image[b]), layer.text_norm(text[b])
        image_read, text_read = torch.zeros(5, inner).double(), torch.zeros(4, inner).double()
        for head in range(heads):
            part = slice(head * each, (head + 1) * each)
            similarity = layer.image_query(v)[:, part] @ layer.text_key(x)[:, part].T
            similarity = similarity / math.sqrt(each)
            seen = similarity.masked_fill(padding[b], -torch.inf)
            image_read[:, part] = seen.softmax(-1) @ layer.text_value(x)[:, part]
            text_read[:, part] = similarity.T.softmax(-1) @ layer.image_value(v)[:, part]
        # Residuals on the un-normalised streams, scaled. The softmax is float32.
        expected_image = image[b] + layer.image_scale * layer.image_output(image_read)
        expected_text = text[b] + layer.text_scale * layer.text_output(text_read)
        torch.testing.assert_close(image_out[b], expected_image, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(text_out[b], expected_text, rtol=1e-6, atol=1e-6)


def test_shapes(tiny_network: RvosNetwork, features: ImageFeatures, text: TextFeatures) -> None:
    encoded = encode(tiny_network, features, text)
    assert encoded.mask_features.shape == (2, 128, 16, 24)
    assert encoded.shapes == [(8, 12), (4, 6), (2, 3)]
    assert [level.shape for level in encoded.levels] == [(2, 96, 128), (2, 24, 128), (2, 6, 128)]
    assert encoded.text.shape == text.tokens.shape


def plain_encode(
    network: RvosNetwork, features: ImageFeatures, text: TextFeatures
) -> tuple[Tensor, Tensor]:
    """Compute mask features and text stage by stage."""
    encoder = network.encoder
    bias = additive_mask(text.padding)[:, None, None]
    tokens, positions, centres, sides = [], [], [], []
    for level, (projection, feature) in enumerate(
        zip(encoder.projections, features[1:], strict=True)
    ):
        height, width = feature.shape[2:]
        sides.append((height, width))
        tokens.append(projection(feature).flatten(2).transpose(1, 2))
        cycles = network.config.position_cycles
        position = sine_position_2d(height, width, encoder.dim, cycles, feature.device)
        positions.append(position + encoder.level_embedding[level])
        # Every token looks around itself.
        centres.append(
            torch.tensor(
                [
                    ((x + 0.5) / width, (y + 0.5) / height)
                    for y in range(height)
                    for x in range(width)
                ]
            )
        )
    image, states = torch.cat(tokens, dim=1), text.tokens
    for layer in encoder.layers:
        image, states = layer.fusion(image, states, bias)
        states = layer.text_ffn(layer.text_attention(states, biases=(bias,)))
        image = layer.deformable(
            image, torch.cat(positions), torch.cat(centres), torch.tensor(sides, dtype=torch.int32)
        )
    height, width = sides[0]
    stride_8 = image[:, : height * width].transpose(1, 2).unflatten(2, (height, width))
    doubled = F.interpolate(stride_8, scale_factor=2, mode="bilinear", align_corners=False)
    return encoder.mask_features(encoder.fpn(encoder.lateral(features.res2) + doubled)), states


def test_the_encoder_is_its_stages_in_their_order(
    tiny_network: RvosNetwork, features: ImageFeatures, text: TextFeatures
) -> None:
    encoded = encode(tiny_network, features, text)
    with torch.no_grad():
        mask_features, states = plain_encode(tiny_network, features, text)
    torch.testing.assert_close(encoded.mask_features, mask_features, **ROUNDING)
    torch.testing.assert_close(encoded.text, states, **ROUNDING)


def test_one_frame_serves_several_texts(
    tiny_network: RvosNetwork, features: ImageFeatures, text: TextFeatures
) -> None:
    one = ImageFeatures(*(f[:1] for f in features))
    together = encode(tiny_network, one, text)
    repeated = encode(tiny_network, ImageFeatures(*(f.repeat(2, 1, 1, 1) for f in one)), text)
    assert_same(together, repeated)
    torch.testing.assert_close(together.text, repeated.text, **ROUNDING)
    for index in range(2):
        alone = encode(tiny_network, one, TextFeatures(*(x[index : index + 1] for x in text)))
        torch.testing.assert_close(
            alone.mask_features[0], together.mask_features[index], **ROUNDING
        )


def test_text_changes_the_image_and_padding_does_not(
    tiny_network: RvosNetwork, features: ImageFeatures, text: TextFeatures
) -> None:
    base = encode(tiny_network, features, text)
    garbage = text.tokens.masked_fill(text.padding[..., None], 50.0)
    padded = encode(tiny_network, features, text._replace(tokens=garbage))
    assert_same(padded, base)
    kept = ~text.padding
    torch.testing.assert_close(padded.text[kept], base.text[kept], **ROUNDING)
    other = encode(tiny_network, features, text._replace(tokens=text.tokens.flip(0)))
    assert (other.mask_features - base.mask_features).abs().max() > 1e-2


def test_the_image_changes_the_text(
    tiny_network: RvosNetwork, features: ImageFeatures, text: TextFeatures
) -> None:
    base = encode(tiny_network, features, text)
    other = encode(tiny_network, ImageFeatures(*(f.flip(0) for f in features)), text)
    assert (other.text - base.text).abs().max() > 1e-2


def test_without_fusion_text_and_image_are_independent(
    make_network: Callable[..., RvosNetwork], features: ImageFeatures, text: TextFeatures
) -> None:
    network = make_network(text_fusion=False).eval()
    base = encode(network, features, text)
    other = encode(network, features, text._replace(tokens=text.tokens.flip(0)))
    assert torch.equal(other.mask_features, base.mask_features)
    assert torch.equal(base.text, text.tokens)


def test_without_fusion_one_frame_is_encoded_once_for_all_texts(
    make_network: Callable[..., RvosNetwork], features: ImageFeatures, text: TextFeatures
) -> None:
    network = make_network(text_fusion=False).eval()
    one = ImageFeatures(*(f[:1] for f in features))
    assert [level.shape[0] for level in encode(network, one, text).levels] == [1, 1, 1]
    with torch.no_grad():
        shared = network.decode_frames(one, text)
        repeated = network.decode_frames(
            ImageFeatures(*(f.expand(2, -1, -1, -1) for f in one)), text
        )
    for ours, theirs in zip(shared, repeated, strict=True):
        torch.testing.assert_close(ours, theirs, **ROUNDING)


def test_positions_break_the_symmetry_of_a_flat_image(
    tiny_network: RvosNetwork, text: TextFeatures
) -> None:
    """In a flat image, every pixel away from the border still has a unique position."""
    channels = tiny_network.clip.image_channels
    flat = ImageFeatures(
        *(
            torch.ones(2, c, 64 // stride, 96 // stride) * torch.randn(c)[:, None, None]
            for c, stride in zip(channels, (4, 8, 16, 32), strict=True)
        )
    )
    stride_8: Tensor = encode(tiny_network, flat, text).levels[0][0]
    distance = torch.cdist(stride_8, stride_8) + 99 * torch.eye(96)
    assert distance.min() > 1e-3
