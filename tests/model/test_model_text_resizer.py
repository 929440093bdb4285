"""Test the text resizers: a linear layer and a norm for tokens, words and sentence."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor, nn

from rvos_deploy.networks.pan2024.config import PRESETS, preset
from rvos_deploy.networks.pan2024.modules.clip import TextFeatures
from rvos_deploy.networks.pan2024.modules.network import RvosNetwork
from rvos_deploy.networks.pan2024.modules.text_resizer import TextResizer

MakeNetwork = Callable[..., RvosNetwork]
TokenIds = Callable[[Sequence[int], int], Tensor]

# Float64; only the order of sums differs.
EXACT = {"rtol": 1e-10, "atol": 1e-12}


def resized(given: Tensor, layers: nn.Sequential) -> Tensor:
    """Compute a linear layer and LayerNorm."""
    linear, norm = layers
    wide = given @ linear.weight.T
    if linear.bias is not None:
        wide = wide + linear.bias
    centred = wide - wide.mean(-1, keepdim=True)
    spread = (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    return centred / spread * norm.weight + norm.bias


def make_resizer(*, words: bool) -> TextResizer:
    """Return a resizer in float64, with no number 0 or 1."""
    resizer = TextResizer(text_width=12, embed_dim=10, dim=16, words=words)
    resizer = resizer.double().requires_grad_(False)
    for parameter in resizer.parameters():
        parameter += 0.1 * torch.randn_like(parameter)
    return resizer


def make_text() -> TextFeatures:
    return TextFeatures(
        torch.randn(2, 5, 12, dtype=torch.float64),
        torch.randn(2, 10, dtype=torch.float64),
        torch.zeros(2, 5, dtype=torch.bool),
    )


def test_tokens_and_sentence_have_separate_layers() -> None:
    resizer, text = make_resizer(words=False), make_text()
    made = resizer(text)
    assert made.padding is text.padding
    torch.testing.assert_close(made.tokens, resized(text.tokens, resizer.tokens), **EXACT)
    torch.testing.assert_close(made.sentence, resized(text.sentence, resizer.sentence), **EXACT)


def test_words_have_separate_layers_and_are_added_to_the_tokens() -> None:
    """CLIP initialises embeddings at 0.02; the norm makes them as large as tokens."""
    resizer, text = make_resizer(words=True), make_text()
    words = 0.02 * torch.randn(2, 5, 12, dtype=torch.float64)
    made = resizer(text, words)
    assert made.padding is text.padding
    expected = resized(text.tokens, resizer.tokens) + resized(words, resizer.words)
    torch.testing.assert_close(made.tokens, expected, **EXACT)
    torch.testing.assert_close(made.sentence, resized(text.sentence, resizer.sentence), **EXACT)
    # The premise: each part has a say, and a bias would have drowned the words.
    assert resized(words, resizer.words).std() > 0.5
    assert resizer.words[0].bias is None


def test_only_the_preset_with_the_short_training_reads_words() -> None:
    assert [name for name in PRESETS if preset(name).text_words] == ["tiny"]


@pytest.mark.parametrize("text_words", [True, False])
@torch.no_grad()
def test_a_network_reads_the_word_embeddings_of_its_text_tower(
    make_network: MakeNetwork, token_ids: TokenIds, text_words: bool
) -> None:
    """The preset tiny runs with and without word embeddings."""
    network = make_network(**({} if text_words else {"text_words": False})).eval()
    resizer, ids = network.text_resizer, token_ids([7, 2], 12)
    said = network.clip.text_features(ids)
    expected = resized(said.tokens, resizer.tokens)
    if text_words:
        table = network.clip.model.token_embedding.weight
        words = torch.stack([torch.stack([table[number] for number in row]) for row in ids])
        expected = expected + resized(words, resizer.words)
    else:
        assert resizer.words is None
    made = network.encode_text(ids)
    # Float32 sums of 128 products, of norms near 1.
    torch.testing.assert_close(made.tokens, expected, rtol=0, atol=2e-5)
    torch.testing.assert_close(
        made.sentence, resized(said.sentence, resizer.sentence), rtol=0, atol=2e-5
    )
    assert torch.equal(made.padding, said.padding)


@torch.no_grad()
def test_words_are_independent(make_network: MakeNetwork, token_ids: TokenIds) -> None:
    """Another first word changes all later tokens of the tower, and only its own embedding."""
    network, ids = make_network().eval(), token_ids([7], 12)
    other = ids.clone()
    other[0, 1] = ids[0, 1] % 1000 + 1
    resizer = network.text_resizer
    assert resizer.words is not None
    changed = {}
    for name, part in (("words", resizer.words), ("tokens", resizer.tokens)):
        caught: list[Tensor] = []
        hook = part.register_forward_hook(lambda _m, _i, out, to=caught: to.append(out))
        for sentence in (ids, other):
            network.encode_text(sentence)
        hook.remove()
        changed[name] = (caught[0] - caught[1]).abs().amax(dim=-1)[0] > 1e-4
    assert changed["words"].tolist() == [False, True] + [False] * 10
    assert changed["tokens"].tolist()[:9] == [False] + [True] * 8
