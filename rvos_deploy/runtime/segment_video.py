"""A video file in, masks and an overlay out: decoding, inference and writing side by side."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rvos_deploy import stopping
from rvos_deploy.errors import InputError
from rvos_deploy.runtime.environment import machine, peak_memory_bytes, versions
from rvos_deploy.runtime.result_file import ResultFile
from rvos_deploy.runtime.segmenter import Segmenter
from rvos_deploy.runtime.settings import StreamSettings
from rvos_deploy.runtime.spill_store import SpillStore
from rvos_deploy.runtime.stream import FrameMasks, Stream
from rvos_deploy.video import MaskWriter, OverlayWriter, VideoReader, draw_overlay, open_video
from rvos_deploy.video.frames import Image
from rvos_deploy.video.pipeline import BackgroundSink, prefetch

FRAMES_AHEAD = 4
"""Frames decoded ahead of inference, and results waiting to be written: bounds the memory."""

Progress = Callable[[str, int, int | None], None]
"""Called with a phase, frames done in it, and the expected number (an estimate, or None)."""


@dataclass(frozen=True)
class RunReport:
    """What a run did. ``frames`` were written completely; ``stopped`` is None when that is all."""

    out: Path
    frames: int
    seconds: float
    damage: str | None
    stopped: str | None

    @property
    def frames_per_second(self) -> float:
        """From the first decoded frame to the last written one."""
        return self.frames / self.seconds if self.seconds else 0.0


def segment_video(
    segmenter: Segmenter,
    source: str | Path,
    expressions: Sequence[str],
    out: Path,
    settings: StreamSettings,
    *,
    max_frames: int | None = None,
    command: str = "",
    progress: Progress | None = None,
) -> RunReport:
    """Segment a video and write ``masks/``, ``overlay.mp4`` and ``result.json`` into ``out``.

    What an earlier run left there is replaced. A damaged video gives the frames before the damage,
    and a stop (Ctrl-C, SIGTERM) those decided so far: all files are complete for them.

    Raises:
        InputError: no expression, an empty one, or masks on a device; nothing is written.
        VideoError: the source cannot be opened or nothing can be decoded; nothing is written.
    """
    if not expressions:
        raise InputError("no expression given; say what to segment, for example 'the brown dog'")
    if settings.masks != "host":
        raise InputError(f"masks='{settings.masks}' cannot be written into files; leave masks out")
    with ExitStack() as stack:
        reader = stack.enter_context(
            open_video(
                source, max_frames=max_frames, on_damage="stop" if has_end(source) else "skip"
            )
        )
        stages = StageTimes()
        stream = stack.enter_context(segmenter.stream(expressions, settings, on_stage=stages.add))
        # From here on a stop waits for the frame in hand, and for the files of those before it.
        stack.enter_context(stopping.deferred())
        _clear_previous(out)
        writer = stack.enter_context(_RunWriter(out, reader, expressions))
        started = time.perf_counter()
        stopped = None
        try:
            _drive(reader, stream, writer, settings, progress or _silent)
        except stopping.STOPS as stop:
            stopped = stopping.reason_of(stop)
        writer.finish()
        seconds = time.perf_counter() - started
        writer.complete(
            {
                "expressions": list(expressions),
                "settings": _settings(segmenter, stream, source, max_frames),
                "damage": reader.damage,
                "stopped": stopped,
                "command": command,
                "versions": versions("av", "pillow") | {"backend": segmenter.backend.describe()},
                "machine": machine(),
                "timings": {
                    "seconds": seconds,
                    "frames_per_second": writer.frames / seconds,
                    "stages": stages.summary(),
                },
                "memory": {"peak_bytes": peak_memory_bytes()},
            }
        )
        if stopped is None:
            stopping.tell(f"all {writer.frames} frames are complete in {out}")
        return RunReport(out, writer.frames, seconds, reader.damage, stopped)


def _drive(
    reader: VideoReader,
    stream: Stream,
    writer: _RunWriter,
    settings: StreamSettings,
    progress: Progress,
) -> None:
    """Push every frame; hand what is decided, with its image, to the writer."""
    total = reader.info.frame_count
    with SpillStore(settings.mask_budget) as images:
        waiting: dict[int, tuple[int, float | None]] = {}

        def write(results: Iterable[FrameMasks]) -> None:
            for result in results:
                number, duration = waiting.pop(result.index)
                writer.submit(result, images.take(number), duration)

        seen = 0
        for frame in prefetch(reader, FRAMES_AHEAD):
            waiting[frame.index] = (images.put(frame.image), frame.duration)
            write(stream.push(frame))
            seen += 1
            progress("frames", seen, total)
            stopping.check()
        for done, result in enumerate(stream.flush(), start=1):
            write([result])
            if settings.mode == "offline":
                progress("masks", done, seen)
            stopping.check()


class _RunWriter:
    """Writes results in a thread of its own: masks, overlay and the frames of ``result.json``."""

    def __init__(self, out: Path, reader: VideoReader, expressions: Sequence[str]) -> None:
        out.mkdir(parents=True, exist_ok=True)
        self._expressions = expressions
        self._masks = MaskWriter(out / "masks")
        self._overlay = OverlayWriter(out / "overlay.mp4", reader.info)
        self._result = ResultFile(out / "result.json")
        self._sink = BackgroundSink(self._write, FRAMES_AHEAD)
        self.frames = 0

    def submit(self, result: FrameMasks, image: Image, duration: float | None) -> None:
        """Queue one frame; waits when the writer is behind."""
        self._sink.submit(result, image, duration)

    def _write(self, result: FrameMasks, image: Image, duration: float | None) -> None:
        for expression, mask in zip(result.expressions, result.masks, strict=True):
            self._masks.write(expression, result.index, mask)
        labels = [self._expressions[number] for number in result.expressions]
        drawn = draw_overlay(image, result.masks, labels, result.scores)
        self._overlay.write(drawn, result.pts, duration)
        self._result.add(result)
        self.frames += 1

    def finish(self) -> None:
        """Write what is queued and complete the overlay."""
        self._sink.close()
        self._overlay.close()

    def complete(self, rest: dict[str, Any]) -> None:
        """Put ``result.json`` in place."""
        self._result.close(rest)

    def __enter__(self) -> _RunWriter:
        return self

    def __exit__(self, *error: object) -> None:
        self._sink.abort()
        self._overlay.close()
        self._result.abort()


@dataclass
class StageTimes:
    """Seconds spent in every stage: how often, in all, and the longest."""

    _count: dict[str, int] = field(default_factory=dict)
    _seconds: dict[str, float] = field(default_factory=dict)
    _longest: dict[str, float] = field(default_factory=dict)

    def add(self, stage: str, seconds: float) -> None:
        """Count one."""
        self._count[stage] = self._count.get(stage, 0) + 1
        self._seconds[stage] = self._seconds.get(stage, 0.0) + seconds
        self._longest[stage] = max(self._longest.get(stage, 0.0), seconds)

    def summary(self) -> dict[str, dict[str, float]]:
        """Milliseconds by stage."""
        return {
            stage: {
                "count": count,
                "mean_milliseconds": 1e3 * self._seconds[stage] / count,
                "longest_milliseconds": 1e3 * self._longest[stage],
            }
            for stage, count in self._count.items()
        }


def _settings(
    segmenter: Segmenter, stream: Stream, source: str | Path, max_frames: int | None
) -> dict[str, Any]:
    config = segmenter.bundle.config
    resolved = {
        **asdict(stream.settings),
        "memory": stream.settings.window,
        "threshold": stream.threshold,
        "size": list(stream.box),
    }
    return {
        "video": str(source),
        "max_frames": max_frames,
        "bundle": str(segmenter.bundle.path),
        "model": config.name,
        "precision": segmenter.bundle.precision,
        **resolved,
    }


def has_end(source: str | Path) -> bool:
    """Whether the source is a file or folder; a pipe, URL or device may go on for ever."""
    return Path(source).is_file() or Path(source).is_dir()


def _clear_previous(out: Path) -> None:
    """Remove what an earlier run wrote, and nothing else."""
    if out.exists() and not out.is_dir():
        raise InputError(f"{out} is a file; choose a folder for --out")
    for file in (out / "masks").glob("*/*.png"):
        if file.parent.name.isdecimal() and file.stem.isdecimal():
            file.unlink()
    for name in ("overlay.mp4", "result.json"):
        (out / name).unlink(missing_ok=True)


def _silent(phase: str, done: int, total: int | None) -> None:
    return
