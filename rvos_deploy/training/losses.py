"""Compute the training losses: match frames and tubes to objects, then compare them.

After LMPM (Ding et al. 2023), with the frame losses of Mask2Former (Cheng et al. 2022) and the
video and similarity losses of VITA (Heo et al. 2022). A frame is a tube of length one, and all
layers of a decoder are one batch.

The masks of all queries are never computed whole. Masks are dot products and sampling is linear, so
the matching samples the *mask features*, once for all queries, layers and both decoders. Only
matched queries get a map, at stride 4, because a map is smaller than the features at its points.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from rvos_deploy.errors import InputError
from rvos_deploy.networks.pan2024.modules.frame_query_decoder import FramePrediction
from rvos_deploy.networks.pan2024.modules.network import NetworkOutput
from rvos_deploy.networks.pan2024.modules.video_query_decoder import VideoPrediction
from rvos_deploy.training.matching import (
    LayerPredictions,
    MatchingWeights,
    PaddedTubes,
    match_tubes,
    pack_tubes,
)
from rvos_deploy.training.points import (
    MaskDecoder,
    MaskProduct,
    PointSampling,
    Scene,
    at_least_float32,
    choose_points,
    clip_masks,
    dot_product,
    sample_points,
    sample_scene,
)
from rvos_deploy.training.targets import ClipTargets

FrameObjects = Literal["all", "referred"]


@dataclass(frozen=True)
class LossWeights:
    """Hold the weights of the losses in their sum and of the costs in the matching.

    ``no_object`` is the weight of queries without an object in the classification losses.
    ``match_class`` is the weight of the class in the matching; None: the weight in the sum. A heavy
    one matches a query with a high score to an object that the query does not cover.
    """

    frame_class: float = 2.0
    video_class: float = 2.0
    mask: float = 5.0
    dice: float = 5.0
    similarity: float = 0.5
    no_object: float = 0.1
    match_class: float | None = None

    def matching(self, classification: float) -> MatchingWeights:
        """Return the weights of the matching for a loss whose class has this weight."""
        chosen = classification if self.match_class is None else self.match_class
        return MatchingWeights(chosen, self.mask, self.dice)


@dataclass(frozen=True)
class LossConfig:
    """Set the weights and points of the losses, and the objects that frame queries should find.

    Attributes:
        weights: of the losses.
        points: at which masks are compared.
        frame_objects: "all" visible objects, or those that the expression means ("referred").
        accept_duplicates: whether a video query on a referred object counts as correct although
            another query is matched with that object. The answer unites masks, so a duplicate does
            no harm, and the target of a query then depends only on what the query covers.
    """

    weights: LossWeights = field(default_factory=LossWeights)
    points: PointSampling = field(default_factory=PointSampling)
    frame_objects: FrameObjects = "all"
    accept_duplicates: bool = False

    def __post_init__(self) -> None:
        if self.frame_objects not in get_args(FrameObjects):
            raise InputError(
                f"unknown frame_objects '{self.frame_objects}'; "
                f"known: {', '.join(get_args(FrameObjects))}"
            )

    def for_frames(self, mean: Mean) -> TubeSettings:
        """Return the settings for tubes of one frame."""
        weights = self.weights
        costs = weights.matching(weights.frame_class)
        return TubeSettings(costs, self.points, weights.no_object, False, mean)

    def for_videos(self, mean: Mean) -> TubeSettings:
        """Return the settings for tubes of whole clips."""
        weights, duplicates = self.weights, self.accept_duplicates
        costs = weights.matching(weights.video_class)
        return TubeSettings(costs, self.points, weights.no_object, duplicates, mean)


Mean = Callable[[Tensor], Tensor]
"""Averages a count over the processes that train together."""


@dataclass(frozen=True)
class TubeSettings:
    """Set how tubes are matched and compared.

    Attributes:
        costs: weights of the matching.
        points: at which masks are compared.
        no_object: weight of queries without an object.
        accept_duplicates: see :class:`LossConfig`.
        mean_over_processes: averages the number of tubes.
    """

    costs: MatchingWeights
    points: PointSampling
    no_object: float
    accept_duplicates: bool = False
    mean_over_processes: Mean = lambda count: count


class TubeLosses(NamedTuple):
    """Hold unweighted sums over the layers, and the query of each target: int64 [B,L,M]."""

    classification: Tensor
    mask: Tensor
    dice: Tensor
    queries: Tensor


def training_losses(
    output: NetworkOutput,
    targets: ClipTargets,
    mask_head: MaskProduct,
    *,
    generator: torch.Generator,
    config: LossConfig | None = None,
    mean_over_processes: Mean = lambda count: count,
) -> dict[str, Tensor]:
    """Return the losses of ``RvosNetwork.forward`` on B clips of T frames, with S sentences each.

    Call this under the autocast of the forward pass. The mask products use autocast, and everything
    else is float32. Without targets, mask losses are zeros that still reach every parameter.

    Args:
        output: of the network.
        targets: of the same clips, on the same device, at any resolution.
        mask_head: the network's ``mask_head``, for video masks.
        generator: draws the points; exact resumption needs no other state.
        config: None: the defaults.
        mean_over_processes: averages a count over the processes that train together.

    Returns:
        Scalars: frame_class, frame_mask, frame_dice, video_class, video_mask, video_dice (sums
        over layers) and similarity, all unweighted; and their weighted sum, total.

    Raises:
        InputError: targets and output do not fit, or there are more objects than queries.
    """
    config = config or LossConfig()
    scene = sample_scene(output.frames.mask_features, targets, config.points, generator)
    sentences = targets.sentences
    visible = targets.visible()
    referred = targets.padded_referred()
    # The frame part reads the first sentence of each clip.
    wanted = visible if config.frame_objects == "all" else visible & referred[::sentences, None]
    frame_tubes = pack_tubes(wanted.flatten(0, 1))
    # An object that is never visible in the clip has no tube.
    video_tubes = pack_tubes(referred & visible.any(dim=1).repeat_interleave(sentences, dim=0))
    frame = tube_losses(
        output.frames.predictions,
        scene.as_frames(),
        frame_tubes,
        MaskDecoder(dot_product),
        config.for_frames(mean_over_processes),
    )
    video = tube_losses(
        output.video.predictions,
        scene.repeated(sentences),
        video_tubes,
        MaskDecoder(mask_head, output.video.frame_mask_embeddings),
        config.for_videos(mean_over_processes),
    )
    last = output.video.predictions[-1].queries
    of_video = matched_queries(last, video_tubes, video.queries[:, -1])
    similarity = similarity_loss(
        matched_queries(output.frames.queries, frame_tubes, frame.queries[:, -1]),
        MatchedQueries(*(x[::sentences] for x in of_video)),
    )
    return _named(frame, video, similarity, config.weights)


def tube_losses(
    predictions: Sequence[FramePrediction | VideoPrediction],
    scene: Scene,
    tubes: PaddedTubes,
    decoder: MaskDecoder,
    settings: TubeSettings,
) -> TubeLosses:
    """Match the queries of every layer with the tubes, and compare them.

    Args:
        predictions: of L layers, each with logits [B,N,2] and mask embeddings [B,N,C].
        scene: the B clips (:func:`sample_scene`).
        tubes: the objects to find in each clip.
        decoder: computes mask logits.
        settings: of matching and comparison.
    """
    logits = torch.stack([at_least_float32(p.logits) for p in predictions], dim=1)
    embeddings = torch.stack([p.mask_embeddings for p in predictions], dim=1)
    labels = _gather_rows(
        scene.labels, tubes.objects[:, None].expand(-1, scene.labels.shape[1], -1)
    )
    stacked = LayerPredictions(logits, embeddings)
    queries, covers = match_tubes(stacked, scene, labels, tubes.filled, decoder, settings.costs)
    chosen = _gather_rows(embeddings, queries).flatten(1, 2)
    of_frames = decoder.frame_embeddings
    if of_frames is not None:
        sentences = len(queries) // len(of_frames)
        slots = queries.flatten(1)[:, None].expand(-1, of_frames.shape[1], -1)
        of_frames = _gather_rows(of_frames.repeat_interleave(sentences, 0), slots)
    masks = clip_masks(decoder.product, chosen, scene.mask_features, of_frames)
    cross_entropy, dice = _point_losses(
        at_least_float32(masks), scene, labels, tubes.filled, settings.points
    )
    count = settings.mean_over_processes(tubes.filled.sum().to(dice.dtype)).clamp(min=1)
    has_object = matched(queries, tubes.filled, logits.shape[2])
    if settings.accept_duplicates:
        has_object = has_object | covers
    classification = classification_loss(logits, has_object, settings.no_object)
    return TubeLosses(classification, cross_entropy.sum() / count, dice.sum() / count, queries)


def _point_losses(
    masks: Tensor, scene: Scene, labels: Tensor, filled: Tensor, sampling: PointSampling
) -> tuple[Tensor, Tensor]:
    """Return cross-entropy and dice [G] of the G matched tubes of all layers, each at its points.

    Args:
        masks: logits [B,T,L*M,H/4,W/4], with gradient.
        scene: the B clips.
        labels: [B,T,M,S].
        filled: bool [B,M].
        sampling: numbers of points.
    """
    batch, length, rows = masks.shape[:3]
    slots, drawn = labels.shape[2:]
    layers = rows // max(slots, 1)
    matched = filled.repeat(1, layers).flatten().nonzero().squeeze(1)
    # The matched ones of [B,T,L*M,...] become [G*T,...].
    at_points = sample_points(masks.detach().flatten(0, 1), scene.points.flatten(0, 1))
    at_points = at_points.unflatten(0, (batch, length)).transpose(1, 2).flatten(0, 1)
    maps = masks.transpose(1, 2).flatten(0, 1).index_select(0, matched).flatten(0, 1)
    chosen = choose_points(at_points.index_select(0, matched).flatten(0, 1), sampling)
    time = torch.arange(length, device=masks.device)
    clip = torch.div(matched, max(rows, 1), rounding_mode="floor")
    frame = (clip[:, None] * length + time).flatten()
    slot = (matched % max(slots, 1)).repeat_interleave(length)
    points = scene.points.flatten(0, 2)[frame[:, None] * drawn + chosen]
    expected = labels.flatten()[(frame * slots + slot)[:, None] * drawn + chosen]
    logits = sample_points(maps[:, None], points).squeeze(1)
    return point_losses(
        logits.unflatten(0, (-1, length)).flatten(1),
        expected.to(logits.dtype).unflatten(0, (-1, length)).flatten(1),
    )


def point_losses(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean binary cross-entropy and dice, smoothed by one (Mask2Former): [G] of [G,S]."""
    cross_entropy = F.binary_cross_entropy_with_logits(logits, labels, reduction="none").mean(1)
    probability = logits.sigmoid()
    overlap = 2 * (probability * labels).sum(dim=1)
    dice = 1 - (overlap + 1) / (probability.sum(dim=1) + labels.sum(dim=1) + 1)
    return cross_entropy, dice


