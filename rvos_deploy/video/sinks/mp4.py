"""Encode RGB frames as an H.264 MP4, with the timing of the source video."""

from __future__ import annotations

import math
import os
from contextlib import ExitStack, suppress
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

import av
import numpy as np
from av.container import OutputContainer
from av.packet import Packet
from av.video.frame import VideoFrame
from av.video.reformatter import ColorRange, Colorspace, VideoReformatter
from av.video.stream import VideoStream

from rvos_deploy.errors import InputError, VideoError
from rvos_deploy.files import (
    cannot_write,
    create_temporary,
    discard,
    put_in_place,
)
from rvos_deploy.video.ffmpeg import (
    FALLBACK_FPS,
    READ_ERRORS,
    SWSCALE_THREADS,
    usable_threads,
)
from rvos_deploy.video.frames import Image, VideoInfo, check_image

# MP4 stores times in 32 bits: with a finer clock, a pause of some minutes would not fit.
_FINEST_TIME_BASE = Fraction(1, 1_000_000)

# The encoder takes cores from inference. Against veryfast at crf 20, a frame of 854x480 takes 4.0
# instead of 7.1 ms (with its conversion), at no lower PSNR, and 1.55 times the bytes. Without
# B-frames, which this preset does not make, decoding order is display order, so the file keeps
# every duration of the source.
_X264 = {"preset": "ultrafast", "crf": "22", "bf": "0"}
_BT709 = 1  # the same code for matrix, primaries and transfer


class _Encoder(NamedTuple):
    container: OutputContainer
    stream: VideoStream
    temporary: Path


