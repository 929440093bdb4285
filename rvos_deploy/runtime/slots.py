"""Slot alignment and the running weighted mean: the network's arithmetic between graphs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

Array = NDArray[np.float32]


class SlotCues(NamedTuple):
    """What each of the N queries of one frame is known again by.

    position [N,5] of its mask: centre (x, y) in -1..1, extent (x, y) and the square root of its
    share of the image. content [N,K]: CLIP's features under the mask, at stride 8. score [N]: the
    probability that it is the query of an object, and not one of several that lie on it.
    """

    position: Array
    content: Array
    score: Array


FAR = 2.0
"""Weight of the distance between centres, in halves of an image."""
UNLIKE = 1.0
"""Weight of 1 - cosine of the contents."""
LOST = 3.0
"""The most that both together cost: so much says that a query is not the object."""
DOUBTFUL = 1.0
"""Weight of 1 - score: of the queries that lie on an object, the one that was trained to."""
CHANGED = 0.1
"""Cost of a query that the slot did not have in the last frame; decides between equals."""
VISIBLE = 0.035
"""A mask whose area has a smaller root (a quarter of 16 x 16 pixels at 128 x 224) has no centre."""
OBJECT = 0.5
"""Score above which a slot is said to hold an object."""
KEPT = 0.8
"""Share of the remembered content that stays when an object is seen again."""
ALIKE = 0.01
"""Contents of length 1 that differ by less from their mean tell little: it may be but rounding."""


@dataclass
class SlotTracker:
    """Slot alignment, a frame at a time: which query takes the slot of which object.

    DVIS and MinVIS assign frames by the cosine of their queries. Measured on the tiny network, that
    never moves a query: most of a query is its own embedding. What differs between objects is
    where their masks lie and what CLIP sees there, so slots are assigned by those, against each
    slot's *last sight* of its object: its best slot then has a J of 0.69 over 24 frames instead of
    0.53, where the best query of each single frame has 0.81 (55 objects of Moving Sprites).

    Optimal assignment in float64, deterministic; numbers that are not finite count as lost.
    """

    _query: NDArray[np.int64] = field(init=False)
    _holds: NDArray[np.bool_] = field(init=False)
    _centre: NDArray[np.float64] = field(init=False)
    _content: NDArray[np.float64] = field(init=False)
    _started: bool = field(default=False, init=False)

    def advance(self, cues: SlotCues) -> NDArray[np.int64]:
        """Take one frame.

        Returns:
            permutation [N]: ``queries[permutation]`` are in the order of the slots. (The assignment
            solver's columns are exactly that; its inverse is a published mistake that a swap
            hides.)
        """
        sound = np.all(np.isfinite(cues.content), axis=1, keepdims=True)
        centre = cues.position[:, :2].astype(np.float64)
        content = _directions(np.where(sound, cues.content, 0.0))
        score = np.where(np.isfinite(cues.score), cues.score, 0.0).astype(np.float64)
        seen = (cues.position[:, 4] >= VISIBLE) & np.isfinite(cues.position).all(axis=1)
        seen &= sound[:, 0]
        if not self._started:
            self._query = np.arange(len(score))
            self._holds = np.zeros(len(score), dtype=np.bool_)
            self._centre, self._content = np.zeros_like(centre), np.zeros_like(content)
            self._started = True
            order, known = self._query, np.zeros(len(score), dtype=np.bool_)
        else:
            unlike = self._unlike(centre, content, seen)
            cost = np.where(self._holds[:, None], unlike + DOUBTFUL * (1 - score), 0.0)
            cost += CHANGED * (self._query[:, None] != np.arange(len(score)))
            _, columns = linear_sum_assignment(cost)
            order = np.asarray(columns, dtype=np.int64)
            known = unlike[np.arange(len(order)), order] < LOST
        self._query = order
        self._remember(centre[order], content[order], seen[order], score[order], known)
        return order

    def _unlike(
        self,
        centre: NDArray[np.float64],
        content: NDArray[np.float64],
        seen: NDArray[np.bool_],
    ) -> NDArray[np.float64]:
        """How little each query [N] is like what each slot held last: [N,N]."""
        with np.errstate(all="ignore"):
            far = np.linalg.norm(self._centre[:, None] - centre, axis=-1)
            cosine = _unit(self._content) @ content.T
            cost = FAR * far + UNLIKE * (1.0 - np.nan_to_num(cosine))
        return np.where(seen & np.isfinite(cost), np.minimum(cost, LOST), LOST)

    def _remember(
        self,
        centre: NDArray[np.float64],
        content: NDArray[np.float64],
        seen: NDArray[np.bool_],
        score: NDArray[np.float64],
        known: NDArray[np.bool_],
    ) -> None:
        """Keep the last sight of every object; all arguments in the order of the slots."""
        again = self._holds & seen & known
        new = ~self._holds & seen & (score > OBJECT)
        sighted = again | new
        self._centre[sighted] = centre[sighted]
        self._content[new] = content[new]
        self._content[again] = KEPT * self._content[again] + (1 - KEPT) * content[again]
        self._holds |= new


def _directions(content: Array) -> NDArray[np.float64]:
    """Directions [N,K] in which contents, less what their channels share, differ from the mean of
    the frame's: unit vectors, and shorter where they hardly differ.
    """
    wide = content.astype(np.float64)
    wide = _unit(wide - wide.mean(axis=1, keepdims=True))
    return _unit(wide - wide.mean(axis=0), ALIKE)


def _unit(vectors: NDArray[np.float64], least: float = 1e-12) -> NDArray[np.float64]:
    length = np.linalg.norm(vectors, axis=-1, keepdims=True)
    unit: NDArray[np.float64] = vectors / np.maximum(length, least)
    return unit


@dataclass
class OnlineSoftmax:
    """Softmax-weighted mean over frames, a frame at a time, in constant memory.

    Keeps the running maximum, the sum of exponentials and the weighted sum (Milakov and
    Gimelshein 2018), in float64 so that a long stream does not drift.
    """

    _maximum: NDArray[np.float64] | None = field(default=None, init=False)
    _total: NDArray[np.float64] = field(init=False)
    _weighted: NDArray[np.float64] = field(init=False)

    def update(self, values: Array, logits: Array) -> None:
        """Take one frame: values [N,C], logits [N]."""
        wide = logits.astype(np.float64)
        if self._maximum is None:
            self._maximum = wide
            self._total = np.ones_like(wide)
            self._weighted = values.astype(np.float64)
            return
        maximum = np.maximum(self._maximum, wide)
        keep, weight = np.exp(self._maximum - maximum), np.exp(wide - maximum)
        self._maximum = maximum
        self._total = self._total * keep + weight
        self._weighted = self._weighted * keep[:, None] + values * weight[:, None]

    def mean(self) -> Array:
        """The weighted mean so far: float32 [N,C]."""
        return (self._weighted / self._total[:, None]).astype(np.float32)
