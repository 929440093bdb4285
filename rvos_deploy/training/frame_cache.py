"""Cache the output of the frozen frame part on disk, so that the video part trains fast.

::

    RUN/cache/<stage>/shard-00000.safetensors    64 clips, float16
                      key.json                   what they depend on

A shard is written whole or not at all, so a run that is killed while it caches can be resumed.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from lightning_fabric import Fabric
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from rvos_deploy.errors import InputError
from rvos_deploy.files import cannot_write, replacing
from rvos_deploy.graph_io.frame_geometry import MASK_STRIDE
from rvos_deploy.json_file import write_json
from rvos_deploy.networks.pan2024 import slots
from rvos_deploy.networks.pan2024.modules.clip import TextFeatures
from rvos_deploy.networks.pan2024.modules.frame_query_decoder import QueryDescriptors
from rvos_deploy.networks.pan2024.modules.network import RvosNetwork
from rvos_deploy.training.clips import (
    Batch,
    Clip,
    Clips,
    Sentence,
    choose_sentences,
    collate,
    loader_options,
    part_of_step,
    permutation,
)
from rvos_deploy.training.distributed import gather, on_first
from rvos_deploy.training.losses import LossConfig, Mean, tube_losses
from rvos_deploy.training.matching import pack_tubes
from rvos_deploy.training.points import MaskDecoder, sample_scene
from rvos_deploy.training.recipe import CACHEABLE, Recipe, Stage
from rvos_deploy.training.targets import ClipTargets

SHARD = 64
FRAMES_TOGETHER = 32
_BY_QUERY = (*QueryDescriptors._fields, "mask_embeddings")
_BY_FRAME = (*_BY_QUERY, "order", "ages", "features")
_SENTENCE_PARTS = ("tokens", "sentence", "referred")
_MIRRORED = "mirrored_"
"""Prefix of the names of text for the mirrored clip."""
_DRAWS = 3  # separates the random stream of sentences and frames from clips and points


class CachedBatch(NamedTuple):
    """Hold B clips of T frames after the frame decoder, with S sentences each.

    queries, position, content, score: :class:`QueryDescriptors`, [B,T,N,...].
    mask_embeddings: [B,T,N,C].
    order: int64 [B,T,N], the query in each slot, aligned over the whole cached clip.
    ages: int64 [B,T], see :class:`Clip`.
    features: mask features [B*T,C,h,w] at the stride of the cache.
    tokens, sentence, padding: resized text of B*S sentences.
    masks, referred: see :class:`ClipTargets`; masks are at stride 4.
    """

    queries: Tensor
    position: Tensor
    content: Tensor
    score: Tensor
    mask_embeddings: Tensor
    order: Tensor
    ages: Tensor
    features: Tensor
    tokens: Tensor
    sentence: Tensor
    padding: Tensor
    masks: tuple[Tensor, ...]
    referred: tuple[Tensor, ...]

    @property
    def descriptors(self) -> QueryDescriptors:
        """Return the descriptors of the queries."""
        return QueryDescriptors(self.queries, self.position, self.content, self.score)

    @property
    def text(self) -> TextFeatures:
        """Return the resized text."""
        return TextFeatures(self.tokens, self.sentence, self.padding)

    def to(self, device: torch.device) -> CachedBatch:
        """Return the same batch on another device, in float32."""
        moved: dict[str, Any] = {}
        for name, value in self._asdict().items():
            if isinstance(value, tuple):
                moved[name] = tuple(x.to(device) for x in value)
            else:
                moved[name] = (value.float() if value.dtype == torch.float16 else value).to(device)
        return CachedBatch(**moved)


class VideoObjective(nn.Module):
    """Combine the video part and its losses; those of a frozen frame part are constant."""

    def __init__(self, network: RvosNetwork, losses: LossConfig, mean: Mean) -> None:
        super().__init__()
        self.network, self.losses, self.mean = network, losses, mean

    def forward(self, batch: CachedBatch, generator: torch.Generator) -> dict[str, Tensor]:
        """Return video_class, video_mask, video_dice and their weighted sum "total" of a batch."""
        targets = ClipTargets(batch.masks, batch.referred)
        weights, count = self.losses.weights, targets.sentences
        tokens = self.network.frame_decoder.tokens(batch.descriptors)
        video = self.network.decode_video(
            tokens, batch.order, batch.text, batch.ages, batch.mask_embeddings
        )
        scene = sample_scene(batch.features, targets, self.losses.points, generator)
        visible = targets.visible().any(dim=1).repeat_interleave(count, 0)
        found = tube_losses(
            video.predictions,
            scene.repeated(count),
            pack_tubes(targets.padded_referred() & visible),
            MaskDecoder(self.network.mask_head, video.frame_mask_embeddings),
            self.losses.for_videos(self.mean),
        )
        total = weights.video_class * found.classification
        total = total + weights.mask * found.mask + weights.dice * found.dice
        return {
            "video_class": found.classification,
            "video_mask": found.mask,
            "video_dice": found.dice,
            "total": total,
        }


class CachedRow(NamedTuple):
    """Hold the stored tensors of one clip, and of S of its sentences."""

    clip: dict[str, Tensor]
    sentences: list[dict[str, Tensor]]


class CachedClips(Dataset[CachedRow]):
    """Read clips of a cache, by their position and a number that seeds the draw.

    The number decides the frames and sentences. Slots keep their order, because the slot tells
    which of several queries on one object is the match. Shuffled slots raised a trained network's
    class loss from 0.73 to 1.01.
    """

    def __init__(self, folder: Path, stage: Stage, seed: int) -> None:
        self.folder, self.stage, self.seed = folder, stage, seed

    def __getitem__(self, item: tuple[int, int]) -> CachedRow:
        index, draw = item
        stored, row = _open(self.folder / _shard_name(index // SHARD)), index % SHARD
        rng = np.random.default_rng([self.seed, _DRAWS, draw])
        known = int(stored.get_tensor(f"{row}/sentences"))
        chosen = rng.choice(self.stage.frames_cached, self.stage.length, replace=False)
        drawn = torch.from_numpy(np.sort(chosen))
        clip = {part: stored.get_tensor(f"{row}/{part}")[drawn] for part in _BY_FRAME}
        clip["ages"] = clip["ages"] - clip["ages"][-1]
        clip["masks"] = stored.get_tensor(f"{row}/masks")[:, drawn]
        numbers = choose_sentences(known, self.stage.sentences, rng)
        names = {part: part for part in _SENTENCE_PARTS}
        if rng.random() < self.stage.mirror:
            clip = mirror_cached(clip)
            names |= {part: f"{_MIRRORED}{part}" for part in ("tokens", "sentence")}
        return CachedRow(
            clip,
            [
                {part: stored.get_tensor(f"{row}/{name}/{number}") for part, name in names.items()}
                for number in numbers
            ],
        )


def mirror_cached(clip: dict[str, Tensor]) -> dict[str, Tensor]:
    """Mirror the masks, mask features and positions of a cached clip, left to right.

    Queries and contents stay unchanged, so they must not encode left and right.
    """
    position = clip["position"].clone()
    position[..., 0] = -position[..., 0]
    turned = {name: clip[name].flip(-1) for name in ("features", "masks")}
    return {**clip, "position": position, **turned}


class _WithSentences(Dataset[tuple[Clip, list[Sentence]]]):
    """Read clips with the sentences for the video part: one, or all that fit the video."""

    def __init__(self, clips: Clips) -> None:
        self.several = clips.stage.sentences > 1
        self.clips = Clips(clips.recipe, replace(clips.stage, sentences=1))

    def __getitem__(self, index: int) -> tuple[Clip, list[Sentence]]:
        clip = self.clips[index]
        known = self.clips.sentences(index)
        return clip, known if self.several else known[:1]


def cached_batches(
    clips: CachedClips, recipe: Recipe, stage: Stage, steps: range, rank: int, processes: int
) -> Iterator[CachedBatch]:
    """Yield a process's batches of ``steps``; each epoch reads the cache in another order."""

    def shuffled(position: int) -> tuple[int, int]:
        epoch, place = divmod(position, stage.cached)
        return int(permutation(recipe.seed, epoch, stage.cached)[place]), position

    parts = [
        [shuffled(i) for i in part_of_step(0, stage, step, part, rank, processes)]
        for step in steps
        for part in range(stage.parts(processes))
    ]
    yield from DataLoader(
        clips, batch_sampler=parts, collate_fn=_collate, generator=torch.Generator()
    )


