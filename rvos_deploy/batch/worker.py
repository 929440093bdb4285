"""Segment one video after another with one loaded segmenter, in a process of its own."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from rvos_deploy.batch.jobs import Job
from rvos_deploy.console.output import counted
from rvos_deploy.errors import InputError, RvosError
from rvos_deploy.files import sync_file_system
from rvos_deploy.redaction import redact
from rvos_deploy.runtime.run import RunOptions, run
from rvos_deploy.runtime.segmenter import Segmenter
from rvos_deploy.runtime.segmenter_options import SegmenterOptions
from rvos_deploy.video.sinks.registry import DEFAULT_SINKS
from rvos_deploy.video.sources.options import SourceOptions


@dataclass(frozen=True)
class VideoOptions:
    """Say how a worker reads each video and what it writes; see ``RunOptions`` and ``run``.

    ``folder``: where relative paths of videos begin; a worker may have another working directory.
    """

    reading: SourceOptions = field(default_factory=SourceOptions)
    max_frames: int | None = None
    sinks: tuple[str, ...] = DEFAULT_SINKS
    command: str = ""
    folder: str = ""


@dataclass(frozen=True)
class Outcome:
    """Report what became of a video.

    Args:
        state: "stopped": ``Worker.stop`` was called; "unusable": the segmenter cannot be loaded, so
            every video would fail.
        frames: frames written.
        seconds: time of the run.
        error: one line.
        transient: another attempt may succeed.
    """

    state: Literal["done", "damaged", "failed", "stopped", "unusable"]
    frames: int = 0
    seconds: float = 0.0
    error: str | None = None
    transient: bool = False


class Worker:
    """Hold one segmenter, which the first video loads. Two threads may call the methods."""

    def __init__(self, options: SegmenterOptions, videos: VideoOptions) -> None:
        self._options, self._videos = options, videos
        self._segmenter: Segmenter | None = None
        self._stop = threading.Event()
        self._progress: tuple[str, int, int | None] = ("loading", 0, None)

    def segment(self, job: Job, out: Path) -> Outcome:
        """Run one video into ``out``; return errors of known kinds as an outcome."""
        self._progress = ("loading", 0, None)
        try:
            segmenter = self._segmenter = self._segmenter or self._options.load()
        except RvosError as error:
            return Outcome("unusable", error=str(error))
        try:
            return self._run(segmenter, job, out)
        except RvosError as error:
            # The same video, folder or text would be refused again.
            return Outcome("failed", error=str(error), transient=not isinstance(error, InputError))
        except (OSError, MemoryError) as error:
            text = getattr(error, "strerror", None) or str(error) or type(error).__name__
            return Outcome("failed", error=text, transient=True)

    def _run(self, segmenter: Segmenter, job: Job, out: Path) -> Outcome:
        options = RunOptions(
            self._options.stream,
            max_frames=self._videos.max_frames,
            reading=self._videos.reading,
            command=self._videos.command,
            name=redact(job.video),
            progress=self._count,
        )
        local = Path(self._videos.folder, job.video)
        source = str(local) if local.exists() else job.video
        report = run(
            segmenter, source, job.expressions, out, sinks=self._videos.sinks, options=options
        )
        if report.stopped:
            return Outcome("stopped", report.frames, report.seconds)
        # A video that counts as finished is never repeated, so its files must outlive a power cut.
        sync_file_system(out)
        if report.damage:
            text = f"{report.damage}; complete before it: {counted(report.frames, 'frame')}"
            return Outcome("damaged", report.frames, report.seconds, text)
        return Outcome("done", report.frames, report.seconds)

    def _count(self, phase: str, done: int, total: int | None) -> None:
        self._progress = (phase, done, total)
        if self._stop.is_set():
            raise KeyboardInterrupt  # a run completes its files after it

    def progress(self) -> tuple[str, int, int | None]:
        """Return the phase of the current video, the number done in it, and the expected one."""
        return self._progress

    def stop(self) -> None:
        """End the current video after its current frame, with complete files."""
        self._stop.set()
