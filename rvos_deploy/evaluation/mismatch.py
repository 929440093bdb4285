"""Explain in one line why masks were not found, and name the files that were found instead.

The expected layout is ``<root>/<video>/<expression>/<frame>.png``.
"""

from __future__ import annotations

import zipfile
from collections import deque
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

from rvos_deploy.datasets import VideoRecord
from rvos_deploy.errors import InputError

_NAMED = 3
"""Number of a folder's names that a message lists."""
_DEPTH, _FOLDERS = 2, 500
"""Depth and number of folders below the given folder in which videos are searched."""


def no_masks_found(root: Path, videos: Sequence[VideoRecord]) -> InputError:
    """Return the error for a folder that contains no mask under any expected name.

    Args:
        root: the user's path, which may not be a folder.
        videos: the split's videos, at least one of them with expressions.
    """
    if not root.is_dir():
        found = "is a zip file; unpack it" if _is_zip(root) else "is not a folder"
        return InputError(f"{root} {found}; pass a bundle, or a folder of predictions")
    videos = [video for video in videos if video.expressions]
    present = next((video for video in videos if (root / video.name).is_dir()), None)
    if present is None:
        return InputError(
            f"{root} holds predictions for none of the {len(videos)} videos (found "
            f"{_listed(root)}); {_where_else(root, videos)}"
        )
    return InputError(f"{root} holds no mask with an expected name: {_inside(root, present)}")


def unexpected_names(
    root: Path, videos: Sequence[VideoRecord], missing: Sequence[str]
) -> list[str]:
    """List unexpected files and folders beside missing predictions, which may be misnamed.

    Args:
        root: the folder of predictions.
        videos: the split's videos.
        missing: names of videos, expressions or masks, as in ``Evaluation.missing``.
    """
    by_name = {video.name: video for video in videos}
    found: list[str] = []
    for name in missing:
        parts = name.split("/")
        video = by_name[parts[0]]
        wanted = _wanted(video, len(parts), by_name)
        folder = root.joinpath(*parts[:-1])
        stray = (entry for entry in _names(folder) if entry not in wanted)
        found += [str((folder / entry).relative_to(root)) for entry in islice(stray, _NAMED)]
        if len(found) >= _NAMED:
            break
    return list(dict.fromkeys(found))[:_NAMED]


def _wanted(video: VideoRecord, depth: int, videos: dict[str, VideoRecord]) -> set[str]:
    """Return the names that are valid at a depth of the layout: videos, expressions, masks."""
    if depth == 1:
        return set(videos)
    if depth == 2:
        return {expression.id for expression in video.expressions}
    return {f"{frame.stem}.png" for frame in video.frames}


def _where_else(root: Path, videos: Sequence[VideoRecord]) -> str:
    """Guess what kind of folder contains none of the videos, and say what to pass instead."""
    names, video = set(_names(root)), videos[0]
    expected = f"masks are expected in {root / video.name}/<expression>/<frame>.png"
    if not names:
        return expected
    if any(name.endswith(".onnx") for name in names):
        return "it looks like a bundle, but has no manifest.json: export it again"
    if further := next(_folders_of_videos(root, videos), None):
        return f"they lie in {further}: pass that folder"
    known = {video.name for video in videos}
    above = root.absolute()
    for folder in (above, above.parent):
        if folder.name in known:
            return f"{folder} is the folder of one video: pass {folder.parent}"
    if "JPEGImages" in names or any(name.startswith("meta_expressions") for name in names):
        return "it looks like a data set: pass that with --data, and a folder of masks here"
    if archive := next((name for name in sorted(names) if name.endswith(".zip")), None):
        return f"unpack {archive}; {expected}"
    return expected


def _folders_of_videos(root: Path, videos: Sequence[VideoRecord]) -> Iterator[Path]:
    """Yield the folders below ``root`` that contain a video with a folder of an expression."""
    waiting = deque([(root, 0)])
    for _ in range(_FOLDERS):
        if not waiting:
            return
        folder, depth = waiting.popleft()
        if depth and any(_has_expression(folder, video) for video in videos):
            yield folder
        if depth < _DEPTH:
            waiting += [(folder / name, depth + 1) for name in _names(folder)]


def _has_expression(folder: Path, video: VideoRecord) -> bool:
    place = folder / video.name
    return place.is_dir() and any((place / e.id).is_dir() for e in video.expressions)


def _inside(root: Path, video: VideoRecord) -> str:
    """Say what is wrong inside the existing folder of a video."""
    place = root / video.name
    expression = next((e.id for e in video.expressions if (place / e.id).is_dir()), None)
    if expression is None:
        names = [expression.id for expression in video.expressions]
        advice = "name the folders as the data set names the expressions"
        if any(name.endswith(".png") for name in _names(place)):
            advice = "each expression needs a folder of its own"
        return f"in {place} found {_listed(place)}, needed {_several(names)}; {advice}"
    place /= expression
    advice = "name the masks as the frames are named"
    if any(name.lower().endswith((".jpg", ".jpeg")) for name in _names(place)):
        advice = "write masks as PNG: JPEG changes their values"
    needed = _several([f"{frame.stem}.png" for frame in video.frames])
    return f"in {place} found {_listed(place)}, needed {needed}; {advice}"


def _names(folder: Path) -> list[str]:
    try:
        return sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
    except OSError:
        return []


def _listed(folder: Path) -> str:
    return _several(_names(folder)) or "nothing"


def _several(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more


def _is_zip(path: Path) -> bool:
    return path.is_file() and zipfile.is_zipfile(path)
