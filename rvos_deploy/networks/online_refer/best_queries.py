"""Record and replay the best queries of a stream, so that parity is checked along one choice."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from rvos_deploy.networks.online_refer.contract import PREFERRED
from rvos_deploy.networks.steps import Replay


class BestQueries:
    """Record or replay the best query of every expression and frame.

    The first frame of an expression has five queries to choose from, and later frames have one.
    """

    def __init__(
        self, expressions: int, queries: int, replayed: NDArray[np.int64] | None = None
    ) -> None:
        """Follow the queries ``replayed`` int64 [E,T,1]; None: record the network's own."""
        self._expressions, self._queries = expressions, queries
        self._replayed = replayed
        self._started = 0
        self._best: list[NDArray[np.int64]] = []
        self._replay = Replay()

    def preference(self) -> NDArray[np.float32]:
        """Return the preference float32 [E,Q] for the class logits of the next frame."""
        preference = np.zeros((self._expressions, self._queries), np.float32)
        if self._replayed is not None:
            preference[np.arange(self._expressions), self._replayed[:, self._started, 0]] = (
                PREFERRED
            )
        self._started += 1
        return preference

    def advance(self, best: NDArray[np.int64], scores: NDArray[np.float32]) -> None:
        """Record a frame.

        Args:
            best: int64 [E], the chosen queries.
            scores: float32 [E,Q], 0 for padding.
        """
        frame = len(self._best)
        self._best.append(best)
        excess = scores.max(axis=1) - scores[np.arange(len(best)), best]
        worst = int(excess.argmax())
        if self._replayed is not None and excess[worst] > self._replay.excess:
            tie = (
                f"near tie of the best query (expression {worst}, frame {frame}; scores differ by "
                f"{excess[worst]:.2g})"
            )
            self._replay = Replay(float(excess[worst]), tie)

    def orders(self) -> NDArray[np.int64]:
        """Return the best queries int64 [E,T,1]."""
        if self._replayed is not None:
            return self._replayed
        return np.stack(self._best, axis=1)[..., None]

    def replay(self) -> Replay:
        """Return the largest gap of a replayed query's score to the best one, and its position."""
        return self._replay
