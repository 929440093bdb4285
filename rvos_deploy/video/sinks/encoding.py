"""Encode frames into an open container, with the timing of the source video."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction

import numpy as np
from av.container import OutputContainer
from av.packet import Packet
from av.video.frame import VideoFrame
from av.video.reformatter import ColorRange, Colorspace, VideoReformatter
from av.video.stream import VideoStream

from rvos_deploy.errors import InputError
from rvos_deploy.video.ffmpeg import FALLBACK_FPS, SWSCALE_THREADS, usable_threads
from rvos_deploy.video.frames import Image, VideoInfo

_BT709 = 1  # the same code for matrix, primaries and transfer


@dataclass(frozen=True)
class VideoFormat:
    """Describe a container and a codec by FFmpeg's names.

    Args:
        container: the muxer.
        codec: the encoder.
        pix_fmt: format of the encoder's pixels.
        options: options of the encoder.
        container_options: options of the muxer.
        alpha: whether frames are RGBA.
        even: whether the codec needs even sides; frames are padded by their last row and column.
        finest_time_base: the smallest unit of time that the container stores, in seconds.
        metadata: tags of the stream.
    """

    container: str
    codec: str
    pix_fmt: str
    options: Mapping[str, str]
    container_options: Mapping[str, str] = field(default_factory=dict)
    alpha: bool = False
    even: bool = True
    finest_time_base: Fraction = Fraction(1, 1_000_000)
    metadata: Mapping[str, str] = field(default_factory=dict)


class FrameEncoder:
    """Encode frames as the video stream of an open container."""

    def __init__(
        self, container: OutputContainer, info: VideoInfo, format: VideoFormat, origin: Fraction
    ) -> None:
        """Add the stream. ``origin``: the time (seconds) on the source's clock that becomes 0."""
        self._container, self._info, self._format = container, info, format
        self._origin = origin
        self._time_base = time_base(info, format)
        self._reformatter = VideoReformatter()
        self._last: int | None = None
        self._last_duration = 0
        self._ticks_to_duration: dict[int, int] = {}
        self._stream = self._add_stream()

    @property
    def end(self) -> float:
        """Return the time at which the last frame ends, in seconds in the file."""
        return float(((self._last or 0) + self._last_duration) * self._time_base)

    def encode(self, image: Image, pts: float, duration: float | None) -> None:
        """Encode one frame: uint8 [H, W, 3], or [H, W, 4] with alpha; times in seconds.

        Raises:
            InputError: ``pts`` does not rise.
            FFmpegError, OSError, ValueError: the container cannot be written.
        """
        tick = self._tick(pts, duration)
        frame = self._to_yuv(image)
        frame.pts, frame.time_base = tick, self._time_base
        self._mux(self._stream.encode(frame))

    def flush(self) -> None:
        """Encode the frames that the encoder holds. Raises as :meth:`encode`."""
        self._mux(self._stream.encode(None))

    def time_of(self, pts: float) -> float:
        """Return when a frame is shown, in seconds in the file."""
        return float(Fraction(pts) - self._origin)

    def _add_stream(self) -> VideoStream:
        format = self._format
        rate = Fraction(self._info.average_fps or FALLBACK_FPS).limit_denominator(1001)
        stream = self._container.add_stream(
            format.codec, rate=max(rate, Fraction(1)), options=dict(format.options)
        )
        assert isinstance(stream, VideoStream)
        context = stream.codec_context
        context.width = self._info.width + (self._info.width % 2 if format.even else 0)
        context.height = self._info.height + (self._info.height % 2 if format.even else 0)
        context.pix_fmt = format.pix_fmt
        context.time_base = self._time_base
        context.thread_count = usable_threads()
        # Players guess unmarked colours, each in its own way.
        context.colorspace = context.color_primaries = context.color_trc = _BT709
        context.color_range = ColorRange.MPEG
        stream.metadata.update(format.metadata)
        return stream

    def _to_yuv(self, image: Image) -> VideoFrame:
        height, width = image.shape[:2]
        if self._format.even and (height % 2 or width % 2):
            image = np.pad(image, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
        given = "rgba" if self._format.alpha else "rgb24"
        return self._reformatter.reformat(
            VideoFrame.from_ndarray(np.ascontiguousarray(image), format=given),
            format=self._format.pix_fmt,
            src_color_range=ColorRange.JPEG,
            dst_colorspace=Colorspace.ITU709,
            dst_color_range=ColorRange.MPEG,
            threads=SWSCALE_THREADS,
        )

    def _tick(self, pts: float, duration: float | None) -> int:
        if not math.isfinite(pts):
            raise InputError(f"a frame's pts must be a finite number of seconds, found {pts}")
        tick = round((Fraction(pts) - self._origin) / self._time_base)
        if self._last is not None and tick <= self._last:
            raise InputError(f"pts must rise: {pts} s is not later than the previous frame")
        self._last_duration = self._ticks_to_duration[tick] = self._duration(tick, duration)
        self._last = tick
        return tick

    def _duration(self, tick: int, duration: float | None) -> int:
        if duration:
            return max(1, round(Fraction(duration) / self._time_base))
        if self._last is not None:
            return tick - self._last
        fps = self._info.average_fps or FALLBACK_FPS
        return max(1, round(1 / (Fraction(fps) * self._time_base)))

    def _mux(self, packets: list[Packet[VideoStream]]) -> None:
        for packet in packets:
            # The encoder drops durations. The muxer needs the last one; gaps determine the others.
            packet.duration = self._ticks_to_duration.pop(packet.pts or 0, 0)
            self._container.mux(packet)


def time_base(info: VideoInfo, format: VideoFormat) -> Fraction:
    """Return the unit of time of a written video, in seconds."""
    return max(info.time_base, format.finest_time_base)
