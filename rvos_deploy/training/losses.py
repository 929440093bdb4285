"""The training losses: frames and tubes are matched to objects, then compared with them.

After LMPM (Ding et al. 2023), whose frame losses are those of Mask2Former (Cheng et al. 2022) and
whose video and similarity losses are those of VITA (Heo et al. 2022). A frame is treated as a tube
of length one, and all layers of a decoder as one batch.

No mask of all queries is ever built. Masks are dot products, and sampling is linear: for the
matching, the *mask features* are sampled, once for all queries, layers and both decoders. Only
matched queries get a map, at stride 4, because it is smaller than the features at their points.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Literal, NamedTuple, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from rvos_deploy.errors import InputError
from rvos_deploy.networks.pan2024.modules.frame_query_decoder import FramePrediction
from rvos_deploy.networks.pan2024.modules.network import NetworkOutput
from rvos_deploy.networks.pan2024.modules.video_query_decoder import VideoPrediction
from rvos_deploy.training.matching import (
    MatchingWeights,
    PaddedTubes,
    match_tubes,
    pack_tubes,
)
from rvos_deploy.training.points import (
    MaskProduct,
    PointSampling,
    Scene,
    choose_points,
    clip_masks,
    dot_product,
    look_at,
    sample_points,
    widen,
)
from rvos_deploy.training.targets import ClipTargets

FrameObjects = Literal["all", "referred"]


@dataclass(frozen=True)
class LossWeights:
    """Weights of the losses in their sum and, but for the similarity, of the matching costs.

    match_class: of the class in the matching, where it should be another than in the sum: a heavy
    one lets a query that is believed to be meant answer for an object that it does not cover.
    """

    frame_class: float = 2.0
    video_class: float = 2.0
    mask: float = 5.0
    dice: float = 5.0
    similarity: float = 0.5
    no_object: float = 0.1
    """Weight of the queries without an object in the classification losses."""
    match_class: float | None = None

    def matching(self, classification: float) -> MatchingWeights:
        """The costs that go with a loss whose class has this weight."""
        chosen = classification if self.match_class is None else self.match_class
        return MatchingWeights(chosen, self.mask, self.dice)


@dataclass(frozen=True)
class LossConfig:
    """What the losses weigh, how they sample, and which objects frame queries should find.

    ``frame_objects``: every visible object, or only those that the expression means.

    ``accept_duplicates``: whether a video query on an object that is meant counts as right though
    another was matched with it. The answer unites masks, so a second one does no harm, and what is
    asked of a query is then settled by what it lies on, not by which of two equals won.
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


class TubeLosses(NamedTuple):
    """Unweighted sums over the layers, and the query of each target: int64 [B,L,M]."""

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
    mean_over_processes: Callable[[Tensor], Tensor] = lambda count: count,
) -> dict[str, Tensor]:
    """Losses of ``RvosNetwork.forward`` on a batch of B clips of T frames, S sentences for each.

    Call it under the autocast of the forward pass: the mask products follow it, the rest is done
    in float32. With no target at all, mask losses are zeros that still reach every parameter.

    Args:
        output: of the network.
        targets: of the same clips, on the same device, at any resolution.
        mask_head: the network's ``mask_head``, which video masks go through.
        generator: draws the points; its state is all that must be kept for an exact resumption.
        config: the defaults of the paper's line when None.
        mean_over_processes: averages a count over the processes that train together.

    Returns:
        Scalars: frame_class, frame_mask, frame_dice, video_class, video_mask, video_dice (sums
        over layers) and similarity, all unweighted; and their weighted sum, total.

    Raises:
        InputError: when targets and output do not fit, or objects outnumber the queries.
    """
    config = config or LossConfig()
    scene = look_at(output.frames.mask_features, targets, config.points, generator)
    sentences = targets.sentences
    visible = targets.visible()
    referred = targets.padded_referred()
    # The frame part has read the first sentence of each clip.
    wanted = visible if config.frame_objects == "all" else visible & referred[::sentences, None]
    frame_tubes = pack_tubes(wanted.flatten(0, 1))
    # An object that is never seen in the clip has no tube to find.
    video_tubes = pack_tubes(referred & visible.any(dim=1).repeat_interleave(sentences, dim=0))
    weights = config.weights
    frame_costs = weights.matching(weights.frame_class)
    video_costs = weights.matching(weights.video_class)
    compare = partial(tube_losses, config=config, mean_over_processes=mean_over_processes)
    frame = compare(
        output.frames.predictions, scene.as_frames(), frame_tubes, dot_product, frame_costs
    )
    video = compare(
        output.video.predictions,
        scene.repeated(sentences),
        video_tubes,
        mask_head,
        video_costs,
        frame_mask_embeddings=output.video.frame_mask_embeddings,
        accept_duplicates=config.accept_duplicates,
    )
    of_video = matched_queries(
        output.video.predictions[-1].queries, video_tubes, video.queries[:, -1]
    )
    similarity = similarity_loss(
        matched_queries(output.frames.queries, frame_tubes, frame.queries[:, -1]),
        MatchedQueries(*(x[::sentences] for x in of_video)),
    )
    return _named(frame, video, similarity, config.weights)


