"""Refuse commands that would replace their own input, before any file is touched."""

from __future__ import annotations

import glob
import os
import sys
from collections.abc import Iterable
from pathlib import Path

from rvos_deploy.errors import InputError

_PATTERN = set("%*?[")  # characters of FFmpeg's patterns of image files


def refuse_overlap(inputs: Iterable[Path], replaced: Iterable[Path]) -> None:
    """Refuse to replace an input, also if a symlink or a hard link leads to it.

    Args:
        inputs: files that are read, and folders of which any file may be read.
        replaced: files, and folders with all their files, that would be replaced. Paths that do not
            exist are ignored.

    Raises:
        InputError: one of ``replaced`` is an input, lies in an input, or contains an input.
    """
    read = [path for path in inputs if path.exists()]
    files = {_identity(path): path for path in read if not path.is_dir()}
    # Looked up by name, because a batch has thousands of inputs and of outputs.
    folders = {os.path.realpath(path): path for path in read if path.is_dir()}
    holders = {folder: path for path in reversed(read) for folder in _with_folders_above(path)}
    for target in replaced:
        if not target.exists():
            continue
        if target.is_dir():
            found = holders.get(os.path.realpath(target))
        else:
            found = files.get(_identity(target)) or next(
                (folders[name] for name in _with_folders_above(target) if name in folders), None
            )
        if found is not None:
            what = f"{target} is" if found == target else f"{target} belongs to {found}, which is"
            raise InputError(
                f"{what} an input of this command, and its output would replace it; choose another "
                "place for the output"
            )


def source_files(source: str) -> list[Path]:
    """List the local files that a video source may read.

    ``source`` is an argument of ``open_video``: a file, a folder, ``-``, or an address for FFmpeg,
    which may name files too (``file:x.mp4``, ``concat:a.ts|b.ts``, ``frames/%05d.png``), or a
    pattern.
    """
    if source == "-":
        return _standard_input()
    if matches := _matches(source):
        return matches
    names = {source, *(part.rpartition(":")[2] for part in source.split("|"))} - {""}
    return [file for name in sorted(names) for file in _existing(Path(name))]


def _matches(pattern: str) -> list[Path]:
    """Return the files that match a pattern, in any folder."""
    try:
        if os.path.exists(pattern):  # noqa: PTH110
            return []
        return [Path(name) for name in glob.glob(pattern, recursive=True)]  # noqa: PTH207
    except (OSError, ValueError):  # the name is too long, or contains a NUL
        return []


def _existing(path: Path) -> list[Path]:
    try:
        if path.is_dir():
            return [file for file in path.iterdir() if file.is_file()]
        if path.exists():
            return [path]
    except (OSError, ValueError):  # the name is too long, or contains a NUL
        return []
    return _existing(path.parent) if _PATTERN & set(path.name) else []


def _standard_input() -> list[Path]:
    link = Path("/proc/self/fd/0")
    return [link] if sys.stdin is not None and link.is_file() else []


def _identity(path: Path) -> tuple[int, int]:
    """Return device and inode, which all hard links and symlinks of a file share."""
    status = path.stat()
    return status.st_dev, status.st_ino


def _with_folders_above(path: Path) -> list[str]:
    """List ``path`` and the folders above it, nearest first; of a symlink, its target's too."""
    names = (Path(os.path.realpath(path.parent), path.name), Path(os.path.realpath(path)))
    return [str(name) for one in names for name in (one, *one.parents)]
