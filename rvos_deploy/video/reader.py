"""Reading a video: a file, a GIF, a folder of images, standard input, a URL or a device."""

from __future__ import annotations

import os
import warnings
from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import dataclass
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import Literal

from av.container import InputContainer
from av.video.stream import VideoStream

from rvos_deploy.closeable import Closing
from rvos_deploy.errors import InputError, VideoError
from rvos_deploy.images import is_still
from rvos_deploy.iterator_thread import IteratorThread, NoItemError
from rvos_deploy.video.decode_errors import Damage
from rvos_deploy.video.decoding import decode, promised_end
from rvos_deploy.video.folder import SUFFIXES, check_sizes, decode_images, image_files
from rvos_deploy.video.frames import Frame, VideoInfo
from rvos_deploy.video.notes import notes_on
from rvos_deploy.video.source import (
    Kind,
    kind_of,
    mending,
    name_of,
    open_container,
    timeouts,
)

Source = str | os.PathLike[str]

# FFmpeg gives images this rate too, when none is stated.
FOLDER_FPS = 25

# av.format.Flags.ts_discont: formats whose clock may start anywhere and jump.
_TS_DISCONT = 512


@dataclass(frozen=True)
class _Opened:
    """The first thing that comes of a source; its frames follow."""

    info: VideoInfo
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Opening:
    """What is to be opened, and how; ``network`` is a server's time-out in seconds."""

    name: str
    kind: Kind
    format: str | None
    network: float | None
    max_frames: int | None
    fps: Fraction
    allow_playlists: bool


class VideoReader(Closing):
    """An open video: an iterator over Frame, to be used once, and a context manager.

    ``info`` is known from the start, and so are ``notes``: one line each for what a viewer would
    see otherwise (high dynamic range, for example). ``damage`` is None, or one line saying what was
    wrong so far; read it after the last frame. Made by open_video. Frames are decoded in a thread
    of its own, one when it is asked for: waiting for one can be interrupted, and closed by another
    thread.
    """

    def __init__(
        self,
        info: VideoInfo,
        thread: IteratorThread[_Opened | Frame],
        damage: Damage,
        timeout: float | None,
        notes: tuple[str, ...] = (),
    ) -> None:
        self.info = info
        self.notes = notes
        self._thread = thread
        self._damage = damage
        self._timeout = timeout
        self._frames = 0

    @property
    def damage(self) -> str | None:
        """What was wrong with the video, in one line, or None."""
        return self._damage.line

    def close(self) -> None:
        """Release the file and the decoder; no frames come after this. Safe to call twice.

        A source that hangs is left to its thread, which releases it when it wakes up.
        """
        self._thread.close()

    def __iter__(self) -> Iterator[Frame]:
        return self

    def __next__(self) -> Frame:
        try:
            frame = self._thread.next(self._timeout)
        except NoItemError:
            after = f"after {self._frames} frames none came for {self._timeout:g} s"
            self._damage.stop(f"reading hangs: {after}")
            self._thread.close(0)
            raise StopIteration from None
        assert isinstance(frame, Frame)
        self._frames += 1
        return frame

    def __repr__(self) -> str:
        return f"VideoReader({self.info!r}, damage={self.damage!r})"


def open_video(
    source: Source,
    *,
    max_frames: int | None = None,
    fps: float | Fraction = FOLDER_FPS,
    format: str | None = None,
    on_damage: Literal["stop", "skip"] = "stop",
    allow_playlists: bool = False,
    timeout: float | Literal["auto"] | None = "auto",
) -> VideoReader:
    """Open a video and decode its first frame.

    ``source`` is a file, a folder of images (jpg, jpeg, png, bmp, webp, tif, tiff, avif; in natural
    order, all of one size), ``-`` for standard input, or a URL or device that FFmpeg opens. ``fps``
    is the frame rate of a folder; other sources have their own clock. ``format`` names an FFmpeg
    demuxer where a device needs one (``"v4l2"`` is found by itself). Frames are those a viewer
    sees: rotated, in square pixels, RGB, transparency over white, all of the first one's size, with
    their exact pts, strictly increasing.

    A file or pipe opens nothing but itself: a playlist (HLS, concat, SDP) is refused unless
    ``allow_playlists``, because it may name any file of the machine. A URL may be a playlist of
    network addresses, and never reaches a local file.

    A damaged video gives the frames before the damage and ends; ``VideoReader.damage`` tells. With
    ``on_damage="skip"``, as suits live sources, what cannot be decoded is left out and reading goes
    on.

    ``timeout``: seconds without a frame after which the source counts as hung: the video ends as a
    damaged one does. For a URL it is the time that the server may be silent (and four times that
    for a frame). "auto" is 120 for files and folders, 30 for URLs, and None, which is for ever, for
    pipes and devices. Waiting can be interrupted (Ctrl-C).

    Warns (RuntimeWarning) of what ``VideoReader.notes`` says. Raises VideoError when the source
    does not exist, is no video, hangs, or not one frame can be decoded, and InputError for a wrong
    argument.
    """
    _check_arguments(max_frames, fps, on_damage, timeout)
    name, damage, skip = os.fspath(source), Damage(), on_damage == "skip"
    kind = kind_of(name, format)
    network, limit = timeouts(kind, timeout)
    opening = _Opening(name, kind, format, network, max_frames, Fraction(fps), allow_playlists)
    thread = IteratorThread(_read(opening, damage, skip=skip), f"decode {name_of(name)}")
    try:
        first = thread.next(limit)
    except NoItemError:
        thread.close(0)
        raise VideoError(_why_silent(name, kind, limit)) from None
    except BaseException:
        thread.close(0)
        raise
    assert isinstance(first, _Opened)
    for note in first.notes:
        warnings.warn(f"{first.info.name} {note}", RuntimeWarning, stacklevel=2)
    return VideoReader(first.info, thread, damage, limit, first.notes)


