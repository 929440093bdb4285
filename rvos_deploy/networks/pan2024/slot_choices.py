"""Slot orders of a stream, recorded or replayed: how parity is compared along one choice."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from rvos_deploy.networks.pan2024.config import Alignment
from rvos_deploy.networks.pan2024.slots import SlotCues, Tracker, cheapest, make_tracker
from rvos_deploy.networks.steps import Replay


class SlotChoices:
    """Which query takes each slot, of every expression of a stream."""

    def __init__(
        self, alignment: Alignment, expressions: int, replayed: NDArray[np.int64] | None
    ) -> None:
        """``replayed``: orders int64 [E,T,N] to follow; None: the trackers' own are recorded."""
        self._replayed = replayed
        self._recorded: list[RecordedTracker] = []
        self._replays: list[ReplayedOrders] = []
        self.trackers: list[Tracker] = []
        if replayed is None:
            self._recorded = [RecordedTracker(make_tracker(alignment)) for _ in range(expressions)]
            self.trackers += self._recorded
        else:
            self._replays = [ReplayedOrders(orders) for orders in replayed]
            self.trackers += [make_tracker(alignment, replay) for replay in self._replays]

    def orders(self) -> NDArray[np.int64]:
        """Return the query [E,T,N] of each slot, frame by frame."""
        if self._replayed is not None:
            return self._replayed
        return np.stack([np.array(tracker.chosen, np.int64) for tracker in self._recorded])

    def replay(self) -> Replay:
        """Return by how much the replayed orders cost more than the cheapest, and where."""
        replays = self._replays
        worst = max(range(len(replays)), key=lambda i: replays[i].excess, default=None)
        if worst is None or (tie := replays[worst].tie) is None:
            return Replay()
        excess, (frame, slots) = replays[worst].excess, tie
        named = f"slot {slots[0]}" if len(slots) == 1 else f"slots {', '.join(map(str, slots))}"
        where = f"expression {worst}, frame {frame}; costs differ by {excess:.2g}"
        return Replay(excess, f"near tie at {named} ({where})")


@dataclass
class RecordedTracker:
    """Keeps which query [N] each slot of ``tracker`` took, frame by frame, in ``chosen``."""

    tracker: Tracker
    chosen: list[NDArray[np.int64]] = field(default_factory=list, init=False)

    def advance(self, cues: SlotCues) -> NDArray[np.int64]:
        """As the tracker does."""
        order = self.tracker.advance(cues)
        self.chosen.append(order)
        return order


@dataclass
class ReplayedOrders:
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
