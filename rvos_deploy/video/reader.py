"""Reading a video: a file, a GIF, a folder of images, standard input, a URL or a device."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Generator, Iterator
from fractions import Fraction
from itertools import chain, islice
from pathlib import Path
from typing import Literal

from av.container import InputContainer
from av.video.stream import VideoStream

from rvos_deploy.closing import Closing
from rvos_deploy.errors import InputError, VideoError
from rvos_deploy.images import is_still
from rvos_deploy.video.damage import Damage
from rvos_deploy.video.decoding import decode, promised_end
from rvos_deploy.video.folder import SUFFIXES, check_sizes, decode_images, image_files
from rvos_deploy.video.frames import Frame, VideoInfo
from rvos_deploy.video.notes import notes_on
from rvos_deploy.video.source import STANDARD_INPUT, mending, name_of, open_container

Source = str | os.PathLike[str]

# FFmpeg gives images this rate too, when none is stated.
FOLDER_FPS = 25

# av.format.Flags.ts_discont: formats whose clock may start anywhere and jump.
_TS_DISCONT = 512


class VideoReader(Closing):
    """An open video: an iterator over Frame, to be used once, and a context manager.

    ``info`` is known from the start, and so are ``notes``: one line each for what a viewer would
    see otherwise (high dynamic range, for example). ``damage`` is None, or one line saying what was
    wrong so far; read it after the last frame. Made by open_video.
    """

    def __init__(
        self,
        info: VideoInfo,
        frames: Iterator[Frame],
        damage: Damage,
        close: Callable[[], None],
        notes: tuple[str, ...] = (),
    ) -> None:
        self.info = info
        self.notes = notes
        self._frames = frames
        self._damage = damage
        self._close = close

    @property
    def damage(self) -> str | None:
        """What was wrong with the video, in one line, or None."""
        return self._damage.line

    def close(self) -> None:
        """Release the file and the decoder; no frames come after this. Safe to call twice."""
        self._frames = iter(())
        self._close()

    def __iter__(self) -> Iterator[Frame]:
        return self

    def __next__(self) -> Frame:
        return next(self._frames)

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

    Warns (RuntimeWarning) of what ``VideoReader.notes`` says. Raises VideoError when the source
    does not exist, is no video, or not one frame can be decoded, and InputError for a wrong
    argument.
    """
    _check_arguments(max_frames, fps, on_damage)
    name, damage, skip = os.fspath(source), Damage(), on_damage == "skip"
    if name != STANDARD_INPUT and (files := _images(Path(name))):
        return _open_images(Path(name), files[:max_frames], Fraction(fps), damage, skip=skip)
    container, stream = open_container(name, format, allow_playlists=allow_playlists)
    frames = decode(container, stream, damage, skip=skip)
    close = _closer(frames, container.close)
    shown = f"{name_of(name)} (codec {stream.codec_context.name})"
    first = _first_frame(frames, close, damage, shown, mending(name))
    info = _stream_info(container, stream, first, name_of(name), max_frames)
    notes = notes_on(stream)
    for note in notes:
        warnings.warn(f"{info.name} {note}", RuntimeWarning, stacklevel=2)
    return VideoReader(info, islice(chain((first,), frames), max_frames), damage, close, notes)


def read_video(
    source: Source,
    *,
    max_frames: int | None = None,
    fps: float | Fraction = FOLDER_FPS,
    format: str | None = None,
    on_damage: Literal["stop", "skip"] = "stop",
    allow_playlists: bool = False,
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
    ) as reader:
        yield from reader
        if reader.damage:
            text = f"{reader.info.name} is damaged: {reader.damage}"
            warnings.warn(text, RuntimeWarning, stacklevel=2)


def _check_arguments(max_frames: int | None, fps: float | Fraction, on_damage: str) -> None:
    if max_frames is not None and max_frames < 1:
        raise InputError(f"max_frames must be at least 1, found {max_frames}; leave it out for all")
    if not 0 < fps < float("inf"):
        raise InputError(f"fps must be above 0, found {fps}; {FOLDER_FPS} is the default")
    if on_damage not in ("stop", "skip"):
        raise InputError(f'on_damage must be "stop" or "skip", found {on_damage!r}')


def _images(path: Path) -> list[Path]:
    """Files of a folder of images, or a single picture; none where FFmpeg must read the source."""
    if path.is_dir():
        return image_files(path)
    # By suffix first: JPEGs end to end are a video that begins as a picture does.
    return [path] if path.suffix.lower() in SUFFIXES and is_still(path) else []


def _open_images(
    path: Path, files: list[Path], fps: Fraction, damage: Damage, *, skip: bool
) -> VideoReader:
    # 29.97 as a float is a fraction with a denominator of 15 digits; no clock ticks like that.
    fps = fps.limit_denominator(1001)
    check_sizes(files)
    frames = decode_images(files, fps, damage, skip=skip)
    close = _closer(frames, lambda: None)
    first = _first_frame(frames, close, damage, str(path))
    info = VideoInfo(
        first.width, first.height, float(fps), len(files), path.resolve().name, 1 / fps
    )
    return VideoReader(info, chain((first,), frames), damage, close)


def _closer(frames: Iterator[Frame], release: Callable[[], None]) -> Callable[[], None]:
    def close() -> None:
        if isinstance(frames, Generator):
            frames.close()  # before the container: it still holds packets of it
        release()

    return close


def _first_frame(
    frames: Iterator[Frame], close: Callable[[], None], damage: Damage, shown: str, mend: str = ""
) -> Frame:
    try:
        first = next(frames, None)
    except BaseException:
        close()
        raise
    if first is None:
        close()
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
