"""Stack the tokens of sentences for graphs that decode several expressions."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def stack_tokens(
    sentences: Sequence[NDArray[np.float32]], least: int = 1
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Return tokens [E,L,C] and their padding bool [E,L] (True: no token).

    Args:
        sentences: the tokens [L,C] of E sentences, without padding.
        least: minimum L; sentences are padded to it, and to the longest one.
    """
    length = max(least, *(len(tokens) for tokens in sentences))
    shape = (len(sentences), length)
    stacked = np.zeros((*shape, sentences[0].shape[1]), dtype=sentences[0].dtype)
    padding = np.ones(shape, dtype=np.bool_)
    for row, tokens in enumerate(sentences):
        stacked[row, : len(tokens)] = tokens
        padding[row, : len(tokens)] = False
    return stacked, padding
