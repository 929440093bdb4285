"""A video file in, masks and an overlay out: decoding, inference and writing side by side."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rvos_deploy import stopping
from rvos_deploy.bundle.folder import bundle_files
from rvos_deploy.environment import machine, peak_memory_bytes, versions
from rvos_deploy.errors import InputError
from rvos_deploy.overlap import source_files
from rvos_deploy.redaction import redact
from rvos_deploy.runtime.limits import check_limits
from rvos_deploy.runtime.run_folder import check_run_folder, run_folder
from rvos_deploy.runtime.run_writer import RunWriter
from rvos_deploy.runtime.segmenter import Segmenter
from rvos_deploy.runtime.stream import FrameMasks, Stream
from rvos_deploy.spill_store import SpillStore
from rvos_deploy.stream_settings import StreamSettings
from rvos_deploy.video import VideoReader, open_video
from rvos_deploy.video.pipeline import prefetch
from rvos_deploy.video.source import has_end

FRAMES_AHEAD = 4
"""Frames decoded ahead of inference: bounds the memory."""

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
    allow_playlists: bool = False,
    command: str = "",
    name: str | None = None,
    progress: Progress | None = None,
) -> RunReport:
    """Segment a video and write ``masks/``, ``overlay.mp4`` and ``result.json`` into ``out``.

    What an earlier run left there is replaced when the first frame is decided and written; whatever
    fails before leaves it as it was. A damaged video gives the frames before the damage, a stop
    (Ctrl-C, SIGTERM) and an error those written so far: all files are complete for them.

    Args:
        segmenter: what ``rvos_deploy.load`` gives.
        source: what ``open_video`` takes.
        expressions: at least one.
        out: folder; held while this runs, so that no other run writes into it.
        settings: of the stream.
        max_frames: stop after so many.
        allow_playlists: as ``open_video`` takes it.
        command: recorded in ``result.json``.
        name: what ``result.json`` calls the video; by default the source, without the secrets of a
            URL.
        progress: told how far the run is.

    Raises:
        InputError: no expression, an empty one, too many, masks on a device, an ``out`` that cannot
            be written, that another run holds, or whose files are an input.
        VideoError: the source cannot be opened or nothing can be decoded.
        BackendError: the network failed.
    """
    if not expressions:
        raise InputError("no expression given; say what to segment, for example 'the brown dog'")
    if settings.masks != "host":
        raise InputError(f"masks='{settings.masks}' cannot be written into files; leave masks out")
    inputs = [*source_files(str(source)), *bundle_files(segmenter.bundle.path)]
    check_run_folder(out, inputs)
    with ExitStack() as stack:
        reader = stack.enter_context(
            open_video(
                source,
                max_frames=max_frames,
                on_damage="stop" if has_end(source) else "skip",
                allow_playlists=allow_playlists,
            )
        )
        stages = StageTimes()
        stream = stack.enter_context(segmenter.stream(expressions, settings, on_stage=stages.add))
        check_limits(
            segmenter.bundle.graphs,
            settings,
            stream.box,
            len(expressions),
            reader.info.frame_count,
        )
        stack.enter_context(run_folder(out))
        check_run_folder(out, inputs)  # once more: now nobody else changes it
        # From here on a stop waits for the frame in hand, and for the files of those before it.
        stack.enter_context(stopping.deferred())
        started = time.perf_counter()

        def describe(stopped: str | None) -> dict[str, Any]:
            seconds = time.perf_counter() - started
            return {
                "expressions": list(expressions),
                "settings": {
                    "video": name or redact(str(source)),
                    "max_frames": max_frames,
                    **_settings(segmenter, stream),
                },
                "damage": reader.damage,
                "notes": list(reader.notes),
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

        writer = stack.enter_context(RunWriter(out, reader.info, expressions, describe))
        stopped = None
        try:
            _drive(reader, stream, writer, settings, progress or _silent)
        except stopping.STOPS as stop:
            stopped = stopping.reason_of(stop)
        writer.finish()
        seconds = time.perf_counter() - started
        writer.complete(stopped)
        if stopped is None:
            stopping.tell(f"all {writer.frames} frames are complete in {out}")
        return RunReport(out, writer.frames, seconds, reader.damage, stopped)


def _drive(
    reader: VideoReader,
    stream: Stream,
    writer: RunWriter,
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


def _settings(segmenter: Segmenter, stream: Stream) -> dict[str, Any]:
    config = segmenter.bundle.config
    return {
        "bundle": str(segmenter.bundle.path),
        "model": config.name,
        "precision": segmenter.bundle.precision,
        **asdict(stream.settings),
        "memory": stream.settings.window,
        "threshold": stream.threshold,
        "size": list(stream.box),
    }


def _silent(phase: str, done: int, total: int | None) -> None:
    return
