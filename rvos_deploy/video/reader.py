"""Open and read a video: a file, a folder, standard input, a URL or a device."""

from __future__ import annotations

import os
import threading
import warnings
import weakref
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Literal

from rvos_deploy.closeable import Closeable
from rvos_deploy.errors import InputError, VideoError
from rvos_deploy.iterator_thread import IteratorThread, NoItemError
from rvos_deploy.video.frames import Frame, VideoInfo
from rvos_deploy.video.live import Lag, LatestFrames, LiveReport
from rvos_deploy.video.sources.address import name_of
from rvos_deploy.video.sources.base import Source, SourceRequest
from rvos_deploy.video.sources.decode_errors import DecodeErrors
from rvos_deploy.video.sources.options import SourceOptions
from rvos_deploy.video.sources.registry import kind_for
from rvos_deploy.video.sources.selection import Selection, Selector

DEFAULT_OPTIONS = SourceOptions()
LATE = 5.0
"""Seconds behind a live source from which on the reader warns."""


class VideoReader(Closeable):
    """Read an open video: an iterator over Frame, to be used once, and a context manager.

    :func:`open_video` makes it. ``info`` and ``notes`` are known from the start; a note is one line
    about a difference to what a viewer sees (high dynamic range, for example). A background thread
    decodes one frame for each request, so a wait can be interrupted, and another thread can close
    the reader. With the policy "latest", the thread decodes all the time, and frames that are stale
    are dropped.
    """

    def __init__(
        self,
        source: Source,
        thread: _SourceThread,
        options: SourceOptions,
        *,
        live: bool,
        most: int | None = None,
    ) -> None:
        self.info = source.info
        self.notes: tuple[str, ...] = tuple(getattr(source, "notes", ()))
        self._thread = thread
        self._policy = options.policy
        self._live = live or options.policy == "latest"
        self._lag = Lag()
        self._warned = False
        self._left = most
        self._latest: LatestFrames | None = None
        weakref.finalize(self, thread.closing.set)
        if options.policy == "latest":
            self._latest = LatestFrames(thread.next_frame, options.max_latency or 0.0)
            weakref.finalize(self, self._latest.close)
            weakref.finalize(self, thread.close, 0.0)  # wakes the thread of the frames

    @property
    def damage(self) -> str | None:
        """Return the damage so far in one line, or None. Read it after the last frame."""
        return self._thread.errors.line

    @property
    def live(self) -> LiveReport | None:
        """Return how a live source was read so far; None: the source has an end."""
        if not self._live:
            return None
        return LiveReport(
            self._policy,
            None if self._latest is None else self._latest.max_latency,
            0 if self._latest is None else self._latest.dropped,
            self._lag.behind,
            self._thread.errors.reconnects,
        )

    @property
    def reads_ahead(self) -> bool:
        """Whether frames are decoded in the background already, which others must not queue."""
        return self._latest is not None

    def close(self) -> None:
        """Release the file and the decoder; the reader ends. Safe to call twice.

        If the source hangs, its thread releases it when it wakes up.
        """
        if self._latest is not None:
            self._latest.close()
        self._thread.close()

    def __iter__(self) -> Iterator[Frame]:
        return self

    def __next__(self) -> Frame:
        if self._left == 0:
            self.close()
            raise StopIteration
        frame = self._thread.next_frame() if self._latest is None else self._latest.next()
        self._lag.note(frame.pts)
        self._warn_if_late()
        self._left = None if self._left is None else self._left - 1
        return frame

    def _warn_if_late(self) -> None:
        """Warn once when a live source is read too slowly, long before its end."""
        if self._warned or self._lag.behind < LATE or self._latest is not None or not self._live:
            return
        self._warned = True
        warnings.warn(
            f"{self.info.name} is read {self._lag.behind:.0f} s behind its clock, and every frame "
            "waits longer; if it is live, --policy latest (SourceOptions(policy='latest')) drops "
            "frames to keep up",
            RuntimeWarning,
            stacklevel=3,
        )

    def __repr__(self) -> str:
        return f"VideoReader({self.info!r}, damage={self.damage!r})"


