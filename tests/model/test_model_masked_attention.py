"""Test masked attention: the fast form against the plain one, the ramp, and mask positions."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from rvos_deploy.networks.modules.float32_islands import additive_mask
from rvos_deploy.networks.modules.position import sine_position_2d
from rvos_deploy.networks.pan2024.modules.clip import ImageFeatures, TextFeatures
from rvos_deploy.networks.pan2024.modules.cross_modal_encoder import EncodedFrame
from rvos_deploy.networks.pan2024.modules.frame_query_decoder import (
    HIDING_FLOOR,
    HIDING_SLOPE,
    DecodedFrame,
    FramePrediction,
    FrameQueryDecoder,
    QueryDescriptors,
    mask_position,
    pool_under_masks,
    ramped_bias,
    resize_mask_features,
)
from rvos_deploy.networks.pan2024.modules.network import RvosNetwork

SHAPES = [(8, 12), (4, 6), (2, 3)]
"""Strides 8, 16, 32 of a 64x96 frame."""


def plain_mask_logits(embeddings: Tensor, mask_features: Tensor, shape: tuple[int, int]) -> Tensor:
    """Compute every query's mask at stride 4, then resize: [B,N,S]."""
    masks = torch.einsum("bnc,bchw->bnhw", embeddings, mask_features)
    return F.interpolate(masks, size=shape, mode="bilinear", align_corners=False).flatten(2)


def hard_bias(logits: Tensor) -> Tensor:
    """Return Mask2Former's bias: hide below one half, unless that hides everything."""
    hidden = logits.sigmoid() < 0.5
    hidden = hidden & ~hidden.all(dim=-1, keepdim=True)
    return torch.zeros_like(logits).masked_fill(hidden, -torch.inf)


def plain_decode(
    decoder: FrameQueryDecoder,
    frame: EncodedFrame,
    text: TextFeatures,
    bias: Callable[[Tensor], Tensor],
) -> DecodedFrame:
    """Decode with every query's mask resized before every layer."""

    def predict(queries: Tensor) -> FramePrediction:
        normed = decoder.norm(queries)
        return FramePrediction(decoder.object_head(normed), decoder.mask_embedding(normed))

    queries = text.sentence[:, None].expand(-1, decoder.num_queries, -1)
    predictions = [predict(queries)]
    for index, layer in enumerate(decoder.layers):
        level = 2 - index % 3  # strides 32, 16, 8 in turn
        shape = frame.shapes[level]
        logits = plain_mask_logits(predictions[-1].mask_embeddings, frame.mask_features, shape)
        position = sine_position_2d(*shape, decoder.dim, decoder.position_cycles, logits.device)
        memory = frame.levels[level] + decoder.level_embedding[index % 3]
        where = decoder.query_position
        queries = layer.memory_attention(
            queries, memory, where, position.to(queries.dtype), (bias(logits)[:, None],)
        )
        text_bias = additive_mask(text.padding)[:, None, None]
        queries = layer.text_attention(queries, frame.text, where, biases=(text_bias,))
        queries = layer.ffn(layer.self_attention(queries, where))
        predictions.append(predict(queries))
    last = plain_mask_logits(predictions[-1].mask_embeddings, frame.mask_features, frame.shapes[1])
    assert decoder.mask_position is not None
    normed = decoder.norm(queries)
    position = mask_position(last, frame.shapes[1])
    objectness, nothing = predictions[-1].logits.unbind(dim=-1)
    score = (objectness - nothing).sigmoid()
    placed = torch.cat((2 * position[..., :2], (10 * position[..., 2:]).log()), dim=-1)
    placed = torch.cat((placed.to(score.dtype), 2 * score[..., None] - 1), dim=-1)
    tokens = normed * decoder.query_share + decoder.mask_position(placed)
    assert decoder.mask_content is not None
    contents = []
    for level, shape, feature in zip(
        decoder.mask_content.levels, frame.shapes, frame.image[1:], strict=True
    ):
        logits = plain_mask_logits(predictions[-1].mask_embeddings, frame.mask_features, shape)
        contents.append(plain_pool(logits.sigmoid(), feature))
        tokens = tokens + level(contents[-1])
    descriptors = QueryDescriptors(normed, position, torch.cat(contents, dim=-1), score)
    return DecodedFrame(tokens, predictions, descriptors)


@pytest.fixture
def decoder(tiny_network: RvosNetwork) -> FrameQueryDecoder:
    """Return the decoder in float64, where rounding is far below the differences of interest."""
    return copy.deepcopy(tiny_network.frame_decoder).double().requires_grad_(False)


