"""Run the network over a clip as a stream does: all expressions of a frame in one batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from rvos_deploy.networks.online_refer.config import PADDING_ID
from rvos_deploy.networks.online_refer.modules.network import FrameOutput, OnlineRefer, Track


@torch.inference_mode()
def frame_outputs(
    network: OnlineRefer,
    frames: NDArray[np.uint8],
    sentences: Sequence[NDArray[np.int64]],
    joins: Sequence[int],
) -> Iterator[tuple[int, list[int], FrameOutput]]:
    """Frame, the expressions in it, and their outputs.

    Args:
        network: in any floating-point type.
        frames: [T,H,W,3].
        sentences: token ids of every expression, unpadded.
        joins: the frame at which each expression starts.
    """
    config, dtype = network.config, network.query_embed.weight.dtype
    ids, padding = padded(sentences)
    tokens = network.text_tokens(ids, padding)
    # What an expression brings to its first frame must not matter.
    unused = torch.full((config.dim,), 7.0, dtype=dtype)
    no_box = torch.full((4,), 0.9, dtype=torch.promote_types(dtype, torch.float32))
    state: dict[int, tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = {}
    for t, frame in enumerate(frames):
        present = [e for e, join in enumerate(joins) if join <= t]
        rows = [state.get(e, (unused, unused, no_box)) for e in present]
        content, position, boxes = (torch.stack(column) for column in zip(*rows, strict=True))
        joined = torch.tensor([joins[e] == t for e in present])
        preference = torch.zeros(len(present), config.num_queries)
        output = network.decode_frame(
            network.image_features(torch.from_numpy(frame)[None]),
            tokens[present],
            padding[present],
            Track(content, position, boxes, joined, preference),
        )
        for row, e in enumerate(present):
            state[e] = (output.content[row], output.position[row], output.box[row])
        yield t, present, output


def padded(sentences: Sequence[NDArray[np.int64]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids int64 [E,L] and padding bool [E,L]."""
    longest = max(map(len, sentences))
    ids = np.full((len(sentences), longest), PADDING_ID)
    for row, sentence in zip(ids, sentences, strict=True):
        row[: len(sentence)] = sentence
    lengths = np.array([*map(len, sentences)])
    return torch.from_numpy(ids), torch.from_numpy(np.arange(longest) >= lengths[:, None])
