"""What a stream remembers of one expression."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from rvos_deploy.graph_io.tensors import Tensor
from rvos_deploy.networks.pan2024.config import Initializer
from rvos_deploy.networks.pan2024.slots import OnlineSoftmax, SlotCues, Tracker

Array = NDArray[np.float32]


@dataclass(frozen=True)
class EncodedSentence:
    """A sentence after the text encoder: tokens [L,C], sentence [C]; L is as long as it needs."""

    text: str
    tokens: Array
    sentence: Array


@dataclass
class ExpressionState:
    """One expression's slots through time; its size does not depend on the video's length."""

    text: EncodedSentence
    initializer: Initializer
    tracker: Tracker
    _slots: int = field(default=0, init=False)
    _mean: OnlineSoftmax = field(default_factory=OnlineSoftmax, init=False)

    def advance(self, values: Array, logits: Array, cues: SlotCues) -> NDArray[np.int64]:
        """Take one frame: slot values [N,C], slot logits [N] and cues of its queries.

        Returns:
            The query that takes each slot: [N].
        """
        self._slots = len(values)
        order = np.arange(self._slots)
        if self.initializer == "aligned":
            order = self.tracker.advance(cues)
        if self.initializer != "sentence":
            self._mean.update(values[order], logits[order])
        return order

    def initial_video_queries(self) -> Array:
        """Initial video queries from all frames so far: [N,C]."""
        if self.initializer == "sentence":
            return np.tile(self.text.sentence, (self._slots, 1))
        return self._mean.mean()


def stack_text(texts: Sequence[EncodedSentence], least: int = 1) -> dict[str, Tensor]:
    """Return inputs of the decoders for E expressions, by input name.

    They are padded to the longest sentence, and to ``least`` tokens.
    """
    length = max(least, *(len(text.tokens) for text in texts))
    dim = texts[0].tokens.shape[1]
    tokens = np.zeros((len(texts), length, dim), dtype=texts[0].tokens.dtype)
    padding = np.ones((len(texts), length), dtype=np.bool_)
    for row, text in enumerate(texts):
        tokens[row, : len(text.tokens)] = text.tokens
        padding[row, : len(text.tokens)] = False
    return {
        "text_tokens": tokens,
        "sentence": np.stack([text.sentence for text in texts]),
        "text_padding": padding,
    }