@pytest.fixture
def frame(tiny_network: RvosNetwork, text: TextFeatures) -> EncodedFrame:
    dim = text.sentence.shape[1]
    return EncodedFrame(
        torch.randn(2, dim, 16, 24, dtype=torch.float64),
        [torch.randn(2, h * w, dim, dtype=torch.float64) for h, w in SHAPES],
        SHAPES,
        text.tokens.double(),
        ImageFeatures(
            torch.empty(0),
            *(
                torch.randn(2, width, *shape, dtype=torch.float64)
                for width, shape in zip(tiny_network.clip.image_channels[1:], SHAPES, strict=True)
            ),
        ),
    )


@pytest.fixture
def wide_text(text: TextFeatures) -> TextFeatures:
    return TextFeatures(text.tokens.double(), text.sentence.double(), text.padding)


@pytest.mark.parametrize("shape", [*SHAPES, (1, 1), (5, 7)])
def test_resized_features_give_resized_masks(shape: tuple[int, int]) -> None:
    features = torch.randn(2, 16, 16, 24, dtype=torch.float64)
    embeddings = torch.randn(2, 5, 16, dtype=torch.float64)
    shortcut = embeddings @ resize_mask_features(features, shape)
    # Float64; only the order of sums differs.
    torch.testing.assert_close(
        shortcut, plain_mask_logits(embeddings, features, shape), rtol=1e-11, atol=1e-12
    )


def test_the_decoder_equals_its_plain_form(
    decoder: FrameQueryDecoder, frame: EncodedFrame, wide_text: TextFeatures
) -> None:
    decoded = decoder(frame, wide_text.sentence, wide_text.padding)
    expected = plain_decode(decoder, frame, wide_text, ramped_bias)
    assert len(decoded.predictions) == len(decoder.layers) + 1
    # The bias and softmax are float32: logits of some tens carry 1e-6, times a slope of 20.
    tolerance = {"rtol": 0, "atol": 2e-4}
    torch.testing.assert_close(decoded.queries, expected.queries, **tolerance)
    for ours, plain in zip(decoded.predictions, expected.predictions, strict=True):
        torch.testing.assert_close(ours.logits, plain.logits, **tolerance)
        torch.testing.assert_close(ours.mask_embeddings, plain.mask_embeddings, **tolerance)
    for ours, plain in zip(decoded.descriptors, expected.descriptors, strict=True):
        torch.testing.assert_close(ours, plain, check_dtype=False, **tolerance)
    assert decoded.descriptors.position.dtype == decoded.descriptors.score.dtype == torch.float32


@pytest.mark.parametrize("fact", QueryDescriptors._fields)
def test_tokens_depend_on_every_descriptor(decoder: FrameQueryDecoder, fact: str) -> None:
    """A token depends on each number of its own slot, and on no other slot."""
    assert decoder.mask_content is not None
    sizes = {"queries": decoder.dim, "position": 5, "content": sum(decoder.mask_content.channels)}
    descriptors = QueryDescriptors(
        *(0.1 + torch.rand(2, 3, 4, sizes[name], dtype=torch.float64) for name in sizes),
        torch.rand(2, 3, 4),
    )
    told = decoder.tokens(descriptors)
    assert told.shape == (2, 3, 4, decoder.dim)
    assert told.dtype == torch.float64
    value = getattr(descriptors, fact)
    for place in [()] if fact == "score" else [(0,), (value.shape[-1] - 1,)]:
        other = value.clone()
        other[(1, 2, 3, *place)] += 0.5
        moved = (decoder.tokens(descriptors._replace(**{fact: other})) - told).abs().amax(dim=-1)
        assert moved[1, 2, 3] > 1e-4
        moved[1, 2, 3] = 0
        assert (moved == 0).all()


def test_with_decided_masks_the_decoder_is_mask2formers(
    decoder: FrameQueryDecoder, frame: EncodedFrame, wide_text: TextFeatures
) -> None:
    """With masks far from the threshold, the ramp equals the threshold."""
    last = decoder.mask_embedding[-1]
    last.weight.data *= 1e6
    last.bias.data *= 1e6
    decoded = decoder(frame, wide_text.sentence, wide_text.padding)
    hidden = torch.zeros(0)

    def bias(logits: Tensor) -> Tensor:
        nonlocal hidden
        # The premise: no pixel and no best pixel within the zone where the two differ.
        assert (logits.abs() > HIDING_FLOOR / HIDING_SLOPE).all()
        hidden = torch.cat((hidden, (hard_bias(logits) < 0).float().mean(-1).flatten()))
        return hard_bias(logits)

    expected = plain_decode(decoder, frame, wide_text, bias)
    assert ((hidden > 0) & (hidden < 1)).float().mean() > 0.5
    # Float32 softmax; a weight of e^-30 is 1e-13.
    torch.testing.assert_close(decoded.queries, expected.queries, rtol=0, atol=1e-4)
    for ours, plain in zip(decoded.predictions, expected.predictions, strict=True):
        torch.testing.assert_close(ours.logits, plain.logits, rtol=0, atol=1e-4)


