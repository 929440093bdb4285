"""Test deformable attention against a loop over every sample."""

from __future__ import annotations

import itertools
import math
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from rvos_deploy.networks.modules.ms_deform_attn import ms_deform_attn
from rvos_deploy.networks.pan2024.modules.deformable_attention import DeformableAttentionLayer

# Both sides are float64 and differ in the order of a few sums only; coordinates up to some hundred
# pixels are interpolated, so that their rounding (1e-14) is scaled by values of order one.
FLOAT64 = {"rtol": 1e-10, "atol": 1e-11}


class Inputs(NamedTuple):
    value: Tensor
    level_shapes: Tensor
    reference_points: Tensor
    sampling_offsets: Tensor
    attention_logits: Tensor


def make_inputs(
    shapes: list[tuple[int, int]],
    batch: int = 2,
    queries: int = 5,
    heads: int = 3,
    head_dim: int = 2,
    points: int = 4,
    spread: float = 1.5,
    dtype: torch.dtype = torch.float64,
) -> Inputs:
    """Return random inputs; ``spread`` is the standard deviation of the offsets in pixels."""
    area, levels = sum(h * w for h, w in shapes), len(shapes)
    return Inputs(
        torch.randn(batch, area, heads, head_dim, dtype=dtype),
        torch.tensor(shapes, dtype=torch.int32),
        torch.rand(queries, 2, dtype=torch.promote_types(dtype, torch.float32)),
        torch.randn(batch, queries, heads, levels, points, 2, dtype=dtype) * spread,
        torch.randn(batch, queries, heads, levels * points, dtype=dtype),
    )


def one_by_one(inputs: Inputs) -> Tensor:
    """Compute every sample in float64 from four neighbours, which are 0 outside the map."""
    value, shapes, reference, offsets, logits = (x.double().numpy() for x in inputs)
    batch, queries, heads, levels, points, _ = offsets.shape
    output = np.zeros((batch, queries, heads, value.shape[3]))
    starts = np.concatenate(([0], np.cumsum(shapes[:, 0] * shapes[:, 1]))).astype(int)
    for b, q, head in itertools.product(range(batch), range(queries), range(heads)):
        weights = np.exp(logits[b, q, head] - logits[b, q, head].max())
        weights = (weights / weights.sum()).reshape(levels, points)
        for level, point in itertools.product(range(levels), range(points)):
            height, width = (int(side) for side in shapes[level])
            # From 0..1 to pixels whose centres have whole numbers.
            x = reference[q, 0] * width + offsets[b, q, head, level, point, 0] - 0.5
            y = reference[q, 1] * height + offsets[b, q, head, level, point, 1] - 0.5
            left, top = math.floor(x), math.floor(y)
            for row, column in itertools.product((top, top + 1), (left, left + 1)):
                if 0 <= row < height and 0 <= column < width:
                    share = (1 - abs(x - column)) * (1 - abs(y - row))
                    pixel = value[b, starts[level] + row * width + column, head]
                    output[b, q, head] += weights[level, point] * share * pixel
    return torch.from_numpy(output.reshape(batch, queries, -1))


SHAPES = {
    "one level": [(4, 6)],
    "three levels": [(6, 10), (3, 5), (2, 3)],
    "one pixel": [(1, 1)],
    "one-pixel levels between others": [(1, 1), (3, 4), (1, 1)],
    "a row and a column": [(1, 7), (7, 1)],
    "odd and unequal": [(7, 3), (5, 9), (3, 1)],
    "small before large": [(2, 2), (5, 7)],
}


@pytest.mark.parametrize("spread", [0.3, 2.0, 50.0])
@pytest.mark.parametrize("shapes", SHAPES.values(), ids=SHAPES.keys())
def test_equals_a_direct_loop(shapes: list[tuple[int, int]], spread: float) -> None:
    inputs = make_inputs(shapes, spread=spread)
    output = ms_deform_attn(*inputs)
    assert output.dtype == torch.float64
    torch.testing.assert_close(output, one_by_one(inputs), **FLOAT64)


@pytest.mark.parametrize(
    ("batch", "queries", "heads", "head_dim", "points"),
    [(1, 1, 1, 1, 1), (3, 2, 1, 5, 1), (1, 7, 8, 1, 2), (2, 1, 2, 3, 7)],
)
def test_any_number_of_batches_queries_heads_and_points(
    batch: int, queries: int, heads: int, head_dim: int, points: int
) -> None:
    inputs = make_inputs([(3, 4), (2, 5)], batch, queries, heads, head_dim, points)
    output = ms_deform_attn(*inputs)
    assert output.shape == (batch, queries, heads * head_dim)
    torch.testing.assert_close(output, one_by_one(inputs), **FLOAT64)


def test_on_borders_corners_pixel_centres_and_between() -> None:
    """The lattice of half pixels reaches a pixel and a half beyond the map."""
    height, width = 2, 4
    lattice = [(x / 2, y / 2) for x, y in itertools.product(range(-3, 2 * width + 4), range(-3, 8))]
    inputs = make_inputs([(height, width)], 1, len(lattice), heads=1, head_dim=3, points=1)
    # Reference points at 0, so that offsets are the coordinates, exact in binary.
    inputs = inputs._replace(
        reference_points=torch.zeros(len(lattice), 2, dtype=torch.float64),
        sampling_offsets=torch.tensor(lattice, dtype=torch.float64).view(1, -1, 1, 1, 1, 2),
    )
    output = ms_deform_attn(*inputs)
    torch.testing.assert_close(output, one_by_one(inputs), **FLOAT64)
    pixels = inputs.value[0, :, 0].view(height, width, 3)
    at = {place: output[0, index] for index, place in enumerate(lattice)}
    # On a pixel's centre: that pixel alone. On the map's edge: half of it. Half a pixel on: 0.
    torch.testing.assert_close(at[2.5, 1.5], pixels[1, 2], **FLOAT64)
    torch.testing.assert_close(at[0.0, 0.5], pixels[0, 0] / 2, **FLOAT64)
    torch.testing.assert_close(at[4.0, 2.0], pixels[1, 3] / 4, **FLOAT64)
    torch.testing.assert_close(at[-0.5, 0.5], torch.zeros(3, dtype=torch.float64), **FLOAT64)
    torch.testing.assert_close(at[4.5, 1.0], torch.zeros(3, dtype=torch.float64), **FLOAT64)


