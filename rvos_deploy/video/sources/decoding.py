"""Decode the frames of an open PyAV container."""

from __future__ import annotations

import math
import time
from collections.abc import Generator, Iterator
from fractions import Fraction
from typing import cast

import av
from av.codec import CodecContext
from av.container import InputContainer
from av.video.codeccontext import VideoCodecContext
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from rvos_deploy.errors import VideoError
from rvos_deploy.images import MAX_PIXELS, oversize
from rvos_deploy.video.ffmpeg import FALLBACK_FPS, READ_ERRORS, reason
from rvos_deploy.video.frames import Frame
from rvos_deploy.video.sources.decode_errors import DecodeErrors
from rvos_deploy.video.sources.geometry import Display
from rvos_deploy.video.sources.timeline import Timeline

# FFmpeg's own decoders of VP8 and VP9 drop the transparency that WebM stores beside each frame.
_ALPHA_DECODERS = {"vp8": "libvpx", "vp9": "libvpx-vp9"}


def open_decoder(stream: VideoStream) -> VideoCodecContext:
    """Return the decoder of ``stream``, which keeps transparency and refuses oversized pictures.

    The decoder runs in one thread. With several, FFmpeg loses whole frames before damaged data and
    conceals errors differently, so frames would depend on the machine. Decoding already overlaps
    with inference (``pipeline.prefetch``).
    """
    decoder = stream.codec_context
    if has_alpha_beside(stream) and (name := alpha_decoder(decoder.name)):
        header, decoder = decoder, cast(VideoCodecContext, CodecContext.create(name, "r"))
        if header.extradata:
            decoder.extradata = header.extradata
    decoder.thread_count = 1
    # FFmpeg checks this before it allocates a picture, whose size may be known only from the data.
    decoder.options = {"max_pixels": str(MAX_PIXELS)}
    return decoder


def has_alpha_beside(stream: VideoStream) -> bool:
    """Tell whether the stream's transparency is a second picture in each block (WebM)."""
    # A header element becomes alpha_mode, and a tag becomes ALPHA_MODE; FFmpeg ignores case here.
    return any(
        key.lower() == "alpha_mode" and value == "1" for key, value in stream.metadata.items()
    )


def alpha_decoder(codec: str) -> str | None:
    """Return the name of a decoder that reads this transparency; None if this FFmpeg has none."""
    name = _ALPHA_DECODERS.get(codec)
    return name if name in av.codecs_available else None


def decode(
    container: InputContainer,
    stream: VideoStream,
    errors: DecodeErrors,
    timeline: Timeline,
    *,
    skip: bool,
    begin: int | None = None,
) -> Generator[Frame, None, None]:
    """Yield the selected frames of ``stream`` for display; log problems in ``errors``.

    Frames before and between the selected ones are decoded, because later ones are predicted from
    them, but they are not converted. Undecodable packets before the first frame are skipped,
    because a recording may begin between two key frames. A later one ends the video, unless
    ``skip``; whole frames that the decoder still holds are yielded first. Raises nothing for bad
    data.

    ``begin``: time, in the stream's time base, of the key frame at which the container is
    positioned; None: it is at its start.
    """
    clock, selector = Clock(container, stream), timeline.selector
    display = Display(stream.sample_aspect_ratio, timeline.size)
    if problem := oversize(stream.width, stream.height):
        errors.stop(problem)
        return
    end = None
    for decoded in _decoded(container, stream, errors, timeline, skip=skip):
        if begin is not None and decoded.pts is not None and decoded.pts < begin:
            continue  # predicted from frames before the key frame, which were not decoded
        own_pts, duration = clock.read(decoded)
        end = own_pts + (duration or 0)
        placed = timeline.place(own_pts)
        choice = "skip" if placed is None else selector.choose(placed.index, placed.pts)
        if choice == "end":
            return
        if placed is None or choice == "skip":
            continue
        try:
            image = display.to_rgb(decoded)
        except (*READ_ERRORS, VideoError) as error:
            errors.stop(f"frame {placed.index} could not be converted to RGB: {reason(error)}")
            return
        timeline.size = display.size
        if decoded.is_corrupt:
            errors.remark(f"frame {placed.index} at {placed.pts:.3f} s is damaged")
        yield Frame(placed.index, placed.pts, image, duration)
        if selector.done:
            return
    if end is not None and not clock.estimated:
        _check_end(container, stream, end, errors)


