"""Run the reference network on a whole clip, for parity and validation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rvos_deploy.networks.pan2024.modules.clip import ImageFeatures
from rvos_deploy.networks.pan2024.modules.frame_query_decoder import QueryDescriptors
from rvos_deploy.networks.pan2024.modules.mask_head import unite_masks
from rvos_deploy.networks.pan2024.modules.network import FrameOutput, RvosNetwork, referred_scores
from rvos_deploy.networks.pan2024.modules.video_query_decoder import VideoPrediction
from rvos_deploy.networks.selection import thresholds
from rvos_deploy.stream_settings import Fallback


class DecodedClip(NamedTuple):
    """Hold the decoded clip for E sentences.

    frames: output of the frame part for each frame.
    frame_mask_embeddings: [E,T,N,C], aligned to the slots.
    last: prediction of the last layer of the video part.
    order: int64 [E,T,N], the query in each slot.
    """

    frames: list[FrameOutput]
    frame_mask_embeddings: Tensor
    last: VideoPrediction
    order: Tensor


class ClipAnswer(NamedTuple):
    """Hold the answer for E sentences.

    scores: float32 [E,N].
    mask_logits: float32 [E,T,h,w] at stride 4, united over the queries that pass.
    order: int64 [E,T,N], the query in each slot.
    """

    scores: Tensor
    mask_logits: Tensor
    order: Tensor


def tokenize(tokenizer: Callable[[str], NDArray[np.int64]], texts: Sequence[str]) -> Tensor:
    """Return token ids int64 [E,L] of E sentences, padded with zeros."""
    sentences = [torch.from_numpy(tokenizer(text)) for text in texts]
    return torch.nn.utils.rnn.pad_sequence(sentences, batch_first=True)


@torch.inference_mode()
def decode_clip(
    network: RvosNetwork,
    frames: Sequence[Tensor],
    token_ids: Tensor,
    backbone: Callable[[Tensor], ImageFeatures] | None = None,
) -> DecodedClip:
    """Decode one clip offline for E sentences; the backbone runs once per frame.

    Args:
        network: a network in eval mode.
        frames: T tensors uint8 [1,H,W,3], on the network's device.
        token_ids: int64 [E,L], on the network's device.
        backbone: encodes a frame; None: the network's own.
    """
    encode = backbone or network.encode_frames
    text = network.encode_text(token_ids)
    decoded = [network.decode_frames(encode(frame), text) for frame in frames]
    queries = torch.stack([frame.queries for frame in decoded], dim=1)
    embeddings = torch.stack([frame.mask_embeddings for frame in decoded], dim=1)
    descriptors = QueryDescriptors(
        *(
            torch.stack(parts, dim=1)
            for parts in zip(*(f.descriptors for f in decoded), strict=True)
        )
    )
    order = network.slot_order(descriptors)
    video = network.decode_video(queries, order, text, mask_embeddings=embeddings)
    assert video.frame_mask_embeddings is not None
    return DecodedClip(decoded, video.frame_mask_embeddings, video.predictions[-1], order)


@torch.inference_mode()
def segment_clip(
    network: RvosNetwork,
    frames: Sequence[Tensor],
    token_ids: Tensor,
    fallback: Fallback = "none",
    backbone: Callable[[Tensor], ImageFeatures] | None = None,
) -> ClipAnswer:
    """Segment one clip offline for E sentences.

    Args:
        network: a network in eval mode, whose configuration has the threshold.
        frames: T tensors uint8 [1,H,W,3], on the network's device.
        token_ids: int64 [E,L], on the network's device.
        fallback: the result when no query passes (``StreamSettings.fallback``).
        backbone: encodes a frame; None: the network's own.
    """
    decoded, of_frames, last, order = decode_clip(network, frames, token_ids, backbone)
    scores = referred_scores(last.logits)
    passing = thresholds(scores.cpu().numpy(), network.config.threshold, fallback)
    threshold = torch.from_numpy(passing).to(scores.device)
    maps = [
        unite_masks(
            network.mask_head(last.mask_embeddings, frame.mask_features, of_frames[:, t]),
            scores,
            threshold,
        )
        for t, frame in enumerate(decoded)
    ]
    return ClipAnswer(scores, torch.stack(maps, dim=1), order)
