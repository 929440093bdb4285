"""Define recipes, which decide a training run; ``recipe_file.py`` reads them. Imports no torch."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, get_args

from rvos_deploy.datasets.moving_sprites.world import KINDS, WorldConfig
from rvos_deploy.errors import InputError
from rvos_deploy.networks.pan2024.config import ModelConfig

DATA = ("sprites", "mevis", "ref-youtube-vos")
Precision = Literal["32-true", "bf16-mixed", "16-mixed"]
PRECISIONS = get_args(Precision)
SCHEDULES = ("constant", "cosine", "linear")
CACHEABLE = (
    "frame_decoder.mask_position",
    "frame_decoder.mask_content",
    "frame_decoder.query_share",
    "initializer",
    "video_decoder",
    "mask_head",
)
"""Prefixes of the names of the parameters that act after the frame query decoder."""
_MOST = 2**31 - 1
OPERATIONAL = (
    "workers",
    "checkpoint_every",
    "keep",
    "validate_every",
    "validation_videos",
    "preflight",
)
"""Fields that a resumed run may change, because they do not change the numbers."""


@dataclass(frozen=True)
class LossSettings:
    """Choose the weights of the losses, the points they compare, and the objects that count.

    Attributes:
        frame_class: Weight of the loss ``frame_class``.
        video_class: Weight of the loss ``video_class``.
        mask: Weight of the losses ``frame_mask`` and ``video_mask``, and of the mask cost in the
            matching.
        dice: Weight of the losses ``frame_dice`` and ``video_dice``, and of the dice cost in the
            matching.
        similarity: Weight of the loss ``similarity``.
        no_object: Weight, inside ``frame_class`` and ``video_class``, of a query without a matched
            object. A query with an object has the weight 1.
        match_class: Weight of the class cost in the matching of queries and objects. None: the
            weight ``frame_class`` for frames and ``video_class`` for clips. A heavy class cost
            matches a query with a high score to an object that the query does not cover.
        num_points: Points at which each mask is compared with its object, in each frame. [points]
        oversample: Candidates drawn for each of these points (PointRend). [candidates per point]
        importance: Share of the points that are the most uncertain candidates; the other points are
            drawn uniformly. [0..1]
        frame_objects: Objects that frame queries should find: "all" visible ones, or only those
            that the sentence means ("referred").
        accept_duplicates: Whether a video query on a referred object counts as correct although
            another query is matched with that object.
    """

    frame_class: float = 2.0
    video_class: float = 2.0
    mask: float = 5.0
    dice: float = 5.0
    similarity: float = 0.5
    no_object: float = 0.1
    match_class: float | None = None
    num_points: int = 12544
    oversample: float = 3.0
    importance: float = 0.75
    frame_objects: str = "all"
    accept_duplicates: bool = False


@dataclass(frozen=True)
class Stage:
    """Configure one part of the training, with one learning rate and one set of trained parameters.

    Attributes:
        name: Name in logs and checkpoints, and for ``--set stage.NAME.KEY``.
        steps: Optimizer steps of the stage. [steps]
        batch: Clips in one step, over all processes and accumulated parts. [clips]
        length: Frames of a clip. [frames]
        learning_rate: Learning rate after the warm-up.
        window: Largest distance of a clip's frames from a frame drawn at random. None: the video is
            split into ``length`` equal parts, and one frame is drawn from each. [frames]
        per_video: Consecutive clips drawn from one rendered video. Only for Moving Sprites. [clips]
        kinds: Kinds of expressions to draw: "appearance", "motion", "relation", "plural",
            "no_target". Empty: all. Must be empty for data sets without kinds.
        timeless: Whether to leave out expressions about motion, which no single frame shows. Only
            for Moving Sprites.
        single_every: Interval of steps at which each frame of the batch counts as a clip of one
            frame. 0: never. [steps]
        trained: Prefixes of the names of the parameters to train. Empty: all but the CLIP part.
        warmup: Steps over which the learning rate rises linearly. [steps]
        schedule: Shape of the learning rate after the warm-up: "constant", or "cosine" or "linear"
            down to ``final_rate``.
        final_rate: Share of the learning rate that is left at the end of the stage. [0..1]
        weight_decay: Weight decay of AdamW, except on biases, norms and learned positions.
        clip_gradient: Largest norm of the gradient; larger gradients are scaled down.
        accumulate: Parts of a step's batch that are computed in sequence, to save memory. 0: one
            clip at a time. Clips of several sizes need 0, because the network has no padding mask.
            [parts]
        cached: Clips that the frame part computes once and stores in RUN/cache. The stage then
            trains the video part on them in epochs. 0: no cache. Only for Moving Sprites. [clips]
        cached_length: Frames of a cached clip, over which its slots are aligned. Each step draws
            ``length`` of them. 0: the same as ``length``. [frames]
        cache_stride: Stride of the stored mask features: 4, 8, 16 or 32. [pixels]
        mirror: Probability that a cached clip is mirrored, left to right, with left and right
            swapped in its sentences. [0..1]
        sentences: Sentences of its video that a clip is trained with. The frame part reads the
            first, and the video part reads all. Only for Moving Sprites. [sentences]
        loss: Losses of this stage; in a file, the table ``[stage.loss]``. Keys that the table
            leaves out have their values in ``[loss]``. None: ``[loss]``.
    """

    name: str
    steps: int
    batch: int
    length: int
    learning_rate: float
    window: int | None = None
    per_video: int = 1
    kinds: tuple[str, ...] = ()
    timeless: bool = False
    single_every: int = 0
    trained: tuple[str, ...] = ()
    warmup: int = 0
    schedule: str = "cosine"
    final_rate: float = 0.0
    weight_decay: float = 0.05
    clip_gradient: float = 0.01
    accumulate: int = 1
    cached: int = 0
    cached_length: int = 0
    cache_stride: int = 16
    mirror: float = 0.0
    sentences: int = 1
    loss: LossSettings | None = None

    def __post_init__(self) -> None:
        # The name becomes a folder that is emptied, so the name must not lead elsewhere.
        if not re.fullmatch(r"\w[\w .-]{0,79}", self.name):
            raise InputError(
                f"a stage's name must be 1 to 80 letters, digits, '_', '-', '.' and spaces, and "
                f"begin with none of the last three; found {self.name[:100]!r}"
            )
        where = f"stage '{self.name}'"
        for name in ("steps", "batch", "length", "per_video", "sentences"):
            _at_least(where, name, getattr(self, name), 1)
        for name in ("warmup", "single_every", "final_rate", "weight_decay", "accumulate"):
            _at_least(where, name, getattr(self, name), 0)
        for name in ("learning_rate", "clip_gradient"):
            _at_least(where, name, getattr(self, name), 0)
            if not getattr(self, name):
                raise InputError(f"{where}: {name} must be above 0, found {getattr(self, name)}")
        _one_of(f"{where}: schedule", self.schedule, SCHEDULES)
        for kind in self.kinds:
            _one_of(f"{where}: kind", kind, KINDS)
        _at_least(where, "cached", self.cached, 0)
        if self.cached:
            self._check_cache(where)
        for name in ("mirror", "cached_length"):
            if getattr(self, name) and not self.cached:
                raise InputError(
                    f"{where}: {name} is for cached stages; set cached, or leave it out"
                )
        if self.accumulate and self.batch % self.accumulate:
            raise InputError(
                f"{where}: batch {self.batch} is not a multiple of accumulate {self.accumulate}"
            )

    def _check_cache(self, where: str) -> None:
        if self.cache_stride not in (4, 8, 16, 32):
            raise InputError(f"{where}: cache_stride must be 4, 8, 16 or 32")
        if self.cached_length and self.cached_length < self.length:
            raise InputError(
                f"{where}: cached_length {self.cached_length} is less than length {self.length}"
            )
        if not self.trains_video_part_alone:
            raise InputError(
                f"{where}: a cached stage trains the video part alone; set trained to some of "
                f"{', '.join(CACHEABLE)}"
            )
        if not 0 <= self.mirror <= 1:
            raise InputError(f"{where}: mirror must lie in 0..1, found {self.mirror}")
        if self.single_every:
            raise InputError(f"{where}: single_every does not go with cached; leave one out")

    def parts(self, processes: int) -> int:
        """Return the parts of a step in each of ``processes`` processes.

        Raises:
            InputError: the batch cannot be divided evenly.
        """
        shares = processes * (self.accumulate or 1)
        if self.batch % shares:
            parts = f" times {self.accumulate} parts" if self.accumulate else ""
            raise InputError(
                f"stage '{self.name}': batch {self.batch} is not a multiple of {processes} "
                f"processes{parts}; change batch or accumulate"
            )
        return self.accumulate or self.batch // processes

    @property
    def trains_video_part_alone(self) -> bool:
        """Return whether the stage leaves the frame part unchanged."""
        return bool(self.trained) and all(name.startswith(CACHEABLE) for name in self.trained)

    @property
    def frames_cached(self) -> int:
        """Return the frames of a cached clip."""
        return self.cached_length or self.length

    @property
    def clips(self) -> int:
        """Return the number of clips that the whole stage draws."""
        return self.cached or self.steps * self.batch


@dataclass(frozen=True)
class Augmentation:
    """Configure the augmentation of a data set's clips. Moving Sprites never repeat, and have none.

    Attributes:
        short_sides: Lengths of the short side; one is drawn for each clip. [pixels]
        long_side: Largest length of the long side. A longer clip is scaled down further. [pixels]
        crop: Probability that a random box is cut out of all frames of a clip. [0..1]
        crop_side: Least share of each side that the box keeps. [0..1]
        flip: Probability that a clip is mirrored, left to right, with left and right swapped in its
            sentence. [0..1]
    """

    short_sides: tuple[int, ...] = (288, 320, 352, 384, 416, 448, 480, 512)
    long_side: int = 768
    crop: float = 0.5
    crop_side: float = 0.6
    flip: float = 0.5

    def __post_init__(self) -> None:
        if not self.short_sides or min(*self.short_sides, self.long_side) < 32:
            raise InputError("augment: short_sides and long_side must be at least 32 pixels")
        if not 0 < self.crop_side <= 1:
            raise InputError(f"augment: crop_side must lie in 0..1, found {self.crop_side}")


@dataclass(frozen=True)
class Recipe:
    """Configure a whole training run. The plain keys stand at the top of a recipe file.

    Attributes:
        model: The network: the name of a preset, or the table ``[model]`` with ``preset`` and the
            keys that differ.
        data: Data set: "sprites" (Moving Sprites, rendered during training), "mevis" or
            "ref-youtube-vos" (a folder, ``--data``).
        stages: The tables ``[[stage]]``, trained in sequence.
        seed: Seed of the initial weights, the clips and the points of the losses.
        precision: Number format of the computation, in the names of Lightning Fabric.
        workers: Processes that prepare clips, for each training process. 0: the training process
            prepares them. [processes]
        checkpoint_every: Interval of checkpoints; one is also written at the end of each stage.
            [steps]
        keep: Newest checkpoints to keep, besides the best one. [checkpoints]
        validate_every: Interval of validation by J&F; each stage also ends with one. 0: never.
            [steps]
        validation_videos: Videos of the validation, the first ones of the split. [videos]
        validation_seed: Seed of the validation videos of Moving Sprites.
        preflight: Whether to check before long stages that motion can be learned, and to refuse a
            CLIP part with random weights.
        sprites: The table ``[sprites]``: the world of Moving Sprites.
        augment: The table ``[augment]``.
        loss: The table ``[loss]``.
    """

    model: ModelConfig
    data: str
    stages: tuple[Stage, ...]
    seed: int = 0
    precision: Precision = "32-true"
    workers: int = 0
    checkpoint_every: int = 500
    keep: int = 2
    validate_every: int = 0
    validation_videos: int = 20
    validation_seed: int = 1
    preflight: bool = True
    sprites: WorldConfig = field(default_factory=WorldConfig)
    augment: Augmentation = field(default_factory=Augmentation)
    loss: LossSettings = field(default_factory=LossSettings)

    def __post_init__(self) -> None:
        _one_of("data", self.data, DATA)
        _one_of("precision", self.precision, PRECISIONS)
        if not self.stages:
            raise InputError("a recipe needs at least one [[stage]]")
        if self.data != "sprites" and any(stage.cached for stage in self.stages):
            raise InputError("cached stages are for data = 'sprites', whose frames have one size")
        if self.data != "sprites" and any(stage.sentences > 1 for stage in self.stages):
            raise InputError("sentences above 1 are for data = 'sprites'")
        for name in ("checkpoint_every", "keep", "validation_videos"):
            _at_least("recipe", name, getattr(self, name), 1)
        for name in ("seed", "workers", "validate_every", "validation_seed"):
            _at_least("recipe", name, getattr(self, name), 0)

    @property
    def steps(self) -> int:
        """Return the steps of all stages."""
        return sum(stage.steps for stage in self.stages)

    def as_dict(self) -> dict[str, Any]:
        """Return plain values, ready for JSON."""
        return asdict(self)


def _at_least(where: str, name: str, value: float, least: int) -> None:
    if not value >= least:  # also true for NaN
        raise InputError(f"{where}: {name} must be at least {least}, found {value}")
    if value > _MOST:
        raise InputError(f"{where}: {name} must be at most {_MOST}, found {value:.3g}")


def _one_of(what: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise InputError(f"{what} '{value}' is unknown; known: {', '.join(allowed)}")
