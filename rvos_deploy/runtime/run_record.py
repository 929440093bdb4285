"""Collect what ``result.json`` records of a run beside its frames."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict

from rvos_deploy.environment import machine, peak_memory_bytes, versions
from rvos_deploy.runtime.run_writer import RunWriter
from rvos_deploy.runtime.segmenter import Segmenter
from rvos_deploy.runtime.stage_times import StageTimes
from rvos_deploy.runtime.stream import Stream
from rvos_deploy.video.reader import VideoReader


class RunRecord:
    """Record the settings, versions and timings of a run."""

    def __init__(
        self,
        segmenter: Segmenter,
        reader: VideoReader,
        expressions: Sequence[str],
        video: Mapping[str, object],
        command: str,
    ) -> None:
        """``video``: the requested source, for "settings"."""
        self._segmenter, self._reader = segmenter, reader
        self._expressions, self._video, self._command = expressions, video, command
        self.stages = StageTimes()

    def begin(self, stream: Stream, writer: RunWriter) -> None:
        """Start the clock."""
        self._stream, self._writer = stream, writer
        self._started = time.perf_counter()

    @property
    def seconds(self) -> float:
        """Return the seconds since ``begin``."""
        return time.perf_counter() - self._started

    def summary(self) -> dict[str, object]:
        """Return the record of the run so far."""
        seconds = self.seconds
        return {
            "expressions": list(self._expressions),
            "settings": {**self._video, **self._settings()},
            "outputs": self._writer.describe_outputs(),
            "damage": self._reader.damage,
            "notes": list(self._reader.notes),
            "live": None if (live := self._reader.live) is None else asdict(live),
            "stopped": self._writer.stopped,
            "command": self._command,
            "versions": versions("av", "pillow") | {"backend": self._segmenter.describe_backend()},
            "machine": machine(),
            "timings": {
                "seconds": seconds,
                "frames_per_second": self._writer.frames / seconds,
                "stages": self.stages.summary(),
            },
            "memory": {"peak_bytes": peak_memory_bytes()},
        }

    def _settings(self) -> dict[str, object]:
        bundle, settings = self._segmenter.bundle, self._stream.settings
        return {
            "bundle": str(bundle.path),
            "model": bundle.config.name,
            "precision": bundle.precision,
            **asdict(settings),
            "memory": settings.window,
            "size": None if settings.size is None else list(settings.size),
        }