def read_video(
    source: Source,
    *,
    max_frames: int | None = None,
    fps: float | Fraction = FOLDER_FPS,
    format: str | None = None,
    on_damage: Literal["stop", "skip"] = "stop",
    allow_playlists: bool = False,
    timeout: float | Literal["auto"] | None = "auto",
) -> Generator[Frame, None, None]:
    """Yield the frames of a video; warns (RuntimeWarning) at the end when it is damaged.

    Arguments and errors are those of open_video. The video is closed when the last frame was taken,
    or the loop is left early.
    """
    with open_video(
        source,
        max_frames=max_frames,
        fps=fps,
        format=format,
        on_damage=on_damage,
        allow_playlists=allow_playlists,
        timeout=timeout,
    ) as reader:
        yield from reader
        if reader.damage:
            text = f"{reader.info.name} is damaged: {reader.damage}"
            warnings.warn(text, RuntimeWarning, stacklevel=2)


def _check_arguments(
    max_frames: int | None, fps: float | Fraction, on_damage: str, timeout: float | str | None
) -> None:
    if max_frames is not None and max_frames < 1:
        raise InputError(f"max_frames must be at least 1, found {max_frames}; leave it out for all")
    if not 0 < fps < float("inf"):
        raise InputError(f"fps must be above 0, found {fps}; {FOLDER_FPS} is the default")
    if on_damage not in ("stop", "skip"):
        raise InputError(f'on_damage must be "stop" or "skip", found {on_damage!r}')
    seconds = isinstance(timeout, int | float) and timeout > 0
    if not (seconds or timeout is None or timeout == "auto"):
        raise InputError(f'timeout must be seconds above 0, None or "auto", found {timeout!r}')


def _why_silent(name: str, kind: Kind, limit: float | None) -> str:
    where = "the address and the network" if kind == "url" else "the disk, or pass a longer timeout"
    return f"{name_of(name)} gave no frame for {limit:g} s; check {where}"


def _images(opening: _Opening) -> list[Path]:
    """Files of a folder of images, or a single picture; none where FFmpeg must read the source."""
    path = Path(opening.name)
    if opening.kind == "folder":
        return image_files(path)
    # By suffix first: JPEGs end to end are a video that begins as a picture does.
    return [path] if path.suffix.lower() in SUFFIXES and is_still(path) else []


def _read(
    opening: _Opening, damage: Damage, *, skip: bool
) -> Generator[_Opened | Frame, None, None]:
    """Open a source and read it; whatever may hang is done here, in the reader's thread."""
    if opening.kind in ("file", "folder") and (files := _images(opening)):
        yield from _read_images(opening, files[: opening.max_frames], damage, skip=skip)
    else:
        yield from _read_stream(opening, damage, skip=skip)


def _read_stream(
    opening: _Opening, damage: Damage, *, skip: bool
) -> Generator[_Opened | Frame, None, None]:
    name, most = name_of(opening.name), opening.max_frames
    container, stream = open_container(
        opening.name, opening.format, opening.network, allow_playlists=opening.allow_playlists
    )
    with closing(container), closing(decode(container, stream, damage, skip=skip)) as frames:
        shown = f"{name} (codec {stream.codec_context.name})"
        first = _first_frame(frames, damage, shown, mending(opening.name))
        yield _Opened(_stream_info(container, stream, first, name, most), notes_on(stream))
        yield first
        del first  # a frame is large
        yield from islice(frames, None if most is None else most - 1)


def _read_images(
    opening: _Opening, files: list[Path], damage: Damage, *, skip: bool
) -> Generator[_Opened | Frame, None, None]:
    # 29.97 as a float is a fraction with a denominator of 15 digits; no clock ticks like that.
    path, fps = Path(opening.name), opening.fps.limit_denominator(1001)
    check_sizes(files)
    frames = decode_images(files, fps, damage, skip=skip)
    first = _first_frame(frames, damage, str(path))
    name = path.resolve().name
    yield _Opened(VideoInfo(first.width, first.height, float(fps), len(files), name, 1 / fps))
    yield first
    del first  # a frame is large
    yield from frames


def _first_frame(frames: Iterator[Frame], damage: Damage, shown: str, mend: str = "") -> Frame:
    first = next(frames, None)
    if first is None:
        why = damage.line or "it holds none"
        fix = f"; {mend}" if mend else ""
        raise VideoError(f"no frame of {shown} could be decoded: {why}{fix}")
    return first


def _stream_info(
    container: InputContainer,
    stream: VideoStream,
    first: Frame,
    name: str,
    max_frames: int | None,
) -> VideoInfo:
    rate = stream.average_rate or stream.guessed_rate
    seconds = (promised_end(container, stream) or first.pts) - first.pts
    count = max(stream.frames, 0) or round(max(seconds, 0) * float(rate or 0)) or None
    # FFmpeg marks transport streams; what has no end (a camera, RTSP) has no beginning either.
    foreign_clock = not container.duration or bool(container.format.flags & _TS_DISCONT)
    return VideoInfo(
        width=first.width,
        height=first.height,
        average_fps=float(rate) if rate else None,
        frame_count=min(count, max_frames) if count and max_frames else count,
        name=name,
        time_base=stream.time_base or Fraction(1, 90_000),
        clock_start=first.pts if foreign_clock else 0.0,
    )
