"""Match videos with their expressions, and give each video its output folder."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rvos_deploy.batch.expressions_file import ExpressionsFile
from rvos_deploy.batch.status_file import STATUS
from rvos_deploy.errors import InputError
from rvos_deploy.overlap import refuse_overlap, source_files
from rvos_deploy.redaction import redact
from rvos_deploy.video.sources.registry import has_end


@dataclass(frozen=True)
class Job:
    """Hold one video, its expressions, and the name of its output folder."""

    name: str
    video: str
    expressions: tuple[str, ...]


@dataclass(frozen=True)
class Jobs:
    """Hold the jobs in their order, and how many videos of the file were not asked for."""

    jobs: tuple[Job, ...]
    unused: int = 0


def make_jobs(videos: Sequence[str], file: ExpressionsFile) -> Jobs:
    """Return one job for each video, in the order of ``videos``.

    The file names a video by its path (from its own folder or the working directory), by its file
    name, or by its file name without suffix. Without ``videos``, all videos of the file are taken.

    Raises:
        InputError: a video has no expression, has no end, or would share its output folder with
            another one; or there is no video.
    """
    named = {row.video: None for row in file.rows if row.video is not None}
    given = list(videos) or [str(file.folder / name) for name in named]
    if not given:
        raise InputError(
            f"no video given, and {file.path} names none; give videos, or a column 'video'"
        )
    for video in given:
        if not has_end(video):
            raise InputError(
                f"{redact(video)} may have no end; batch reads files and folders of frames: use "
                "'rvos-deploy run' for it, or copy it into a file"
            )
    names = _output_names(given)
    used = _videos_by_row(given, named, file.folder)
    texts: dict[str, list[str]] = {video: [] for video in given}
    for row in file.rows:
        if row.video is None:
            for of_video in texts.values():
                of_video.append(row.text)
        elif row.video in used:
            texts[used[row.video]].append(row.text)
    for video in given:
        if not texts[video]:
            raise InputError(
                f"{file.path} has no expression for {video}; name it by its path, '{names[video]}' "
                f"or '{Path(video).name}'"
            )
    jobs = tuple(Job(names[video], video, tuple(texts[video])) for video in given)
    return Jobs(jobs, len(named) - len(used))


def _videos_by_row(given: Sequence[str], named: Iterable[str], folder: Path) -> dict[str, str]:
    """Return the video of each name in the file, where there is one."""
    places = {os.path.realpath(video): video for video in given}
    names = {Path(video).name: video for video in given}
    stems = {output_name(video): video for video in given}
    found = {}
    for name in named:
        here, there = os.path.realpath(folder / name), os.path.realpath(name)
        video = places.get(here) or places.get(there) or names.get(name) or stems.get(name)
        if video is not None:
            found[name] = video
    return found


def _output_names(videos: Sequence[str]) -> dict[str, str]:
    """Return the name of each video's output folder.

    Names are compared without case, because some file systems do so.
    """
    names: dict[str, str] = {}
    taken = {STATUS.casefold(): "the status file"}
    for video in videos:
        name = output_name(video)
        if not name or name.startswith("."):
            raise InputError(f"{video} gives no name to an output folder; rename it")
        other = taken.setdefault(name.casefold(), video)
        if other is not video or video in names:
            raise InputError(
                f"{other} and {video} would both be written into '{name}'; rename one, or give "
                "them to two batches"
            )
        names[video] = name
    return names


def output_name(video: str) -> str:
    """Return the name of a folder of frames, or of a file without its suffix."""
    path = Path(video)
    return Path(os.path.realpath(path)).name if path.is_dir() else path.stem


def refuse_replaced_inputs(jobs: Sequence[Job], others: Iterable[Path], out: Path) -> None:
    """Refuse a batch whose outputs would replace an input of any of its jobs.

    ``others``: what the batch reads beside the videos.

    Raises:
        InputError: an input lies in an output folder of the batch, or contains one.
    """
    inputs = [path for job in jobs for path in _inputs(job.video)]
    refuse_overlap([*inputs, *others], [out / STATUS, *(out / job.name for job in jobs)])


def _inputs(video: str) -> list[Path]:
    """List a folder as itself, because each of its files is an input."""
    path = Path(video)
    return [path] if path.is_dir() else source_files(video)


def fingerprint(job: Job, settings: str) -> str:
    """Return a hash of all that decides a job's masks; a change makes the job due again.

    Args:
        job: the job; of its video, sizes and times of modification count.
        settings: the bundle and the settings of the batch as text.
    """
    content = json.dumps([settings, job.expressions, _stamp(job.video)])
    return hashlib.sha256(content.encode()).hexdigest()


def _stamp(video: str) -> list[tuple[str, int, int]]:
    stamps = []
    for path in sorted(source_files(video)):
        try:
            status = path.stat()
        except OSError:  # removed meanwhile; the job itself reports it
            continue
        stamps.append((path.name, status.st_size, status.st_mtime_ns))
    return stamps
