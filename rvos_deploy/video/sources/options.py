"""Hold the options of reading a video. The command line imports them early, so this is light."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

from rvos_deploy.errors import InputError
from rvos_deploy.video.sources.raw_format import RawFormat
from rvos_deploy.video.sources.selection import Place, Selection, parse_place

RECONNECT = 60.0
"""Seconds to try again after a connection was lost: enough for a camera that starts anew."""
IMAGE_FPS = 25
"""Frames per second of a folder of images; FFmpeg assumes the same where no rate is stated."""

Policy = Literal["every", "latest"]


@dataclass(frozen=True)
class SourceOptions:
    """Hold the options of reading; a kind of source ignores what does not concern it.

    Args:
        fps: frames per second of a folder of images; other sources have their own clock.
        format: FFmpeg's demuxer, where a device needs one (``"v4l2"`` is found without it).
        allow_playlists: let a file or pipe name further files and addresses.
        start: place of the first frame: ``"12.5s"``, ``"1:30"`` or, in frames, ``"300f"``.
        end: place before which the last frame lies.
        stride: distance between frames: ``"5f"`` reads every fifth, ``"0.5s"`` two a second.
        video_stream: number of the video stream, from 0; None: the one that players show.
        raw: size and rate, ``"640x480@25"``, of a source without a header whose frames are RGB, 8
            bits a channel.
        policy: ``"every"`` reads every frame. ``"latest"``, for live sources, drops frames that
            are stale when the reader is asked for the next one.
        max_latency: seconds for which ``"latest"`` keeps a frame; 0 keeps only the newest one.
        reconnect: seconds to try to connect again after a network source was lost; 0: never.

    Raises:
        InputError: a value has another form, or ``max_latency`` is given with another policy.
    """

    fps: float | Fraction = IMAGE_FPS
    format: str | None = None
    allow_playlists: bool = False
    start: str | None = None
    end: str | None = None
    stride: str | None = None
    video_stream: int | None = None
    raw: str | None = None
    policy: Policy = "every"
    max_latency: float | None = None
    reconnect: float = RECONNECT

    def __post_init__(self) -> None:
        if not 0 < self.fps < float("inf"):
            raise InputError(f"fps must be above 0, found {self.fps}; {IMAGE_FPS} is the default")
        if self.policy not in ("every", "latest"):
            raise InputError(f"--policy must be every or latest, found {self.policy!r}")
        if self.max_latency is not None:
            if self.policy != "latest":
                raise InputError(
                    "--max-latency needs --policy latest: with --policy every no frame is dropped"
                )
            if not 0 <= self.max_latency < float("inf"):
                raise InputError(f"--max-latency must be 0 s or more, found {self.max_latency}")
        if not 0 <= self.reconnect < float("inf"):
            raise InputError(f"--reconnect must be 0 s or more, found {self.reconnect}")
        if self.video_stream is not None and self.video_stream < 0:
            raise InputError(f"--video-stream counts from 0, found {self.video_stream}")
        self.selection(None)
        self.raw_format()

    def selection(self, max_frames: int | None) -> Selection:
        """Return the frames to read. Raises InputError: a place has another form."""

        def place(option: str, text: str | None) -> Place | None:
            return None if text is None else parse_place(option, text)

        return Selection(
            place("--start", self.start),
            place("--end", self.end),
            place("--stride", self.stride),
            max_frames,
        )

    def raw_format(self) -> RawFormat | None:
        """Return the format of raw frames, if it is given. Raises InputError: it is wrong."""
        return None if self.raw is None else RawFormat.parse(self.raw)
