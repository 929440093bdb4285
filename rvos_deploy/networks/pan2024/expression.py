"""Keep the state of one expression of a stream."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from rvos_deploy.graph_io.tensors import Tensor
from rvos_deploy.networks.pan2024.config import Initializer
from rvos_deploy.networks.pan2024.slots import OnlineSoftmax, SlotCues, Tracker
from rvos_deploy.networks.text import stack_tokens

Array = NDArray[np.float32]


@dataclass(frozen=True)
class EncodedSentence:
    """Hold a sentence after the text encoder: tokens [L,C] without padding, sentence [C]."""

    text: str
    tokens: Array
    sentence: Array


@dataclass
class ExpressionState:
    """Hold one expression's slots over time, in memory that does not grow with the video."""

    text: EncodedSentence
    initializer: Initializer
    tracker: Tracker
    _slots: int = field(default=0, init=False)
    _mean: OnlineSoftmax = field(default_factory=OnlineSoftmax, init=False)

    def advance(self, values: Array, logits: Array, cues: SlotCues) -> NDArray[np.int64]:
        """Add one frame, and return the query in each slot: int64 [N].

        Args:
            values: slot values float32 [N,C].
            logits: slot logits float32 [N].
            cues: cues of the frame's queries.
        """
        self._slots = len(values)
        order = np.arange(self._slots)
        if self.initializer == "aligned":
            order = self.tracker.advance(cues)
        if self.initializer != "sentence":
            self._mean.update(values[order], logits[order])
        return order

    def initial_video_queries(self) -> Array:
        """Return the initial video queries from all frames so far: float32 [N,C]."""
        if self.initializer == "sentence":
            return np.tile(self.text.sentence, (self._slots, 1))
        return self._mean.mean()


def stack_text(texts: Sequence[EncodedSentence], least: int = 1) -> dict[str, Tensor]:
    """Return the text inputs of the decoders for E expressions, by input name.

    Sentences are padded to the longest one, and to at least ``least`` tokens.
    """
    tokens, padding = stack_tokens([text.tokens for text in texts], least)
    return {
        "text_tokens": tokens,
        "sentence": np.stack([text.sentence for text in texts]),
        "text_padding": padding,
    }
