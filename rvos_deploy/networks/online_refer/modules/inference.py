"""Segment a whole clip with PyTorch, as the reference of an export."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from rvos_deploy.networks.online_refer.config import PADDING_ID
from rvos_deploy.networks.online_refer.modules.network import OnlineRefer, Track
from rvos_deploy.networks.online_refer.modules.resnet import ImageFeatures


class ClipMasks(NamedTuple):
    """Hold the answer: mask logits float32 [E,T,h,w], and best queries int64 [E,T,1]."""

    mask_logits: Tensor
    best: Tensor


@torch.inference_mode()
def segment_clip(
    network: OnlineRefer,
    frames: Sequence[Tensor],
    sentences: Sequence[Tensor],
    backbone: Callable[[Tensor], ImageFeatures] | None = None,
) -> ClipMasks:
    """Follow E sentences through T frames; all join in the first.

    Args:
        network: a network in eval mode.
        frames: uint8 [1,H,W,3] each, H and W multiples of 32.
        sentences: token ids int64 [L] each, of any lengths.
        backbone: encodes a frame; None: the network's own.
    """
    encode = backbone or network.image_features
    ids = torch.nn.utils.rnn.pad_sequence(
        list(sentences), batch_first=True, padding_value=PADDING_ID
    )
    lengths = torch.tensor([len(sentence) for sentence in sentences])
    padding = torch.arange(ids.shape[1]) >= lengths[:, None]
    tokens = network.text_tokens(ids, padding)
    track, logits, best = _no_track(network, len(sentences)), [], []
    for frame in frames:
        output = network.decode_frame(encode(frame), tokens, padding, track)
        logits.append(output.mask_logits)
        best.append(output.best)
        joined = torch.zeros_like(track.joined)
        track = Track(output.content, output.position, output.box, joined, track.preference)
    return ClipMasks(torch.stack(logits, dim=1), torch.stack(best, dim=1)[..., None])


def _no_track(network: OnlineRefer, expressions: int) -> Track:
    dim, queries = network.config.dim, network.config.num_queries
    return Track(
        torch.zeros(expressions, dim, dtype=network.dtype),
        torch.zeros(expressions, dim, dtype=network.dtype),
        torch.zeros(expressions, 4),
        torch.ones(expressions, dtype=torch.bool),
        torch.zeros(expressions, queries),
    )