def tube_losses(
    predictions: Sequence[FramePrediction | VideoPrediction],
    scene: Scene,
    tubes: PaddedTubes,
    mask_product: MaskProduct,
    costs: MatchingWeights,
    config: LossConfig,
    mean_over_processes: Callable[[Tensor], Tensor] = lambda count: count,
    frame_mask_embeddings: Tensor | None = None,
    accept_duplicates: bool = False,
) -> TubeLosses:
    """Match the queries of every layer with the tubes, and compare them.

    Args:
        predictions: of L layers, each with logits [B,N,2] and mask embeddings [B,N,C].
        scene: the B clips (:func:`look_at`).
        tubes: the objects to find in each.
        mask_product: how masks come from embeddings and mask features.
        costs: weights of the matching.
        config: points, and the weight of queries without an object.
        mean_over_processes: as in :func:`training_losses`.
        frame_mask_embeddings: [B,T,N,C], those of the slots in every frame; None: the masks come
            from the predictions alone.
        accept_duplicates: as :class:`LossConfig` has it.
    """
    logits = torch.stack([widen(p.logits) for p in predictions], dim=1)
    embeddings = torch.stack([p.mask_embeddings for p in predictions], dim=1)
    labels = _pick(scene.labels, tubes.objects[:, None].expand(-1, scene.labels.shape[1], -1))
    queries, covers = match_tubes(
        logits,
        embeddings,
        scene,
        labels,
        tubes.filled,
        mask_product,
        costs,
        frame_mask_embeddings,
    )
    chosen = _pick(embeddings, queries).flatten(1, 2)
    of_frames = None
    if frame_mask_embeddings is not None:
        length = frame_mask_embeddings.shape[1]
        sentences = len(queries) // len(frame_mask_embeddings)
        slots = queries.flatten(1)[:, None].expand(-1, length, -1)
        of_frames = _pick(frame_mask_embeddings.repeat_interleave(sentences, 0), slots)
    masks = clip_masks(mask_product, chosen, scene.mask_features, of_frames)
    cross_entropy, dice = _point_losses(widen(masks), scene, labels, tubes.filled, config.points)
    count = mean_over_processes(tubes.filled.sum().to(dice.dtype)).clamp(min=1)
    has_object = matched(queries, tubes.filled, logits.shape[2])
    if accept_duplicates:
        has_object = has_object | covers
    classification = classification_loss(logits, has_object, config.weights.no_object)
    return TubeLosses(classification, cross_entropy.sum() / count, dice.sum() / count, queries)


def _point_losses(
    masks: Tensor, scene: Scene, labels: Tensor, filled: Tensor, sampling: PointSampling
) -> tuple[Tensor, Tensor]:
    """Cross-entropy and dice of the G matched tubes of all layers, each at points of its own: [G].

    masks [B,T,L*M,H/4,W/4] with gradient; labels [B,T,M,S]; filled [B,M].
    """
    batch, length, rows = masks.shape[:3]
    slots, drawn = labels.shape[2:]
    layers = rows // max(slots, 1)
    matched = filled.repeat(1, layers).flatten().nonzero().squeeze(1)
    # [B,T,L*M,...] -> [G*T,...], the matched ones only.
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
    """Mean binary cross-entropy, and dice smoothed by one (Mask2Former): [G], both of [G,S]."""
    cross_entropy = F.binary_cross_entropy_with_logits(logits, labels, reduction="none").mean(1)
    probability = logits.sigmoid()
    overlap = 2 * (probability * labels).sum(dim=1)
    dice = 1 - (overlap + 1) / (probability.sum(dim=1) + labels.sum(dim=1) + 1)
    return cross_entropy, dice


def matched(queries: Tensor, filled: Tensor, count: int) -> Tensor:
    """Which of ``count`` queries answer for a tube: bool [B,L,N].

    Args:
        queries: int64 [B,L,M], the matched ones.
        filled: bool [B,M]: which of them count.
        count: N.
    """
    times = torch.zeros((*queries.shape[:2], count), dtype=torch.int64, device=queries.device)
    return times.scatter_add_(2, queries, filled[:, None].expand(queries.shape).long()) > 0


def classification_loss(logits: Tensor, is_object: Tensor, no_object: float) -> Tensor:
    """Cross-entropy, its weighted mean over queries and clips in each layer, summed over layers.

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
    """queries [B,M,C]; the object of each, int64 [B,M]; whether there is one, bool [B,M]."""

    queries: Tensor
    objects: Tensor
    filled: Tensor

    def by_clip(self, batch: int) -> MatchedQueries:
        """Put those of the T frames of a clip in one row: [B*T,M,...] -> [B,T*M,...]."""
        return MatchedQueries(*(x.reshape(batch, -1, *x.shape[2:]) for x in self))


def matched_queries(queries: Tensor, tubes: PaddedTubes, matches: Tensor) -> MatchedQueries:
    """Pick from queries [B,N,C] those that ``match`` gave to the tubes: int64 [B,M]."""
    return MatchedQueries(_pick(widen(queries), matches), tubes.objects, tubes.filled)


def similarity_loss(frame: MatchedQueries, video: MatchedQueries) -> Tensor:
    """Cross-entropy on dot products of a clip's matched queries: alike where one object is meant.

    As in LMPM, frame and video queries are pooled, and all pairs of a clip count alike. Unlike
    there, a query is not compared with itself, and the product is divided by sqrt(C), since no
    projection learns its scale.

    Args:
        frame: of B*T frames, those of a clip together.
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


def _pick(values: Tensor, index: Tensor) -> Tensor:
    """Rows of [...,N,C] by int64 [...,M]: [...,M,C]."""
    return values.gather(-2, index[..., None].expand(*index.shape, values.shape[-1]))
