"""Segment the videos of a Ray data set: a callable for ``ray.data.Dataset.map_batches``."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from rvos_deploy.batch.jobs import Job, output_name
from rvos_deploy.batch.sinks import batch_sinks
from rvos_deploy.batch.worker import Outcome, VideoOptions, Worker
from rvos_deploy.bundle.folder import open_bundle
from rvos_deploy.errors import BackendError, InputError
from rvos_deploy.files import holding, read_regular_file
from rvos_deploy.graph_io.precision_hint import PrecisionHint
from rvos_deploy.redaction import redact, redact_command
from rvos_deploy.runtime.segmenter_options import plan_segmenter
from rvos_deploy.stream_settings import StreamSettings
from rvos_deploy.video.sinks.registry import DEFAULT_SINKS
from rvos_deploy.video.sinks.result_file import RESULT

_COLUMNS = ("video", "expressions")
_MAX_BYTES = 2**30


class SegmentVideos:
    """Segment each row's video into a folder of its own, and add what became of it.

    Pass the class, so that each actor of Ray loads one segmenter::

        dataset.map_batches(SegmentVideos, fn_constructor_args=["out"], concurrency=2, num_cpus=4)

    Rows have ``video`` (a path that every machine sees) and ``expressions`` (a list of texts). No
    two videos may have one name: the second one fails, and so does a video whose folder holds the
    results of another one. Added are ``folder``, ``state`` ("done", "damaged" or "failed"),
    ``frames``, ``seconds`` and ``error`` ("" if there is none). A video that fails stops no other.
    An instance can be pickled.
    """

    def __init__(
        self,
        out: str | Path,
        bundle: str | Path = "tiny",
        *,
        backend: str = "auto",
        device: str = "auto",
        threads: int = 1,
        settings: StreamSettings | None = None,
        precision_hint: PrecisionHint | None = None,
        sinks: Sequence[str] = DEFAULT_SINKS,
    ) -> None:
        """Check the bundle; the first batch loads it.

        Args:
            out: folder for one folder a video, named after the video.
            bundle: as in ``rvos_deploy.load``.
            backend: as in ``rvos_deploy.load``.
            device: as in ``rvos_deploy.load``.
            threads: CPU threads of a graph; give as many as ``num_cpus``.
            settings: None: the defaults in the bundle's own mode.
            precision_hint: as in ``rvos_deploy.load``.
            sinks: names as in ``rvos_deploy.run`` of what each folder gets beside result.json.

        Raises:
            BundleError: the bundle cannot be read.
            InputError: a sink is unknown, or writes into one place that all videos would share.
        """
        opened = open_bundle(bundle, check_files=False)
        stream = settings or StreamSettings(mode=opened.network.default_mode)
        self._out = Path(out).absolute()
        self._options = plan_segmenter(
            opened.path, backend, device, threads, stream, precision_hint
        )
        self._videos = VideoOptions(
            sinks=batch_sinks(sinks), command=redact_command(), folder=str(Path.cwd())
        )
        self._worker: Worker | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_worker": None}

    def __call__(self, batch: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Segment the videos of one batch, in NumPy's form.

        Raises:
            InputError: a column is missing.
            BackendError: the segmenter cannot be loaded.
        """
        for name in _COLUMNS:
            if name not in batch:
                raise InputError(f"the column '{name}' is missing; found {', '.join(batch)}")
        videos, texts = (list(batch[name]) for name in _COLUMNS)
        jobs = [
            self._job(str(video), tuple(map(str, some)))
            for video, some in zip(videos, texts, strict=True)
        ]
        folders = [self._out / job.name for job in jobs]
        taken: dict[str, int] = {}
        outcomes = []
        for number, (job, folder) in enumerate(zip(jobs, folders, strict=True)):
            # Names are compared without case, because some file systems do so.
            first = taken.setdefault(job.name.casefold(), number)
            if first == number:
                outcomes.append(self._segment(job, folder))
            else:
                other = redact(jobs[first].video)
                outcomes.append(Outcome("failed", error=_taken(folder, other, job.video)))
        return {
            **batch,
            "folder": np.array([str(folder) for folder in folders]),
            "state": np.array([one.state for one in outcomes]),
            "frames": np.array([one.frames for one in outcomes], dtype=np.int64),
            "seconds": np.array([one.seconds for one in outcomes]),
            "error": np.array([one.error or "" for one in outcomes]),
        }

    def _job(self, video: str, texts: tuple[str, ...]) -> Job:
        """Name a file by its absolute path, which the result records and tells it from others."""
        path = Path(self._videos.folder, video)
        chosen = str(path) if path.exists() else video
        return Job(output_name(chosen), chosen, texts)

    def _segment(self, job: Job, folder: Path) -> Outcome:
        self._worker = self._worker or Worker(self._options, self._videos)
        try:
            # Locked before the look, because another actor may write there meanwhile.
            with holding(folder, "writing into"):
                other = self._other_video(job, folder)
                if other is not None:
                    return Outcome("failed", error=_taken(folder, other, job.video))
                outcome = self._worker.segment(job, folder)
        except InputError as error:
            return Outcome("failed", error=str(error))
        if outcome.state == "unusable":
            raise BackendError(outcome.error or "the segmenter cannot be loaded")
        return outcome

    def _other_video(self, job: Job, folder: Path) -> str | None:
        """Return the video whose results lie in a folder, if it is another one than the job's."""
        try:
            content = read_regular_file(folder / RESULT, _MAX_BYTES)
            recorded = msgspec.json.decode(content, type=_Result).settings.video
        except (OSError, msgspec.DecodeError):  # a run of the worker says what is wrong there
            return None
        # ``run`` records the path that it was given.
        places = {
            os.path.realpath(Path(self._videos.folder, video))
            for video in (recorded, redact(job.video))
        }
        return recorded if len(places) > 1 else None


class _Settings(msgspec.Struct):
    video: str


class _Result(msgspec.Struct):
    settings: _Settings


def _taken(folder: Path, other: str, video: str) -> str:
    return (
        f"{folder} is for the results of {other}, and {redact(video)} has the same name; rename "
        "one of them, or give each an out of its own"
    )
