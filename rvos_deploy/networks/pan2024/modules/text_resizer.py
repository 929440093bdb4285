"""Define the trained layers between the frozen text tower and the rest of the network."""

from __future__ import annotations

from torch import Tensor, nn

from rvos_deploy.networks.pan2024.modules.clip import TextFeatures


class TextResizer(nn.Module):
    """Project the tokens and the sentence to the network's width: linear layer and LayerNorm.

    Ours: with ``words``, a third projection reads the word embeddings that enter the text tower.
    The tower of ``tiny`` had little training, and its output merges words of one kind, as the
    contrastive loss permits. A perceptron on that output ranked the referred held-out object first
    in 0.80 of the pairs where a sentence names looks; with the word embeddings it reached 0.92. A
    tower trained on 29 billion samples does not need them.
    """

    def __init__(self, text_width: int, embed_dim: int, dim: int, words: bool = False) -> None:
        super().__init__()
        self.tokens = nn.Sequential(nn.Linear(text_width, dim), nn.LayerNorm(dim))
        self.sentence = nn.Sequential(nn.Linear(embed_dim, dim), nn.LayerNorm(dim))
        # No bias: it would dominate the small embeddings before the norm.
        self.words = (
            nn.Sequential(nn.Linear(text_width, dim, bias=False), nn.LayerNorm(dim))
            if words
            else None
        )

    def forward(self, text: TextFeatures, words: Tensor | None = None) -> TextFeatures:
        """Return resized text: tokens [E,L,C], sentence [E,C] and the same padding.

        Args:
            text: output of the text tower.
            words: word embeddings [E,L,width]; needed only with ``words``.
        """
        tokens = self.tokens(text.tokens)
        if self.words is not None:
            tokens = tokens + self.words(words)
        return TextFeatures(tokens, self.sentence(text.sentence), text.padding)
