"""RGB frames into an H.264 MP4, with the times of the video that they come from."""

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

# MP4 counts in 32 bits: with a finer clock than this, a pause of some minutes would not fit.
_FINEST_TIME_BASE = Fraction(1, 1_000_000)

# No B-frames: decoding order is display order, so every duration in the file is the source's own.
_X264 = {"preset": "veryfast", "crf": "20", "bf": "0"}
_BT709 = 1  # the same code for matrix, primaries and transfer


class _Encoder(NamedTuple):
    container: OutputContainer
    stream: VideoStream
    temporary: Path


class Mp4Writer:
    """Writes RGB frames as an H.264 MP4 with the timing of the video that they come from.

    Times are kept in the source's time base, to within half of it (of a microsecond where the
    source counts finer): variable frame rates, a late first frame and the last frame's duration
    included. Odd sizes are padded to even ones by repeating the last row or column: H.264 knows no
    odd ones.

    The file is under its name only when it is complete. Leaving the with-block on an exception also
    completes it, with the frames so far. Without a frame there is no file.
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
        are seconds, as in Frame, and pts must rise. Raises InputError for anything else, VideoError
        when the file cannot be written.
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
            self.abort()  # what FFmpeg has written so far cannot be completed
            raise VideoError(cannot_write(self._path, error)) from error

    def close(self) -> None:
        """Complete the file and put it under its name. Safe to call twice."""
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
        """Remove the unfinished file; harmless after :meth:`close`. Raises nothing."""
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
            with suppress(VideoError):  # the exception under way says more
                self.close()

    def _open(self, first_pts: float) -> _Encoder:
        # Players start a transport stream or a camera at its first frame, so the overlay starts at
        # 0 there; the late first frame of an MP4 is shown late, and so it is in the overlay.
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
            # Here rather than with the first packet: where the header could not be written, FFmpeg
            # must not be asked to write another packet, or it ends the process.
            container.start_encoding()
            self._encoder = _Encoder(container, stream, temporary)
            undo.pop_all()
        return self._encoder

    def _movie_timescale(self) -> int:
        # A late start is stored in this unit: the default, 1 ms, would move it. It takes 31 bits.
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
        # Unmarked colours are guessed by players, and differently by each.
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
            raise InputError(f"pts must rise: {pts} s does not come after the frame before it")
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
            # The encoder forgets durations; the muxer needs the last one, the gaps give the others.
            packet.duration = self._ticks_to_duration.pop(packet.pts or 0, 0)
            encoder.container.mux(packet)
