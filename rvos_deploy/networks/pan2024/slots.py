"""Slot alignment and the running weighted mean: the network's arithmetic between graphs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from rvos_deploy.networks.pan2024.config import Alignment

Array = NDArray[np.float32]


class SlotCues(NamedTuple):
    """What each of the N queries of one frame is known again by.

    position [N,5] of its mask: centre (x, y) in -1..1, extent (x, y) and the square root of its
    share of the image. content [N,K]: CLIP's features under the mask, at stride 8; with cosine
    alignment the queries themselves. score [N]: the probability that it is the query of an object,
    and not one of several that lie on it.
    """

    position: Array
    content: Array
    score: Array


FAR = 2.5
"""Weight of the distance between centres, in halves of an image."""
UNLIKE = 1.0
"""Weight of 1 - cosine of the contents."""
RESIZED = 0.5
"""Weight of the logarithm of the ratio of the sizes."""
LOST = 1.6
"""The most that these cost together: so much says that a query is not the object."""
WANDERED = 0.2
"""Added to that for each frame since the object was last seen, for up to ``LONG`` frames."""
LONG = 20
DOUBTFUL = 0.4
"""Weight of 1 - score: of the queries that lie on an object, the one that was trained to."""
CHANGED = 0.03
"""Cost of a query that the slot did not have in the last frame; decides between equals."""
VISIBLE = 0.035
"""A mask whose area has a smaller root (a quarter of 16 x 16 pixels at 128 x 224) has no centre."""
OBJECT = 0.3
"""Score above which a slot is said to hold an object."""
SAME = 1.5
"""Queries whose centres are nearer than the greater of their sizes times this, and whose contents
are not opposed, lie on one object. (Centres are in halves of an image: 2 would be a whole size.)"""
KEPT = 0.8
"""Share of the remembered content that stays when an object is seen again."""
ALIKE = 0.01
"""Contents of length 1 that differ by less from their mean tell little: it may be but rounding."""


class _Sight(NamedTuple):
    """What is seen of each query, or slot: centre [N,2] and size [N] of its mask, content [N,K] as
    a direction, score [N], and whether there is anything to see.
    """

    centre: NDArray[np.float64]
    size: NDArray[np.float64]
    content: NDArray[np.float64]
    score: NDArray[np.float64]
    seen: NDArray[np.bool_]

    def ordered(self, order: NDArray[np.int64]) -> _Sight:
        """Of queries, in the order of the slots."""
        return _Sight(
            self.centre[order],
            self.size[order],
            self.content[order],
            self.score[order],
            self.seen[order],
        )


Choose = Callable[[NDArray[np.float64]], NDArray[np.int64]]
"""Gives the query [N] of each slot, from costs [N,N] (slots, queries)."""


def cheapest(cost: NDArray[np.float64]) -> NDArray[np.int64]:
    """The assignment that costs least; deterministic."""
    _, columns = linear_sum_assignment(cost)
    return np.asarray(columns, dtype=np.int64)


class Tracker(Protocol):
    """Slot alignment, a frame at a time: which query takes which slot."""

    def advance(self, cues: SlotCues) -> NDArray[np.int64]:
        """Take one frame.

        Returns:
            permutation [N]: ``queries[permutation]`` are in the order of the slots. (The assignment
            solver's columns are exactly that; its inverse is a published mistake that a swap
            hides.)
        """


def make_tracker(alignment: Alignment, choose: Choose = cheapest) -> Tracker:
    """Return the tracker that a configuration asks for."""
    return CosineTracker(choose) if alignment == "cosine" else SlotTracker(choose)


@dataclass
class CosineTracker:
    """Assigns each frame to the one before by the cosine of their queries (MinVIS, DVIS).

    A cosine that is no number (of a query that is zero or not finite) costs as much as a right
    angle. Optimal assignment in float64, deterministic.
    """

    choose: Choose = cheapest
    _directions: NDArray[np.float64] | None = field(default=None, init=False)

    def advance(self, cues: SlotCues) -> NDArray[np.int64]:
        """Take one frame, whose content [N,K] are its queries; see ``Tracker``."""
        wide = cues.content.astype(np.float64)
        directions = _unit(np.where(np.isfinite(wide).all(axis=1, keepdims=True), wide, 0.0))
        if self._directions is None:
            order = np.arange(len(directions))
        else:
            order = self.choose(1.0 - self._directions @ directions.T)
        self._directions = directions[order]
        return order


@dataclass
class SlotTracker:
    """Slot alignment, a frame at a time: which query takes the slot of which object.

    DVIS and MinVIS assign frames by the cosine of their queries. Measured on the tiny network, that
    never moves a query: most of a query is its own embedding. What differs between objects is
    where their masks lie, how large they are and what CLIP sees there, so slots are assigned by
    those, against each slot's *last sight* of its object. Several queries lie on each object: a
    slot neither begins with one nor finds its lost object in one while another slot follows that
    object, or two slots would come to share it, and one of them to drift to a neighbour. So the
    best slot of an object has a J of 0.77 over 24 frames instead of 0.53 by cosine, where the best
    query of each single frame has 0.84 (70 objects of Moving Sprites).

    Optimal assignment in float64, deterministic; numbers that are not finite count as lost.
    """

    choose: Choose = cheapest
    _query: NDArray[np.int64] = field(init=False)
    _holds: NDArray[np.bool_] = field(init=False)
    _centre: NDArray[np.float64] = field(init=False)
    _content: NDArray[np.float64] = field(init=False)
    _size: NDArray[np.float64] = field(init=False)
    _unseen: NDArray[np.int64] = field(init=False)
    _started: bool = field(default=False, init=False)

    def advance(self, cues: SlotCues) -> NDArray[np.int64]:
        """Take one frame; see ``Tracker``."""
        sound = np.all(np.isfinite(cues.content), axis=1) & np.isfinite(cues.position).all(axis=1)
        position = np.where(sound[:, None], cues.position, 0.0).astype(np.float64)
        now = _Sight(
            centre=position[:, :2],
            size=position[:, 4],
            content=_directions(np.where(sound[:, None], cues.content, 0.0)),
            score=np.where(np.isfinite(cues.score), cues.score, 0.0).astype(np.float64),
            seen=sound & (position[:, 4] >= VISIBLE),
        )
        slots = np.arange(len(now.score))
        if not self._started:
            self._start(now)
            order, known = self._query, np.zeros(len(slots), dtype=np.bool_)
        else:
            unlike, most = self._unlike(now), self._most()
            doubt = np.where(unlike < most, DOUBTFUL * (1 - now.score), DOUBTFUL)
            # In parts of the limit: to have been lost for long is no claim on another's object.
            apart = LOST * np.minimum(unlike / most, 1)
            cost = np.where(self._holds[:, None], apart + doubt, 0.0)
            cost += CHANGED * (self._query[:, None] != slots)
            order = self.choose(cost)
            known = unlike[slots, order] < most[:, 0]
        self._query = order
        self._remember(now.ordered(order), known)
        return order

    def _start(self, now: _Sight) -> None:
        slots = len(now.score)
        self._query = np.arange(slots)
        self._holds = np.zeros(slots, dtype=np.bool_)
        self._centre, self._content = np.zeros_like(now.centre), np.zeros_like(now.content)
        self._size, self._unseen = np.ones(slots), np.zeros(slots, dtype=np.int64)
        self._started = True

    def _unlike(self, now: _Sight) -> NDArray[np.float64]:
        """How little each query [N] is like what each slot held last: [N,N]."""
        far = np.linalg.norm(self._centre[:, None] - now.centre, axis=-1)
        cosine = _unit(self._content) @ now.content.T
        resized = np.abs(np.log(np.maximum(now.size, VISIBLE) / self._size[:, None]))
        cost = FAR * far + UNLIKE * (1.0 - cosine) + RESIZED * resized
        return np.where(now.seen & np.isfinite(cost), cost, np.inf)

    def _most(self) -> NDArray[np.float64]:
        """The most that a query may be unlike the object of each slot: [N,1]."""
        return (LOST + WANDERED * np.minimum(self._unseen, LONG))[:, None]

    def _remember(self, now: _Sight, known: NDArray[np.bool_]) -> None:
        """Keep the last sight of every object; all arguments in the order of the slots."""
        followed = self._holds & now.seen & known & (self._unseen == 0)
        found = self._holds & now.seen & known & (self._unseen > 0)
        begun = ~self._holds & now.seen & (now.score > OBJECT)
        apart = np.linalg.norm(now.centre[:, None] - now.centre, axis=-1)
        same = apart < SAME * np.maximum(now.size[:, None], now.size)
        same &= now.content @ now.content.T > -ALIKE
        # The surest first: of several on one object, it is the one that stands for it.
        surest = np.argsort(-now.score, kind="stable")
        taken = followed.copy()
        for slot in [*surest[found[surest]], *surest[begun[surest]]]:
            taken[slot] = not (same[slot] & taken).any()
        again, new = taken & self._holds, taken & begun
        self._centre[taken] = now.centre[taken]
        self._content[new], self._size[new] = now.content[new], now.size[new]
        self._content[again] = KEPT * self._content[again] + (1 - KEPT) * now.content[again]
        self._size[again] = KEPT * self._size[again] + (1 - KEPT) * now.size[again]
        self._unseen = np.where(taken, 0, self._unseen + 1)
        self._holds |= new


@dataclass
class RecordedTracker:
    """Keeps which query [N] each slot of ``tracker`` took, frame by frame, in ``orders``."""

    tracker: Tracker
    orders: list[NDArray[np.int64]] = field(default_factory=list, init=False)

    def advance(self, cues: SlotCues) -> NDArray[np.int64]:
        """As the tracker does."""
        order = self.tracker.advance(cues)
        self.orders.append(order)
        return order


@dataclass
class Replay:
    """Chooses as another library did on the same clip, and says how good that choice is here.

    Of two queries that lie on one object, rounding decides which is taken, and the masks of that
    slot then differ by what those two do. To compare arithmetic, both take the same; the choice is
    judged by ``excess``.

    Args:
        orders: int64 [T,N], the queries of each slot there, frame by frame.
        excess: by how much its choice costs more than the cheapest here, at most, in the units of
            the tracker's costs.
        tie: the frame where that was, and the slots whose queries differ; None while none does.
    """

    orders: NDArray[np.int64]
    excess: float = 0.0
    tie: tuple[int, tuple[int, ...]] | None = None
    _frame: int = field(default=0, init=False)

    def __call__(self, cost: NDArray[np.float64]) -> NDArray[np.int64]:
        """The query [N] of each slot, of costs [N,N] (slots, queries)."""
        self._frame += 1  # The first frame's order is not chosen.
        theirs: NDArray[np.int64] = self.orders[self._frame]
        slots = np.arange(len(cost))
        ours = cheapest(cost)
        excess = float(cost[slots, theirs].sum() - cost[slots, ours].sum())
        if excess > self.excess:
            self.excess = excess
            self.tie = self._frame, tuple(np.flatnonzero(ours != theirs).tolist())
        return theirs


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
