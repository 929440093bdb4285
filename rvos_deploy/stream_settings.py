"""Define the settings of a stream, which are checked when they are created.

This module does not import NumPy, because the command line reads the choices.
"""

from __future__ import annotations

import numbers
import reprlib
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from rvos_deploy.errors import InputError
from rvos_deploy.graph_io.input_size import check_size

Mode = Literal["online", "offline"]
Fallback = Literal["none", "top1"]
Place = Literal["host", "device"]
DEFAULT_MEMORY = 64


def _default_mask_budget() -> int:
    from rvos_deploy.spill_store import default_mask_budget

    return default_mask_budget()


@dataclass(frozen=True)
class StreamSettings:
    """Hold the settings of a stream. NumPy integers are accepted, and converted to Python's.

    Args:
        mode: ``online`` decides frame t from the frames so far; ``offline`` decides all frames at
            the end, from the whole clip, as the reference network does.
        lookahead: online only: frame t is decided when frame t + lookahead has been seen.
        memory: number of frames that the video decoder reads (W). None: 64 online, all offline.
        anchors: number of frames kept from before the window, spread evenly (K).
        threshold: score above which a query belongs to the answer. None: the bundle's.
        fallback: result when no query exceeds the threshold: ``none`` returns an empty mask,
            ``top1`` the mask of the best query.
        size: (height, width) of the box that frames are fitted into. None: the bundle's.
        short_side: short side in pixels that frames are scaled to, in place of a box. None: use
            ``size``.
        mask_budget: bytes that frames may occupy in memory while they wait for their decision
            (mask features and embeddings, and images where the stream keeps them); the rest goes
            to disk. Default: an eighth of the memory that this process may use (its container's
            limit, or the machine's), at most 1 GiB. Frame tokens are not counted: see
            :func:`rvos_deploy.networks.pan2024.query_memory.token_bytes`.
        masks: ``host`` returns NumPy arrays; ``device`` leaves masks on the GPU, for other
            libraries there (see ``FrameMasks.masks``). Host back ends refuse ``device``.

    Raises:
        InputError: a value has another type or is out of range; the message names it.
    """

    mode: Mode = "online"
    lookahead: int = 0
    memory: int | None = None
    anchors: int = 0
    threshold: float | None = None
    fallback: Fallback = "none"
    size: tuple[int, int] | None = None
    short_side: int | None = None
    mask_budget: int = field(default_factory=_default_mask_budget)
    masks: Place = "host"

    def __post_init__(self) -> None:
        _check_choice("mode", self.mode, get_args(Mode))
        _check_choice("fallback", self.fallback, get_args(Fallback))
        _check_choice("masks", self.masks, get_args(Place))
        for name in ("lookahead", "anchors", "mask_budget"):
            self._set(name, whole_number(name, getattr(self, name), 0))
        if self.lookahead and self.mode == "offline":
            raise InputError(
                f"lookahead {self.lookahead} has no meaning offline, where every frame waits for "
                "the last; leave it out, or use mode online"
            )
        if self.memory is not None:
            self._set("memory", whole_number("memory", self.memory, 1))
        if self.threshold is not None:
            self._set("threshold", _score(self.threshold))
        if self.size is not None:
            self._set("size", _sides(self.size))
        if self.short_side is not None:
            self._set("short_side", whole_number("short_side", self.short_side, 1))
            if self.size is not None:
                raise InputError(
                    f"size {self.size[0]}x{self.size[1]} and short side {self.short_side} exclude "
                    "each other; leave one out"
                )

    def _set(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)

    @property
    def window(self) -> int | None:
        """Return the number of frames that the memory keeps; None keeps all."""
        if self.memory is None and self.mode == "online":
            return DEFAULT_MEMORY
        return self.memory


def whole_number(name: str, value: object, minimum: int) -> int:
    """Return the value as an int. InputError: it is not a whole number, or below the minimum."""
    # NumPy registers its integers with ``numbers``, but not its bool.
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise InputError(f"{name} must be a whole number, found {described(value)}")
    if value < minimum:
        raise InputError(f"{name} must be at least {minimum}, found {described(value)}")
    return int(value)


def described(value: object) -> str:
    """Describe a value of any type in one line for errors: its shortened repr and its type."""
    return f"{' '.join(reprlib.repr(value).split())} ({type(value).__name__})"


def _score(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise InputError(f"threshold must be a number in 0..1, found {described(value)}")
    score = float(value)
    if not 0.0 <= score <= 1.0:
        raise InputError(f"threshold must lie in 0..1, found {score}")
    return score


def _sides(value: Any) -> tuple[int, int]:
    if not isinstance(value, (tuple, list)) or len(value) != 2:
        raise InputError(
            f"size must be two numbers, (height, width), for example (256, 448); "
            f"found {described(value)}"
        )
    height, width = (whole_number("size", side, 1) for side in value)
    check_size(height, width)
    return height, width


def _check_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    if not isinstance(value, str) or value not in choices:
        raise InputError(f"{name} must be one of {', '.join(choices)}; found {described(value)}")
