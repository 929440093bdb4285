"""Define the contract of a source, and the types that all sources share.

To add a kind of source, write one module with a ``SourceType`` and put it into ``registry.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal, NamedTuple, Protocol

from rvos_deploy.errors import InputError, VideoError
from rvos_deploy.video.frames import Frame, VideoInfo
from rvos_deploy.video.sources.decode_errors import DecodeErrors

NETWORK_TIMEOUT = 30.0
"""Seconds to wait for a server: a camera that is switched off would otherwise hang the run."""
FRAME_TIMEOUT = 120.0
"""Seconds without a frame after which a file counts as hung, even if FFmpeg still works."""
IMAGE_FPS = 25
"""Frames per second of a folder of images; FFmpeg assumes the same where no rate is stated."""


class Source(Protocol):
    """Define an open video: an iterator over frames that can be used once."""

    @property
    def info(self) -> VideoInfo:
        """Return the header's information, which is known before the frames are read."""

    @property
    def notes(self) -> tuple[str, ...]:
        """Return one line per difference between the frames and a viewer's picture."""

    @property
    def damage(self) -> str | None:
        """Return the errors so far in one line, or None. Read it after the last frame."""

    def __iter__(self) -> Iterator[Frame]:
        """Return the iterator itself."""

    def __next__(self) -> Frame:
        """Return the next frame; index and pts increase strictly.

        A frame's image may lie on a device. Raises StopIteration at the end, also after damage.
        """

    def close(self) -> None:
        """Release open files and connections; safe to call twice, and from any thread."""


@dataclass(frozen=True)
class SourceOptions:
    """Hold the options of single kinds of sources; the others ignore them.

    Args:
        fps: frames per second of a folder of images; other sources have their own clock.
        format: FFmpeg's demuxer, where a device needs one (``"v4l2"`` is found without it).
        allow_playlists: let a file or pipe name further files and addresses.

    Raises:
        InputError: ``fps`` is not above 0.
    """

    fps: float | Fraction = IMAGE_FPS
    format: str | None = None
    allow_playlists: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.fps < float("inf"):
            raise InputError(f"fps must be above 0, found {self.fps}; {IMAGE_FPS} is the default")


@dataclass(frozen=True)
class SourceRequest:
    """Describe a source to open.

    Args:
        name: as the user gave it: a path, an address, ``-``.
        max_frames: stop after this many frames.
        fps: frames per second of a folder of images; other sources have their own clock.
        format: FFmpeg's demuxer, where the user names one.
        skip_damage: skip data that cannot be decoded, instead of ending there.
        allow_playlists: let a file or pipe name further files and addresses.
        network_timeout: seconds that a server may be silent; None: no limit.
    """

    name: str
    max_frames: int | None = None
    fps: Fraction = Fraction(IMAGE_FPS)
    format: str | None = None
    skip_damage: bool = False
    allow_playlists: bool = False
    network_timeout: float | None = None


@dataclass(frozen=True)
class Opened:
    """Hold the first item that a source's ``read`` yields; frames follow."""

    info: VideoInfo
    notes: tuple[str, ...] = ()


class Timeouts(NamedTuple):
    """Hold limits in seconds; None: no limit."""

    network: float | None  # for a server that is silent
    frame: float | None  # for a frame, even if FFmpeg still works


@dataclass(frozen=True)
class SourceType:
    """Describe a kind of source: one line of the registry.

    Args:
        matches: tells whether a name, with the demuxer that the user may have named, has this kind.
        read: opens the source and yields one ``Opened``, then frames. It runs in the reader's
            thread, so it may block. Damage goes into ``DecodeErrors`` and ends the frames; a source
            without a readable frame raises VideoError.
        live: whether the source may have no end. ``run`` then works online and skips damage.
        network: whether a server may be silent.
    """

    matches: Callable[[str, str | None], bool]
    read: Callable[[SourceRequest, DecodeErrors], Generator[Opened | Frame, None, None]]
    live: bool = False
    network: bool = False

    def timeouts(self, asked: float | Literal["auto"] | None) -> Timeouts:
        """Return how long to wait for a source of this kind."""
        if self.network:
            network = NETWORK_TIMEOUT if asked == "auto" else asked
            # The frame's limit is longer, because FFmpeg's own timeout ends cleanly. But FFmpeg
            # notices neither a silent name server nor a server that sends a byte now and then.
            return Timeouts(network, None if network is None else 4 * network)
        if asked == "auto":
            return Timeouts(None, None if self.live else FRAME_TIMEOUT)
        return Timeouts(None, asked)


def first_frame(frames: Iterator[Frame], errors: DecodeErrors, shown: str, hint: str = "") -> Frame:
    """Return the first frame.

    Raises:
        VideoError: there is none; the message says why, and what to do (``hint``).
    """
    first = next(frames, None)
    if first is None:
        why = errors.line or "it holds none"
        fix = f"; {hint}" if hint else ""
        raise VideoError(f"no frame of {shown} could be decoded: {why}{fix}")
    return first
