"""Draw the points at which masks are compared, more of them where a mask is uncertain."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from rvos_deploy.errors import InputError
from rvos_deploy.training.targets import ClipTargets


class MaskProduct(Protocol):
    """Compute mask logits [...,N,H,W] of embeddings [...,N,C] on mask features [...,C,H,W].

    ``frame_mask_embeddings`` are [...,N,C] of the slots' frame queries.
    """

    def __call__(  # noqa: D102
        self,
        mask_embeddings: Tensor,
        mask_features: Tensor,
        frame_mask_embeddings: Tensor | None = None,
    ) -> Tensor: ...


class MaskDecoder(NamedTuple):
    """Compute mask logits of queries.

    product: computes mask logits of embeddings on mask features.
    frame_embeddings: [B,T,N,C] of the slots in every frame; None: the masks depend on the queries'
        embeddings alone.
    """

    product: MaskProduct
    frame_embeddings: Tensor | None = None


@dataclass(frozen=True)
class PointSampling:
    """Set the number and choice of points (PointRend, Kirillov et al. 2020; as Mask2Former).

    Attributes:
        num_points: points of each mask in each frame for the losses.
        oversample: candidates drawn for each of these points.
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
        """Return the number of points among which the uncertain ones are chosen."""
        return int(self.num_points * self.oversample)

    @property
    def uncertain(self) -> int:
        """Return the number of points that are chosen for their uncertainty."""
        return int(self.num_points * self.importance)

    @property
    def drawn(self) -> int:
        """Return the number of points to draw: the candidates, then the uniform points."""
        return self.candidates + self.num_points - self.uncertain


def draw_points(
    frames: int, sampling: PointSampling, generator: torch.Generator, device: torch.device
) -> Tensor:
    """Draw points (x, y) uniformly in the unit square: float32 [frames, sampling.drawn, 2].

    All masks and layers of a frame share one set, and each mask chooses its points from the set. So
    the draw depends neither on the objects nor on the network's device.
    """
    shape = (frames, sampling.drawn, 2)
    return torch.rand(shape, generator=generator, device=generator.device).to(device)


def sample_points(features: Tensor, points: Tensor) -> Tensor:
    """Sample maps bilinearly at points; pixel centres are at (i + 0.5) / size.

    Border values extend beyond the outermost pixel centres. So the weights sum to 1, and at the
    centres of a finer grid the values equal those of ``F.interpolate``, which enlarges masks at
    inference. Mask2Former fades to 0 within half a pixel of the border.

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
    """Choose the points of each mask among the drawn ones (PointRend).

    Args:
        logits: [G, sampling.drawn], of the masks at the points of ``draw_points``.
        sampling: numbers of points.

    Returns:
        int64 [G, num_points]: the candidates with logits nearest to 0, then the uniform points.
    """
    candidates = logits[:, : sampling.candidates].abs()
    nearest = candidates.topk(sampling.uncertain, dim=1, largest=False, sorted=False).indices
    rest = torch.arange(sampling.candidates, sampling.drawn, device=logits.device)
    return torch.cat((nearest, rest.expand(logits.shape[0], -1)), dim=1)


class Scene(NamedTuple):
    """Hold B clips of T frames for the losses, with S drawn points, P of them for the matching.

    mask_features: [B,T,C,H/4,W/4].
    points: [B,T,S,2], (x, y) in 0..1.
    point_features: [B,T,C,P], without gradient.
    labels: [B,T,K,S], the objects' masks at the points.

    After :meth:`repeated`, points and labels are repeated for each sentence of a clip.
    """

    mask_features: Tensor
    points: Tensor
    point_features: Tensor
    labels: Tensor

    def as_frames(self) -> Scene:
        """Return every frame as a separate clip: [B*T,1,...]."""
        return Scene(*(x.flatten(0, 1)[:, None] for x in self))

    def repeated(self, sentences: int) -> Scene:
        """Repeat points and labels for each sentence of a clip: [B*S,...]."""
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
    """Compute the mask logits of all sentences of a clip by one product with its features.

    Args:
        mask_product: computes mask logits.
        embeddings: [B*S,K,C], the S sentences of a clip are consecutive.
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


def sample_scene(
    mask_features: Tensor,
    targets: ClipTargets,
    sampling: PointSampling,
    generator: torch.Generator,
) -> Scene:
    """Draw points in every frame, and sample mask features and targets at the points.

    Args:
        mask_features: [B*T,C,H/4,W/4].
        targets: of the B clips.
        sampling: numbers of points.
        generator: random stream.

    Raises:
        InputError: targets and mask features have different numbers of frames.
    """
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
        point_features = sample_points(at_least_float32(mask_features), for_matching)
        masks = targets.padded_masks(point_features.dtype)
        labels = sample_points(masks.flatten(0, 1), points)
    parts = (mask_features, points, point_features, labels)
    return Scene(*(part.unflatten(0, shape) for part in parts))


def dot_product(
    mask_embeddings: Tensor, mask_features: Tensor, frame_mask_embeddings: Tensor | None = None
) -> Tensor:
    """Compute mask logits [...,N,H,W] of frame queries: [...,N,C] times [...,C,H,W]."""
    if frame_mask_embeddings is not None:
        mask_embeddings = mask_embeddings + frame_mask_embeddings
    logits = mask_embeddings @ mask_features.flatten(-2)
    return logits.unflatten(-1, mask_features.shape[-2:])


def at_least_float32(x: Tensor) -> Tensor:
    """Return the tensor in float32, or unchanged in float64."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
