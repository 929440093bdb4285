"""Write frames as a video file, with the timing of the source video and its sound."""

from __future__ import annotations

import math
import os
from contextlib import ExitStack, suppress
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

import av
from av.container import OutputContainer

from rvos_deploy.errors import InputError, VideoError
from rvos_deploy.files import cannot_write, create_temporary, discard, put_in_place
from rvos_deploy.video.ffmpeg import READ_ERRORS
from rvos_deploy.video.frames import Image, VideoInfo, check_image
from rvos_deploy.video.sinks.encoding import FrameEncoder, VideoFormat, time_base
from rvos_deploy.video.sinks.sound import SoundTrack

# The encoder takes cores from inference. Against veryfast at crf 20, a frame of 854x480 takes 4.0
# instead of 7.1 ms (with its conversion), at no lower PSNR, and 1.55 times the bytes. Without
# B-frames, which this preset does not make, decoding order is display order, so the file keeps
# every duration of the source. MP4 stores times in 32 bits: with a clock finer than a microsecond,
# a pause of some minutes would not fit.
H264_MP4 = VideoFormat(
    "mp4",
    "libx264",
    "yuv420p",
    {"preset": "ultrafast", "crf": "22", "bf": "0"},
    {"movflags": "+faststart"},
)
"""H.264 in MP4. H.264 has no odd sizes, so odd sizes are padded."""

# The muxers that store a late start in the unit of the option "movie_timescale".
_MOVIES = {"mp4", "mov"}


class _Open(NamedTuple):
    container: OutputContainer
    encoder: FrameEncoder
    temporary: Path


class VideoWriter:
    """Write frames as a video file with the timing of the source video.

    Times are exact to half a tick of the source's time base, or of the format's finest one where
    the time base is finer. That includes variable frame rates, a late first frame and the last
    frame's duration. Where the codec has no odd sizes, odd sizes are padded by repeating the last
    row or column.

    The file gets its final name only when it is complete. Leaving the with-block on an exception
    also completes it, with the frames so far. Without frames there is no file.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        info: VideoInfo,
        format: VideoFormat = H264_MP4,
        *,
        sound: SoundTrack | None = None,
    ) -> None:
        """Name the file; the first frame creates it. ``sound`` is closed with the file."""
        self._path = Path(path)
        self._info, self._format, self._sound = info, format, sound
        self._file: _Open | None = None
        self._frames = 0
        self._closed = False

    def write(self, image: Image, pts: float, duration: float | None = None) -> None:
        """Encode one frame.

        ``image`` is uint8 [H, W, 3], RGB (RGBA for a format with alpha), of the video's displayed
        size; ``pts`` and ``duration`` are seconds, as in Frame, and pts must rise.

        Raises:
            InputError: an argument breaks these rules, or the writer is closed.
            VideoError: the file cannot be written.
        """
        check_image(image[..., :3], (self._info.height, self._info.width))
        if self._closed:
            raise InputError(f"{self._path} is closed; open another VideoWriter")
        try:
            file = self._file or self._open(pts)
            if self._sound is not None:
                self._sound.mux_until(file.encoder.time_of(pts))
            file.encoder.encode(image, pts, duration)
            self._frames += 1
        except InputError:
            raise
        except (*READ_ERRORS, ValueError) as error:
            self.abort()  # FFmpeg cannot complete the file after an error
            raise VideoError(cannot_write(self._path, error)) from error

    def close(self) -> None:
        """Complete the file and rename it to its final name. Safe to call twice."""
        file, self._file, self._closed = self._file, None, True
        if file is None:
            return
        try:
            try:
                if not self._frames:
                    raise VideoError(f"{self._path}: not one frame could be encoded")
                file.encoder.flush()
                if self._sound is not None:
                    self._sound.mux_until(file.encoder.end, last=True)
            finally:
                self._close_sound()
                file.container.close()
            put_in_place(file.temporary, self._path)
        except InputError:
            raise
        except (*READ_ERRORS, ValueError) as error:
            raise VideoError(cannot_write(self._path, error)) from error
        finally:
            discard(file.temporary)

    def abort(self) -> None:
        """Remove the unfinished file; do nothing after :meth:`close`. Raises nothing."""
        file, self._file, self._closed = self._file, None, True
        self._close_sound()
        if file is not None:
            with suppress(*READ_ERRORS, ValueError):
                file.container.close()
            discard(file.temporary)

    def __enter__(self) -> VideoWriter:
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

    def _open(self, first_pts: float) -> _Open:
        if not math.isfinite(first_pts):
            raise InputError(f"a frame's pts must be a finite number of seconds, found {first_pts}")
        # Players start a transport stream or a camera at its first frame, so its overlay starts at
        # 0. The late first frame of an MP4 is shown late, in the overlay too.
        origin = Fraction(min(first_pts, self._info.clock_start))
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with ExitStack() as undo:
            temporary = create_temporary(self._path)
            undo.callback(discard, temporary)
            container = av.open(
                f"file:{temporary.resolve()}",
                "w",
                format=self._format.container,
                options=self._container_options(),
            )
            undo.callback(container.close)
            encoder = FrameEncoder(container, self._info, self._format, origin)
            if self._sound is not None:
                self._sound.attach(container, float(origin))
            # The header is written here and not with the first packet: after a failed header,
            # FFmpeg ends the process when it writes another packet.
            container.start_encoding()
            self._file = _Open(container, encoder, temporary)
            undo.pop_all()
        return self._file

    def _container_options(self) -> dict[str, str]:
        options = dict(self._format.container_options)
        if self._format.container in _MOVIES:
            # A late start is stored in this unit, in 31 bits; the default, 1 ms, would shift it.
            unit = time_base(self._info, self._format)
            options["movie_timescale"] = str(min(unit.denominator, 2**31 - 1))
        return options

    def _close_sound(self) -> None:
        if self._sound is not None:
            self._sound.close()