def test_the_bias_is_mask2formers_mask_away_from_the_threshold() -> None:
    logits = torch.randn(4, 30, 50) * 20
    logits = logits.sign() * (logits.abs() + HIDING_FLOOR / HIDING_SLOPE)
    logits[0, :5] = -logits[0, :5].abs()  # nothing to see
    logits[0, 5:9] = logits[0, 5:9].abs()  # everything to see
    bias = ramped_bias(logits)
    hard = hard_bias(logits)
    assert (bias[hard == 0] == 0).all()
    assert (bias[hard < 0] == -HIDING_FLOOR).all()
    # As weights of an attention: what is hidden has e^-30 of what is seen.
    scores = torch.randn(4, 30, 50, dtype=torch.float64)
    torch.testing.assert_close(
        torch.softmax(scores + bias, -1), torch.softmax(scores + hard, -1), rtol=1e-9, atol=1e-9
    )


@pytest.mark.parametrize("best", [-1.0, -1.001, -5.0, -1e4])
def test_a_row_that_would_hide_everything_hides_nothing(best: float) -> None:
    logits = best - torch.rand(2, 3, 40) * 7
    logits[..., 17] = best
    assert (ramped_bias(logits) == 0).all()


def test_the_bias_of_one_query_does_not_affect_another() -> None:
    logits = torch.full((1, 2, 4), -9.0)
    logits[0, 1, 2] = 9.0
    assert ramped_bias(logits).tolist() == [[[0, 0, 0, 0], [-30, -30, 0, -30]]]


