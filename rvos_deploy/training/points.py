"""Points at which masks are compared: drawn at random, more of them where a mask is uncertain."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from rvos_deploy.errors import InputError
from rvos_deploy.training.targets import ClipTargets


class MaskProduct(Protocol):
    """Embeddings [...,N,C] and mask features [...,C,H,W] -> mask logits [...,N,H,W].

    frame_mask_embeddings: [...,N,C], those of the slots' frame queries.
    """

    def __call__(  # noqa: D102
        self,
        mask_embeddings: Tensor,
        mask_features: Tensor,
        frame_mask_embeddings: Tensor | None = None,
    ) -> Tensor: ...


@dataclass(frozen=True)
class PointSampling:
    """How many points, and which (PointRend, Kirillov et al. 2020; numbers of Mask2Former).

    Attributes:
        num_points: points a mask and frame that the losses see.
        oversample: candidates drawn for each of them.
        importance: share of the points that are the most uncertain candidates; the others are
            drawn uniformly.
    """

    num_points: int = 12544
    oversample: float = 3.0
    importance: float = 0.75

    def __post_init__(self) -> None:
        if self.num_points < 1:
            raise InputError(f"num_points must be at least 1, found {self.num_points}")
        if self.oversample < 1 or not 0 <= self.importance <= 1:
            raise InputError(
                f"oversample must be at least 1 and importance in 0..1, "
                f"found {self.oversample} and {self.importance}"
            )

    @property
    def candidates(self) -> int:
        """Points among which the uncertain ones are chosen."""
        return int(self.num_points * self.oversample)

    @property
    def uncertain(self) -> int:
        """Points that are chosen for their uncertainty."""
        return int(self.num_points * self.importance)

    @property
    def drawn(self) -> int:
        """Points to draw in all: the candidates, then those that are taken as they come."""
        return self.candidates + self.num_points - self.uncertain


def draw_points(
    frames: int, sampling: PointSampling, generator: torch.Generator, device: torch.device
) -> Tensor:
    """Draw points uniformly in the unit square: float32 [frames, sampling.drawn, 2] as (x, y).

    One set a frame serves all masks of all layers there, so what is drawn depends neither on the
    objects nor on the device of the network; each mask then chooses its own points among them.
    """
    shape = (frames, sampling.drawn, 2)
    return torch.rand(shape, generator=generator, device=generator.device).to(device)


def sample_points(features: Tensor, points: Tensor) -> Tensor:
    """Sample maps bilinearly at points, pixel centres at (i + 0.5) / size (align_corners False).

    Outside the outermost pixel centres the border goes on. So the weights always sum to 1, and
    at the centres of a finer grid the values are those of ``F.interpolate``, by which masks are
    enlarged at inference. (Mask2Former fades to 0 there, within half a pixel of the border.)

    Args:
        features: float [B,C,H,W].
        points: [B,P,2], (x, y) in 0..1.

    Returns:
        float [B,C,P].
    """
    grid = (2 * points[:, :, None] - 1).to(features.dtype)
    sampled = F.grid_sample(features, grid, padding_mode="border", align_corners=False)
    return sampled.squeeze(-1)


@torch.no_grad()
def choose_points(logits: Tensor, sampling: PointSampling) -> Tensor:
    """Choose each mask's points among those drawn (PointRend).

    Args:
        logits: [G, sampling.drawn], the masks' logits at the points of ``draw_points``.

    Returns:
        int64 [G, num_points]: the candidates whose logits are nearest to 0, then the uniform rest.
    """
    candidates = logits[:, : sampling.candidates].abs()
    nearest = candidates.topk(sampling.uncertain, dim=1, largest=False, sorted=False).indices
    rest = torch.arange(sampling.candidates, sampling.drawn, device=logits.device)
    return torch.cat((nearest, rest.expand(logits.shape[0], -1)), dim=1)


class Scene(NamedTuple):
    """B clips of T frames as the losses see them: S points drawn, P of them for the matching.

    mask_features [B,T,C,H/4,W/4]; points [B,T,S,2]; point_features [B,T,C,P], without gradient;
    labels [B,T,K,S], the objects' masks at the points. Where a clip has several sentences, points
    and labels come once for each.
    """

    mask_features: Tensor
    points: Tensor
    point_features: Tensor
    labels: Tensor

    def as_frames(self) -> Scene:
        """View every frame as a clip of its own: [B*T,1,...]."""
        return Scene(*(x.flatten(0, 1)[:, None] for x in self))

    def repeated(self, sentences: int) -> Scene:
        """Points and labels as many times as a clip has sentences: [B*S,...]."""
        if sentences == 1:
            return self
        points, labels = (x.repeat_interleave(sentences, 0) for x in (self.points, self.labels))
        return self._replace(points=points, labels=labels)


def clip_masks(
    mask_product: MaskProduct,
    embeddings: Tensor,
    features: Tensor,
    frame_mask_embeddings: Tensor | None,
) -> Tensor:
    """Mask logits of all sentences of a clip by one product with its features.

    Args:
        mask_product: how masks come from embeddings and mask features.
        embeddings: [B*S,K,C], the S sentences of a clip together.
        features: [B,T,C,H,W].
        frame_mask_embeddings: [B*S,T,K,C] or None.

    Returns:
        [B*S,T,K,H,W].
    """
    clips = features.shape[0]
    beside = embeddings.unflatten(0, (clips, -1))
    sentences = beside.shape[1]
    if frame_mask_embeddings is not None:
        of_frames = frame_mask_embeddings.unflatten(0, (clips, -1)).transpose(1, 2)
        frame_mask_embeddings = of_frames.flatten(2, 3)
    masks = mask_product(beside.flatten(1, 2)[:, None], features, frame_mask_embeddings)
    return masks.unflatten(2, (sentences, -1)).transpose(1, 2).flatten(0, 1)


def look_at(
    mask_features: Tensor,
    targets: ClipTargets,
    sampling: PointSampling,
    generator: torch.Generator,
) -> Scene:
    """Draw points in every frame, and sample mask features [B*T,C,H/4,W/4] and targets there."""
    shape = (targets.batch, targets.length)
    frames = targets.batch * targets.length
    if mask_features.shape[0] != frames:
        raise InputError(
            f"targets of {targets.batch} clips of {targets.length} frames do not fit mask "
            f"features of {mask_features.shape[0]} frames"
        )
    points = draw_points(frames, sampling, generator, mask_features.device)
    with torch.no_grad(), torch.autocast(mask_features.device.type, enabled=False):
        for_matching = points[:, : sampling.num_points]
        point_features = sample_points(widen(mask_features), for_matching)
        masks = targets.padded_masks(point_features.dtype)
        labels = sample_points(masks.flatten(0, 1), points)
    parts = (mask_features, points, point_features, labels)
    return Scene(*(part.unflatten(0, shape) for part in parts))


def dot_product(
    mask_embeddings: Tensor, mask_features: Tensor, frame_mask_embeddings: Tensor | None = None
) -> Tensor:
    """Mask logits of frame queries: [...,N,C] and [...,C,H,W] -> [...,N,H,W]."""
    if frame_mask_embeddings is not None:
        mask_embeddings = mask_embeddings + frame_mask_embeddings
    logits = mask_embeddings @ mask_features.flatten(-2)
    return logits.unflatten(-1, mask_features.shape[-2:])


def widen(x: Tensor) -> Tensor:
    """At least float32, in which losses are computed."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
