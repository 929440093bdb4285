"""Pre-train the tiny CLIP contrastively on images and captions of the sprite world.

Afterwards the CLIP part is frozen, as in the paper. Model and loss are open_clip's; the data are
ours. Half of a batch are pairs of opposite motions: the same pictures in reverse order, with
opposite motion words. Every image also has a false caption that is similar to its own. Without
these examples a text tower merges "left" and "right", and no later stage can separate motions.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from rvos_deploy.datasets.moving_sprites import caption_example, contrast_pair
from rvos_deploy.datasets.moving_sprites.looks import require_font
from rvos_deploy.datasets.moving_sprites.world import Split
from rvos_deploy.environment import versions
from rvos_deploy.errors import InputError
from rvos_deploy.files import replacing
from rvos_deploy.graph_io.tokenizer import Tokenizer
from rvos_deploy.networks.modules.safetensors_file import read_safetensors
from rvos_deploy.networks.pan2024.config import ModelConfig
from rvos_deploy.networks.pan2024.modules.checkpoint import load_state
from rvos_deploy.networks.pan2024.modules.clip import FrozenClip, build_clip
from rvos_deploy.networks.pan2024.modules.inference import tokenize
from rvos_deploy.progress import StepProgress
from rvos_deploy.training import checkpoints
from rvos_deploy.training.checkpoints import (
    TrainingState,
    find_checkpoint,
    load_optimizer,
    read_state,
    save_checkpoint,
)

WEIGHTS = "clip.safetensors"
REPORT_EVERY = 20
TRAIN_STREAM, VALID_STREAM = 0, 1


@dataclass(frozen=True)
class PretrainRecipe:
    """Set the pre-training; a batch has ``batch`` images of ``size`` x ``size`` pixels."""

    steps: int = 3000
    batch: int = 128
    size: int = 96
    rate: float = 1e-3
    weight_decay: float = 0.1
    warm_up: int = 200
    seed: int = 0
    emoji: bool = False
    checkpoint_seconds: float = 180.0


class Captions(Dataset[tuple[Tensor, list[str], list[str]]]):
    """Make items of two examples, opposite or independent, each a function of (stream, seed, i)."""

    def __init__(self, recipe: PretrainRecipe, start: int, count: int, stream: int) -> None:
        self._recipe, self._start, self._count = recipe, start, count
        self._stream = stream

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> tuple[Tensor, list[str], list[str]]:
        recipe = self._recipe
        rng = np.random.default_rng((self._stream, recipe.seed, self._start + index))
        split: Split = "train" if self._stream == TRAIN_STREAM else "valid"
        make = partial(caption_example, split=split, emoji=recipe.emoji)
        if rng.random() < 0.5:
            examples = contrast_pair(rng, recipe.size, split=split, emoji=recipe.emoji)
        else:
            examples = (make(rng, recipe.size), make(rng, recipe.size))
        images = torch.from_numpy(np.stack([example.image for example in examples]))
        return images, [e.caption for e in examples], [e.negative for e in examples]


@dataclass(frozen=True)
class CaptionBatch:
    """Hold images uint8 [B,S,S,3], and token ids int64 [B,L] of true and false captions."""

    images: Tensor
    captions: Tensor
    negatives: Tensor
    texts: tuple[str, ...]


def caption_batches(
    recipe: PretrainRecipe, tokenizer: Tokenizer, start: int, steps: int, stream: int, workers: int
) -> Iterator[CaptionBatch]:
    """Return batches ``start`` to ``start + steps``; a batch depends on its number alone."""
    per_batch = recipe.batch // 2

    def collate(items: list[tuple[Tensor, list[str], list[str]]]) -> CaptionBatch:
        captions = [text for _, texts, _ in items for text in texts]
        negatives = [text for _, _, texts in items for text in texts]
        ids = tokenize(tokenizer, captions + negatives)
        return CaptionBatch(
            torch.cat([images for images, _, _ in items]),
            ids[: len(captions)],
            ids[len(captions) :],
            tuple(captions),
        )

    data = Captions(recipe, start * per_batch, steps * per_batch, stream)
    return iter(DataLoader(data, per_batch, num_workers=workers, collate_fn=collate))


def encode_images(clip: FrozenClip, images: Tensor) -> Tensor:
    """Return unit image embeddings [B,embed] of open_clip's visual tower for uint8 [B,S,S,3]."""
    visual = clip.model.visual
    pooled = visual.trunk.forward_head(clip.image_features(images).res5)
    return F.normalize(visual.head(pooled).float(), dim=-1)


