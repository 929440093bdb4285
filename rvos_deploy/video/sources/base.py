"""Define the contract of a source, and the types that all sources share.

To add a kind of source, write one module with a ``SourceType`` and put it into ``registry.py``. A
source of your own needs no kind: give ``open_video`` an object that follows ``Source``.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Literal, NamedTuple, Protocol, runtime_checkable

from rvos_deploy.errors import InputError, VideoError
from rvos_deploy.video.frames import Frame, VideoInfo
from rvos_deploy.video.sources.decode_errors import DecodeErrors
from rvos_deploy.video.sources.options import IMAGE_FPS
from rvos_deploy.video.sources.raw_format import RawFormat
from rvos_deploy.video.sources.selection import Selection, Selector

NETWORK_TIMEOUT = 30.0
"""Seconds to wait for a server: a camera that is switched off would otherwise hang the run."""
FRAME_TIMEOUT = 120.0
"""Seconds without a frame after which a file counts as hung, even if FFmpeg still works."""
End = Literal["known", "unknown", "never"]


@runtime_checkable
class Source(Protocol):
    """Define a video that can be read once.

    An object may also have ``notes``, lines about differences to a viewer's picture, and
    ``close()``, which is called after the last frame, in the thread that ran ``frames()``.
    """

    @property
    def info(self) -> VideoInfo:
        """Return the header's information, which is known before the frames are read."""

    def frames(self) -> Iterator[Frame]:
        """Yield the frames; index and pts increase strictly. It may wait for a live source.

        A frame's image may lie on a device.
        """


@dataclass(frozen=True, eq=False)
class OpenedSource:
    """Hold a source that a ``SourceType`` has opened.

    Args:
        info: the header's information.
        iterator: yields the frames.
        notes: one line per difference between the frames and a viewer's picture.
        release: closes files and connections.
        end: "known" if the header states the duration, "unknown" if the source may end at any time,
            "never" if it does not end by itself, so that its end is a lost connection.
    """

    info: VideoInfo
    iterator: Iterator[Frame]
    notes: tuple[str, ...] = ()
    release: Callable[[], None] = lambda: None
    end: End = "known"

    def frames(self) -> Iterator[Frame]:
        """Yield the frames."""
        return self.iterator

    def close(self) -> None:
        """Release open files and connections; safe to call twice."""
        if isinstance(self.iterator, Generator):
            self.iterator.close()
        self.release()


@dataclass(frozen=True)
class SourceRequest:
    """Describe a source to open.

    Args:
        name: as the user gave it: a path, an address, ``-``.
        selection: the frames to read. A source asks its selector before it converts a frame.
        fps: frames per second of a folder of images; other sources have their own clock.
        format: FFmpeg's demuxer, where the user names one.
        skip_damage: skip data that cannot be decoded, instead of ending there.
        allow_playlists: let a file or pipe name further files and addresses.
        network_timeout: seconds that a server may be silent; None: no limit.
        video_stream: number of the video stream, where the user names one.
        raw: format of a source without a header.
        reconnect: seconds to try to connect again.
        closing: set when the reader is closed; a source that waits by itself waits for it.
    """

    name: str
    selection: Selection = field(default_factory=Selection)
    fps: Fraction = Fraction(IMAGE_FPS)
    format: str | None = None
    skip_damage: bool = False
    allow_playlists: bool = False
    network_timeout: float | None = None
    video_stream: int | None = None
    raw: RawFormat | None = None
    reconnect: float = 0.0
    closing: threading.Event = field(default_factory=threading.Event)


class Timeouts(NamedTuple):
    """Hold limits in seconds; None: no limit."""

    network: float | None  # for a server that is silent
    frame: float | None  # for a frame, even if FFmpeg still works


@dataclass(frozen=True)
class SourceType:
    """Describe a kind of source: one line of the registry.

    Args:
        matches: tells whether a name, with the demuxer that the user may have named, has this kind.
        open: opens the source. It and the source's ``frames`` run in the reader's thread, so they
            may block. Damage goes into ``DecodeErrors`` and ends the frames; a source without a
            readable frame raises VideoError.
        live: whether the source may have no end. ``run`` then works online and skips damage.
        network: whether a server may be silent.
    """

    matches: Callable[[str, str | None], bool]
    open: Callable[[SourceRequest, DecodeErrors], Source]
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


def first_frame(
    frames: Iterator[Frame], errors: DecodeErrors, selector: Selector, shown: str, hint: str = ""
) -> Frame:
    """Return the first selected frame.

    Raises:
        InputError: the video has frames, but none is selected.
        VideoError: there is none; the message says why, and what to do (``hint``).
    """
    first = next(frames, None)
    if first is None:
        if outside := selector.none_selected:
            raise InputError(f"no frame of {shown} is selected: {outside}")
        why = errors.line or "it holds none"
        fix = f"; {hint}" if hint else ""
        raise VideoError(f"no frame of {shown} could be decoded: {why}{fix}")
    return first


def joined(first: Frame, frames: Iterator[Frame]) -> Generator[Frame, None, None]:
    """Yield the first frame, which is then not kept, and the others."""
    yield first
    del first  # a frame is large
    yield from frames
