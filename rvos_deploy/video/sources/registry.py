"""List the kinds of sources. A new kind is one module and one line here."""

from __future__ import annotations

import os

from rvos_deploy.errors import InputError, VideoError
from rvos_deploy.video.sources.address import kind_of, name_of
from rvos_deploy.video.sources.base import SourceType
from rvos_deploy.video.sources.device import DEVICE
from rvos_deploy.video.sources.file import FILE
from rvos_deploy.video.sources.folder import FOLDER
from rvos_deploy.video.sources.glob import GLOB
from rvos_deploy.video.sources.options import SourceOptions
from rvos_deploy.video.sources.pipe import PIPE
from rvos_deploy.video.sources.raw import RAW, RAW_FORMAT
from rvos_deploy.video.sources.url import URL

SOURCES: dict[str, SourceType] = {
    "file": FILE,
    "folder": FOLDER,
    "glob": GLOB,
    "pipe": PIPE,
    "url": URL,
    "device": DEVICE,
    "raw": RAW,
}
"""Source types by name, asked from last to first. The first six match every name exactly once;
"raw" matches where the user gives the format of raw frames."""


def source_type(name: str, format: str | None = None) -> SourceType:
    """Return the kind of a source.

    Args:
        name: as the user gave it.
        format: FFmpeg's demuxer, where the user names one.

    Raises:
        VideoError: no kind matches.
    """
    for kind in reversed(SOURCES.values()):
        if kind.matches(name, format):
            return kind
    raise VideoError(
        f"{name_of(name)} is not a known kind of source; give one of these: {', '.join(SOURCES)}"
    )


def kind_for(source: str | os.PathLike[str], options: SourceOptions) -> SourceType:
    """Return the kind of a source that is read with these options.

    Raises:
        InputError: the options do not fit the source.
        VideoError: no kind matches.
    """
    name = os.fspath(source)
    kind = source_type(name, RAW_FORMAT if options.raw else options.format)
    if options.policy == "latest" and (not kind.live or kind_of(name) == "file"):
        raise InputError(
            f"--policy latest drops frames of live sources, and {name_of(name)} is none; leave it "
            "out, or read fewer frames by --stride"
        )
    return kind


def has_end(source: str | os.PathLike[str]) -> bool:
    """Tell whether a source ends by itself; a pipe, URL or device may have no end."""
    return not source_type(os.fspath(source)).live


def sound_of(source: object) -> str | None:
    """Return the file whose sound belongs to a source, or None.

    Only a file can be opened a second time for its sound; a pipe, URL or device cannot.
    """
    if not isinstance(source, (str, os.PathLike)):
        return None
    name = os.fspath(source)
    return name if isinstance(name, str) and source_type(name) is FILE else None