def encode_texts(clip: FrozenClip, ids: Tensor) -> Tensor:
    """Return unit sentence embeddings [B,embed] of token ids int64 [B,L]."""
    return F.normalize(clip.text_features(ids).sentence.float(), dim=-1)


def contrastive_loss(images: Tensor, texts: Tensor, negatives: Tensor, scale: Tensor) -> Tensor:
    """Return CLIP's symmetric loss, with another false caption for every image.

    An image is compared with all captions and its own false one, a caption with all images.

    Args:
        images: unit embeddings [B,C].
        texts: unit embeddings [B,C] of the captions.
        negatives: unit embeddings [B,C] of the false captions.
        scale: of the logits, a scalar.
    """
    logits = scale * images @ texts.T
    own_negative = scale * (images * negatives).sum(-1, keepdim=True)
    target = torch.arange(len(images), device=images.device)
    to_text = F.cross_entropy(torch.cat((logits, own_negative), dim=1), target)
    return (to_text + F.cross_entropy(logits.T, target)) / 2


def pretrain_clip(
    config: ModelConfig,
    out: Path,
    recipe: PretrainRecipe,
    tokenizer: Tokenizer,
    *,
    workers: int = 1,
    progress: StepProgress = print,
) -> dict[str, Any]:
    """Train until ``recipe.steps``, resuming from the last checkpoint in ``out`` if there is one.

    The file ``out/clip.safetensors`` is for ``--clip-weights``.

    Returns:
        The retrieval accuracy on held-out captions (:func:`retrieval_accuracy`).

    Raises:
        InputError: ``out`` holds a run with another recipe, or the font for the recipe's emoji is
            missing.
    """
    if recipe.emoji:
        require_font()
    torch.manual_seed(recipe.seed)
    clip = build_clip(config)
    clip.requires_grad_(True)
    optimizer = _optimizer(clip, recipe)
    step = _restore(out, clip, optimizer, recipe)
    out.mkdir(parents=True, exist_ok=True)
    saved, losses, started = time.monotonic(), [], time.monotonic()
    batches = caption_batches(recipe, tokenizer, step, recipe.steps - step, TRAIN_STREAM, workers)
    for batch in batches:
        losses.append(_train_step(clip, optimizer, batch, _rate(recipe, step)))
        step += 1
        if step % REPORT_EVERY == 0:
            pace = (time.monotonic() - started) / len(losses)
            recent = float(np.mean(losses[-REPORT_EVERY:]))
            progress(f"step {step}/{recipe.steps} loss {recent:.3f} {pace:.2f} s a step")
        if time.monotonic() - saved > recipe.checkpoint_seconds or step == recipe.steps:
            _save(out, clip, optimizer, recipe, step)
            saved = time.monotonic()
    return retrieval_accuracy(clip, recipe, tokenizer)


def _train_step(
    clip: FrozenClip, optimizer: torch.optim.AdamW, batch: CaptionBatch, rate: float
) -> float:
    for group in optimizer.param_groups:
        group["lr"] = rate
    # float32, because on a CPU bf16 doubles the time of the text tower's backward pass.
    images = encode_images(clip, batch.images)
    texts = encode_texts(clip, torch.cat((batch.captions, batch.negatives)))
    captions, negatives = texts.chunk(2)
    scale = clip.model.logit_scale.exp().clamp(max=100)
    loss = contrastive_loss(images, captions, negatives, scale)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(clip.parameters(), 1.0)
    optimizer.step()
    return float(loss.detach())


