"""Write ``result.json`` frame by frame, so that a long video needs no memory."""

from __future__ import annotations

import json
from collections.abc import Sequence

from rvos_deploy.video.frames import VideoInfo
from rvos_deploy.video.sinks.base import FrameResult, Sink, SinkRequest
from rvos_deploy.video.sinks.growing_file import GrowingFile
from rvos_deploy.video.sinks.mask_record import describe_frame, describe_mask, to_json

RESULT = "result.json"
"""Name of a run's result."""
SCHEMA = "rvos-deploy/run/1"


class ResultFileSink(Sink):
    """Write frames to a temporary file; :meth:`finish` completes it and renames it into place.

    Methods raise InputError if the file cannot be written.
    """

    needs_images = False

    def __init__(self, request: SinkRequest) -> None:
        self._request = request
        self._file = GrowingFile(request.out / RESULT)
        self._line = ""
        self._written = False  # a frame, even one that was withdrawn: then the run ends

    def open(self, info: VideoInfo, expressions: Sequence[str]) -> None:
        """Begin the file under a temporary name."""
        self._file.open(f'{{"schema": {json.dumps(SCHEMA)},\n"frames": [')

    def write(self, result: FrameResult) -> None:
        """Describe one frame."""
        entry = {
            **describe_frame(result.frame),
            "file": self._request.names.of(result.frame),
            "expressions": [
                describe_mask(mask, float(score))
                for mask, score in zip(result.masks, result.scores, strict=True)
            ],
        }
        self._line = to_json(entry)
        self._file.mark()

    def commit(self) -> None:
        """Append the frame."""
        self._file.append(("," if self._written else "") + "\n" + self._line)
        self._written = True

    def rollback(self) -> None:
        """Cut the frame off again."""
        self._file.withdraw()

    def finish(self) -> None:
        """Complete the file with the summary, and rename it into place."""
        tail = json.dumps(self._request.summary(), indent=1, allow_nan=False)
        self._file.append("\n],\n" + tail.removeprefix("{").lstrip("\n") + "\n")
        self._file.complete()

    def abort(self) -> None:
        """Remove the unfinished file; do nothing after :meth:`finish`. Raises nothing."""
        self._file.abort()


def make(request: SinkRequest) -> ResultFileSink:
    """Make the sink of a run."""
    return ResultFileSink(request)
