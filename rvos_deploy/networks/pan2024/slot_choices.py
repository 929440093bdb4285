"""Record and replay the slot orders of a stream, so that parity is checked along one choice."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from rvos_deploy.networks.pan2024.config import Alignment
from rvos_deploy.networks.pan2024.slots import SlotCues, Tracker, make_tracker, optimal_assignment
from rvos_deploy.networks.steps import Replay


class SlotChoices:
    """Record or replay the query in each slot, for every expression of a stream."""

    def __init__(
        self, alignment: Alignment, expressions: int, replayed: NDArray[np.int64] | None
    ) -> None:
        """Follow the orders ``replayed`` int64 [E,T,N]; None: record the trackers' own orders."""
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
        """Return the query in each slot and frame: int64 [E,T,N]."""
        if self._replayed is not None:
            return self._replayed
        return np.stack([np.array(tracker.chosen, np.int64) for tracker in self._recorded])

    def replay(self) -> Replay:
        """Return the largest excess cost of the replayed orders, and where it occurred."""
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
    """Record the orders int64 [N] of ``tracker``, frame by frame, in ``chosen``."""

    tracker: Tracker
    chosen: list[NDArray[np.int64]] = field(default_factory=list, init=False)

    def advance(self, cues: SlotCues) -> NDArray[np.int64]:
        """Advance the tracker, and record its order."""
        order = self.tracker.advance(cues)
        self.chosen.append(order)
        return order


@dataclass
class ReplayedOrders:
    """Repeat the assignments of another library on the same clip, and measure their cost here.

    Rounding decides which of two queries on one object gets the slot, and the two queries' masks
    differ. So the arithmetic is compared along one choice, and ``excess`` measures the choice.

    Args:
        orders: int64 [T,N], the other library's queries in each slot, frame by frame.
        excess: largest excess of their cost over the optimal cost here, in the tracker's units.
        tie: the frame of that excess, and the slots whose queries differ; None without an excess.
    """

    orders: NDArray[np.int64]
    excess: float = 0.0
    tie: tuple[int, tuple[int, ...]] | None = None
    _frame: int = field(default=0, init=False)

    def __call__(self, cost: NDArray[np.float64]) -> NDArray[np.int64]:
        """Return the recorded query in each slot, int64 [N]; costs are [N,N] (slots, queries)."""
        self._frame += 1  # The first frame has no assignment.
        theirs: NDArray[np.int64] = self.orders[self._frame]
        slots = np.arange(len(cost))
        ours = optimal_assignment(cost)
        excess = float(cost[slots, theirs].sum() - cost[slots, ours].sum())
        if excess > self.excess:
            self.excess = excess
            self.tie = self._frame, tuple(np.flatnonzero(ours != theirs).tolist())
        return theirs
