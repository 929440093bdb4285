"""Match videos with their expressions, and give each video its output folder."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rvos_deploy.batch.expressions_file import ExpressionsFile
from rvos_deploy.batch.status_file import JOURNAL, STATUS
from rvos_deploy.errors import InputError
from rvos_deploy.overlap import refuse_overlap, source_files
from rvos_deploy.redaction import redact
from rvos_deploy.video.sources.registry import has_end

_PATTERN = set("%*?[")


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
    name, or by its file name without suffix. Without ``videos``, all videos of the file are taken;
    each must exist.

    Raises:
        InputError: a video has no expression, has no end, or would share its output folder with
            another one; a name of the file leads to no video or to several; or there is no video.
    """
    named = list({row.video: None for row in file.rows if row.video is not None})
    used = {} if videos else _existing_videos(named, file)
    given = list(videos) or list(dict.fromkeys(used.values()))
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
    used = used or _videos_by_row(given, named, file.folder)
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
    """Return the video of each name in the file, where there is one.

    Raises:
        InputError: a name leads to the target of several links, all of which are given.
    """
    places = _by_key(given, _place)
    targets = _by_key(given, os.path.realpath)
    names = _by_key(given, lambda video: Path(video).name)
    stems = _by_key(given, output_name)
    found = {}
    for name in named:
        here, there = str(folder / name), name
        # A link's own place comes first, because several links may lead to one file.
        videos = (
            places.get(_place(here))
            or places.get(_place(there))
            or targets.get(os.path.realpath(here))
            or targets.get(os.path.realpath(there))
            or names.get(name)
            or stems.get(name)
        )
        if videos is None:
            continue
        if len(videos) > 1:
            raise InputError(
                f"'{name}' of the expressions may be {videos[0]} or {videos[1]}; write one of "
                "these in its place"
            )
        found[name] = videos[0]
    return found


def _by_key(videos: Sequence[str], key: Callable[[str], str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for video in videos:
        found.setdefault(key(video), []).append(video)
    return found


def _place(video: str) -> str:
    """Return the absolute path of a video, of which the last part may be a link."""
    path = Path(video)
    return str(Path(os.path.realpath(path.parent), path.name))


def _existing_videos(named: Sequence[str], file: ExpressionsFile) -> dict[str, str]:
    """Return what each name in the file leads to, when no video is given.

    Raises:
        InputError: a name leads to nothing, or, without its suffix, to several files.
    """
    listings: dict[Path, dict[str, list[str]]] = {}
    found: dict[str, str] = {}
    places: dict[str, str] = {}
    missing = []
    for name in named:
        video = _existing_video(name, file, listings)
        if video is None:
            missing.append(name)
        else:
            # Two spellings of one place are one video.
            found[name] = places.setdefault(_place(video), video)
    if missing:
        more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
        raise InputError(
            f"{file.path} names {redact(missing[0])}{more}, which is neither in {file.folder} nor "
            "in the working folder; correct the name, or give the videos"
        )
    return found


def _existing_video(
    name: str, file: ExpressionsFile, listings: dict[Path, dict[str, list[str]]]
) -> str | None:
    candidates = [str(file.folder / name), name]
    for candidate in candidates:
        if os.path.exists(candidate):  # noqa: PTH110 (Path.exists raises for names that are too long)
            return candidate
    for candidate in candidates:
        path = Path(candidate)
        if path.parent not in listings:
            listings[path.parent] = _files_by_stem(path.parent, file.path)
        files = listings[path.parent].get(path.name, [])
        if len(files) > 1:
            raise InputError(
                f"'{name}' of {file.path} may be {files[0]} or {files[1]}; write it with its suffix"
            )
        if files:
            return files[0]
    for candidate in candidates:
        # Patterns of file names; and what may have no end, which has its own refusal.
        if (_PATTERN & set(candidate) and source_files(candidate)) or not has_end(candidate):
            return candidate
    return None


def _files_by_stem(folder: Path, expressions: Path) -> dict[str, list[str]]:
    """Return a folder's files by their names without suffix; the expressions are no video."""
    itself = os.path.realpath(expressions)
    try:
        found = sorted(str(path) for path in folder.iterdir() if path.is_file())
    except (OSError, ValueError):  # no folder, or a name that no file may have
        return {}
    videos = [path for path in found if os.path.realpath(path) != itself]
    return _by_key(videos, lambda video: Path(video).stem)


def _output_names(videos: Sequence[str]) -> dict[str, str]:
    """Return the name of each video's output folder.

    Names are compared without case, because some file systems do so.
    """
    names: dict[str, str] = {}
    taken = dict.fromkeys((STATUS.casefold(), JOURNAL.casefold()), "the status file")
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
    refuse_overlap(
        [*inputs, *others], [out / STATUS, out / JOURNAL, *(out / job.name for job in jobs)]
    )


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
