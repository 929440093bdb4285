"""A loaded bundle, a scene that moves, and the reference network's own answer for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from rvos_deploy.graph_io.frame_geometry import letterbox, resize_frame
from rvos_deploy.graph_io.probe import PROBE_BOX, probe_clip
from rvos_deploy.networks.pan2024.tokenizer import ClipTokenizer
from rvos_deploy.networks.selection import thresholds
from rvos_deploy.runtime.segmenter import Segmenter, load

Reference = Callable[[NDArray[np.uint8], str], tuple[NDArray[np.float32], NDArray[np.float32]]]


@pytest.fixture(scope="session")
def segmenter(tiny_bundle: Path) -> Iterator[Segmenter]:
    with load(tiny_bundle) as loaded:
        yield loaded


@pytest.fixture(scope="session")
def clip() -> NDArray[np.uint8]:
    return probe_clip(7)


@pytest.fixture(scope="session")
def reference(tiny_network: Any, tiny_bundle: Path) -> Reference:
    """The network on a whole clip at once: frames [T,H,W,3], text -> logits [T,h,w], scores [N]."""
    import torch

    from rvos_deploy.networks.pan2024.modules.mask_head import unite_masks
    from rvos_deploy.networks.pan2024.modules.network import referred_scores

    tokenizer = ClipTokenizer(tiny_bundle / "tokenizer.json")

    def run(frames: NDArray[np.uint8], text: str) -> tuple[NDArray[np.float32], ...]:
        geometry = letterbox(frames.shape[1:3], PROBE_BOX)
        batch = np.stack([resize_frame(frame, geometry) for frame in frames], axis=1)
        ids = torch.from_numpy(tokenizer(text))[None]
        with torch.inference_mode():
            output = tiny_network(torch.from_numpy(batch), ids)
            last = output.video.predictions[-1]
            scores = referred_scores(last.logits)
            threshold = torch.from_numpy(thresholds(scores.numpy(), 0.5, "top1"))
            maps = [
                unite_masks(
                    tiny_network.mask_head(last.mask_embeddings, features[None], of_frame),
                    scores,
                    threshold,
                )
                for features, of_frame in zip(
                    output.frames.mask_features,
                    output.video.frame_mask_embeddings.transpose(0, 1),
                    strict=True,
                )
            ]
        return torch.cat(maps).numpy(), scores[0].numpy()

    return run
