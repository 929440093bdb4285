"""The trainable resizers between the frozen text tower and the rest of the network."""

from __future__ import annotations

from torch import nn

from rvos_deploy.model.clip import TextFeatures


class TextResizer(nn.Module):
    """Linear and LayerNorm for the tokens, and the same for the sentence."""

    def __init__(self, text_width: int, embed_dim: int, dim: int) -> None:
        super().__init__()
        self.tokens = nn.Sequential(nn.Linear(text_width, dim), nn.LayerNorm(dim))
        self.sentence = nn.Sequential(nn.Linear(embed_dim, dim), nn.LayerNorm(dim))

    def forward(self, text: TextFeatures) -> TextFeatures:
        """Resized: tokens [E,L,C], sentence [E,C], the same padding."""
        return TextFeatures(self.tokens(text.tokens), self.sentence(text.sentence), text.padding)