def _optimizer(clip: FrozenClip, recipe: PretrainRecipe) -> torch.optim.AdamW:
    """Return AdamW, without weight decay on vectors and embeddings."""
    named = list(clip.model.named_parameters())
    plain = [p for name, p in named if p.ndim < 2 or "embedding" in name]
    decayed = [p for name, p in named if not (p.ndim < 2 or "embedding" in name)]
    groups = [
        {"params": decayed, "weight_decay": recipe.weight_decay},
        {"params": plain, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=recipe.rate, betas=(0.9, 0.98))


def _rate(recipe: PretrainRecipe, step: int) -> float:
    """Return the learning rate: linear warm-up, then half a cosine to one hundredth."""
    if step < recipe.warm_up:
        return recipe.rate * (step + 1) / recipe.warm_up
    done = (step - recipe.warm_up) / max(1, recipe.steps - recipe.warm_up)
    return recipe.rate * (0.01 + 0.99 * 0.5 * (1 + float(np.cos(np.pi * done))))


def _save(
    out: Path,
    clip: FrozenClip,
    optimizer: torch.optim.AdamW,
    recipe: PretrainRecipe,
    step: int,
) -> None:
    """Write a checkpoint, and a copy of its weights for ``--clip-weights``."""
    state = TrainingState(step, 0, step, asdict(recipe), clip="", versions=versions("torch"))
    folder = save_checkpoint(out, state, clip.model, optimizer, keep=1)
    with replacing(out / WEIGHTS) as temporary:
        shutil.copyfile(folder / checkpoints.WEIGHTS, temporary)


def _restore(
    out: Path, clip: FrozenClip, optimizer: torch.optim.AdamW, recipe: PretrainRecipe
) -> int:
    folder = find_checkpoint(out)
    if folder is None:
        return 0
    state = read_state(folder)
    if state.recipe != asdict(recipe):
        raise InputError(
            f"{out} holds a run with another recipe; choose another --out, or the same options"
        )
    if not state.step == state.stage_step <= recipe.steps:
        raise InputError(
            f"{folder} stands at step {state.step} of {recipe.steps}, so its state is damaged; "
            f"name another checkpoint in {folder.parent / checkpoints.LATEST}"
        )
    file = folder / checkpoints.WEIGHTS
    needed = set(clip.model.state_dict())
    load_state(clip.model, read_safetensors(file), needed, str(file), "of CLIP")
    load_optimizer(folder, clip.model, optimizer)
    return state.step


@torch.inference_mode()
def retrieval_accuracy(
    clip: FrozenClip, recipe: PretrainRecipe, tokenizer: Tokenizer, batches: int = 4
) -> dict[str, Any]:
    """Measure zero-shot retrieval on held-out combinations of colour and shape.

    Returns:
        ``image_to_text`` and ``text_to_image``: share of a batch whose partner (or one with an
        equal caption) is the most similar. ``against_negative``: share of images that are closer to
        their caption than to the similar false one. ``candidates``: size of a batch.
    """
    hits: dict[str, list[float]] = {
        "image_to_text": [],
        "text_to_image": [],
        "against_negative": [],
    }
    for batch in caption_batches(recipe, tokenizer, 0, batches, VALID_STREAM, 0):
        images = encode_images(clip, batch.images)
        texts, negatives = encode_texts(clip, batch.captions), encode_texts(clip, batch.negatives)
        similarity = images @ texts.T
        same = torch.tensor([[a == b for b in batch.texts] for a in batch.texts])
        rows = torch.arange(len(images))
        hits["image_to_text"] += same[rows, similarity.argmax(1)].float().tolist()
        hits["text_to_image"] += same[similarity.argmax(0), rows].float().tolist()
        own = (images * texts).sum(-1)
        hits["against_negative"] += (own > (images * negatives).sum(-1)).float().tolist()
    return {"candidates": recipe.batch, **{k: float(np.mean(v)) for k, v in hits.items()}}
