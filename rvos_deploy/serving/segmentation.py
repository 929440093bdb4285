"""Run a video file through a stream, and pass a line for every frame to a client."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rvos_deploy.errors import RvosError
from rvos_deploy.files import sha256_file
from rvos_deploy.runtime.run import RunOptions, run
from rvos_deploy.runtime.segmenter import Segmenter
from rvos_deploy.serving.downloads import fetch
from rvos_deploy.serving.fields import VideoFields
from rvos_deploy.serving.limits import (
    Deadline,
    Limits,
    RequestError,
    check_input,
    check_pixels,
)
from rvos_deploy.serving.lines import Lines, describe_error, json_line
from rvos_deploy.serving.measurements import Measurements
from rvos_deploy.stream_settings import StreamSettings
from rvos_deploy.video.frames import VideoInfo
from rvos_deploy.video.sinks.base import FrameNames, FrameResult
from rvos_deploy.video.sinks.frame_lines import LineSink

HEAD_SCHEMA, SUMMARY_SCHEMA = "rvos-deploy/stream/1", "rvos-deploy/summary/1"


@dataclass(frozen=True)
class Served:
    """Hold what all requests of a replica share.

    Args:
        segmenter: loaded.
        limits: of the replica.
        measurements: of the replica.
        defaults: settings of a stream, where a request names none.
        allow_private_urls: fetch videos from addresses that are not public, too.
        report: takes the traceback of an error that nobody expected, for the server's operator.
    """

    segmenter: Segmenter
    limits: Limits
    measurements: Measurements
    defaults: StreamSettings
    allow_private_urls: bool
    report: Callable[[BaseException], None]

    def head(self, size: tuple[int, int] | None, expressions: Sequence[str]) -> dict[str, object]:
        """Return the first line of an answer; ``size``: (width, height), None: not known yet."""
        bundle = self.segmenter.bundle
        return {
            "schema": HEAD_SCHEMA,
            "width": size[0] if size else None,
            "height": size[1] if size else None,
            "expressions": list(expressions),
            "model": bundle.config.name,
            "manifest_sha256": sha256_file(bundle.path / "manifest.json"),
        }

    def check_frame(self, height: int, width: int, settings: StreamSettings) -> None:
        """Check a frame, and what the network gets of it. Raises RvosError: it is too large."""
        check_pixels(width, height, self.limits)
        sized = self.segmenter.with_size(settings)
        check_input(self.segmenter.geometry((height, width), sized).padded, self.limits)


@dataclass(frozen=True)
class VideoRequest:
    """Hold a request for a whole video.

    Args:
        fields: checked.
        folder: belongs to the request.
        video: the uploaded file; None: the fields name a URL.
        deadline: of the request.
    """

    fields: VideoFields
    folder: Path
    video: Path | None
    deadline: Deadline


class ClientSink(LineSink):
    """Send a line for each frame to the client."""

    irrevocable = True

    def __init__(
        self, served: Served, request: VideoRequest, settings: StreamSettings, lines: Lines
    ) -> None:
        super().__init__(FrameNames())
        self._served, self._lines = served, lines
        self._deadline, self._settings = request.deadline, settings
        self._frames = 0
        self._last = time.perf_counter()
        self.refusal: RvosError | None = None
        self.opened = False

    def open(self, info: VideoInfo, expressions: Sequence[str]) -> None:
        """Send the first line. Raises RvosError: the frames are too large, or nobody reads."""
        super().open(info, expressions)
        with self._kept():
            self._served.check_frame(info.height, info.width, self._settings)
            head = self._served.head((info.width, info.height), expressions)
            counts = {"fps": info.average_fps, "frames": info.frame_count}
            self._lines.put(json_line(head | counts))
            self.opened = True

    def write(self, result: FrameResult) -> None:
        """Describe a frame. Raises RequestError: there are too many, or the time is over."""
        with self._kept():
            if self._frames == self._served.limits.frames:
                raise _too_many_frames(self._served.limits.frames)
            self._deadline.check()
        super().write(result)

    def commit(self) -> None:
        """Send the line. Raises RequestError: nobody reads."""
        with self._kept():
            self._lines.put(self._line)
        now = time.perf_counter()
        self._served.measurements.frame(now - self._last)
        self._last = now
        self._frames += 1

    def watch(self, phase: str, done: int, total: int | None) -> None:
        """Stop a run whose frames wait: called after every frame. Raises RequestError."""
        with self._kept():
            self._lines.check()
            self._deadline.check()
            offline = self._settings.mode == "offline"
            if offline and phase == "frames" and done > self._served.limits.offline_frames:
                raise _too_many_frames(self._served.limits.offline_frames, " in mode offline")

    @contextmanager
    def _kept(self) -> Iterator[None]:
        """Keep the reason, which a run wraps into an error of its own."""
        try:
            yield
        except RvosError as refusal:
            self.refusal = self.refusal or refusal
            raise


def segment_file(served: Served, request: VideoRequest, lines: Lines) -> str:
    """Segment a video in this thread; pass the first line, the frames and the summary.

    Returns:
        What became of the request, for the measurements: "done", "damaged", or an error's code.

    Raises:
        RvosError: the video cannot be segmented at all; no line was passed.
    """
    try:
        return _segment_file(served, request, lines)
    finally:
        lines.end()


def _segment_file(served: Served, request: VideoRequest, lines: Lines) -> str:
    fields = request.fields
    settings = fields.settings(served.defaults, fields.mode)
    sink = ClientSink(served, request, settings, lines)
    last: dict[str, object]
    try:
        video = request.video or _fetched(served, request, lines)
        report = run(
            served.segmenter,
            video,
            fields.expressions,
            video.parent,
            sinks=[sink],
            options=RunOptions(
                settings,
                max_frames=_frames(fields, served.limits),
                reading=fields.reading(),
                name="video",
                progress=sink.watch,
            ),
        )
        outcome = "damaged" if report.damage else "done"
        last = {
            "schema": SUMMARY_SCHEMA,
            "frames": report.frames,
            "seconds": round(report.seconds, 3),
            "damage": report.damage and _without(request.folder, report.damage),
        }
    except Exception as error:
        shown = known_error(sink.refusal or error, served.report)
        if not isinstance(shown, RequestError):
            shown = type(shown)(_without(request.folder, str(shown)))
        if not sink.opened:
            raise shown from None
        last = describe_error(shown)
        outcome = str(last["code"])
    try:
        lines.put(json_line(last))
    except RequestError as refusal:
        lines.close()
        return refusal.code
    return outcome


def _fetched(served: Served, request: VideoRequest, lines: Lines) -> Path:
    def check() -> None:
        lines.check()
        request.deadline.check()

    return fetch(
        str(request.fields.url),
        request.folder,
        served.limits,
        check,
        allow_private=served.allow_private_urls,
    )


def _frames(fields: VideoFields, limits: Limits) -> int:
    """Return the number of frames to read: one too many shows that there are more."""
    most = limits.frames + 1
    return most if fields.max_frames is None else min(most, fields.max_frames)


def _too_many_frames(most: int, where: str = "") -> RequestError:
    return RequestError(
        413,
        "too_many_frames",
        f"the video has more than {most} frames{where}; send a part of it (start, end), or fewer "
        "frames (stride)",
    )


def known_error(error: Exception, report: Callable[[BaseException], None]) -> RvosError:
    """Return an error for the client; one that nobody expected is reported to the operator."""
    if isinstance(error, RvosError):
        return error
    report(error)
    return RequestError(500, "internal", "the server failed; its operator sees why")


def _without(folder: Path, text: str) -> str:
    """Return a text that does not show where the server keeps the files of a request."""
    return text.replace(f"{folder}/", "")
