"""Match queries with objects by the Hungarian algorithm, for all layers and tubes at once.

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
from rvos_deploy.training.points import MaskDecoder, Scene, at_least_float32, clip_masks

INFINITE_COST = 1e6
"""Replaces a cost that is not finite, so a query with such a cost is matched last."""


class MatchingWeights(NamedTuple):
    """Hold the weights of the three costs."""

    classification: float
    mask: float
    dice: float


MIN_COVER_DICE = 0.5
"""Dice from which a query covers a tube: an IoU of one third, which no neighbour reaches."""


class Matches(NamedTuple):
    """Hold the matches of B tube sets in L layers.

    queries: int64 [B,L,M], the query of each tube.
    covers: bool [B,L,N], whether a query covers any tube, matched or not.
    """

    queries: Tensor
    covers: Tensor


class LayerPredictions(NamedTuple):
    """Hold the predictions of L layers: logits [B,L,N,2] and mask embeddings [B,L,N,C]."""

    logits: Tensor
    embeddings: Tensor


class PaddedTubes(NamedTuple):
    """Hold the target tubes of B clips, padded to M.

    objects: int64 [B,M], the object of each tube.
    filled: bool [B,M], False for padding.
    """

    objects: Tensor
    filled: Tensor


def pack_tubes(wanted: Tensor) -> PaddedTubes:
    """Return the wanted ones of K objects, padded to the largest number M of any row.

    Args:
        wanted: bool [B,K].
    """
    most = int(wanted.sum(dim=1).max())
    index = torch.argsort(~wanted, dim=1, stable=True)[:, :most]
    return PaddedTubes(index, wanted.gather(1, index))


@torch.no_grad()
def match_tubes(
    predictions: LayerPredictions,
    scene: Scene,
    labels: Tensor,
    filled: Tensor,
    decoder: MaskDecoder,
    weights: MatchingWeights,
) -> Matches:
    """Match the queries of every layer with the tubes, at the scene's points for matching.

    Args:
        predictions: of L layers.
        scene: B clips of T frames.
        labels: [B,T,M,S], the tubes at the points of the scene.
        filled: bool [B,M], False for padding.
        decoder: computes mask logits.
        weights: of the costs.
    """
    logits, embeddings = predictions
    layers = logits.shape[1]
    of_frames = decoder.frame_embeddings
    if of_frames is not None:
        sentences = logits.shape[0] // of_frames.shape[0]
        of_frames = of_frames.repeat_interleave(sentences, 0).repeat(1, 1, layers, 1)
    # The points form a map of one row: [B,T,L*N,1,P] becomes [B,L*N,T*P], one row a tube.
    features = scene.point_features[:, :, :, None]
    sampled = clip_masks(decoder.product, embeddings.flatten(1, 2), features, of_frames)
    mask_logits = at_least_float32(sampled).squeeze(3).transpose(1, 2).flatten(2)
    expected = labels[..., : scene.point_features.shape[-1]].transpose(1, 2).flatten(2)
    with torch.autocast(mask_logits.device.type, enabled=False):
        cross_entropy, dice = mask_costs(mask_logits, expected.to(mask_logits.dtype))
        costs = matching_costs(logits.flatten(1, 2), cross_entropy, dice, weights)
    covers = ((1 - dice >= MIN_COVER_DICE) & filled[:, None]).any(dim=-1)
    queries = match(costs.unflatten(1, (layers, -1)), filled)
    return Matches(queries, covers.unflatten(1, (layers, -1)))


@torch.no_grad()
def matching_costs(
    class_logits: Tensor, cross_entropy: Tensor, dice: Tensor, weights: MatchingWeights
) -> Tensor:
    """Return the cost [B,Q,M] of matching each query with each target (Mask2Former).

    Args:
        class_logits: [B,Q,2] (object or referred, no object); the cost is minus the probability.
        cross_entropy: [B,Q,M], from :func:`mask_costs`.
        dice: [B,Q,M], from :func:`mask_costs`.
        weights: of the costs.
    """
    probability = torch.softmax(class_logits.to(dice.dtype), dim=-1)[..., :1]
    return weights.mask * cross_entropy + weights.dice * dice - weights.classification * probability


def mask_costs(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return binary cross-entropy and dice of all pairs: both [B,Q,M].

    Both are matrix products, because softplus(-x) = softplus(x) - x.

    Args:
        logits: [B,Q,S].
        labels: [B,M,S].
    """
    points = labels.transpose(1, 2)
    # These operators are vectorised on a CPU, and four times as fast as F.softplus.
    softplus = logits.clamp(min=0) - logits.abs().sigmoid().log()
    cross_entropy = (softplus.sum(dim=-1, keepdim=True) - logits @ points) / logits.shape[-1]
    probability = logits.sigmoid()
    area = probability.sum(dim=-1, keepdim=True) + labels.sum(dim=-1)[:, None]
    dice = 1 - (2 * (probability @ points) + 1) / (area + 1)
    return cross_entropy, dice


def match(costs: Tensor, filled: Tensor) -> Tensor:
    """Assign a different query to every target at the least total cost.

    Costs that are not finite count as very high. The assignment runs on the CPU (scipy) and is
    deterministic.

    Args:
        costs: [B,L,N,M]; the L layers are matched independently.
        filled: bool [B,M], False for padding, which comes last.

    Returns:
        int64 [B,L,M]: the query of each target; 0 for padding.

    Raises:
        InputError: there are more targets than queries.
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
    return np.nan_to_num(table, nan=INFINITE_COST, posinf=INFINITE_COST, neginf=INFINITE_COST)