class _SourceThread:
    """Run a source in a thread of its own, and end it like a damaged one when it hangs."""

    def __init__(
        self,
        open_source: Callable[[], Source],
        errors: DecodeErrors,
        closing: threading.Event,
        name: str,
    ) -> None:
        self.errors, self.closing = errors, closing
        self._thread = IteratorThread(_items(open_source), f"decode {name}")
        self._limit: float | None = None
        self._frames = 0

    def open(self, limit: float | None, wait: float | None) -> Source:
        """Open the source within ``limit`` seconds; ``wait``: the limit for each frame.

        Raises NoItemError, or the source's own errors.
        """
        self._limit = wait
        try:
            source = self._thread.next(limit)
        except BaseException:
            self.closing.set()
            self._thread.close(0)
            raise
        assert isinstance(source, Source)
        return source

    def next_frame(self) -> Frame:
        """Return the next frame. Raises StopIteration at the end, also where the source hangs."""
        try:
            frame = self._thread.next(self._limit)
        except NoItemError:
            after = f"after {self._frames} frames no frame came for {self._limit:g} s"
            self.errors.stop(f"reading hangs: {after}")
            self.closing.set()
            self._thread.close(0)
            raise StopIteration from None
        assert isinstance(frame, Frame)
        self._frames += 1
        return frame

    def close(self, patience: float = 0.3) -> None:
        """End the source; safe to call twice, and from any thread.

        Wait for a frame in progress, but at most ``patience`` seconds.
        """
        self.closing.set()
        self._thread.close(patience)


def _items(open_source: Callable[[], Source]) -> Generator[Source | Frame, None, None]:
    """Yield the open source, then its frames; close it at the end."""
    source = open_source()
    try:
        yield source
        yield from source.frames()
    finally:
        if (close := getattr(source, "close", None)) is not None:
            close()


def open_video(
    source: str | os.PathLike[str] | Source,
    *,
    max_frames: int | None = None,
    on_damage: Literal["stop", "skip"] = "stop",
    timeout: float | Literal["auto"] | None = "auto",
    options: SourceOptions = DEFAULT_OPTIONS,
) -> VideoReader:
    """Open a video and decode its first frame.

    Frames are as a viewer sees them: rotated, in square pixels, RGB, transparency over white, high
    dynamic range mapped to BT.709. All frames have the size of the first one, and exact, strictly
    increasing times.

    A file or pipe opens no other file. A playlist (HLS, concat, SDP) may name any file of the
    machine, so it is refused unless ``options.allow_playlists``. A URL may be a playlist of network
    addresses, and never opens a local file.

    Args:
        source: a file (also an animation, and a TIFF with pages); a folder of images (jpg, jpeg,
            png, bmp, webp, tif, tiff, avif; in natural order, all of one size); a pattern of images
            (``"frames/*.png"``); ``-`` for standard input; a URL or device that FFmpeg opens; the
            number of a camera (``"0"``); another kind in the registry
            (``video/sources/registry.py``); or an object of your own that follows ``Source``, which
            counts as live.
        max_frames: number of frames after which the video ends.
        on_damage: ``stop`` ends a damaged video before the damage, and ``VideoReader.damage`` says
            why. ``skip``, for live sources, leaves out data that cannot be decoded.
        timeout: seconds without a frame after which the source counts as hung; the video then ends
            like a damaged one. For a URL it is the time that the server may be silent, and a frame
            may take four times as long, and as long as it is connected again. ``auto``: 120 for
            files and folders, 30 for URLs, None for pipes, devices and your own objects. None: no
            limit. Ctrl-C interrupts the wait.
        options: which frames are read, the policy for live sources, and options of single kinds.

    Warns (RuntimeWarning) about each of ``VideoReader.notes``.

    Raises:
        VideoError: the source does not exist, is not a video, hangs, or has no frame that can be
            decoded.
        InputError: an argument is wrong, or does not fit the source.
    """
    _check_arguments(on_damage, timeout)
    selection = options.selection(max_frames)
    most = None
    if options.policy == "latest":  # frames count when they are handed out
        selection, most = replace(selection, max_frames=None), max_frames
    if not isinstance(source, (str, os.PathLike)):
        return _open_object(source, selection, timeout, options, most)
    name, kind = os.fspath(source), kind_for(source, options)
    network_timeout, limit = kind.timeouts(timeout)
    request = SourceRequest(
        name,
        selection,
        Fraction(options.fps),
        options.format,
        skip_damage=on_damage == "skip",
        allow_playlists=options.allow_playlists,
        network_timeout=network_timeout,
        video_stream=options.video_stream,
        raw=options.raw_format(),
        reconnect=options.reconnect,
    )
    errors = DecodeErrors()
    thread = _SourceThread(
        lambda: kind.open(request, errors), errors, request.closing, name_of(name)
    )
    again = options.reconnect if kind.network else 0.0
    try:
        opened = thread.open(limit, None if limit is None else limit + again)
    except NoItemError:
        raise VideoError(_why_silent(name, limit, network=kind.network)) from None
    live = kind.live and getattr(opened, "end", "unknown") != "known"
    return _reader(opened, thread, options, live=live, most=most)


