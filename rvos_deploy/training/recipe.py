"""Recipes: everything that decides a training run (see recipe_file.py for files). No torch."""

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
"""First parts of the names of the parameters that come after the frame queries are decoded."""
_MOST = 2**31 - 1
OPERATIONAL = (
    "workers",
    "checkpoint_every",
    "keep",
    "validate_every",
    "validation_videos",
    "gates",
)
"""Fields that a resumed run may change: they do not touch the numbers."""


@dataclass(frozen=True)
class LossSettings:
    """What the losses weigh, which points they compare, and which objects count.

    Attributes:
        frame_class: Weight of the loss ``frame_class``.
        video_class: Weight of the loss ``video_class``.
        mask: Weight of the losses ``frame_mask`` and ``video_mask``, and of the mask cost in the
            matching.
        dice: Weight of the losses ``frame_dice`` and ``video_dice``, and of the dice cost in the
            matching.
        similarity: Weight of the loss ``similarity``.
        no_object: Weight, inside ``frame_class`` and ``video_class``, of a query that is matched
            with no object. A query with an object has the weight 1.
        match_class: Weight of the class cost in the matching of queries and objects. None: the same
            as ``frame_class`` for frames and ``video_class`` for clips. A heavy class cost lets a
            query that is believed to be meant answer for an object that it does not cover.
        num_points: Points at which each mask is compared with its object, in each frame. [points]
        oversample: Candidates that are drawn for each of these points (PointRend). [candidates per
            point]
        importance: Share of the points that are the most uncertain candidates; the other points are
            drawn uniformly. [0..1]
        frame_objects: Objects that frame queries should find: "all" that are visible in the frame,
            or only those that the sentence means ("referred").
        accept_duplicates: Whether a video query on a meant object counts as right although another
            query was matched with that object.
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
    """A part of the training with one learning rate and one set of trained parameters.

    Attributes:
        name: Name in logs and checkpoints, and for ``--set stage.NAME.KEY``.
        steps: Optimizer steps of the stage. [steps]
        batch: Clips in one step, over all processes and accumulated parts. [clips]
        length: Frames of a clip. [frames]
        learning_rate: Learning rate after the warm-up.
        window: Distance from a frame drawn at random within which the frames of a clip are drawn.
            None: the video is split into ``length`` equal parts, and one frame is drawn from each.
            [frames]
        per_video: Clips that are drawn one after the other from one rendered video. Only for Moving
            Sprites. [clips]
        kinds: Kinds of expressions to draw: "appearance", "motion", "relation", "plural",
            "no_target". Empty: all. Data sets that name no kinds need it empty.
        timeless: Whether to leave out expressions that claim a motion, which no single frame shows.
            Only for Moving Sprites.
        single_every: Interval of steps at which each frame of the batch counts as a clip of one
            frame. 0: never. [steps]
        trained: First parts of the names of the parameters to train. Empty: all but the CLIP part.
        warmup: Steps over which the learning rate rises linearly. [steps]
        schedule: Course of the learning rate after the warm-up: "constant", or "cosine" or "linear"
            down to ``final_rate``.
        final_rate: Share of the learning rate that is left at the end of the stage. [0..1]
        weight_decay: Weight decay of AdamW. It does not act on biases, norms and learned positions.
        clip_gradient: Norm to which a greater gradient is scaled down.
        accumulate: Parts in which the batch of a step is computed one after the other, to save
            memory. 0: one clip at a time, which clips of several sizes need, since the network has
            no mask for padding. [parts]
        cached: Clips that the frame part computes once and keeps in RUN/cache; the stage then
            trains the video part on them, epoch after epoch. 0: no cache. Only for Moving Sprites.
            [clips]
        cached_length: Frames of a cached clip, over which its slots are aligned; each step draws
            ``length`` of them. 0: the same as ``length``. [frames]
        cache_stride: Stride at which the mask features of cached clips are kept: 4, 8, 16 or 32.
            [pixels]
        mirror: Probability that a cached clip is read mirrored, left to right, with left and right
            swapped in its sentences. [0..1]
        sentences: Sentences of its video that a clip is trained with. The frame part reads the
            first, the video part reads all. Only for Moving Sprites. [sentences]
        loss: Losses of this stage; in a file, the table ``[stage.loss]``. A key that it leaves out
            has the value of ``[loss]``. None: ``[loss]`` as it is.
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
        # The name becomes a folder of the cache, which is emptied: it must not lead elsewhere.
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
        """Parts of a step in each of so many processes.

        Raises:
            InputError: the batch cannot be shared evenly.
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
        """Whether the frame part stays as it is."""
        return bool(self.trained) and all(name.startswith(CACHEABLE) for name in self.trained)

    @property
    def frames_cached(self) -> int:
        """Frames of a cached clip."""
        return self.cached_length or self.length

    @property
    def clips(self) -> int:
        """Clips drawn in the whole stage."""
        return self.cached or self.steps * self.batch


@dataclass(frozen=True)
class Augmentation:
    """How the clips of a data set are varied. Moving Sprites, which never repeat, are not.

    Attributes:
        short_sides: Lengths of the short side, of which one is drawn for each clip. [pixels]
        long_side: Greatest length of the long side; the short side becomes shorter where the long
            side would pass it. [pixels]
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
    """A whole training run. The plain keys stand at the top of a recipe file.

    Attributes:
        model: The network: the name of a preset, or the table ``[model]`` with ``preset`` and the
            keys that differ.
        data: Data set: "sprites" (Moving Sprites, rendered during training), "mevis" or
            "ref-youtube-vos" (a folder, ``--data``).
        stages: The tables ``[[stage]]``, trained one after the other.
        seed: Seed of the initial weights, the clips and the points of the losses.
        precision: Number format of the computation, as Lightning Fabric names it.
        workers: Processes that prepare clips, for each training process. 0: the training process
            prepares them itself. [processes]
        checkpoint_every: Interval at which checkpoints are written; one is also written at the end
            of each stage. [steps]
        keep: Newest checkpoints that are kept, besides the best one. [checkpoints]
        validate_every: Interval at which J&F is measured; it is also measured at the end of each
            stage. 0: never. [steps]
        validation_videos: Videos on which J&F is measured, the first ones of the split. [videos]
        validation_seed: Seed by which the validation videos of Moving Sprites are rendered.
        gates: Whether to check, before long stages, that motion can be learned, and to refuse a
            CLIP part with random weights.
        sprites: The table ``[sprites]``: the world that Moving Sprites are rendered from.
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
    gates: bool = True
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
        """Steps of all stages."""
        return sum(stage.steps for stage in self.stages)

    def as_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return asdict(self)


def _at_least(where: str, name: str, value: float, least: int) -> None:
    if not value >= least:  # so that NaN is refused too
        raise InputError(f"{where}: {name} must be at least {least}, found {value}")
    if value > _MOST:
        raise InputError(f"{where}: {name} must be at most {_MOST}, found {value:.3g}")


def _one_of(what: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise InputError(f"{what} '{value}' is unknown; known: {', '.join(allowed)}")
