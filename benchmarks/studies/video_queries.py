"""Decode all queries of a video, for studies that select queries themselves."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rvos_deploy.datasets import VideoRecord
from rvos_deploy.graph_io.frame_geometry import (
    FrameGeometry,
    letterbox,
    resize_frame,
    upsample_mask,
)
from rvos_deploy.graph_io.tokenizer import Tokenizer
from rvos_deploy.networks.pan2024.modules.inference import decode_clip, tokenize
from rvos_deploy.networks.pan2024.modules.mask_head import unite_masks
from rvos_deploy.networks.pan2024.modules.network import RvosNetwork, referred_scores


@dataclass(frozen=True)
class VideoQueries:
    """All queries of all expressions of a video.

    Args:
        logits: mask logits float32 [E,T,N,h,w], at stride 4.
        scores: float32 [E,N].
        geometry: of the frames.
    """

    logits: Tensor
    scores: Tensor
    geometry: FrameGeometry

    def masks(self, threshold: float) -> NDArray[np.bool_]:
        """Return the masks bool [T,E,H,W] of the queries above a threshold."""
        count, frames = self.logits.shape[:2]
        masks = np.zeros((frames, count, *self.geometry.display), np.bool_)
        limit = torch.full((frames,), threshold)
        for row, scores in enumerate(self.scores):
            maps = unite_masks(self.logits[row], scores.expand(frames, -1), limit)
            for t, one in enumerate(maps.numpy()):
                masks[t, row] = upsample_mask(one, self.geometry)
        return masks


@torch.inference_mode()
def decode_queries(network: RvosNetwork, tokenizer: Tokenizer, video: VideoRecord) -> VideoQueries:
    """Decode a whole video offline; ``network`` is in eval mode."""
    geometry = letterbox(video.size, network.config.input_size)
    images = [video.image(index) for index in range(len(video.frames))]
    frames = [torch.from_numpy(resize_frame(image, geometry)) for image in images]
    ids = tokenize(tokenizer, [expression.text for expression in video.expressions])
    clip = decode_clip(network, frames, ids)
    logits = [
        network.mask_head(
            clip.last.mask_embeddings, frame.mask_features, clip.frame_mask_embeddings[:, t]
        )
        for t, frame in enumerate(clip.frames)
    ]
    return VideoQueries(torch.stack(logits, dim=1), referred_scores(clip.last.logits), geometry)
