"""Training clips: each a pure function of (seed, number), so that a run can go on exactly.

Moving Sprites are rendered on the way; other data sets are read through ``training.data``.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader, Dataset

from rvos_deploy.datasets import DataSplit
from rvos_deploy.datasets.moving_sprites import (
    Expression,
    SpriteVideo,
    WorldConfig,
    make_video,
    render,
)
from rvos_deploy.errors import InputError
from rvos_deploy.graph_io.frame_geometry import PADDING
from rvos_deploy.graph_io.input_size import STRIDE
from rvos_deploy.graph_io.tokenizer import Tokenizer
from rvos_deploy.networks.pan2024.tokenizer_file import write_tokenizer
from rvos_deploy.training.augmentation import Pictures, augment, mirror_text, resized_size
from rvos_deploy.training.recipe import Recipe, Stage
from rvos_deploy.training.targets import ClipTargets

_CLIPS = 1  # tells the random stream of clips from others of the same seed


class Sentence(NamedTuple):
    """An expression of a video: which objects it means, bool [K]; token ids int64 [L], and those
    for the mirrored video.
    """

    referred: Tensor
    token_ids: Tensor
    mirrored_ids: Tensor


class Clip(NamedTuple):
    """frames uint8 [T,H,W,3]; ages int64 [T], how many frames of the video each is older than the
    last one; masks bool [K,T,H,W]; referred and token ids of its sentence, and further sentences.
    """

    frames: Tensor
    ages: Tensor
    masks: Tensor
    referred: Tensor
    token_ids: Tensor
    text: str
    further: tuple[Sentence, ...] = ()


class Batch(NamedTuple):
    """Clips of one size: frames uint8 [B,T,H,W,3], token ids int64 [B*S,L] of S sentences a clip,
    ages int64 [B,T], masks and referred flags as :class:`ClipTargets` takes them.
    """

    frames: Tensor
    token_ids: Tensor
    ages: Tensor
    masks: tuple[Tensor, ...]
    referred: tuple[Tensor, ...]

    @property
    def targets(self) -> ClipTargets:
        """The same masks and flags for the losses."""
        return ClipTargets(self.masks, self.referred)

    def to(self, device: torch.device) -> Batch:
        """Return the same batch on another device."""
        frames, ids, ages = (x.to(device, non_blocking=True) for x in self[:3])
        masks, referred = (tuple(x.to(device, non_blocking=True) for x in g) for g in self[3:])
        return Batch(frames, ids, ages, masks, referred)

    def single_frames(self) -> Batch:
        """Every frame as a clip of its own: [B*T,1,...]."""
        clips, length = self.frames.shape[:2]
        sentences = self.targets.sentences
        order = [
            clip * sentences + sentence
            for clip in range(clips)
            for _ in range(length)
            for sentence in range(sentences)
        ]
        return Batch(
            self.frames.flatten(0, 1)[:, None],
            self.token_ids[order],
            torch.zeros_like(self.ages).flatten()[:, None],
            tuple(masks[:, t : t + 1] for masks in self.masks for t in range(length)),
            tuple(self.referred[row] for row in order),
        )


@lru_cache(maxsize=1)
def training_tokenizer() -> Tokenizer:
    """CLIP's tokenizer, as bundles have it."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "tokenizer.json"
        write_tokenizer(file)
        return Tokenizer(file)


def frame_indices(total: int, stage: Stage, rng: np.random.Generator) -> list[int]:
    """Which frames a clip takes of a video of ``total``: ascending, repeated only if too few."""
    length = stage.length
    if length == 1:
        return [int(rng.integers(total))]
    if stage.window is None:
        # Parts of whole frames: no frame lies in two of them.
        bounds = np.arange(length + 1) * total // length
        drawn = rng.uniform(bounds[:-1], np.maximum(bounds[1:], bounds[:-1] + 1))
        return [int(i) for i in drawn]
    middle = int(rng.integers(total))
    near = np.arange(max(0, middle - stage.window), min(total, middle + stage.window + 1))
    return sorted(int(i) for i in rng.choice(near, length, replace=len(near) < length))


def choose_sentences(known: int, count: int, rng: np.random.Generator) -> list[int]:
    """Numbers of ``count`` of the known sentences: 0 first, then others; again if too few."""
    order = [0, *(1 + rng.permutation(known - 1))]
    return [int(order[place % known]) for place in range(count)]


class _Drawn(NamedTuple):
    pictures: Pictures
    indices: list[int]
    text: str
    referred: NDArray[np.bool_]


