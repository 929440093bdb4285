"""What a stream remembers of one expression."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from rvos_deploy.model.config import Initializer
from rvos_deploy.runtime.slots import OnlineSoftmax, SlotCues, SlotTracker
from rvos_deploy.runtime.token_memory import TokenMemory

Array = NDArray[np.float32]


@dataclass(frozen=True)
class EncodedText:
    """A sentence after the text encoder: tokens [L,C], sentence [C]; L is as long as it needs."""

    text: str
    tokens: Array
    sentence: Array


@dataclass
class ExpressionState:
    """One expression's slots through time; its size does not depend on the video's length."""

    number: int
    text: EncodedText
    initializer: Initializer
    memory: TokenMemory
    tracker: SlotTracker = field(default_factory=SlotTracker)
    _slots: int = field(default=0, init=False)
    _mean: OnlineSoftmax = field(default_factory=OnlineSoftmax, init=False)

    def advance(
        self, queries: Array, values: Array, logits: Array, cues: SlotCues
    ) -> NDArray[np.int64]:
        """Take one frame: its queries [N,C], slot values [N,C], slot logits [N] and cues.

        Returns:
            The query that takes each slot: [N].
        """
        self._slots = len(queries)
        order = np.arange(self._slots)
        if self.initializer == "aligned":
            order = self.tracker.advance(cues)
        self.memory.append(queries[order])
        if self.initializer != "sentence":
            self._mean.update(values[order], logits[order])
        return order

    def initial_video_queries(self) -> Array:
        """Initial video queries from all frames so far: [N,C]."""
        if self.initializer == "sentence":
            return np.tile(self.text.sentence, (self._slots, 1))
        return self._mean.mean()


def stack_text(texts: list[EncodedText]) -> dict[str, NDArray[np.generic]]:
    """Inputs of the decoders for E expressions, padded to the longest: by input name."""
    length = max(len(text.tokens) for text in texts)
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


def stack_memory(states: list[ExpressionState]) -> dict[str, NDArray[np.generic]]:
    """Memory inputs of the video decoder for E expressions, short ones padded with empty frames."""
    parts = [state.memory.read() for state in states]
    frames = max(len(ages) for _, ages in parts)
    tokens = np.zeros((len(parts), frames, *parts[0][0].shape[1:]), dtype=parts[0][0].dtype)
    ages = np.zeros((len(parts), frames), dtype=np.float32)
    empty = np.ones((len(parts), frames), dtype=np.bool_)
    for row, (part, part_ages) in enumerate(parts):
        tokens[row, : len(part)], ages[row, : len(part)] = part, part_ages
        empty[row, : len(part)] = False
    return {"memory": tokens, "memory_ages": ages, "memory_empty": empty}