def matched(queries: Tensor, filled: Tensor, count: int) -> Tensor:
    """Return which of ``count`` queries are matched with a tube: bool [B,L,N].

    Args:
        queries: int64 [B,L,M], the matched queries.
        filled: bool [B,M], False for padding.
        count: number N of queries.
    """
    times = torch.zeros((*queries.shape[:2], count), dtype=torch.int64, device=queries.device)
    return times.scatter_add_(2, queries, filled[:, None].expand(queries.shape).long()) > 0


def classification_loss(logits: Tensor, is_object: Tensor, no_object: float) -> Tensor:
    """Return the cross-entropy: its weighted mean over queries and clips, summed over layers.

    Args:
        logits: [B,L,N,2]: class 0 has an object (or a referred one), class 1 has none.
        is_object: bool [B,L,N].
        no_object: weight of class 1.
    """
    nothing = (~is_object).long()
    losses = F.cross_entropy(logits.flatten(0, 2), nothing.flatten(), reduction="none")
    weights = 1 - (1 - no_object) * nothing.to(losses.dtype)
    weighted = losses.view_as(weights) * weights
    return (weighted.sum(dim=(0, 2)) / weights.sum(dim=(0, 2))).sum()


class MatchedQueries(NamedTuple):
    """Hold queries [B,M,C], their objects int64 [B,M], and filled bool [B,M], False for padding."""

    queries: Tensor
    objects: Tensor
    filled: Tensor

    def by_clip(self, batch: int) -> MatchedQueries:
        """Join the frames of a clip in one row: [B*T,M,...] becomes [B,T*M,...]."""
        return MatchedQueries(*(x.reshape(batch, -1, *x.shape[2:]) for x in self))