def fill_cache(
    fabric: Fabric, network: RvosNetwork, clips: Clips, first: int, folder: Path
) -> CachedClips:
    """Run the frame part over ``stage.cached`` clips; existing shards are kept.

    Args:
        fabric: its processes divide the shards.
        network: with the final frame part.
        clips: of the stage.
        first: number of the stage's first clip.
        folder: of the cache.
    """
    stage = clips.stage
    clips = Clips(clips.recipe, replace(stage, length=stage.frames_cached))
    key = _key(network, clips, first)
    on_first(fabric, lambda: _claim(folder, key))
    was_training = network.training
    network.eval()
    # All missing shards may belong to one process, and the others then wait long.
    gather(fabric, lambda: _fill_share(fabric, network, clips, first, folder))
    network.train(was_training)
    return CachedClips(folder, stage, clips.recipe.seed)


def _fill_share(
    fabric: Fabric, network: RvosNetwork, clips: Clips, first: int, folder: Path
) -> None:
    """Write the missing shards of this process."""
    stage = clips.stage
    shards = range(-(-stage.cached // SHARD))
    missing = [
        shard
        for shard in shards[fabric.global_rank :: fabric.world_size]
        if not _is_whole(folder / _shard_name(shard), shard, stage)
    ]
    parts = [part for shard in missing for part in _parts_of_shard(shard, stage)]
    loader = DataLoader(
        _WithSentences(clips),
        batch_sampler=[[first + position for position in part] for part in parts],
        collate_fn=list,
        **loader_options(clips.recipe.workers),
    )
    rows: dict[str, Tensor] = {}
    for part, drawn in zip(parts, loader, strict=True):
        rows |= _frame_part(fabric, network, stage, part, drawn)
        if part.stop % SHARD == 0 or part.stop == stage.cached:
            _write_shard(folder / _shard_name((part.stop - 1) // SHARD), rows)
            rows = {}


def _is_whole(file: Path, shard: int, stage: Stage) -> bool:
    """Return whether a shard has all its clips; a damaged shard is written again.

    A truncated safetensors file cannot be opened.
    """
    if not file.is_file():
        return False
    parts = (*_BY_FRAME, "masks", "sentences", *(f"{part}/0" for part in _SENTENCE_PARTS))
    clips = range(shard * SHARD, min((shard + 1) * SHARD, stage.cached))
    try:
        with safe_open(file, "pt") as stored:
            names = set(stored.keys())
    except (OSError, SafetensorError):
        return False
    return all(f"{position % SHARD}/{part}" in names for position in clips for part in parts)


def _parts_of_shard(shard: int, stage: Stage) -> list[range]:
    """Return the positions of a shard's clips, in groups for one pass of the frame part."""
    start, stop = shard * SHARD, min((shard + 1) * SHARD, stage.cached)
    size = max(1, FRAMES_TOGETHER // stage.length)
    return [range(i, min(i + size, stop)) for i in range(start, stop, size)]


@torch.no_grad()
def _frame_part(
    fabric: Fabric,
    network: RvosNetwork,
    stage: Stage,
    part: range,
    drawn: list[tuple[Clip, list[Sentence]]],
) -> dict[str, Tensor]:
    """Return the tensors to store for the clips at these positions, by their names in a shard."""
    batch = collate([clip for clip, _ in drawn]).to(fabric.device)
    with fabric.autocast():
        encoded = _encode(network, batch, stage)
        texts = [{"sentences": torch.tensor(len(sentences))} for _, sentences in drawn]
        for prefix in ("", _MIRRORED) if stage.mirror else ("",):
            for parts, clip in zip(texts, drawn, strict=True):
                parts |= _encode_sentences(network, clip[1], prefix, fabric.device)
    rows: dict[str, Tensor] = {}
    for row, position in enumerate(part):
        values = {name: value[row] for name, value in encoded.items()} | texts[row]
        for name, value in values.items():
            kept = value if value.dtype in (torch.bool, torch.int64) else value.half()
            rows[f"{position % SHARD}/{name}"] = kept.cpu().contiguous()
    return rows


def _encode_sentences(
    network: RvosNetwork, sentences: Sequence[Sentence], prefix: str, device: torch.device
) -> dict[str, Tensor]:
    """Return the numbered text features of a clip's sentences.

    Args:
        network: with the text part.
        sentences: of the clip.
        prefix: of the names; ``_MIRRORED`` encodes the mirrored sentences.
        device: of the network.
    """
    token_ids = [s.mirrored_ids if prefix else s.token_ids for s in sentences]
    text = network.encode_text(nn.utils.rnn.pad_sequence(token_ids, batch_first=True).to(device))
    parts = {}
    for number, (sentence, ids) in enumerate(zip(sentences, token_ids, strict=True)):
        parts[f"{prefix}tokens/{number}"] = text.tokens[number, : len(ids)]
        parts[f"{prefix}sentence/{number}"] = text.sentence[number]
        parts[f"referred/{number}"] = sentence.referred
    return parts


def _encode(network: RvosNetwork, batch: Batch, stage: Stage) -> dict[str, Sequence[Tensor]]:
    """Return the output of the frame part for each clip of a batch, and its masks at stride 4."""
    length = stage.length
    text = network.encode_text(batch.token_ids)
    per_frame = TextFeatures(*(x.repeat_interleave(length, dim=0) for x in text))
    frames = network.decode_frames(network.encode_frames(batch.frames.flatten(0, 1)), per_frame)
    pooled = F.avg_pool2d(frames.mask_features.float(), stage.cache_stride // MASK_STRIDE)
    descriptors = QueryDescriptors(*(x.unflatten(0, (-1, length)) for x in frames.descriptors))
    return {
        **descriptors._asdict(),
        "order": network.slot_order(descriptors),
        "mask_embeddings": frames.mask_embeddings.unflatten(0, (-1, length)),
        "ages": batch.ages,
        "features": pooled.unflatten(0, (-1, length)),
        "masks": [F.avg_pool2d(masks.float(), MASK_STRIDE) >= 0.5 for masks in batch.masks],
    }


def _collate(rows: Sequence[CachedRow]) -> CachedBatch:
    texts = [sentence for row in rows for sentence in row.sentences]
    tokens = nn.utils.rnn.pad_sequence([s["tokens"] for s in texts], batch_first=True)
    counts = torch.tensor([len(s["tokens"]) for s in texts])
    stacked: dict[str, Any] = {
        part: torch.stack([row.clip[part] for row in rows])
        for part in (*_BY_QUERY, "order", "ages")
    }
    return CachedBatch(
        **stacked,
        features=torch.cat([row.clip["features"] for row in rows]),
        tokens=tokens,
        sentence=torch.stack([s["sentence"] for s in texts]),
        padding=torch.arange(tokens.shape[1]) >= counts[:, None],
        masks=tuple(row.clip["masks"] for row in rows),
        referred=tuple(s["referred"] for s in texts),
    )


def _key(network: RvosNetwork, clips: Clips, first: int) -> dict[str, Any]:
    """Return what a cache depends on: frozen weights, clips, and their storage."""
    digest = hashlib.sha256()
    for name, value in sorted(network.state_dict().items()):
        if not name.startswith(CACHEABLE):
            digest.update(name.encode() + value.detach().float().cpu().numpy().tobytes())
    recipe, stage = clips.recipe, clips.stage
    drawn = ("length", "window", "per_video", "kinds", "timeless", "cached", "cache_stride")
    # The stored order of the slots depends on the tracker's code, not on a weight.
    aligned = "aligned" if network.config.initializer == "aligned" else "as they come"
    alignment = {"initializer": aligned, "tracker": inspect.getsource(slots)}
    kept = {name: getattr(stage, name) for name in drawn} | {
        "all_sentences": stage.sentences > 1,
        "mirrored": stage.mirror > 0,
    }
    return {
        "weights": digest.hexdigest(),
        "parts": [*_BY_FRAME, "masks"],
        "alignment": hashlib.sha256(json.dumps(alignment).encode()).hexdigest(),
        "seed": recipe.seed,
        "first": first,
        "precision": recipe.precision,
        "sprites": asdict(recipe.sprites),
        "stage": kept,
    }


def _claim(folder: Path, key: dict[str, Any]) -> None:
    """Empty the folder unless it has the same key."""
    file = folder / "key.json"
    try:
        same = json.loads(file.read_text(encoding="utf-8")) == json.loads(json.dumps(key))
    except (OSError, ValueError, RecursionError):
        same = False
    if not same:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        write_json(file, key)


def _write_shard(file: Path, rows: dict[str, Tensor]) -> None:
    try:
        with replacing(file) as temporary:
            save_file(rows, temporary)
    except (OSError, SafetensorError) as error:
        raise InputError(cannot_write(file, error)) from error


def _shard_name(number: int) -> str:
    return f"shard-{number:05d}.safetensors"


@lru_cache(maxsize=4096)
def _open(file: Path) -> Any:
    return safe_open(file, "pt")