def test_the_bias_starts_and_ends_gradually() -> None:
    logits = torch.tensor([[[3.0, 0.0, -0.05, -0.5, -1.5, -9.0], [-0.25] * 5 + [-9.0]]])
    expected = torch.tensor([[[0.0, 0.0, -1.0, -10.0, -30.0, -30.0], [-3.75] * 5 + [-22.5]]])
    # Exact but for one product of float32.
    torch.testing.assert_close(ramped_bias(logits), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("size", [0.02, 0.3, 1.0, 10.0])
def test_close_logits_give_close_biases(size: float) -> None:
    """The change is at most slope + floor times the input's, so there is no jump."""
    logits = size * torch.randn(8, 40, 25) - torch.linspace(0, 2, 40)[None, :, None]
    logits[0, :, 0] = 0.0  # exactly on the threshold
    logits[1] = logits[1] - logits[1].amax(-1, keepdim=True)  # best pixel exactly at 0
    logits[2] = logits[2] - logits[2].amax(-1, keepdim=True) - 1  # and exactly at -1
    for eps in (1e-3, 1e-4):
        change = eps * (2 * torch.rand_like(logits) - 1)
        difference = (ramped_bias(logits + change) - ramped_bias(logits)).abs().max()
        # Float32 rounding: logits of up to 30 carry 2e-6, times 50.
        assert difference <= (HIDING_SLOPE + HIDING_FLOOR) * eps + 2e-4


def test_the_bias_is_float32_without_gradient() -> None:
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        logits = torch.randn(1, 2, 9, dtype=dtype, requires_grad=True)
        bias = ramped_bias(logits)
        assert bias.dtype == torch.float32
        assert not bias.requires_grad
        assert (bias <= 0).all()


# float32: the variance is a difference of numbers of order one (1e-7), 1e-6 is added under the
# root, and a box's logits of +-50 are not infinite.
POSITION = {"rtol": 0, "atol": 2e-4}


def box(shape: tuple[int, int], rows: slice, columns: slice) -> Tensor:
    """Return mask logits [1,1,S] of a box."""
    logits = torch.full(shape, -50.0)
    logits[rows, columns] = 50.0
    return logits.flatten()[None, None]


def uniform_extent(pixels: int, side: int) -> float:
    """Return the standard deviation of ``pixels`` adjacent pixel centres, in half images."""
    return math.sqrt((pixels**2 - 1) / 12) * 2 / side


@pytest.mark.parametrize("shape", [(8, 12), (12, 8), (5, 5), (16, 28)])
def test_position_of_a_box(shape: tuple[int, int]) -> None:
    height, width = shape
    where = mask_position(box(shape, slice(1, 4), slice(2, 4)), shape)
    assert where.shape == (1, 1, 5)
    assert where.dtype == torch.float32
    expected = [
        2 * 3.0 / width - 1,
        2 * 2.5 / height - 1,
        uniform_extent(2, width),
        uniform_extent(3, height),
        math.sqrt(6 / (height * width)),
    ]
    torch.testing.assert_close(where[0, 0], torch.tensor(expected), **POSITION)


@pytest.mark.parametrize("shape", [(4, 6), (1, 1), (28, 50)])
def test_position_of_everything_nothing_and_one_half(shape: tuple[int, int]) -> None:
    height, width = shape
    extent = [uniform_extent(width, width), uniform_extent(height, height)]
    # Where the extent or the area is 0, its root of 1e-6 shows.
    extent = [math.sqrt(e**2 + 1e-6) for e in extent]
    everything = mask_position(torch.full((1, 1, height * width), 50.0), shape)
    torch.testing.assert_close(everything[0, 0], torch.tensor([0, 0, *extent, 1]), **POSITION)
    undecided = mask_position(torch.zeros(1, 1, height * width), shape)
    torch.testing.assert_close(
        undecided[0, 0], torch.tensor([0, 0, *extent, math.sqrt(0.5)]), **POSITION
    )
    for emptiness in (-50.0, -100.0, -1e4):
        nothing = mask_position(torch.full((1, 1, height * width), emptiness), shape)
        torch.testing.assert_close(
            nothing[0, 0], torch.tensor([0, 0, 1e-3, 1e-3, 1e-3]), **POSITION
        )


def test_position_of_one_corner_pixel_for_each_query() -> None:
    shape = (4, 8)
    logits = torch.cat(
        [box(shape, slice(0, 1), slice(7, 8)), box(shape, slice(3, 4), slice(0, 1))], dim=1
    )
    where = mask_position(logits, shape)[0]
    tail = [1e-3, 1e-3, math.sqrt(1 / 32)]
    # Of a variance of 0, next to squares of order one, float32 leaves 2e-7: its root is 5e-4.
    close = {"rtol": 0, "atol": 5e-4}
    torch.testing.assert_close(where[0], torch.tensor([7 / 8, -3 / 4, *tail]), **close)
    torch.testing.assert_close(where[1], torch.tensor([-7 / 8, 3 / 4, *tail]), **close)


def plain_pool(weights: Tensor, features: Tensor) -> Tensor:
    """Compute weighted means [B,N,K] of weights [B,N,S] and features [B,K,H,W] one by one."""
    pixels = features.flatten(2)
    return torch.stack(
        [
            torch.stack([(pixels[b] * row).sum(dim=1) / row.sum() for row in weights[b]])
            for b in range(len(weights))
        ]
    )


def test_content_is_the_mean_under_the_mask() -> None:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(2, 5, 4, 6, generator=generator)
    logits = torch.cat(
        [box((4, 6), slice(1, 3), slice(2, 5)), box((4, 6), slice(3, 4), slice(5, 6))], dim=1
    ).expand(2, -1, -1)
    found = pool_under_masks(logits, features)
    torch.testing.assert_close(found[:, 0], features[..., 1:3, 2:5].mean(dim=(2, 3)), **POSITION)
    torch.testing.assert_close(found[:, 1], features[..., 3, 5], **POSITION)
    # By degrees, and with features that all share.
    soft = 3 * torch.randn(2, 3, 24, generator=generator, dtype=torch.float64)
    shared = torch.randn(1, 5, 4, 6, generator=generator, dtype=torch.float64)
    expected = plain_pool(soft.sigmoid(), shared.expand(2, -1, -1, -1))
    torch.testing.assert_close(pool_under_masks(soft, shared), expected, rtol=0, atol=1e-5)


def test_content_under_no_mask_is_finite_and_small() -> None:
    features = torch.randn(1, 5, 4, 6, generator=torch.Generator().manual_seed(0))
    for emptiness in (-50.0, -1e4):
        logits = torch.full((1, 2, 24), emptiness, requires_grad=True)
        found = pool_under_masks(logits, features)
        assert found.abs().max() < 1e-3
        found.sum().backward()
        assert logits.grad is not None
        assert logits.grad.isfinite().all()


def test_positions_gradient_is_finite_for_every_mask() -> None:
    for logits in (torch.full((1, 1, 24), -100.0), box((4, 6), slice(2, 3), slice(5, 6))):
        logits.requires_grad_()
        mask_position(logits, (4, 6)).sum().backward()
        assert logits.grad is not None
        assert logits.grad.isfinite().all()