def matched_queries(queries: Tensor, tubes: PaddedTubes, matches: Tensor) -> MatchedQueries:
    """Select the queries of [B,N,C] that ``matches`` int64 [B,M] assigns to the tubes."""
    return MatchedQueries(
        _gather_rows(at_least_float32(queries), matches), tubes.objects, tubes.filled
    )


def similarity_loss(frame: MatchedQueries, video: MatchedQueries) -> Tensor:
    """Return the cross-entropy of the dot products of a clip's matched queries.

    Two queries should be similar exactly if they have one object. As in LMPM, frame and video
    queries are pooled, and all pairs of a clip have equal weight. In contrast to LMPM, a query is
    not compared with itself, and the product is divided by sqrt(C), because no projection learns
    its scale.

    Args:
        frame: of B*T frames, those of a clip consecutive.
        video: of B clips.
    """
    pooled = zip(frame.by_clip(video.queries.shape[0]), video, strict=True)
    queries, objects, filled = (torch.cat(pair, dim=1) for pair in pooled)
    with torch.autocast(queries.device.type, enabled=False):
        logits = queries @ queries.transpose(1, 2) / math.sqrt(queries.shape[-1])
    same = (objects[:, :, None] == objects[:, None]).to(logits.dtype)
    losses = F.binary_cross_entropy_with_logits(logits, same, reduction="none")
    itself = torch.eye(queries.shape[1], dtype=torch.bool, device=queries.device)
    pairs = filled[:, :, None] & filled[:, None] & ~itself
    return torch.where(pairs, losses, 0.0).sum() / pairs.sum().clamp(min=1)


def _named(
    frame: TubeLosses, video: TubeLosses, similarity: Tensor, weights: LossWeights
) -> dict[str, Tensor]:
    losses = {
        "frame_class": frame.classification,
        "frame_mask": frame.mask,
        "frame_dice": frame.dice,
        "video_class": video.classification,
        "video_mask": video.mask,
        "video_dice": video.dice,
        "similarity": similarity,
    }
    total = (
        weights.frame_class * frame.classification
        + weights.video_class * video.classification
        + weights.mask * (frame.mask + video.mask)
        + weights.dice * (frame.dice + video.dice)
        + weights.similarity * similarity
    )
    return {**losses, "total": total}


def _gather_rows(values: Tensor, index: Tensor) -> Tensor:
    """Gather rows of values [...,N,C] by index int64 [...,M]: [...,M,C]."""
    return values.gather(-2, index[..., None].expand(*index.shape, values.shape[-1]))
