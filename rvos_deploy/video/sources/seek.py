"""Find the key frame from which a file must be decoded to read from a later frame on.

Packets are read from the start of the file, but not decoded, so the number of every frame is known.
A file in which packets and frames may not match is decoded from its start instead.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from av.container import InputContainer
from av.packet import Packet
from av.video.stream import VideoStream
from numpy.typing import NDArray

from rvos_deploy.video.ffmpeg import READ_ERRORS
from rvos_deploy.video.sources.selection import Place

# Codecs in which a packet with a time holds one frame. VP8 stores hidden frames as packets.
_ONE_FRAME_A_PACKET = frozenset({
    "h264", "hevc", "av1", "vp9", "mpeg4", "mpeg2video", "mjpeg", "prores", "dnxhd", "ffv1", "png",
})  # fmt: skip
# A seek costs more than to decode so few frames.
_WORTHWHILE = 100


@dataclass(frozen=True)
class SeekPoint:
    """Hold a key frame.

    Args:
        index: its number in the video.
        ticks: its time in the stream's time base.
        first_ticks: time of the video's first frame.
    """

    index: int
    ticks: int
    first_ticks: int


def find_seek_point(
    container: InputContainer, stream: VideoStream, start: Place, zero: float | None
) -> SeekPoint | None:
    """Return the key frame from which to decode; None: decode from the start.

    Args:
        container: a file that was just opened, which is read on.
        stream: its video stream.
        start: place of the first frame that is wanted.
        zero: time (seconds) that counts as 0; None: the first frame's.
    """
    if stream.codec_context.name not in _ONE_FRAME_A_PACKET or not stream.time_base:
        return None
    tick = float(stream.time_base)
    times: list[int] = []
    keys: list[int] = []

    def is_wanted(ticks: int, index: int) -> bool:
        return start.reached(index, ticks * tick - (times[0] * tick if zero is None else zero))

    try:
        for packet in container.demux(stream):
            if packet.size == 0:
                break
            if not _is_plain(packet) or not (keys or packet.is_keyframe):
                return None
            assert packet.pts is not None
            if packet.is_keyframe:
                # Frames that follow a key frame in the file may be shown before it, so the end is
                # the second key frame behind the start.
                if keys and is_wanted(keys[-1], len(times)) and is_wanted(packet.pts, len(times)):
                    break
                keys.append(packet.pts)
            times.append(packet.pts)
    except READ_ERRORS:
        return None
    return _chosen(np.array(times, np.int64), keys, is_wanted)


def _is_plain(packet: Packet[VideoStream]) -> bool:
    return packet.pts is not None and not (packet.is_corrupt or packet.is_discard)


def _chosen(
    times: NDArray[np.int64], keys: list[int], is_wanted: Callable[[int, int], bool]
) -> SeekPoint | None:
    shown = np.unique(times)
    if len(shown) != len(times) or sorted(keys) != keys or not keys or keys[0] != shown[0]:
        return None
    before = [key for key in keys if not is_wanted(key, int(np.searchsorted(shown, key)))]
    # The one before the last: frames that are shown before the last one need the one before it.
    if len(before) < 2:
        return None
    index = int(np.searchsorted(shown, before[-2]))
    return SeekPoint(index, before[-2], int(shown[0])) if index >= _WORTHWHILE else None


def seek(container: InputContainer, stream: VideoStream, point: SeekPoint) -> bool:
    """Position a container at a key frame; return whether it is exactly there."""
    try:
        container.seek(point.ticks, stream=stream)
        packet = next(container.demux(stream))
        container.seek(point.ticks, stream=stream)
    except (*READ_ERRORS, StopIteration):
        return False
    return packet.is_keyframe and packet.pts == point.ticks
