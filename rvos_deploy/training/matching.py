"""Hungarian matching: which query answers for which object, in every layer of every tube at once.

A tube is an object's masks over the frames of a clip; a single frame is a tube of length one.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from rvos_deploy.errors import InputError
from rvos_deploy.training.points import MaskProduct, Scene, clip_masks, widen

REFUSED = 1e6
"""Cost that stands for one that is not finite: a query in that state is matched last."""


class MatchingWeights(NamedTuple):
    """Weights of the three costs, the same as those of the losses."""

    classification: float
    mask: float
    dice: float


COVERS = 0.5
"""Dice from which a query is said to lie on a tube: an IoU of a third, which no neighbour has."""


class Matches(NamedTuple):
    """queries int64 [B,L,M]: that of each tube; covers bool [B,L,N]: whether a query lies on any
    tube, be it matched with it or not.
    """

    queries: Tensor
    covers: Tensor


class PaddedTubes(NamedTuple):
    """The targets of B tubes' worth of frames, packed to the front.

    objects int64 [B,M]: which object fills each slot; filled bool [B,M]: whether one does.
    """

    objects: Tensor
    filled: Tensor


def pack_tubes(wanted: Tensor) -> PaddedTubes:
    """Pack the wanted ones of K objects into M slots, M the most that any row wants.

    Args:
        wanted: bool [B,K].
    """
    most = int(wanted.sum(dim=1).max())
    index = torch.argsort(~wanted, dim=1, stable=True)[:, :most]
    return PaddedTubes(index, wanted.gather(1, index))


@torch.no_grad()
def match_tubes(
    logits: Tensor,
    embeddings: Tensor,
    scene: Scene,
    labels: Tensor,
    filled: Tensor,
    mask_product: MaskProduct,
    weights: MatchingWeights,
    frame_mask_embeddings: Tensor | None = None,
) -> Matches:
    """Match the queries of every layer with the tubes, at the scene's points for matching.

    Args:
        logits: [B,L,N,2].
        embeddings: [B,L,N,C].
        scene: B clips of T frames.
        labels: [B,T,M,S], the tubes at the points of the scene.
        filled: bool [B,M], which slots hold a tube.
        mask_product: how masks come from embeddings and mask features.
        weights: of the costs.
        frame_mask_embeddings: [B,T,N,C], those of the slots in every frame.
    """
    layers = logits.shape[1]
    if frame_mask_embeddings is not None:
        sentences = logits.shape[0] // frame_mask_embeddings.shape[0]
        of_frames = frame_mask_embeddings.repeat_interleave(sentences, 0)
        frame_mask_embeddings = of_frames.repeat(1, 1, layers, 1)
    # The points are a map of one row. [B,T,L*N,1,P] -> [B,L*N,T*P]: a tube is compared as a whole.
    sampled = clip_masks(
        mask_product,
        embeddings.flatten(1, 2),
        scene.point_features[:, :, :, None],
        frame_mask_embeddings,
    )
    mask_logits = widen(sampled).squeeze(3).transpose(1, 2).flatten(2)
    there = labels[..., : scene.point_features.shape[-1]].transpose(1, 2).flatten(2)
    with torch.autocast(mask_logits.device.type, enabled=False):
        cross_entropy, dice = mask_costs(mask_logits, there.to(mask_logits.dtype))
        costs = matching_costs(logits.flatten(1, 2), cross_entropy, dice, weights)
    covers = ((1 - dice >= COVERS) & filled[:, None]).any(dim=-1)
    queries = match(costs.unflatten(1, (layers, -1)), filled)
    return Matches(queries, covers.unflatten(1, (layers, -1)))


@torch.no_grad()
def matching_costs(
    class_logits: Tensor, cross_entropy: Tensor, dice: Tensor, weights: MatchingWeights
) -> Tensor:
    """Cost of matching each query with each target (Mask2Former: the losses' own terms).

    Args:
        class_logits: [B,Q,2] (object or referred, no object); minus the probability is a cost.
        cross_entropy: [B,Q,M], as :func:`mask_costs` gives it.
        dice: likewise.

    Returns:
        [B,Q,M].
    """
    probability = torch.softmax(class_logits.to(dice.dtype), dim=-1)[..., :1]
    return weights.mask * cross_entropy + weights.dice * dice - weights.classification * probability


def mask_costs(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Binary cross-entropy and dice of all pairs: both [B,Q,M], of logits [B,Q,S], labels [B,M,S].

    Each is a matrix product, since softplus(-x) = softplus(x) - x.
    """
    points = labels.transpose(1, 2)
    # F.softplus by the operators that are vectorised on a CPU: four times as quick.
    softplus = logits.clamp(min=0) - logits.abs().sigmoid().log()
    cross_entropy = (softplus.sum(dim=-1, keepdim=True) - logits @ points) / logits.shape[-1]
    probability = logits.sigmoid()
    area = probability.sum(dim=-1, keepdim=True) + labels.sum(dim=-1)[:, None]
    dice = 1 - (2 * (probability @ points) + 1) / (area + 1)
    return cross_entropy, dice


def match(costs: Tensor, filled: Tensor) -> Tensor:
    """Assign a query of its own to every target at the least total cost.

    Costs that are not finite count as very high. Runs on the CPU (scipy); ties resolve the same
    way every time.

    Args:
        costs: [B,L,N,M], for L layers that are matched apart.
        filled: bool [B,M], the filled slots first.

    Returns:
        int64 [B,L,M]: the query of each target; 0 where the slot is not filled.

    Raises:
        InputError: when there are more targets than queries.
    """
    batch, layers, queries, slots = costs.shape
    counts = filled.sum(dim=1).tolist()
    if max(counts, default=0) > queries:
        raise InputError(
            f"{max(counts)} objects to find with {queries} queries; give the model configuration "
            f"more num_queries, or keep fewer objects a clip"
        )
    table = _finite(costs.transpose(2, 3))
    chosen = np.zeros((batch, layers, slots), dtype=np.int64)
    for row, count in enumerate(counts):
        for layer in range(layers if count else 0):
            chosen[row, layer, :count] = linear_sum_assignment(table[row, layer, :count])[1]
    return torch.from_numpy(chosen).to(costs.device)


def _finite(costs: Tensor) -> NDArray[np.float64]:
    table: NDArray[np.float64] = costs.detach().double().cpu().numpy()
    return np.nan_to_num(table, nan=REFUSED, posinf=REFUSED, neginf=REFUSED)