@pytest.mark.parametrize("distance", [1e3, 1e6, 1e9])
def test_points_far_outside_give_zero(distance: float) -> None:
    inputs = make_inputs([(4, 6), (2, 3)], points=2)
    offsets = inputs.sampling_offsets.clone()
    offsets[:, :, :, :, 1] = distance * offsets[:, :, :, :, 1].sign()
    inputs = inputs._replace(sampling_offsets=offsets)
    # A coordinate of 1e9 pixels would keep 1e-7 of a pixel; all such samples are 0 all the same.
    torch.testing.assert_close(ms_deform_attn(*inputs), one_by_one(inputs), **FLOAT64)
    everything_far = inputs._replace(sampling_offsets=torch.full_like(offsets, -distance))
    assert (ms_deform_attn(*everything_far) == 0).all()


@pytest.mark.parametrize("size", [1e2, 1e4, 1e30])
def test_huge_logits(size: float) -> None:
    inputs = make_inputs([(4, 6), (3, 3)])
    inputs = inputs._replace(attention_logits=inputs.attention_logits * size)
    output = ms_deform_attn(*inputs)
    assert output.isfinite().all()
    torch.testing.assert_close(output, one_by_one(inputs), **FLOAT64)


def test_one_softmax_over_all_levels_and_points() -> None:
    """Inside constant maps the weights sum to one, so the result is the constant."""
    inputs = make_inputs([(9, 9), (9, 9)], spread=0.1)
    inputs = inputs._replace(
        value=torch.full_like(inputs.value, 3.0),
        reference_points=torch.full_like(inputs.reference_points, 0.5),
    )
    expected = torch.full((2, 5, 6), 3.0, dtype=torch.float64)
    torch.testing.assert_close(ms_deform_attn(*inputs), expected, **FLOAT64)


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [
        # Float32 coordinates of about 10 pixels keep 1e-6 of a pixel.
        (torch.float32, 2e-5),
        # The sums are float32; the result, about 1 in size, is rounded to the type once.
        (torch.float16, 2e-3),
        (torch.bfloat16, 2e-2),
    ],
)
def test_narrow_types_compute_in_float32(dtype: torch.dtype, tolerance: float) -> None:
    inputs = make_inputs([(6, 10), (3, 5)], dtype=dtype)
    output = ms_deform_attn(*inputs)
    assert output.dtype == dtype
    torch.testing.assert_close(output.double(), one_by_one(inputs), rtol=0, atol=tolerance)


def test_gradients_are_those_of_finite_differences() -> None:
    inputs = make_inputs([(3, 5), (2, 1)], batch=2, queries=3, heads=2, head_dim=2, points=2)
    wanted = [inputs.value, *inputs[2:]]
    for tensor in wanted:
        tensor.requires_grad_()

    def operator(value: Tensor, *rest: Tensor) -> Tensor:
        return ms_deform_attn(value, inputs.level_shapes, *rest)

    assert torch.autograd.gradcheck(operator, wanted)


def test_heads_are_initialised_with_different_directions() -> None:
    layer = DeformableAttentionLayer(dim=32, num_heads=8, levels=3, points=4, ffn_dim=64)
    assert (layer.sampling_offsets.weight == 0).all()
    offsets = layer.sampling_offsets.bias.detach().view(8, 3, 4, 2)
    assert torch.equal(offsets[:, 0], offsets[:, 2])
    length = offsets[:, 0].abs().amax(-1)
    # Rounding of a sine and a division.
    torch.testing.assert_close(length, torch.arange(1.0, 5.0).expand(8, 4), rtol=1e-5, atol=1e-6)
    first = offsets[:, 0, 0]
    assert torch.cdist(first, first).add(torch.eye(8) * 9).min() > 0.5


def test_the_layer_is_the_operator_with_its_projections() -> None:
    layer = DeformableAttentionLayer(dim=8, num_heads=2, levels=2, points=3, ffn_dim=16).double()
    for parameter in layer.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    shapes = torch.tensor([[2, 3], [1, 2]], dtype=torch.int32)
    tokens, position = (torch.randn(n, 8, 8, dtype=torch.float64) for n in (2, 1))
    reference = torch.rand(8, 2, dtype=torch.float64)
    # Positions go into where and how much to look, not into what is read.
    placed = tokens + position
    with torch.no_grad():
        inputs = Inputs(
            layer.value(tokens).view(2, 8, 2, 4),
            shapes,
            reference,
            layer.sampling_offsets(placed).view(2, 8, 2, 2, 3, 2),
            layer.attention_logits(placed).view(2, 8, 2, 6),
        )
    read = one_by_one(inputs)
    expected = layer.ffn(layer.norm(tokens + layer.output(read)))
    torch.testing.assert_close(layer(tokens, position, reference, shapes), expected, **FLOAT64)
