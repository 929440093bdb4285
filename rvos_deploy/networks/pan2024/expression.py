"""What a stream remembers of one expression."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from rvos_deploy.networks.pan2024.config import Initializer
from rvos_deploy.networks.pan2024.slots import OnlineSoftmax, SlotCues, Tracker
from rvos_deploy.networks.pan2024.token_memory import TokenMemory
from rvos_deploy.runtime.backends.base import Value

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
    tracker: Tracker
    _slots: int = field(default=0, init=False)
    _mean: OnlineSoftmax = field(default_factory=OnlineSoftmax, init=False)

    def advance(self, values: Array, logits: Array, cues: SlotCues) -> NDArray[np.int64]:
        """Take one frame: slot values [N,C], slot logits [N] and cues of its queries.

        The queries themselves go into ``memory``, in the order that is returned; they need not be
        on the host.

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


def stack_text(texts: list[EncodedText], least: int = 1) -> dict[str, NDArray[np.generic]]:
    """Inputs of the decoders for E expressions, by input name.

    Padded to the longest, and to ``least`` tokens.
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


def stack_memory(
    states: list[ExpressionState],
    stack: Callable[[Sequence[Sequence[Value | None]]], Value],
    least: int = 1,
) -> dict[str, Value]:
    """Memory inputs of the video decoder for E expressions.

    Padded with empty frames to the longest, and to ``least`` frames.
    ``stack``: of the back end that keeps the memories (``Runner.stack``).
    """
    parts = [state.memory.read() for state in states]
    frames = max(least, *(len(ages) for _, ages in parts))
    ages = np.zeros((len(parts), frames), dtype=np.float32)
    empty = np.ones((len(parts), frames), dtype=np.bool_)
    for row, (_, part_ages) in enumerate(parts):
        ages[row, : len(part_ages)] = part_ages
        empty[row, : len(part_ages)] = False
    tokens = stack([[*part, *[None] * (frames - len(part))] for part, _ in parts])
    return {"memory": tokens, "memory_ages": ages, "memory_empty": empty}
