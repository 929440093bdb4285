"""Run a source through a stream into sinks, all at the same time."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field, fields
from pathlib import Path

from rvos_deploy import stopping
from rvos_deploy.bundle.folder import bundle_files
from rvos_deploy.errors import InputError
from rvos_deploy.overlap import source_files
from rvos_deploy.progress import CountProgress, ignore_counts
from rvos_deploy.redaction import redact
from rvos_deploy.runtime.limits import check_limits
from rvos_deploy.runtime.run_folder import check_run_folder, run_folder
from rvos_deploy.runtime.run_record import RunRecord
from rvos_deploy.runtime.run_writer import RunWriter
from rvos_deploy.runtime.segmenter import Segmenter
from rvos_deploy.runtime.stream import Stream
from rvos_deploy.stream_settings import StreamSettings
from rvos_deploy.video import VideoReader, open_video
from rvos_deploy.video.live import LiveReport
from rvos_deploy.video.pipeline import prefetch
from rvos_deploy.video.sinks.base import Sink, SinkRequest
from rvos_deploy.video.sinks.registry import (
    DEFAULT_SINKS,
    chosen_outputs,
    make_sinks,
    writes_into_folder,
)
from rvos_deploy.video.sources.base import Source
from rvos_deploy.video.sources.options import SourceOptions
from rvos_deploy.video.sources.registry import has_end, sound_of

FRAMES_AHEAD = 4
"""Number of frames that are decoded ahead of inference. It bounds the memory."""


@dataclass(frozen=True)
class RunOptions:
    """Hold the options of a run.

    Args:
        settings: settings of the stream.
        max_frames: number of frames after which the run stops.
        reading: how the source is read.
        command: the command that ``result.json`` records.
        name: name of the video in ``result.json``; None: the source, without the secrets of a URL.
        progress: called with the phases "frames" and "masks".
    """

    settings: StreamSettings = field(default_factory=StreamSettings)
    max_frames: int | None = None
    reading: SourceOptions = field(default_factory=SourceOptions)
    command: str = ""
    name: str | None = None
    progress: CountProgress = ignore_counts


@dataclass(frozen=True)
class RunReport:
    """Report a run.

    Args:
        out: the output folder.
        frames: number of complete frames.
        seconds: from the first decoded frame to the last written one.
        damage: errors of the source in one line, or None.
        stopped: why the run ended early, or None.
        place: `` in FOLDER`` for people; "" if no sink wrote into the folder.
        live: how a live source was read; None: the source has an end.
    """

    out: Path
    frames: int
    seconds: float
    damage: str | None
    stopped: str | None
    place: str
    live: LiveReport | None = None

    @property
    def frames_per_second(self) -> float:
        """Return the rate from the first decoded frame to the last written frame."""
        return self.frames / self.seconds if self.seconds else 0.0


def run(
    segmenter: Segmenter,
    source: str | os.PathLike[str] | Source | VideoReader,
    expressions: Sequence[str],
    out: str | os.PathLike[str],
    *,
    sinks: Sequence[str | Sink] = DEFAULT_SINKS,
    options: RunOptions | None = None,
) -> RunReport:
    """Segment a video, and write the results through ``sinks`` into ``out``.

    The files of an earlier run are replaced once the first frame is written; a failure before that
    leaves them unchanged. If the video is damaged, the output ends before the damage. After a stop
    (Ctrl-C, SIGTERM) or an error, the output holds the frames written so far. All files are
    complete for these frames.

    Args:
        segmenter: from ``rvos_deploy.load``.
        source: a source of ``open_video``, or an open reader, which is closed at the end.
        expressions: at least one.
        out: the output folder, which is locked against other runs. It is not touched if every sink
            writes elsewhere (``rle=-``).
        sinks: ``NAME`` or ``NAME=TARGET`` of the registry (``video/sinks/registry.py``), and your
            own sinks.
        options: None: the defaults.

    Raises:
        InputError: there is no expression, an empty one, or too many; masks stay on a device; a
            sink is unknown or refuses its target; or ``out`` cannot be written, is locked by
            another run, or holds an input or another program's file.
        VideoError: the source cannot be opened, or no frame can be decoded.
        BackendError: the network failed.
    """
    options, out = options or RunOptions(), Path(out)
    _check(expressions, options.settings)
    inputs = bundle_files(segmenter.bundle.path)
    if isinstance(source, (str, os.PathLike)):
        inputs = [*source_files(os.fspath(source)), *inputs]
    outputs = chosen_outputs(sinks)
    folder = out if writes_into_folder(sinks) else None
    if folder is not None:
        check_run_folder(folder, inputs, outputs)
    with ExitStack() as stack:
        reader = stack.enter_context(closing(_opened(source, options)))
        video = {"video": _name(source, options), **_reading(options)}
        record = RunRecord(segmenter, reader, expressions, video, options.command)
        request = SinkRequest(
            out,
            record.summary,
            sound=sound_of(source),
            allow_playlists=options.reading.allow_playlists,
        )
        chosen = make_sinks(sinks, request)
        stream = stack.enter_context(
            segmenter.stream(
                expressions,
                options.settings,
                on_stage=record.stages.add,
                keep_images=any(sink.needs_images for sink in chosen),
            )
        )
        info, graphs = reader.info, segmenter.bundle.graphs
        check_limits(graphs, stream.settings, len(expressions), info.frame_count)
        segmenter.geometry((info.height, info.width), stream.settings)
        if folder is not None:
            stack.enter_context(run_folder(folder))
            check_run_folder(folder, inputs, outputs)  # again: the lock now keeps others out
        # From here on, a stop waits until the current frame is written and all files are complete.
        stack.enter_context(stopping.deferred())
        writer = stack.enter_context(RunWriter(folder, chosen, reader.info, expressions))
        record.begin(stream, writer)
        try:
            _drive(reader, stream, writer, options.progress)
        except stopping.STOPS as stop:
            writer.stopped = stopping.reason_of(stop)
        writer.finish()
        if writer.stopped is None:
            stopping.set_hint(f"all {writer.frames} frames are complete{writer.place}")
        return RunReport(
            out,
            writer.frames,
            record.seconds,
            reader.damage,
            writer.stopped,
            writer.place,
            reader.live,
        )


def _drive(reader: VideoReader, stream: Stream, writer: RunWriter, progress: CountProgress) -> None:
    """Push every frame, and submit the decided frames to the writer."""
    total, seen = reader.info.frame_count, 0
    # Frames that wait in a second queue would become stale.
    frames = reader if reader.reads_ahead else prefetch(reader, FRAMES_AHEAD)
    for frame in frames:
        for result in stream.push(frame):
            writer.submit(result)
        seen += 1
        progress("frames", seen, total)
        stopping.check()
    for done, result in enumerate(stream.flush(), start=1):
        writer.submit(result)
        if stream.settings.mode == "offline":
            progress("masks", done, seen)
        stopping.check()


def _check(expressions: Sequence[str], settings: StreamSettings) -> None:
    if not expressions:
        raise InputError("no expression given; say what to segment, for example 'the brown dog'")
    if settings.masks != "host":
        raise InputError(f"masks='{settings.masks}' cannot be written into files; leave masks out")


def _opened(
    source: str | os.PathLike[str] | Source | VideoReader, options: RunOptions
) -> VideoReader:
    if isinstance(source, VideoReader):
        return source
    ends = isinstance(source, (str, os.PathLike)) and has_end(source)
    return open_video(
        source,
        options=options.reading,
        max_frames=options.max_frames,
        on_damage="stop" if ends else "skip",
    )


def _reading(options: RunOptions) -> dict[str, object]:
    """Return the settings of reading for the record: the number of frames, and what was given."""
    given = {
        field.name: getattr(options.reading, field.name)
        for field in fields(SourceOptions)
        if getattr(options.reading, field.name) != field.default
    }
    return {"max_frames": options.max_frames} | given


def _name(source: str | os.PathLike[str] | Source | VideoReader, options: RunOptions) -> str:
    if options.name:
        return options.name
    return redact(os.fspath(source)) if isinstance(source, (str, os.PathLike)) else source.info.name
