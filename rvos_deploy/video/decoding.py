"""Frames out of an open PyAV container."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction

import av
from av.container import InputContainer
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from rvos_deploy.runtime.environment import usable_cores
from rvos_deploy.video.damage import Damage
from rvos_deploy.video.frames import Frame
from rvos_deploy.video.geometry import Display

# What FFmpeg and the objects it reads from raise for bad data or a lost connection.
READ_ERRORS = (av.FFmpegError, OSError)

# Every decoder thread holds a frame or two, so threads bound memory: eight 4K frames are 100 MB.
_MOST_THREADS = 8
_FALLBACK_FPS = 25


def use_threads(stream: VideoStream) -> None:
    """Decode on several threads."""
    stream.thread_type = "AUTO"
    stream.codec_context.thread_count = usable_threads()


def usable_threads() -> int:
    """Threads for a codec: one a core that this process may run on, within the bound on memory."""
    return min(_MOST_THREADS, usable_cores())


def decode(
    container: InputContainer, stream: VideoStream, damage: Damage, *, skip: bool
) -> Iterator[Frame]:
    """Yield the frames of ``stream``, converted for display; what is wrong goes to ``damage``.

    Packets that cannot be decoded before the first frame are passed over (a recording may begin
    between two key frames). After it the first one ends the video, unless ``skip``. Raises nothing
    for bad data.
    """
    clock, display = Clock(stream), Display(stream.sample_aspect_ratio)
    end = None
    for index, decoded in enumerate(_decoded(container, stream, damage, skip=skip)):
        pts, duration = clock.read(decoded)
        try:
            image = display.show(decoded)
        except READ_ERRORS as error:
            damage.stop(f"frame {index} could not be converted to RGB: {reason(error)}")
            return
        if decoded.is_corrupt:
            damage.remark(f"frame {index} at {pts:.3f} s is damaged")
        yield Frame(index, pts, image, duration)
        end = pts + (duration or 0)
    if end is not None and not clock.invented:
        _check_end(container, stream, end, damage)


def _decoded(
    container: InputContainer, stream: VideoStream, damage: Damage, *, skip: bool
) -> Iterator[VideoFrame]:
    packets, count = container.demux(stream), 0
    while True:
        try:
            packet = next(packets, None)
        except READ_ERRORS as error:
            damage.stop(f"reading stopped after {count} frames: {reason(error)}")
            yield from _flush(stream)
            return
        if packet is None:
            return
        try:
            if packet.is_corrupt:
                damage.remark(f"the data is incomplete after frame {count}")
            frames = packet.decode()
        except READ_ERRORS as error:
            if count and not skip:
                damage.stop(f"decoding stopped after {count} frames: {reason(error)}")
                return
            damage.remark(f"data after {count} frames could not be decoded: {reason(error)}")
            continue
        count += len(frames)
        yield from frames


def _flush(stream: VideoStream) -> list[VideoFrame]:
    # The packets before the failure were whole: their frames still wait inside the decoder.
    try:
        return stream.decode(None)
    except READ_ERRORS:
        return []


class Clock:
    """Presentation times in seconds that always advance.

    A pts is passed on exactly as the container has it. Where it is missing, or not later than the
    one before (streams joined end to end start over), the frame is put one frame duration after the
    last.
    """

    def __init__(self, stream: VideoStream) -> None:
        self.time_base = stream.time_base or Fraction(1, 90_000)
        rate = stream.average_rate or stream.guessed_rate or _FALLBACK_FPS
        self._step = max(1, round(1 / (Fraction(rate) * self.time_base)))
        self._last: int | None = None
        self.invented = False

    def read(self, frame: VideoFrame) -> tuple[float, float | None]:
        """Give the (pts, duration) of a frame in seconds; the duration is None where unknown."""
        ticks, duration = frame.pts, frame.duration or 0
        if self._last is None:
            ticks, self.invented = (ticks or 0), ticks is None
        elif ticks is None or ticks <= self._last:
            ticks, self.invented = self._last + (duration or self._step), True
        self._last = ticks
        return float(ticks * self.time_base), float(duration * self.time_base) or None


def _check_end(container: InputContainer, stream: VideoStream, end: float, damage: Damage) -> None:
    # A Matroska file that was cut decodes without one complaint; only its header tells. Headers are
    # imprecise, so what is missing must be worth half a second and a twentieth of the video.
    promised = promised_end(container, stream)
    if promised is not None and promised - end > max(0.5, 0.05 * promised):
        damage.stop(f"the video ends at {end:.2f} s, its header promises {promised:.2f} s")


def promised_end(container: InputContainer, stream: VideoStream) -> float | None:
    """Give the time (seconds) at which the header says the pictures end, or None."""
    if stream.duration and stream.time_base:
        return float((stream.duration + (stream.start_time or 0)) * stream.time_base)
    tag = stream.metadata.get("DURATION", "")  # what Matroska has for one track
    try:
        hours, minutes, seconds = (float(part) for part in tag.split(":"))
        return 3600 * hours + 60 * minutes + seconds
    except ValueError:
        pass
    # The container's own duration may be that of a longer sound track.
    if container.duration and len(container.streams) == 1:
        return (container.duration + (container.start_time or 0)) / 1_000_000
    return None


def reason(error: BaseException) -> str:
    """Why FFmpeg failed, on one line, without the address (which may hold a password)."""
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return " ".join(str(text).split())