def _open_object(
    source: Source,
    selection: Selection,
    timeout: float | Literal["auto"] | None,
    options: SourceOptions,
    most: int | None,
) -> VideoReader:
    """Read an object that follows ``Source``."""
    if not isinstance(source, Source):
        raise InputError(
            f"a source is a path, an address, or an object with info and frames(); found "
            f"{type(source).__name__}"
        )
    selector = selection.selector()
    selector.zero = source.info.clock_start
    selected = _Selected(source, selector)
    thread = _SourceThread(lambda: selected, DecodeErrors(), threading.Event(), source.info.name)
    thread.open(None, None if timeout == "auto" else timeout)
    return _reader(selected, thread, options, live=True, most=most)


@dataclass(frozen=True)
class _Selected:
    """Select the frames of another source."""

    source: Source
    selector: Selector

    @property
    def info(self) -> VideoInfo:
        return self.source.info

    @property
    def notes(self) -> tuple[str, ...]:
        return tuple(getattr(self.source, "notes", ()))

    def frames(self) -> Iterator[Frame]:
        frames: Iterator[object] = self.source.frames()  # of a program without types, perhaps
        for frame in frames:
            if not isinstance(frame, Frame):
                kind = type(frame).__name__
                raise InputError(f"a source's frames() must yield Frame, found {kind}")
            choice = self.selector.choose(frame.index, frame.pts)
            if choice == "take":
                yield frame
            if choice == "end" or self.selector.done:
                return

    def close(self) -> None:
        getattr(self.source, "close", lambda: None)()


def _reader(
    source: Source,
    thread: _SourceThread,
    options: SourceOptions,
    *,
    live: bool,
    most: int | None,
) -> VideoReader:
    reader = VideoReader(source, thread, options, live=live, most=most)
    for note in reader.notes:
        warnings.warn(f"{reader.info.name} {note}", RuntimeWarning, stacklevel=3)
    return reader


def read_video(
    source: str | os.PathLike[str] | Source,
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


def _check_arguments(on_damage: str, timeout: float | str | None) -> None:
    if on_damage not in ("stop", "skip"):
        raise InputError(f'on_damage must be "stop" or "skip", found {on_damage!r}')
    seconds = isinstance(timeout, int | float) and timeout > 0
    if not (seconds or timeout is None or timeout == "auto"):
        raise InputError(f'timeout must be seconds above 0, None or "auto", found {timeout!r}')


def _why_silent(name: str, limit: float | None, *, network: bool) -> str:
    where = "the address and the network" if network else "the disk, or pass a longer timeout"
    return f"{name_of(name)} gave no frame for {limit:g} s; check {where}"
