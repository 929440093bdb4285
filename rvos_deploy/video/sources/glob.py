"""Read the images that match a pattern as a video, or the one video that matches."""

from __future__ import annotations

import glob
import os
from dataclasses import replace
from pathlib import Path

from rvos_deploy.errors import VideoError
from rvos_deploy.video.sources.address import is_kind
from rvos_deploy.video.sources.base import OpenedSource, SourceRequest, SourceType
from rvos_deploy.video.sources.decode_errors import DecodeErrors
from rvos_deploy.video.sources.file import open_file
from rvos_deploy.video.sources.folder import SUFFIXES, natural_key, open_images


def _open(request: SourceRequest, errors: DecodeErrors) -> OpenedSource:
    pattern = request.name
    try:
        files = [Path(name) for name in _matches(pattern) if Path(name).is_file()]
    except (OSError, ValueError):  # the name is too long, or contains a NUL
        files = []
    if not files:
        raise VideoError(
            f"no file matches {pattern}; check the pattern (here is {Path.cwd()}), and put it in "
            "quotes"
        )
    if len(files) == 1:
        return open_file(replace(request, name=str(files[0])), errors)
    others = [file for file in files if file.suffix.lower() not in SUFFIXES]
    if others:
        raise VideoError(
            f"{len(files)} files match {pattern}, and {others[0].name} is not an image; give one "
            "video for each run, or a pattern of images"
        )
    return open_images(request, _named(files), errors)


def _matches(pattern: str) -> list[str]:
    # Path.glob takes no absolute pattern.
    return glob.glob(pattern, recursive=True)  # noqa: PTH207


def _named(files: list[Path]) -> dict[str, Path]:
    """Return the files in natural order, by their names in the folder that holds them all."""
    top = os.path.commonpath([file.parent for file in files])
    named = {Path(os.path.relpath(file, top)).as_posix(): file for file in files}
    return {name: named[name] for name in sorted(named, key=natural_key)}


GLOB = SourceType(is_kind("glob"), _open)
