"""How a stream runs: everything a user may choose, checked when it is made."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from rvos_deploy.errors import InputError
from rvos_deploy.model.config import check_size
from rvos_deploy.runtime.spill_store import DEFAULT_BUDGET

Mode = Literal["online", "offline"]
Fallback = Literal["none", "top1"]
Place = Literal["host", "device"]
DEFAULT_MEMORY = 64


@dataclass(frozen=True)
class StreamSettings:
    """Settings of a stream.

    Args:
        mode: ``online`` gives frame t as soon as it may be known; ``offline`` gives every frame at
            the end, from the whole clip, as the reference network does.
        lookahead: online only: frame t is given when frame t + lookahead has been seen.
        memory: frames that the video decoder reads (W). None: 64 online, all of them offline.
        anchors: frames kept from before the window, spread evenly (K).
        threshold: a query above it belongs to the answer. None: the bundle's.
        fallback: when no query passes: ``none`` gives an empty mask, ``top1`` the best query's.
        size: (height, width) of the box that frames are fitted into. None: the bundle's.
        mask_budget: bytes of mask features kept in memory before they go to disk.
        masks: ``host`` gives NumPy arrays; ``device`` leaves masks on the GPU, for other libraries
            there (see ``FrameMasks.masks``). Refused by back ends that run on the host.
    """

    mode: Mode = "online"
    lookahead: int = 0
    memory: int | None = None
    anchors: int = 0
    threshold: float | None = None
    fallback: Fallback = "none"
    size: tuple[int, int] | None = None
    mask_budget: int = DEFAULT_BUDGET
    masks: Place = "host"

    def __post_init__(self) -> None:
        _check_choice("mode", self.mode, get_args(Mode))
        _check_choice("fallback", self.fallback, get_args(Fallback))
        _check_choice("masks", self.masks, get_args(Place))
        if self.lookahead < 0 or self.anchors < 0 or self.mask_budget < 0:
            raise InputError("lookahead, anchors and mask_budget cannot be negative")
        if self.lookahead and self.mode == "offline":
            raise InputError(
                f"lookahead {self.lookahead} has no meaning offline, where every frame waits for "
                "the last; leave it out, or use mode online"
            )
        if self.memory is not None and self.memory < 1:
            raise InputError(f"memory must be at least 1 frame, found {self.memory}")
        if self.threshold is not None and not 0.0 <= self.threshold <= 1.0:
            raise InputError(f"threshold must lie in 0..1, found {self.threshold}")
        if self.size is not None:
            check_size(*self.size)

    @property
    def window(self) -> int | None:
        """Frames in the memory; None keeps all."""
        if self.memory is None and self.mode == "online":
            return DEFAULT_MEMORY
        return self.memory


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise InputError(f"{name} must be one of {', '.join(choices)}; found '{value}'")
