"""Align slots: order the queries of every frame by the objects of the first frame."""

from __future__ import annotations

import torch
from torch import Tensor

from rvos_deploy.networks.pan2024.config import Alignment
from rvos_deploy.networks.pan2024.slots import SlotCues, make_tracker


def align_slots(alignment: Alignment, position: Tensor, content: Tensor, score: Tensor) -> Tensor:
    """Return the index of the query in each slot: int64 [B,T,N].

    The runtime's tracker makes the assignment, so training and runtime share one implementation.

    Args:
        alignment: selects the tracker.
        position: [B,T,N,5] of the masks.
        content: [B,T,N,K] of the masks, at stride 8; for cosine alignment, the queries.
        score: [B,T,N], the probability that a query has an object.
    """
    cues = [x.detach().float().cpu().numpy() for x in (position, content, score)]
    order = torch.empty(score.shape, dtype=torch.int64)
    for clip in range(score.shape[0]):
        tracker = make_tracker(alignment)
        for t in range(score.shape[1]):
            frame = SlotCues(*(x[clip, t] for x in cues))
            order[clip, t] = torch.from_numpy(tracker.advance(frame))
    return order.to(score.device)


def gather_slots(values: Tensor, order: Tensor) -> Tensor:
    """Reorder the slot axis of ``values`` [B,T,N,...] by ``order`` [B,T,N]; differentiable."""
    index = order.view(*order.shape, *([1] * (values.dim() - 3))).expand_as(values)
    return values.gather(2, index)
