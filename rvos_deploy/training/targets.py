"""Hold the targets of a batch of clips: masks of objects, and which objects are referred to."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rvos_deploy.errors import InputError


@dataclass(frozen=True)
class ClipTargets:
    """Hold the ground truth of B clips of one length and size; the number K of objects varies.

    Attributes:
        masks: of each clip, bool [K,T,H,W]. An object is visible in the frames where its mask is
            not empty.
        referred: of each sentence, bool [K], whether it means each object; all False for a
            no-target expression. Each clip has S sentences, and those of a clip are consecutive.

    Raises:
        InputError: the tensors do not fit each other.
    """

    masks: tuple[Tensor, ...]
    referred: tuple[Tensor, ...]

    def __post_init__(self) -> None:
        if not self.masks or not self.referred or len(self.referred) % len(self.masks):
            raise InputError(
                f"targets need masks and referred flags for the same clips, at least one; "
                f"found {len(self.masks)} and {len(self.referred)}"
            )
        for row, referred in enumerate(self.referred):
            clip = row // self.sentences
            _check_clip(clip, self.masks[clip], referred, self.masks[0])

    @property
    def batch(self) -> int:
        """Return the number B of clips."""
        return len(self.masks)

    @property
    def sentences(self) -> int:
        """Return the number S of sentences of each clip."""
        return len(self.referred) // len(self.masks)

    @property
    def length(self) -> int:
        """Return the number T of frames of each clip."""
        return self.masks[0].shape[1]

    @property
    def device(self) -> torch.device:
        """Return the device of the tensors."""
        return self.masks[0].device

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> ClipTargets:
        """Return the same targets on another device."""
        return ClipTargets(
            tuple(x.to(device, non_blocking=non_blocking) for x in self.masks),
            tuple(x.to(device, non_blocking=non_blocking) for x in self.referred),
        )

    def padded_masks(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return masks 0 or 1, [B,T,K,H,W], padded to the largest K of any clip, at least 1."""
        height, width = self.masks[0].shape[2:]
        shape = (self.batch, self.length, self._most_objects, height, width)
        padded = torch.zeros(shape, dtype=dtype, device=self.device)
        for clip, masks in enumerate(self.masks):
            padded[clip, :, : masks.shape[0]] = masks.transpose(0, 1)
        return padded

    def visible(self) -> Tensor:
        """Return whether each object is visible in each frame: bool [B,T,K], K as padded_masks."""
        shape = (self.batch, self.length, self._most_objects)
        visible = torch.zeros(shape, dtype=torch.bool, device=self.device)
        for clip, masks in enumerate(self.masks):
            visible[clip, :, : masks.shape[0]] = masks.flatten(2).any(dim=-1).T
        return visible

    def padded_referred(self) -> Tensor:
        """Return whether each sentence means each object: bool [B*S,K], K as padded_masks."""
        shape = (len(self.referred), self._most_objects)
        padded = torch.zeros(shape, dtype=torch.bool, device=self.device)
        for row, referred in enumerate(self.referred):
            padded[row, : referred.shape[0]] = referred
        return padded

    @property
    def _most_objects(self) -> int:
        return max(1, *(masks.shape[0] for masks in self.masks))


def _check_clip(clip: int, masks: Tensor, referred: Tensor, first: Tensor) -> None:
    if masks.dim() != 4 or masks.dtype != torch.bool or referred.dtype != torch.bool:
        raise InputError(
            f"clip {clip}: masks must be bool [K,T,H,W] and referred bool [K]; found "
            f"{masks.dtype} {list(masks.shape)} and {referred.dtype} {list(referred.shape)}"
        )
    if masks.shape[1:] != first.shape[1:] or min(masks.shape[1:]) < 1:
        raise InputError(
            f"clip {clip}: masks of T,H,W {list(masks.shape[1:])}, those of clip 0 have "
            f"{list(first.shape[1:])}; clips of a batch share one length and one size, none of it 0"
        )
    if referred.shape != masks.shape[:1]:
        raise InputError(
            f"clip {clip}: {masks.shape[0]} objects, but referred has shape {list(referred.shape)}"
        )
