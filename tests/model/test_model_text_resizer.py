"""The text resizers: a linear layer and a norm each, for tokens and for the sentence."""

from __future__ import annotations

import torch

from rvos_deploy.model.clip import TextFeatures
from rvos_deploy.model.text_resizer import TextResizer


def test_tokens_and_sentence_are_resized_and_normed_apart() -> None:
    resizer = TextResizer(text_width=12, embed_dim=10, dim=16).double().requires_grad_(False)
    for parameter in resizer.parameters():
        parameter += 0.1 * torch.randn_like(parameter)
    text = TextFeatures(
        torch.randn(2, 5, 12, dtype=torch.float64),
        torch.randn(2, 10, dtype=torch.float64),
        torch.zeros(2, 5, dtype=torch.bool),
    )
    resized = resizer(text)
    assert resized.padding is text.padding
    for given, made, (linear, norm) in (
        (text.tokens, resized.tokens, resizer.tokens),
        (text.sentence, resized.sentence, resizer.sentence),
    ):
        wide = given @ linear.weight.T + linear.bias
        centred = wide - wide.mean(-1, keepdim=True)
        spread = (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
        # Float64; only the order of sums differs.
        torch.testing.assert_close(
            made, centred / spread * norm.weight + norm.bias, rtol=1e-10, atol=1e-12
        )
