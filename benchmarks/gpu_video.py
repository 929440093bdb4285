"""Time a whole job on a video file: decode, upload, infer, masks down, encode.

``run`` does all of it at the same time, so its rate is no sum of stages. Each stage's own time is
measured meanwhile: it shows which stage the others wait for.
"""

from __future__ import annotations

import json
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rvos_deploy.benchmarks.timing import summarise
from rvos_deploy.runtime.run import RunOptions, run
from rvos_deploy.runtime.segmenter import Segmenter
from rvos_deploy.video import VideoReader, open_video
from rvos_deploy.video.frames import Frame, VideoInfo
from rvos_deploy.video.sinks.base import FrameResult, Sink
from rvos_deploy.video.sinks.registry import DEFAULT_SINKS

DECODE, MASKS_DOWN, ENCODE = "decode", "masks down", "encode"
RESIZE = "resize and upload"

Times = dict[str, list[float]]


class TimedSource:
    """A source of an open video's frames, which are timed while they are decoded."""

    def __init__(self, reader: VideoReader, times: Times) -> None:
        self._reader, self._times = reader, times

    @property
    def info(self) -> VideoInfo:
        """Return the header's information."""
        return self._reader.info

    def frames(self) -> Iterator[Frame]:
        """Yield the frames."""
        while True:
            started = time.perf_counter()
            frame = next(self._reader, None)
            if frame is None:
                return
            self._times[DECODE].append(time.perf_counter() - started)
            yield frame

    def close(self) -> None:
        """Close the video."""
        self._reader.close()


@dataclass
class _Clock:
    """The moment when the masks of a frame were on the host."""

    times: Times
    at: float = field(default=0.0)


class _First(Sink):
    """Stand before the other sinks, and wait for the masks."""

    needs_images = False

    def __init__(self, clock: _Clock) -> None:
        self._clock = clock

    def write(self, result: FrameResult) -> None:
        started = time.perf_counter()
        _ = result.masks
        self._clock.at = time.perf_counter()
        self._clock.times[MASKS_DOWN].append(self._clock.at - started)


class _Last(Sink):
    """Stand behind the other sinks."""

    needs_images = False

    def __init__(self, clock: _Clock) -> None:
        self._clock = clock

    def write(self, result: FrameResult) -> None:
        self._clock.times[ENCODE].append(time.perf_counter() - self._clock.at)


@dataclass(frozen=True)
class JobTimes:
    """A job: its frames per second, and each stage's own milliseconds a frame, ready for JSON."""

    frames: int
    frames_per_second: float
    stages: dict[str, dict[str, Any]]


def time_job(segmenter: Segmenter, video: Path, texts: Sequence[str], out: Path) -> JobTimes:
    """Run a whole job into the default outputs: mask images, the overlay video, the record.

    Args:
        segmenter: of a back end.
        video: a file.
        texts: the expressions.
        out: a folder for the outputs, which are replaced.

    Raises:
        InputError, VideoError, BackendError: as ``run``.
    """
    times: Times = defaultdict(list)
    clock = _Clock(times)
    report = run(
        segmenter,
        TimedSource(open_video(video, on_damage="stop"), times),
        texts,
        out,
        sinks=[_First(clock), *DEFAULT_SINKS, _Last(clock)],
        options=RunOptions(command="benchmarks.gpu", name=video.name),
    )
    stages = {name: _mean(times[name]) for name in (DECODE, MASKS_DOWN, ENCODE)}
    inference = json.loads((out / "result.json").read_text(encoding="utf-8"))["timings"]["stages"]
    host = {
        RESIZE if name == "resize" else name: {
            "count": row["count"],
            "mean_milliseconds": row["mean_milliseconds"],
        }
        for name, row in inference.items()
    }
    ordered = {DECODE: stages[DECODE], **host, **{k: stages[k] for k in (MASKS_DOWN, ENCODE)}}
    return JobTimes(report.frames, report.frames_per_second, ordered)


def _mean(seconds: list[float]) -> dict[str, Any]:
    return {
        "count": len(seconds),
        "mean_milliseconds": 1e3 * sum(seconds) / len(seconds) if seconds else 0.0,
        **({"milliseconds": summarise(seconds)["milliseconds"]} if seconds else {}),
    }
