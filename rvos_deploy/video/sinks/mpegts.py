"""Send the overlay as a live MPEG-TS: over UDP, into a FIFO, or to standard output."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from fractions import Fraction
from typing import IO

import av
from av.container import OutputContainer

from rvos_deploy.errors import InputError, VideoError
from rvos_deploy.redaction import redact
from rvos_deploy.video.ffmpeg import READ_ERRORS, reason
from rvos_deploy.video.frames import Image, VideoInfo
from rvos_deploy.video.sinks.base import FrameResult, Sink, SinkRequest
from rvos_deploy.video.sinks.encoding import FrameEncoder, VideoFormat
from rvos_deploy.video.sinks.overlay import drawn_frame
from rvos_deploy.video.sinks.registry import STANDARD_OUTPUT
from rvos_deploy.video.sinks.standard_output import StandardOutput

# zerolatency: a frame leaves the encoder at once. Key frames come often, because a viewer can join
# only there. Seven packets of 188 bytes fit into one Ethernet frame.
_LIVE = VideoFormat(
    "mpegts",
    "libx264",
    "yuv420p",
    {"preset": "ultrafast", "tune": "zerolatency", "crf": "24", "bf": "0", "g": "50"},
    {"flush_packets": "1"},
    finest_time_base=Fraction(1, 90_000),
)
_PACKET_SIZE = "pkt_size=1316"


class MpegTsSink(Sink):
    """Encode and send each frame once it is in every other output. The first frame is at 0 s."""

    irrevocable = True

    def __init__(self, target: str) -> None:
        self._target = target
        self._expressions: Sequence[str] = ()
        self._info: VideoInfo | None = None
        self._drawn: tuple[Image, float, float | None] | None = None
        self._container: OutputContainer | None = None
        self._encoder: FrameEncoder | None = None
        self._pipe: IO[bytes] | None = None

    def open(self, info: VideoInfo, expressions: Sequence[str]) -> None:
        """Open a FIFO. Raises InputError: nobody reads it."""
        self._info, self._expressions = info, expressions
        if _is_udp(self._target) or self._target == STANDARD_OUTPUT:
            return
        try:
            # Without O_NONBLOCK, this would wait for a reader, and nothing could interrupt it.
            descriptor = os.open(self._target, os.O_WRONLY | getattr(os, "O_NONBLOCK", 0))
            os.set_blocking(descriptor, True)
        except OSError as error:
            raise InputError(
                f"nobody reads {self._target} ({error.strerror}); start its reader first"
            ) from error
        self._pipe = os.fdopen(descriptor, "wb", buffering=0)

    def write(self, result: FrameResult) -> None:
        """Draw one frame."""
        frame = result.frame
        self._drawn = drawn_frame(result, self._expressions), frame.pts, frame.duration

    def commit(self) -> None:
        """Encode and send the frame. Raises VideoError: it cannot be sent."""
        assert self._drawn is not None
        drawn, self._drawn = self._drawn, None
        with self._errors():
            encoder = self._encoder or self._start(drawn[1])
            encoder.encode(*drawn)

    def finish(self) -> None:
        """End the stream."""
        with self._errors():
            if self._encoder is not None:
                self._encoder.flush()
            self._close()

    def abort(self) -> None:
        """Close the connection."""
        with suppress(*READ_ERRORS, ValueError):
            self._close()

    def describe(self) -> dict[str, object]:
        """Return the target, without the secrets of an address."""
        return {"mpegts": {"files": redact(self._target)}}

    def _start(self, first_pts: float) -> FrameEncoder:
        assert self._info is not None, "open the sink first"
        target: str | IO[bytes] | StandardOutput = self._pipe or _with_packet_size(self._target)
        if self._target == STANDARD_OUTPUT:
            target = StandardOutput()
        self._container = av.open(
            target, "w", format=_LIVE.container, options=dict(_LIVE.container_options)
        )
        self._encoder = FrameEncoder(self._container, self._info, _LIVE, Fraction(first_pts))
        self._container.start_encoding()
        return self._encoder

    def _close(self) -> None:
        container, self._container, self._encoder = self._container, None, None
        pipe, self._pipe = self._pipe, None
        try:
            if container is not None:
                container.close()
        finally:
            if pipe is not None:
                pipe.close()

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except (VideoError, *READ_ERRORS, ValueError) as error:
            self.abort()  # nothing more can be sent
            if isinstance(error, InputError):
                raise
            raise VideoError(
                f"{redact(self._target)} takes no more frames: {reason(error)}; check its reader"
            ) from error


def _with_packet_size(address: str) -> str:
    """Return the address with a size of packets, if it states none; PyAV takes it only there."""
    if "pkt_size=" in address:
        return address
    return f"{address}{'&' if '?' in address else '?'}{_PACKET_SIZE}"


def _is_udp(target: str) -> bool:
    return target.lower().startswith("udp://")


def _is_fifo(target: str) -> bool:
    try:
        return stat.S_ISFIFO(os.stat(target).st_mode)  # noqa: PTH116
    except (OSError, ValueError):
        return False


def make(request: SinkRequest) -> MpegTsSink:
    """Make the sink of a run. Raises InputError: the target is none of those above."""
    target = request.target or ""
    if not (target == STANDARD_OUTPUT or _is_udp(target) or _is_fifo(target)):
        raise InputError(
            f"mpegts goes to udp://HOST:PORT, to a FIFO that exists, or to standard output (-), "
            f"found mpegts={redact(target)}; for a file, save the overlay"
        )
    return MpegTsSink(target)