class Mp4Writer:
    """Write RGB frames as an H.264 MP4 with the timing of the source video.

    Times are exact to half a tick of the source's time base, or to half a microsecond where the
    time base is finer. That includes variable frame rates, a late first frame and the last frame's
    duration. H.264 has no odd sizes, so odd sizes are padded by repeating the last row or column.

    The file gets its final name only when it is complete. Leaving the with-block on an exception
    also completes it, with the frames so far. Without frames there is no file.
    """

    def __init__(self, path: str | os.PathLike[str], info: VideoInfo) -> None:
        self._path = Path(path)
        self._info = info
        self._time_base = max(info.time_base, _FINEST_TIME_BASE)
        self._reformatter = VideoReformatter()
        self._encoder: _Encoder | None = None
        self._origin = Fraction(0)
        self._last: int | None = None
        self._last_duration: int | None = None
        self._ticks_to_duration: dict[int, int] = {}
        self._frames = 0
        self._closed = False

    def write(self, image: Image, pts: float, duration: float | None = None) -> None:
        """Encode one frame.

        ``image`` is uint8 [H, W, 3], RGB, of the video's displayed size; ``pts`` and ``duration``
        are seconds, as in Frame, and pts must rise.

        Raises:
            InputError: an argument breaks these rules, or the writer is closed.
            VideoError: the file cannot be written.
        """
        check_image(image, (self._info.height, self._info.width))
        if self._closed:
            raise InputError(f"{self._path} is closed; open another Mp4Writer")
        if not math.isfinite(pts):
            raise InputError(f"a frame's pts must be a finite number of seconds, found {pts}")
        try:
            encoder = self._encoder or self._open(pts)
            frame = self._to_yuv(image)
            frame.pts, frame.time_base = self._tick(pts, duration), self._time_base
            self._mux(encoder, encoder.stream.encode(frame))
            self._frames += 1
        except InputError:
            raise
        except (*READ_ERRORS, ValueError) as error:
            self.abort()  # FFmpeg cannot complete the file after an error
            raise VideoError(cannot_write(self._path, error)) from error

    def close(self) -> None:
        """Complete the file and rename it to its final name. Safe to call twice."""
        encoder, self._encoder, self._closed = self._encoder, None, True
        if encoder is None:
            return
        try:
            try:
                if not self._frames:
                    raise VideoError(f"{self._path}: not one frame could be encoded")
                self._mux(encoder, encoder.stream.encode(None))
            finally:
                encoder.container.close()
            put_in_place(encoder.temporary, self._path)
        except InputError:
            raise
        except (*READ_ERRORS, ValueError) as error:
            raise VideoError(cannot_write(self._path, error)) from error
        finally:
            discard(encoder.temporary)

    def abort(self) -> None:
        """Remove the unfinished file; do nothing after :meth:`close`. Raises nothing."""
        encoder, self._encoder, self._closed = self._encoder, None, True
        if encoder is not None:
            with suppress(*READ_ERRORS, ValueError):
                encoder.container.close()
            discard(encoder.temporary)

    def __enter__(self) -> Mp4Writer:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None:
            self.close()
        else:
            with suppress(VideoError):  # the first exception is more useful
                self.close()

    def _open(self, first_pts: float) -> _Encoder:
        # Players start a transport stream or a camera at its first frame, so its overlay starts at
        # 0. The late first frame of an MP4 is shown late, in the overlay too.
        self._origin = Fraction(min(first_pts, self._info.clock_start))
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with ExitStack() as undo:
            temporary = create_temporary(self._path)
            undo.callback(discard, temporary)
            container = av.open(
                f"file:{temporary.resolve()}",
                "w",
                format="mp4",
                options={"movflags": "+faststart", "movie_timescale": str(self._movie_timescale())},
            )
            undo.callback(container.close)
            stream = self._add_stream(container)
            # The header is written here and not with the first packet: after a failed header,
            # FFmpeg ends the process when it writes another packet.
            container.start_encoding()
            self._encoder = _Encoder(container, stream, temporary)
            undo.pop_all()
        return self._encoder

    def _movie_timescale(self) -> int:
        # A late start is stored in this unit, in 31 bits; the default, 1 ms, would shift it.
        return min(self._time_base.denominator, 2**31 - 1)

    def _add_stream(self, container: OutputContainer) -> VideoStream:
        rate = Fraction(self._info.average_fps or FALLBACK_FPS).limit_denominator(1001)
        stream = container.add_stream("libx264", rate=max(rate, Fraction(1)), options=dict(_X264))
        context = stream.codec_context
        context.width = self._info.width + self._info.width % 2
        context.height = self._info.height + self._info.height % 2
        context.pix_fmt = "yuv420p"
        context.time_base = self._time_base
        context.thread_count = usable_threads()
        # Players guess unmarked colours, each in its own way.
        context.colorspace = context.color_primaries = context.color_trc = _BT709
        context.color_range = ColorRange.MPEG
        return stream

    def _to_yuv(self, image: Image) -> VideoFrame:
        height, width = image.shape[:2]
        if height % 2 or width % 2:
            image = np.pad(image, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
        return self._reformatter.reformat(
            VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24"),
            format="yuv420p",
            src_color_range=ColorRange.JPEG,
            dst_colorspace=Colorspace.ITU709,
            dst_color_range=ColorRange.MPEG,
            threads=SWSCALE_THREADS,
        )

    def _tick(self, pts: float, duration: float | None) -> int:
        tick = round((Fraction(pts) - self._origin) / self._time_base)
        if self._last is not None and tick <= self._last:
            raise InputError(f"pts must rise: {pts} s is not later than the previous frame")
        self._ticks_to_duration[tick] = self._duration(tick, duration)
        self._last, self._last_duration = tick, self._ticks_to_duration[tick]
        return tick

    def _duration(self, tick: int, duration: float | None) -> int:
        if duration:
            return max(1, round(Fraction(duration) / self._time_base))
        if self._last is not None:
            return tick - self._last
        fps = self._info.average_fps or FALLBACK_FPS
        return max(1, round(1 / (Fraction(fps) * self._time_base)))

    def _mux(self, encoder: _Encoder, packets: list[Packet[VideoStream]]) -> None:
        for packet in packets:
            # The encoder drops durations. The muxer needs the last one; gaps determine the others.
            packet.duration = self._ticks_to_duration.pop(packet.pts or 0, 0)
            encoder.container.mux(packet)
