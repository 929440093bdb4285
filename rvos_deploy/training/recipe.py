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
    """The fields of LossWeights, PointSampling and LossConfig of training/losses.py, in one."""

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
        name: in logs and checkpoints.
        steps: optimizer steps.
        batch: clips a step, over all processes and accumulated parts.
        length: frames of a clip.
        window: frames lie within so many of one drawn at random; None: one is drawn from each of
            ``length`` equal parts of the whole video.
        per_video: clips drawn in turn from one rendered video (Moving Sprites).
        kinds: kinds of expressions to draw; all by default (data sets without kinds: leave empty).
        timeless: leave out expressions that claim a motion, which no single frame shows (Moving
            Sprites).
        single_every: at every so many steps, the frames of a batch count as clips of one frame.
        trained: first parts of the names of the parameters to train; empty: all but the CLIP part.
        learning_rate: after the warm-up.
        warmup: steps of linear warm-up.
        schedule: constant, or cosine or linear down to ``final_rate`` times the learning rate.
        weight_decay: of AdamW; not on biases, norms and learned positions.
        clip_gradient: greatest norm of the gradient.
        accumulate: parts in which a step's batch is computed.
        cached: so many clips are run through the frame part once, and the stage trains on what came
            of them, epoch after epoch (Moving Sprites; ``trained`` within the video part); 0: none.
        cached_length: frames of a cached clip, over which its slots are aligned; each step reads
            ``length`` of them, drawn anew; 0: just those.
        cache_stride: stride at which mask features are kept for that.
        mirror: how often a cached clip is read mirrored, left to right, with the words for it.
        sentences: with how many sentences of its video a clip is shown (Moving Sprites). The frame
            part reads the first, the video part all: frames are dear, sentences are not.
        loss: of this stage; None: the recipe's. In a file, ``[stage.loss]`` names what differs.
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
        for name in ("steps", "batch", "length", "per_video", "accumulate", "sentences"):
            _at_least(where, name, getattr(self, name), 1)
        for name in ("warmup", "single_every", "final_rate", "weight_decay"):
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
        if self.batch % self.accumulate:
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
    """How clips of a data set are varied (not Moving Sprites, which never repeats itself).

    Attributes:
        short_sides: one is drawn for the short side.
        long_side: the most that the long side may become.
        crop: how often a random part is cut out, at least ``crop_side`` of each side.
        crop_side: see ``crop``.
        flip: how often frames are mirrored, and left and right swapped in the text.
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
    """A whole training run; see the module.

    Attributes:
        model: the network.
        data: "sprites" (rendered on the way), "mevis" or "ref-youtube-vos" (a folder).
        stages: one after the other.
        seed: of initial weights, clips and points.
        precision: of Lightning Fabric.
        workers: processes that prepare clips, for each training process; 0: none.
        checkpoint_every: steps; one is also written at the end of each stage.
        keep: checkpoints kept, besides the best.
        validate_every: steps; 0: never.
        validation_videos: how many; of Moving Sprites, rendered with ``validation_seed``.
        validation_seed: see there.
        gates: whether to check, before long stages, that motion can be learned (gates.py), and
            refuse a CLIP part with random weights.
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