class Clips(Dataset[Clip]):
    """Clip ``i`` of a run; the first of a stage is ``first``."""

    def __init__(self, recipe: Recipe, stage: Stage, split: DataSplit | None = None) -> None:
        self.recipe, self.stage, self.split = recipe, stage, split
        self.tokenizer = training_tokenizer()
        self.entries = () if split is None else _entries(split, stage)

    def __getitem__(self, index: int) -> Clip:
        rng = np.random.default_rng([self.recipe.seed, _CLIPS, index])
        drawn = self._from_sprites(index, rng) if self.split is None else self._read(index, rng)
        frames, masks = (torch.from_numpy(np.ascontiguousarray(x)) for x in drawn.pictures)
        ids = torch.from_numpy(self.tokenizer(drawn.text))
        ages = drawn.indices[-1] - torch.tensor(drawn.indices)
        referred = torch.from_numpy(drawn.referred)
        further: list[Sentence] = []
        if self.stage.sentences > 1:
            known = self.sentences(index)
            chosen = choose_sentences(len(known), self.stage.sentences, rng)
            further = [known[number] for number in chosen[1:]]
        return Clip(frames, ages, masks, referred, ids, drawn.text, tuple(further))

    def sentences(self, index: int) -> list[Sentence]:
        """Return what fits the video of clip ``index`` of Moving Sprites: first its own."""
        video, expressions = self._sprites(index)
        objects = np.arange(len(video.objects))
        return [
            Sentence(
                torch.from_numpy(np.isin(objects, expression.targets)),
                *(
                    torch.from_numpy(self.tokenizer(text))
                    for text in (expression.text, mirror_text(expression.text))
                ),
            )
            for expression in expressions
        ]

    def _sprites(self, index: int) -> tuple[SpriteVideo, list[Expression]]:
        """The video of a clip, and its expressions, beginning with that of the clip."""
        stage, number = self.stage, index // self.stage.per_video
        video = _sprite_video(self.recipe.seed, number, self.recipe.sprites)
        fitting = [
            e
            for e in video.expressions
            if (not stage.kinds or e.kind in stage.kinds) and not (stage.timeless and e.needs_time)
        ]
        # A video without the kinds asked for gives what it has: to search on would bias it.
        wanted = fitting or list(video.expressions)
        # Clips of one video take its expressions in turn, so that they differ.
        turn = int(np.random.default_rng([self.recipe.seed, _CLIPS, number, 2]).integers(64))
        first = (turn + index) % len(wanted)
        return video, wanted[first:] + wanted[:first]

    def _from_sprites(self, index: int, rng: np.random.Generator) -> _Drawn:
        stage = self.stage
        video, (expression, *_) = self._sprites(index)
        indices = frame_indices(video.config.frames, stage, rng)
        frames, masks = render(video, indices)
        referred = np.isin(np.arange(len(video.objects)), expression.targets)
        pictures = Pictures(frames, masks.swapaxes(0, 1))
        return _Drawn(pictures, indices, expression.text, referred)

    def _read(self, index: int, rng: np.random.Generator) -> _Drawn:
        assert self.split is not None
        count = len(self.entries)
        order = permutation(self.recipe.seed, index // count, count)
        video_number, row = self.entries[order[index % count]]
        video = self.split.videos[video_number]
        expression = video.expressions[row]
        indices = frame_indices(len(video.frames), self.stage, rng)
        frames = np.stack([video.image(i) for i in indices])
        referred = video.referred(expression)
        pictures, text = augment(
            Pictures(frames, video.object_masks(indices)),
            expression.text,
            referred,
            self.recipe.augment,
            rng,
        )
        return _Drawn(pictures, indices, text, referred)


@lru_cache(maxsize=8)
def _sprite_video(seed: int, number: int, world: WorldConfig) -> SpriteVideo:
    return make_video(seed, "train", number, world)


@lru_cache(maxsize=2)
def permutation(seed: int, epoch: int, count: int) -> NDArray[np.int64]:
    """Order of one epoch over ``count`` things."""
    return np.random.default_rng([seed, _CLIPS, epoch, 1]).permutation(count)


def _entries(split: DataSplit, stage: Stage) -> tuple[tuple[int, int], ...]:
    """(video, expression) of everything that the stage draws from."""
    if not split.has_truth:
        raise InputError(f"{split.meta} has no ground truth; train on a split that has masks")
    entries = tuple(
        (number, row)
        for number, video in enumerate(split.videos)
        for row, expression in enumerate(video.expressions)
        if not stage.kinds or expression.kind in stage.kinds
    )
    if not entries:
        raise InputError(f"{split.meta} lists no expression for stage '{stage.name}'")
    return entries


def collate(clips: Sequence[Clip]) -> Batch:
    """Put clips of one length in a batch: frames padded to multiples of 32; ids by 0.

    Raises:
        InputError: the frames, so padded, have more than one size. The network would see the rest
            of the padding as picture, which it never does at run time.
    """
    sizes = sorted({padded_size(*clip.frames.shape[1:3]) for clip in clips})
    if len(sizes) > 1:
        raise InputError(
            f"clips of {_size(sizes[0])} and of {_size(sizes[-1])} pixels cannot be computed "
            "together; set accumulate = 0, which computes one clip at a time"
        )
    ((height, width),) = sizes
    frames = torch.empty((len(clips), len(clips[0].frames), height, width, 3), dtype=torch.uint8)
    frames[:] = torch.tensor(PADDING, dtype=torch.uint8)
    spoken = [s for clip in clips for s in ((clip.referred, clip.token_ids), *clip.further)]
    ids = pad_sequence([sentence[1] for sentence in spoken], batch_first=True)
    masks = []
    for row, clip in enumerate(clips):
        tall, wide = clip.frames.shape[1:3]
        frames[row, :, :tall, :wide] = clip.frames
        masks.append(
            torch.nn.functional.pad(clip.masks, (0, width - wide, 0, height - tall), value=False)
        )
    ages = torch.stack([clip.ages for clip in clips])
    return Batch(frames, ids, ages, tuple(masks), tuple(sentence[0] for sentence in spoken))


def padded_size(height: int, width: int) -> tuple[int, int]:
    """Height and width of a frame with its padding, as at run time: the next multiples of 32."""
    return -(-height // STRIDE) * STRIDE, -(-width // STRIDE) * STRIDE


def _size(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"


def check_sizes(recipe: Recipe, split: DataSplit, processes: int) -> None:
    """Refuse a recipe that would put clips of several sizes in one part of a step.

    Raises:
        InputError: it would; or a video's first frame cannot be read.
    """
    together = [s for s in recipe.stages if s.batch // s.parts(processes) // processes > 1]
    if not together:
        return
    settings = recipe.augment
    if settings.crop > 0 and settings.crop_side < 1:
        why = "augment.crop cuts out a part of some clips"
    elif len(set(settings.short_sides)) > 1:
        why = f"augment.short_sides has {len(set(settings.short_sides))} sides to draw from"
    else:
        # One side, no crop: what is left is the shape of the videos.
        (short,) = set(settings.short_sides)
        sizes = {
            padded_size(*resized_size(*video.size, short, settings.long_side))
            for video in split.videos
        }
        if len(sizes) < 2:
            return
        why = f"the videos of {split.meta} have {len(sizes)} sizes"
    stage = together[0]
    raise InputError(
        f"stage '{stage.name}' computes {stage.batch // stage.parts(processes) // processes} clips "
        f"at once, and they would differ in size ({why}); set accumulate = 0, which computes one "
        "clip at a time, or give all clips one size"
    )


def part_of_step(
    first: int, stage: Stage, step: int, part: int, rank: int, processes: int
) -> range:
    """Numbers of the clips that a process computes in one part of a step of a stage.

    Raises:
        InputError: the batch cannot be shared evenly.
    """
    size = stage.batch // (stage.parts(processes) * processes)
    start = first + step * stage.batch + (part * processes + rank) * size
    return range(start, start + size)


def batches(
    clips: Clips, first: int, steps: range, rank: int = 0, processes: int = 1
) -> Iterator[Batch]:
    """Give a process's batches of ``steps`` of a stage, the accumulated parts one by one.

    Args:
        clips: of the stage.
        first: number of the stage's first clip.
        steps: of the stage.
        rank: of the process.
        processes: how many train together.
    """
    parts = [
        part_of_step(first, clips.stage, step, part, rank, processes)
        for step in steps
        for part in range(clips.stage.parts(processes))
    ]
    yield from DataLoader(
        clips,
        batch_sampler=[list(part) for part in parts],
        collate_fn=collate,
        **loader_options(clips.recipe.workers),
    )


def loader_options(workers: int) -> dict[str, Any]:
    """How clips are prepared beside the network."""
    return {
        "num_workers": workers,
        # Of its own, so that the loader leaves the global stream alone.
        "generator": torch.Generator(),
        "prefetch_factor": 4 if workers else None,
        "worker_init_fn": _one_thread if workers else None,
    }


def _one_thread(worker: int) -> None:
    torch.set_num_threads(1)
