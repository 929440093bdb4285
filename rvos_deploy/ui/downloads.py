"""Write the files of a finished video at the threshold that the visitor chose."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np

from rvos_deploy.runtime.frame_masks import FrameMasks
from rvos_deploy.runtime.run_writer import RunWriter
from rvos_deploy.ui.video_session import VideoSession
from rvos_deploy.video import open_video
from rvos_deploy.video.sinks.base import SinkRequest
from rvos_deploy.video.sinks.registry import make_sinks

SINKS = ("masks", "overlay", "rle", "coco")
OVERLAY, LINES, ARCHIVE = "overlay.mp4", "frames.ndjson", "results.zip"


def write_downloads(session: VideoSession, threshold: float, folder: Path) -> list[Path]:
    """Write overlay, lines, and an archive of all results; return these three files.

    Args:
        session: with the frames that are done; the video is read again for its pixels.
        threshold: score that a candidate must pass.
        folder: empty.

    Raises:
        RvosError: the video cannot be read again, or a file cannot be written.
    """
    out = folder / "results"
    out.mkdir()
    request = SinkRequest(out, dict, sound=str(session.source))
    sinks = make_sinks(SINKS, request)
    with RunWriter(out, sinks, session.info, session.expressions) as writer:
        for result in _results(session, threshold):
            writer.submit(result)
        writer.finish()
    archive = folder / ARCHIVE
    with zipfile.ZipFile(archive, "x") as written:  # PNG and MP4 are compressed already
        for file in sorted(path for path in out.rglob("*") if path.is_file()):
            written.write(file, file.relative_to(out))
    return [out / OVERLAY, out / LINES, archive]


def _results(session: VideoSession, threshold: float) -> Iterator[FrameMasks]:
    numbers = tuple(range(len(session.expressions)))
    with closing(open_video(session.source, max_frames=session.count)) as reader:
        for place, frame in enumerate(reader):
            masks = np.ascontiguousarray(session.masks(place, threshold))
            yield FrameMasks(
                frame, session.size, session.scores(place), numbers, session.expressions, masks
            )
