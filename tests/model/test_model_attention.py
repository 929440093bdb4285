"""Test attention against PyTorch's, hidden keys, and positions against loops."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from rvos_deploy.networks.modules.float32_islands import additive_mask, softmax
from rvos_deploy.networks.modules.position import pixel_centres, sine_position_2d, temporal_position
from rvos_deploy.networks.pan2024.modules.attention import (
    CrossAttentionLayer,
    Mlp,
    MultiHeadAttention,
    SelfAttentionLayer,
)

# Float32 softmax inside, so float64 inputs do not help: sums of tens of terms of order one.
FLOAT32 = {"rtol": 1e-5, "atol": 2e-6}


def test_attention_equals_pytorchs() -> None:
    attention = MultiHeadAttention(dim=24, num_heads=3)
    for parameter in attention.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    query, key, value = torch.randn(2, 4, 24), torch.randn(2, 6, 24), torch.randn(2, 6, 24)
    bias = torch.randn(2, 3, 4, 6)

    def heads(x: torch.Tensor) -> torch.Tensor:
        return x.view(2, -1, 3, 8).transpose(1, 2)

    cases: tuple[tuple[torch.Tensor, ...], ...] = (
        (),
        (bias,),
        (bias[:, :1],),
        (bias[:1, :, :1],),
        (bias[:1, :, :1], bias[:, :1]),
    )
    for given in cases:
        plain = F.scaled_dot_product_attention(
            heads(attention.query(query)),
            heads(attention.key(key)),
            heads(attention.value(value)),
            attn_mask=sum(given[1:], given[0]) if given else None,
        )
        expected = attention.output(plain.transpose(1, 2).reshape(2, 4, 24))
        torch.testing.assert_close(attention(query, key, value, *given), expected, **FLOAT32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_hidden_keys_have_no_weight(dtype: torch.dtype) -> None:
    bias = additive_mask(torch.tensor([[False, True, False], [True, True, True]])).to(dtype)
    assert bias.isfinite().all()
    # Visible keys at logits that a network can reach, hidden ones far above them.
    logits = torch.tensor([[-40.0, 50.0, -40.0], [1.0, 1.0, 1.0]], dtype=dtype) + bias
    weights = softmax(logits)
    assert weights.dtype == dtype
    assert weights[0].tolist() == [0.5, 0.0, 0.5]
    # Nothing to see is no NaN.
    torch.testing.assert_close(weights[1], torch.full((3,), 1 / 3, dtype=dtype))


def test_hidden_keys_do_not_matter() -> None:
    attention = MultiHeadAttention(dim=16, num_heads=2)
    query, key = torch.randn(1, 3, 16), torch.randn(1, 7, 16)
    bias = additive_mask(torch.arange(7) >= 4)
    # A longer row of exact zeros: only the order of sums may differ.
    expected = attention(query, key[:, :4], key[:, :4])
    torch.testing.assert_close(attention(query, key, key, bias), expected, **FLOAT32)
    garbage = key.clone()
    garbage[:, 4:] = 1e3
    assert torch.equal(attention(query, garbage, garbage, bias), attention(query, key, key, bias))


def test_positions_affect_attention_weights_but_not_values() -> None:
    layer = SelfAttentionLayer(16, 2)
    same = torch.ones(1, 5, 16) * torch.randn(16)
    # Equal tokens give equal answers wherever they stand, since values carry no position.
    torch.testing.assert_close(layer(same, torch.randn(5, 16)), layer(same), **FLOAT32)
    tokens = torch.randn(1, 5, 16)
    assert (layer(tokens, torch.randn(5, 16)) - layer(tokens)).abs().max() > 1e-2


def test_cross_attention_puts_positions_on_queries_and_keys_only() -> None:
    layer = CrossAttentionLayer(16, 2)
    queries, memory = torch.randn(2, 3, 16), torch.randn(2, 7, 16)
    where, memory_where, bias = torch.randn(3, 16), torch.randn(7, 16), torch.randn(2, 1, 3, 7)
    read = layer.attention(queries + where, memory + memory_where, memory, bias)
    assert torch.equal(
        layer(queries, memory, where, memory_where, (bias,)), layer.norm(queries + read)
    )
    read = layer.attention(queries + where, memory, memory)
    assert torch.equal(layer(queries, memory, where), layer.norm(queries + read))


def test_mlp_has_relu_between_its_layers_only() -> None:
    mlp = Mlp(4, 8, 8, 3)
    assert [type(part).__name__ for part in mlp] == ["Linear", "ReLU", "Linear", "ReLU", "Linear"]
    assert (mlp(torch.randn(50, 4)) < 0).any()


@pytest.mark.parametrize("cycles", [1.0, 4.0])
@pytest.mark.parametrize(("height", "width", "dim"), [(3, 5, 16), (1, 1, 8), (2, 7, 12)])
def test_sine_positions_against_a_loop(height: int, width: int, dim: int, cycles: float) -> None:
    position = sine_position_2d(height, width, dim, cycles, torch.device("cpu"))
    assert position.shape == (height * width, dim)
    half = dim // 2
    for row in range(height):
        for column in range(width):
            sides = ((row + 0.5) / height, (column + 0.5) / width)
            expected = []
            for side in sides:  # y first, then x
                for i in range(half):
                    angle = 2 * math.pi * cycles * side / 10000 ** (2 * (i // 2) / half)
                    expected.append(math.cos(angle) if i % 2 else math.sin(angle))
            # Float32 angles up to 25 carry 2e-6.
            torch.testing.assert_close(
                position[row * width + column], torch.tensor(expected), rtol=0, atol=1e-5
            )


def test_pixel_centres_are_x_then_y_row_by_row() -> None:
    centres = pixel_centres(2, 4, torch.device("cpu"))
    assert centres.tolist() == [[(x + 0.5) / 4, (y + 0.5) / 2] for y in range(2) for x in range(4)]


def test_every_age_has_a_different_position() -> None:
    position = temporal_position(torch.arange(300), 128)
    assert position.shape == (300, 128)
    expected = [
        (math.cos if i % 2 else math.sin)(7 / 10000 ** (2 * (i // 2) / 128)) for i in range(128)
    ]
    torch.testing.assert_close(position[7], torch.tensor(expected), rtol=0, atol=1e-6)
    distance = torch.cdist(position, position) + 9 * torch.eye(300)
    assert distance.min() > 0.5
    # Whole and broken types of ages agree, and a batch is as good as a row.
    as_float = temporal_position(torch.arange(300.0).view(3, 100), 128)
    assert torch.equal(as_float.flatten(0, 1), position)
