"""Open and read a video: a file, a folder, standard input, a URL or a device."""

from __future__ import annotations

import os
import warnings
from collections.abc import Generator, Iterator
from fractions import Fraction
from typing import Literal

from rvos_deploy.closeable import Closeable
from rvos_deploy.errors import InputError, VideoError
from rvos_deploy.iterator_thread import IteratorThread, NoItemError
from rvos_deploy.video.frames import Frame, VideoInfo
from rvos_deploy.video.sources.address import name_of
from rvos_deploy.video.sources.base import Opened, SourceOptions, SourceRequest
from rvos_deploy.video.sources.decode_errors import DecodeErrors
from rvos_deploy.video.sources.registry import source_type

DEFAULT_OPTIONS = SourceOptions()


class VideoReader(Closeable):
    """Read an open video: an iterator over Frame, to be used once, and a context manager.

    :func:`open_video` makes it. ``info`` and ``notes`` are known from the start; a note is one line
    about a difference to what a viewer sees (high dynamic range, for example). A background thread
    decodes one frame for each request, so a wait can be interrupted, and another thread can close
    the reader.
    """

    def __init__(
        self,
        info: VideoInfo,
        thread: IteratorThread[Opened | Frame],
        errors: DecodeErrors,
        timeout: float | None,
        notes: tuple[str, ...] = (),
    ) -> None:
        self.info = info
        self.notes = notes
        self._thread = thread
        self._errors = errors
        self._timeout = timeout
        self._frames = 0

    @property
    def damage(self) -> str | None:
        """Return the damage so far in one line, or None. Read it after the last frame."""
        return self._errors.line

    def close(self) -> None:
        """Release the file and the decoder; the reader ends. Safe to call twice.

        If the source hangs, its thread releases it when it wakes up.
        """
        self._thread.close()

    def __iter__(self) -> Iterator[Frame]:
        return self

    def __next__(self) -> Frame:
        try:
            frame = self._thread.next(self._timeout)
        except NoItemError:
            after = f"after {self._frames} frames no frame came for {self._timeout:g} s"
            self._errors.stop(f"reading hangs: {after}")
            self._thread.close(0)
            raise StopIteration from None
        assert isinstance(frame, Frame)
        self._frames += 1
        return frame

    def __repr__(self) -> str:
        return f"VideoReader({self.info!r}, damage={self.damage!r})"


def open_video(
    source: str | os.PathLike[str],
    *,
    max_frames: int | None = None,
    on_damage: Literal["stop", "skip"] = "stop",
    timeout: float | Literal["auto"] | None = "auto",
    options: SourceOptions = DEFAULT_OPTIONS,
) -> VideoReader:
    """Open a video and decode its first frame.

    Frames are as a viewer sees them: rotated, in square pixels, RGB, transparency over white. All
    frames have the size of the first one, and exact, strictly increasing times.

    A file or pipe opens no other file. A playlist (HLS, concat, SDP) may name any file of the
    machine, so it is refused unless ``options.allow_playlists``. A URL may be a playlist of network
    addresses, and never opens a local file.

    Args:
        source: a file; a folder of images (jpg, jpeg, png, bmp, webp, tif, tiff, avif; in natural
            order, all of one size); ``-`` for standard input; a URL or device that FFmpeg opens; or
            another kind in the registry (``video/sources/registry.py``).
        max_frames: number of frames after which the video ends.
        on_damage: ``stop`` ends a damaged video before the damage, and ``VideoReader.damage`` says
            why. ``skip``, for live sources, leaves out data that cannot be decoded.
        timeout: seconds without a frame after which the source counts as hung; the video then ends
            like a damaged one. For a URL it is the time that the server may be silent, and a frame
            may take four times as long. ``auto``: 120 for files and folders, 30 for URLs, None for
            pipes and devices. None: no limit. Ctrl-C interrupts the wait.
        options: options of single kinds of sources.

    Warns (RuntimeWarning) about each of ``VideoReader.notes``.

    Raises:
        VideoError: the source does not exist, is not a video, hangs, or has no frame that can be
            decoded.
        InputError: an argument is wrong.
    """
    _check_arguments(max_frames, on_damage, timeout)
    name = os.fspath(source)
    kind = source_type(name, options.format)
    network_timeout, limit = kind.timeouts(timeout)
    request = SourceRequest(
        name,
        max_frames,
        Fraction(options.fps),
        options.format,
        skip_damage=on_damage == "skip",
        allow_playlists=options.allow_playlists,
        network_timeout=network_timeout,
    )
    errors = DecodeErrors()
    thread = IteratorThread(kind.read(request, errors), f"decode {name_of(name)}")
    try:
        first = thread.next(limit)
    except NoItemError:
        thread.close(0)
        raise VideoError(_why_silent(name, limit, network=kind.network)) from None
    except BaseException:
        thread.close(0)
        raise
    assert isinstance(first, Opened)
    for note in first.notes:
        warnings.warn(f"{first.info.name} {note}", RuntimeWarning, stacklevel=2)
    return VideoReader(first.info, thread, errors, limit, first.notes)


def read_video(
    source: str | os.PathLike[str],
    *,
    max_frames: int | None = None,
    on_damage: Literal["stop", "skip"] = "stop",
    timeout: float | Literal["auto"] | None = "auto",
    options: SourceOptions = DEFAULT_OPTIONS,
) -> Generator[Frame, None, None]:
    """Yield the frames of a video, and warn (RuntimeWarning) at the end if it is damaged.

    Arguments and errors are those of :func:`open_video`. The video is closed after the last frame,
    or when the loop is left early.
    """
    with open_video(
        source,
        max_frames=max_frames,
        on_damage=on_damage,
        timeout=timeout,
        options=options,
    ) as reader:
        yield from reader
        if reader.damage:
            text = f"{reader.info.name} is damaged: {reader.damage}"
            warnings.warn(text, RuntimeWarning, stacklevel=2)


def _check_arguments(max_frames: int | None, on_damage: str, timeout: float | str | None) -> None:
    if max_frames is not None and max_frames < 1:
        raise InputError(f"max_frames must be at least 1, found {max_frames}; leave it out for all")
    if on_damage not in ("stop", "skip"):
        raise InputError(f'on_damage must be "stop" or "skip", found {on_damage!r}')
    seconds = isinstance(timeout, int | float) and timeout > 0
    if not (seconds or timeout is None or timeout == "auto"):
        raise InputError(f'timeout must be seconds above 0, None or "auto", found {timeout!r}')


def _why_silent(name: str, limit: float | None, *, network: bool) -> str:
    where = "the address and the network" if network else "the disk, or pass a longer timeout"
    return f"{name_of(name)} gave no frame for {limit:g} s; check {where}"