def _decoded(
    container: InputContainer,
    stream: VideoStream,
    errors: DecodeErrors,
    timeline: Timeline,
    *,
    skip: bool,
) -> Iterator[VideoFrame]:
    decoder, packets, count = open_decoder(stream), container.demux(stream), 0
    while True:
        packet, doing = None, "reading"
        try:
            packet = next(packets, None)
            if packet is None:
                return
            doing = "decoding"
            if packet.is_corrupt:
                if timeline.may_recover:
                    yield from _flush(decoder, before=packet.pts)
                    errors.stop(f"a packet after {count} frames is incomplete", lost=True)
                    return
                errors.remark("a packet is incomplete")
            frames = decoder.decode(packet)
        except READ_ERRORS as error:
            if packet is not None and (skip or not count):
                errors.remark(f"data after {count} frames could not be decoded: {reason(error)}")
                continue
            for frame in _flush(decoder, before=packet.pts if packet else None):
                count += 1
                yield frame
            lost = doing == "reading" and not isinstance(error, av.InvalidDataError)
            errors.stop(f"{doing} stopped after {count} frames: {reason(error)}", lost=lost)
            return
        count += len(frames)
        yield from frames


def _flush(decoder: VideoCodecContext, before: int | None) -> list[VideoFrame]:
    """Return the whole frames in the decoder that are displayed ``before`` a failure."""
    try:
        frames = decoder.decode(None)
    except READ_ERRORS:
        return []
    # Then the damage began before the decoder noticed it, so whole frames cannot be recognised.
    if any(frame.is_corrupt for frame in frames):
        return []
    return [f for f in frames if before is None or f.pts is None or f.pts < before]


def is_untimed(container: InputContainer) -> bool:
    """Tell whether FFmpeg makes up the times of a stream."""
    return container.format.name == "mpjpeg"


class Clock:
    """Compute presentation times in seconds that strictly increase.

    The container's pts is kept exactly. Where a pts is missing, or is not later than the previous
    one (as in streams joined end to end), the frame follows the previous frame by one frame
    duration. A stream without times (JPEGs over HTTP, to which FFmpeg gives a rate that no camera
    stated) gets the times at which its frames arrive.
    """

    def __init__(self, container: InputContainer, stream: VideoStream) -> None:
        self.time_base = stream.time_base or Fraction(1, 90_000)
        self._untimed = is_untimed(container)
        self._started: float | None = None
        rate = stream.average_rate or stream.guessed_rate or FALLBACK_FPS
        self._step = max(1, round(1 / (Fraction(rate) * self.time_base)))
        self._last: int | None = None
        self.estimated = False

    def read(self, frame: VideoFrame) -> tuple[float, float | None]:
        """Return the (pts, duration) of a frame in seconds; an unknown duration is None."""
        if self._untimed:
            now = time.monotonic()
            self._started = now if self._started is None else self._started
            self.estimated = True
            return now - self._started, None
        ticks, duration = frame.pts, max(frame.duration or 0, 0)
        if self._last is None:
            ticks, self.estimated = (ticks or 0), ticks is None
        elif ticks is None or ticks <= self._last:
            ticks, self.estimated = self._last + (duration or self._step), True
        self._last = ticks
        return float(ticks * self.time_base), float(duration * self.time_base) or None


def _check_end(
    container: InputContainer, stream: VideoStream, end: float, errors: DecodeErrors
) -> None:
    # A truncated Matroska file decodes without any error; only its header shows the loss. Headers
    # are imprecise, so a loss counts from half a second and from a twentieth of the video.
    promised = promised_end(container, stream)
    if promised is not None and promised - end > max(0.5, 0.05 * promised):
        text = f"the video ends at {end:.2f} s, its header promises {promised:.2f} s"
        errors.stop(text, lost=True)


def promised_end(container: InputContainer, stream: VideoStream) -> float | None:
    """Return the time in seconds at which the pictures end according to the header, or None."""
    end = _header_end(container, stream)
    return end if end is not None and math.isfinite(end) else None


def _header_end(container: InputContainer, stream: VideoStream) -> float | None:
    if stream.duration and stream.time_base:
        return float((stream.duration + (stream.start_time or 0)) * stream.time_base)
    tag = stream.metadata.get("DURATION", "")  # Matroska's duration of one track
    try:
        hours, minutes, seconds = (float(part) for part in tag.split(":"))
        return 3600 * hours + 60 * minutes + seconds
    except ValueError:
        pass
    # The container's own duration may belong to a longer sound track.
    if container.duration and len(container.streams) == 1:
        return (container.duration + (container.start_time or 0)) / 1_000_000
    return None
