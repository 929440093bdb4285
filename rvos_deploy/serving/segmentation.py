"""Run a video file through a stream, and pass a line for every frame to a client."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from rvos_deploy.errors import RvosError
from rvos_deploy.files import sha256_file
from rvos_deploy.runtime.run import RunOptions, run
from rvos_deploy.runtime.segmenter import Segmenter
from rvos_deploy.serving.fields import VideoFields
from rvos_deploy.serving.limits import ClientGoneError, Limits, RequestError, check_pixels
from rvos_deploy.serving.lines import Lines, describe_error, json_line
from rvos_deploy.serving.measurements import Measurements
from rvos_deploy.video.frames import VideoInfo
from rvos_deploy.video.sinks.base import FrameNames, FrameResult
from rvos_deploy.video.sinks.frame_lines import LineSink

HEAD_SCHEMA, SUMMARY_SCHEMA = "rvos-deploy/stream/1", "rvos-deploy/summary/1"


@dataclass(frozen=True)
class Served:
    """Hold what all requests of a replica share."""

    segmenter: Segmenter
    limits: Limits
    measurements: Measurements

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


class ClientSink(LineSink):
    """Send a line for each frame to the client."""

    irrevocable = True

    def __init__(self, served: Served, lines: Lines) -> None:
        super().__init__(FrameNames())
        self._served, self._lines = served, lines
        self._deadline = time.monotonic() + served.limits.seconds
        self._frames = 0
        self._last = time.perf_counter()
        self.refusal: RequestError | None = None
        self.opened = False

    def open(self, info: VideoInfo, expressions: Sequence[str]) -> None:
        """Send the first line. Raises RequestError: the frames are too large, or nobody reads."""
        super().open(info, expressions)
        try:
            check_pixels(info.width, info.height, self._served.limits)
            head = self._served.head((info.width, info.height), expressions)
            counts = {"fps": info.average_fps, "frames": info.frame_count}
            self._lines.put(json_line(head | counts))
            self.opened = True
        except RequestError as refusal:
            self.refusal = refusal
            raise

    def write(self, result: FrameResult) -> None:
        """Describe a frame. Raises RequestError: there are too many, or the time is over."""
        limits = self._served.limits
        if self._frames == limits.frames:
            self.refusal = RequestError(
                413,
                "too_many_frames",
                f"the video has more than {limits.frames} frames; send a part of it (start, end), "
                "or fewer frames (stride)",
            )
            raise self.refusal
        if time.monotonic() > self._deadline:
            self.refusal = RequestError(
                408,
                "too_long",
                f"the request took more than {limits.seconds:g} s; send a shorter part",
            )
            raise self.refusal
        super().write(result)

    def commit(self) -> None:
        """Send the line. Raises RequestError: nobody reads."""
        try:
            self._lines.put(self._line)
        except RequestError as refusal:
            self.refusal = refusal
            raise
        now = time.perf_counter()
        self._served.measurements.frame(now - self._last)
        self._last = now
        self._frames += 1


def segment_file(served: Served, video: Path, fields: VideoFields, lines: Lines) -> str:
    """Segment a video file in this thread; pass the first line, the frames and the summary.

    Returns:
        What became of the request, for the measurements: "done", "damaged", or an error's code.

    Raises:
        RvosError: the video cannot be segmented at all; no line was passed.
    """
    sink = ClientSink(served, lines)
    most = served.limits.frames + 1
    wanted = most if fields.max_frames is None else min(most, fields.max_frames)
    last: dict[str, object]
    try:
        options = RunOptions(
            fields.settings(fields.mode), max_frames=wanted, reading=fields.reading(), name="video"
        )
        report = run(
            served.segmenter, video, fields.expressions, video.parent, sinks=[sink], options=options
        )
        outcome = "damaged" if report.damage else "done"
        last = {
            "schema": SUMMARY_SCHEMA,
            "frames": report.frames,
            "seconds": round(report.seconds, 3),
            "damage": report.damage,
        }
    except RvosError as error:
        if not sink.opened:
            with suppress(RequestError):
                lines.put(None)
            raise (sink.refusal or error) from None
        last = describe_error(sink.refusal or error)
        outcome = str(last["code"])
    try:
        lines.put(json_line(last))
        lines.put(None)
    except ClientGoneError:
        return "client_gone"
    except RequestError as refusal:
        lines.close()
        return refusal.code
    return outcome
