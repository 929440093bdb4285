"""Test the mask head's folded convolution, and the union of masks."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from rvos_deploy.networks.pan2024.modules.mask_head import EMPTY_LOGIT, MaskHead, unite_masks
from rvos_deploy.networks.pan2024.modules.network import referred_scores


def test_folding_gives_the_convolutions_logits() -> None:
    head = MaskHead(32).double().requires_grad_(False)
    head.projection.bias.copy_(torch.randn(32))
    embeddings = torch.randn(2, 5, 32, dtype=torch.float64)
    features = torch.randn(2, 32, 7, 9, dtype=torch.float64)
    projected = F.conv2d(features, head.projection.weight[:, :, None, None], head.projection.bias)
    expected = torch.einsum("bnc,bchw->bnhw", embeddings, projected)
    logits = head(embeddings, features)
    assert logits.shape == (2, 5, 7, 9)
    # The result is given in float32.
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits.double(), expected, rtol=1e-6, atol=1e-5)


def test_frame_mask_embeddings_are_added_after_the_convolution() -> None:
    head = MaskHead(32).double().requires_grad_(False)
    embeddings, of_frame = torch.randn(2, 2, 5, 32, dtype=torch.float64)
    features = torch.randn(2, 32, 7, 9, dtype=torch.float64)
    expected = head(embeddings, features).double()
    expected = expected + torch.einsum("bnc,bchw->bnhw", of_frame, features)
    logits = head(embeddings, features, of_frame).double()
    torch.testing.assert_close(logits, expected, rtol=1e-6, atol=1e-5)


def test_any_leading_axes_and_shared_features() -> None:
    """Training has axes [B,T,...]; in a stream all expressions share one frame's features."""
    head = MaskHead(16).requires_grad_(False)
    embeddings, features = torch.randn(2, 3, 5, 16), torch.randn(2, 3, 16, 4, 6)
    logits = head(embeddings, features)
    assert logits.shape == (2, 3, 5, 4, 6)
    shared = head(embeddings[:, 0], features[:1, 0])
    # A batched product may sum in another order.
    close = {"rtol": 1e-5, "atol": 1e-5}
    for b in range(2):
        for t in range(3):
            alone = head(embeddings[b : b + 1, t], features[b : b + 1, t])[0]
            torch.testing.assert_close(logits[b, t], alone, **close)
        alone = head(embeddings[b : b + 1, 0], features[:1, 0])[0]
        torch.testing.assert_close(shared[b], alone, **close)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_narrow_features_give_float32_logits(dtype: torch.dtype) -> None:
    head = MaskHead(16).requires_grad_(False).to(dtype)
    logits = head(torch.randn(1, 2, 16, dtype=dtype), torch.randn(1, 16, 4, 4, dtype=dtype))
    assert logits.dtype == torch.float32


def test_the_union_is_the_maximum_over_passing_queries() -> None:
    logits = torch.randn(3, 4, 5, 6)
    scores = torch.tensor(
        [
            [0.9, 0.1, 0.6, 0.5],  # at the threshold is not above it
            [0.2, 0.3, 0.1, 0.0],  # nobody passes
            [0.2, 0.3, 0.1, 0.0],  # the same scores, a lower threshold
        ]
    )
    united = unite_masks(logits, scores, torch.tensor([0.5, 0.5, 0.15]))
    assert united.shape == (3, 5, 6)
    assert united.dtype == torch.float32
    assert torch.equal(united[0], torch.maximum(logits[0, 0], logits[0, 2]))
    assert (united[1] == EMPTY_LOGIT).all()
    assert torch.equal(united[2], torch.maximum(logits[2, 0], logits[2, 1]))
    # A union of probabilities: nothing is visible where nobody passes.
    assert (united[1].sigmoid() == 0).all() or float(united[1].sigmoid().max()) < 1e-38


def test_the_union_of_all_queries() -> None:
    logits = torch.randn(1, 20, 3, 3)
    united = unite_masks(logits, torch.full((1, 20), 0.7), torch.tensor([0.0]))
    assert torch.equal(united, logits.amax(1))


def test_a_passing_mask_without_foreground_stays_background() -> None:
    logits = torch.full((1, 2, 2, 2), -3.0)
    united = unite_masks(logits, torch.tensor([[0.9, 0.1]]), torch.tensor([0.5]))
    assert (united == -3.0).all()


def test_scores_are_the_probability_of_being_referred_to() -> None:
    logits = torch.tensor([[[0.0, 0.0], [2.0, 0.0], [-100.0, 100.0]]], dtype=torch.float16)
    scores = referred_scores(logits)
    assert scores.dtype == torch.float32
    expected = torch.tensor([[0.5, 1 / (1 + torch.e**-2), 0.0]])
    torch.testing.assert_close(scores, expected)
