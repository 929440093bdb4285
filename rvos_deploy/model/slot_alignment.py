"""Slot alignment: give the queries of every frame the order of the first frame's objects."""

from __future__ import annotations

import torch
from torch import Tensor

from rvos_deploy.runtime.slots import assign_slots


def align_slots(frame_queries: Tensor) -> Tensor:
    """Index of the query that takes each slot: int64 [B,T,N] for frame queries [B,T,N,C].

    Frame t is assigned to the aligned queries of frame t-1 by optimal assignment on cosine
    distance (DVIS, MinVIS). The assignment is the runtime's own, so both are one piece of code.
    """
    queries = frame_queries.detach().float().cpu().numpy()
    batch, length, slots, _ = queries.shape
    order = torch.empty((batch, length, slots), dtype=torch.int64)
    for clip in range(batch):
        previous = queries[clip, 0]
        order[clip, 0] = torch.arange(slots)
        for t in range(1, length):
            permutation = assign_slots(previous, queries[clip, t])
            previous = queries[clip, t][permutation]
            order[clip, t] = torch.from_numpy(permutation)
    return order.to(frame_queries.device)


def gather_slots(values: Tensor, order: Tensor) -> Tensor:
    """Reorder the slot axis of [B,T,N,...] by ``order`` [B,T,N]; gradients flow through."""
    index = order.view(*order.shape, *([1] * (values.dim() - 3))).expand_as(values)
    return values.gather(2, index)
