"""Draw training clips, each a pure function of (seed, number), so that a run resumes exactly.

Moving Sprites are rendered on the fly; other data sets are read through ``rvos_deploy.datasets``.
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
from rvos_deploy.networks.pan2024.tokenizer import ClipTokenizer
from rvos_deploy.networks.pan2024.tokenizer_file import write_tokenizer
from rvos_deploy.training.augmentation import Pictures, augment, mirror_text, resized_size
from rvos_deploy.training.recipe import Recipe, Stage
from rvos_deploy.training.targets import ClipTargets

_CLIPS = 1  # separates the random stream of clips from others of the same seed


class Sentence(NamedTuple):
    """Hold an expression of a video.

    referred: bool [K], whether it means each object.
    token_ids: int64 [L].
    mirrored_ids: int64 [L'], token ids of the expression for the mirrored video.
    """

    referred: Tensor
    token_ids: Tensor
    mirrored_ids: Tensor


class Clip(NamedTuple):
    """Hold a clip with its sentence.

    frames: uint8 [T,H,W,3].
    ages: int64 [T], by how many frames of the video each is older than the last one.
    masks: bool [K,T,H,W].
    referred: bool [K], whether the sentence means each object.
    token_ids: int64 [L] of the sentence.
    text: the sentence.
    further: other sentences of the video.
    """

    frames: Tensor
    ages: Tensor
    masks: Tensor
    referred: Tensor
    token_ids: Tensor
    text: str
    further: tuple[Sentence, ...] = ()


class Batch(NamedTuple):
    """Hold B clips of one size, with S sentences each.

    frames: uint8 [B,T,H,W,3].
    token_ids: int64 [B*S,L].
    ages: int64 [B,T].
    masks, referred: see :class:`ClipTargets`.
    """

    frames: Tensor
    token_ids: Tensor
    ages: Tensor
    masks: tuple[Tensor, ...]
    referred: tuple[Tensor, ...]

    @property
    def targets(self) -> ClipTargets:
        """Return the targets for the losses."""
        return ClipTargets(self.masks, self.referred)

    def to(self, device: torch.device) -> Batch:
        """Return the same batch on another device."""
        frames, ids, ages = (x.to(device, non_blocking=True) for x in self[:3])
        masks, referred = (tuple(x.to(device, non_blocking=True) for x in g) for g in self[3:])
        return Batch(frames, ids, ages, masks, referred)

    def single_frames(self) -> Batch:
        """Return every frame as a separate clip: [B*T,1,...]."""
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
def training_tokenizer() -> ClipTokenizer:
    """Return CLIP's tokenizer, the same as in bundles."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "tokenizer.json"
        write_tokenizer(file)
        return ClipTokenizer(file)


def frame_indices(total: int, stage: Stage, rng: np.random.Generator) -> list[int]:
    """Draw the frames of a clip from ``total``, ascending; they repeat only if too few."""
    length = stage.length
    if length == 1:
        return [int(rng.integers(total))]
    if stage.window is None:
        # The parts consist of whole frames, so no frame is in two parts.
        bounds = np.arange(length + 1) * total // length
        drawn = rng.uniform(bounds[:-1], np.maximum(bounds[1:], bounds[:-1] + 1))
        return [int(i) for i in drawn]
    middle = int(rng.integers(total))
    near = np.arange(max(0, middle - stage.window), min(total, middle + stage.window + 1))
    return sorted(int(i) for i in rng.choice(near, length, replace=len(near) < length))


def choose_sentences(known: int, count: int, rng: np.random.Generator) -> list[int]:
    """Draw ``count`` of the known sentences: 0 first, then others; they repeat if too few."""
    order = [0, *(1 + rng.permutation(known - 1))]
    return [int(order[place % known]) for place in range(count)]


class _Drawn(NamedTuple):
    pictures: Pictures
    indices: list[int]
    text: str
    referred: NDArray[np.bool_]


class Clips(Dataset[Clip]):
    """Make the clips of a run by their numbers, with the settings of one stage."""

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
        """Return the sentences for the video of clip ``index`` of Moving Sprites, its own first."""
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
        """Return the video of a clip, and its expressions, that of the clip first."""
        stage, number = self.stage, index // self.stage.per_video
        video = _sprite_video(self.recipe.seed, number, self.recipe.sprites)
        fitting = [
            e
            for e in video.expressions
            if (not stage.kinds or e.kind in stage.kinds) and not (stage.timeless and e.needs_time)
        ]
        # A video without the requested kinds gives any expression. Skipping it would bias the draw.
        wanted = fitting or list(video.expressions)
        # Clips of one video use its expressions in turn, so the clips differ.
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
    """Return the order of ``count`` items in one epoch."""
    return np.random.default_rng([seed, _CLIPS, epoch, 1]).permutation(count)


def _entries(split: DataSplit, stage: Stage) -> tuple[tuple[int, int], ...]:
    """Return (video, expression) of everything that the stage draws from."""
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
    """Join clips of one length in a batch; frames are padded to multiples of 32, ids with 0.

    Raises:
        InputError: the padded frames have several sizes. The network would treat further padding
            as part of the image, which never happens at run time.
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
    texts = [s for clip in clips for s in ((clip.referred, clip.token_ids), *clip.further)]
    ids = pad_sequence([sentence[1] for sentence in texts], batch_first=True)
    masks = []
    for row, clip in enumerate(clips):
        tall, wide = clip.frames.shape[1:3]
        frames[row, :, :tall, :wide] = clip.frames
        masks.append(
            torch.nn.functional.pad(clip.masks, (0, width - wide, 0, height - tall), value=False)
        )
    ages = torch.stack([clip.ages for clip in clips])
    return Batch(frames, ids, ages, tuple(masks), tuple(sentence[0] for sentence in texts))


def padded_size(height: int, width: int) -> tuple[int, int]:
    """Return the height and width of a padded frame: the next multiples of 32, as at run time."""
    return -(-height // STRIDE) * STRIDE, -(-width // STRIDE) * STRIDE


def _size(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"


def check_sizes(recipe: Recipe, split: DataSplit, processes: int) -> None:
    """Refuse a recipe that would join clips of several sizes in one part of a step.

    Raises:
        InputError: the recipe would, or a video's first frame cannot be read.
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
        # With one side and no crop, only the shape of the videos matters.
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
    """Return the numbers of the clips that a process computes in one part of a step.

    Raises:
        InputError: the batch cannot be divided evenly.
    """
    size = stage.batch // (stage.parts(processes) * processes)
    start = first + step * stage.batch + (part * processes + rank) * size
    return range(start, start + size)


def batches(
    clips: Clips, first: int, steps: range, rank: int = 0, processes: int = 1
) -> Iterator[Batch]:
    """Yield a process's batches of ``steps`` of a stage, one accumulated part at a time.

    Args:
        clips: of the stage.
        first: number of the stage's first clip.
        steps: of the stage.
        rank: of the process.
        processes: number of processes that train together.
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
    """Return the options of a loader that prepares clips in worker processes."""
    return {
        "num_workers": workers,
        # A separate generator, so the loader does not advance the global one.
        "generator": torch.Generator(),
        "prefetch_factor": 4 if workers else None,
        "worker_init_fn": _one_thread if workers else None,
    }


def _one_thread(worker: int) -> None:
    torch.set_num_threads(1)
