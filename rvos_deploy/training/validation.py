"""Measure J&F of the PyTorch network on valid videos, and write overlays for people."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from lightning_fabric import Fabric
from numpy.typing import NDArray

from rvos_deploy.datasets import DataSplit, VideoRecord, read_mevis
from rvos_deploy.datasets.moving_sprites import SplitSpec, WorldConfig, write_mevis
from rvos_deploy.errors import InputError
from rvos_deploy.evaluation.evaluate import Evaluation, evaluate
from rvos_deploy.evaluation.predictions import Predict
from rvos_deploy.evaluation.protocols import ExpressionScore
from rvos_deploy.graph_io.frame_geometry import letterbox, resize_frame, upsample_mask
from rvos_deploy.graph_io.tokenizer import Tokenizer
from rvos_deploy.networks.pan2024.modules.inference import segment_clip, tokenize
from rvos_deploy.networks.pan2024.modules.network import RvosNetwork
from rvos_deploy.training.distributed import gather
from rvos_deploy.training.recipe import Recipe
from rvos_deploy.video import write_montage

MASK_BUDGET = 2**30
"""Bytes of mask features in memory; limits how many expressions are decoded together."""
PICTURED_VIDEOS = 3


def sprite_validation(recipe: Recipe, folder: Path) -> DataSplit:
    """Render the valid videos of a recipe, unless they exist, and read them."""
    render_validation(recipe, folder)
    return read_mevis(folder)


def render_validation(recipe: Recipe, folder: Path) -> None:
    """Render the valid videos of a recipe, unless they exist.

    The number of expressions is that of the benchmark, whatever the recipe trains on.
    """
    benchmark = WorldConfig()
    if not folder.is_dir():
        write_mevis(
            folder,
            SplitSpec(
                seed=recipe.validation_seed,
                split="valid",
                videos=recipe.validation_videos,
                config=replace(
                    recipe.sprites, expressions=benchmark.expressions, wordings=benchmark.wordings
                ),
            ),
        )


def clip_masks(
    network: RvosNetwork,
    tokenizer: Tokenizer,
    images: list[NDArray[np.uint8]],
    texts: list[str],
) -> NDArray[np.bool_]:
    """Segment a whole clip offline with the reference network.

    Args:
        network: in eval mode; its configuration has the input size and the threshold.
        tokenizer: CLIP's.
        images: T frames, RGB uint8 [H,W,3] of one size.
        texts: E expressions.

    Returns:
        bool [T,E,H,W].
    """
    device = next(network.parameters()).device
    height, width = images[0].shape[:2]
    geometry = letterbox((height, width), network.config.input_size)
    frames = [torch.from_numpy(resize_frame(image, geometry)).to(device) for image in images]
    per_expression = len(images) * network.config.dim * 4 * np.prod(geometry.padded) // 16
    together = max(1, int(MASK_BUDGET // per_expression))
    masks = np.zeros((len(images), len(texts), height, width), np.bool_)
    for start in range(0, len(texts), together):
        ids = tokenize(tokenizer, texts[start : start + together]).to(device)
        logits = segment_clip(network, frames, ids).mask_logits.cpu().numpy()
        for row, t in np.ndindex(*logits.shape[:2]):
            masks[t, start + row] = upsample_mask(logits[row, t], geometry)
    return masks


def network_predictor(
    network: RvosNetwork, tokenizer: Tokenizer, pictures: Path | None = None
) -> Predict:
    """Return a predictor for ``evaluate`` that writes overlays of videos to ``pictures``."""

    def predict(video: VideoRecord) -> NDArray[np.bool_]:
        images = [video.image(i) for i in range(len(video.frames))]
        texts = [expression.text for expression in video.expressions]
        masks = clip_masks(network, tokenizer, images, texts)
        if pictures is not None:
            truth = np.stack([video.union_masks(e) for e in video.expressions], axis=1)
            write_montage(pictures / f"{video.name}.png", images, masks, truth, texts)
        return masks

    return predict


def check_validation(split: DataSplit, videos: int) -> None:
    """Refuse a split that the first validation, hours later, could not score.

    Raises:
        InputError: the first ``videos`` have no ground truth, or no expression.
    """
    if not DataSplit(split.meta, split.videos[:videos]).has_truth:
        raise InputError(
            f"{split.meta} has no ground truth, so nothing can be scored on the way; give --valid "
            "the folder of a split that has masks"
        )
    _scored(split, videos)


def _scored(split: DataSplit, videos: int | None) -> list[VideoRecord]:
    """Return those of the first ``videos`` with an expression. Raises InputError if none has."""
    scored = [video for video in split.videos[:videos] if video.expressions]
    if not scored:
        raise InputError(
            f"{split.meta} lists no expression for its first {len(split.videos[:videos])} videos; "
            "there is nothing to evaluate"
        )
    return scored


def share_videos(videos: Sequence[VideoRecord], processes: int) -> list[list[int]]:
    """Return the numbers of the videos of each process, ascending.

    The longest video goes first, to the process with the least work so far. Work is counted in
    frames times expressions, because the frame decoder runs for each and dominates the time.
    """
    cost = [len(video.frames) * len(video.expressions) for video in videos]
    loads = [0] * processes
    shares: list[list[int]] = [[] for _ in range(processes)]
    for number in sorted(range(len(videos)), key=lambda i: (-cost[i], i)):
        least = loads.index(min(loads))
        loads[least] += cost[number]
        shares[least].append(number)
    return [sorted(share) for share in shares]


def validate(
    network: RvosNetwork,
    tokenizer: Tokenizer,
    split: DataSplit,
    *,
    videos: int | None = None,
    pictures: Path | None = None,
    fabric: Fabric | None = None,
) -> dict[str, float]:
    """Return J&F over the first ``videos`` of a split, overall and by kind, N-acc and T-acc.

    Args:
        network: the same in all processes; its mode is restored.
        tokenizer: CLIP's.
        split: with ground truth; the same in all processes.
        videos: number of videos; None: all.
        pictures: folder for overlays of the first videos.
        fabric: its processes divide the videos, and each returns the same means as one process
            would. None: this process alone.

    Raises:
        InputError: a file of the split cannot be read, or the split has no expression.
    """
    scored = _scored(split, videos)
    rank, processes = (0, 1) if fabric is None else (fabric.global_rank, fabric.world_size)
    mine = share_videos(scored, processes)[rank]

    def score() -> dict[int, tuple[ExpressionScore, ...]]:
        rows = {}
        for number in mine:
            folder = pictures if number < PICTURED_VIDEOS else None
            predict = network_predictor(network, tokenizer, folder)
            part = DataSplit(split.meta, (scored[number],))
            rows[number] = evaluate(predict, part, "mevis").scores
        return rows

    was_training = network.training
    network.eval()
    try:
        parts = [score()] if fabric is None else gather(fabric, score)
    finally:
        network.train(was_training)
    # The order of the split makes rounding independent of how the videos were divided.
    by_video = {number: rows for part in parts for number, rows in part.items()}
    return means([row for number in sorted(by_video) for row in by_video[number]])


def summary(evaluation: Evaluation) -> dict[str, float]:
    """Return the :func:`means` of an evaluation's scores."""
    return means(evaluation.scores)


def means(rows: Sequence[ExpressionScore]) -> dict[str, float]:
    """Return means over expressions: j_and_f, j, f; n_acc, t_acc; j_and_f of each kind."""
    values = {
        "j_and_f": float(np.mean([row.j_and_f for row in rows])),
        "j": float(np.mean([row.j for row in rows])),
        "f": float(np.mean([row.f for row in rows])),
    }
    for name, wanted in (("n_acc", True), ("t_acc", False)):
        right = [row.predicted_empty == wanted for row in rows if row.no_target == wanted]
        values[name] = float(np.mean(right)) if right else 1.0
    kinds: dict[str, list[float]] = defaultdict(list)
    for row in rows:
        kinds[row.kind or "none"].append(row.j_and_f)
    return {**values, **{f"j_and_f_{k}": float(np.mean(kinds[k])) for k in sorted(kinds)}}
