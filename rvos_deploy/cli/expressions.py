"""Expressions on the command line, told from other arguments that slipped in among them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from rvos_deploy.errors import InputError

_MEDIA = {
    *(".3gp", ".avi", ".flv", ".gif", ".m2ts", ".m3u8", ".m4v", ".mjpeg", ".mkv", ".mov", ".mp4"),
    *(".mpeg", ".mpg", ".mts", ".mxf", ".ogv", ".ts", ".webm", ".wmv"),
    *(".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"),
}


def check_expressions(texts: Sequence[str]) -> None:
    """Refuse what is hardly a sentence: another video, a folder, a URL, an option.

    After a space, which the tokenizer drops, such words are accepted: ``" dog"``.

    Raises:
        InputError: says what it is, and both ways out.
    """
    for text in texts:
        found = _something_else(text)
        if found is not None:
            raise InputError(
                f"expression '{text}' {found}; give one video a run, and options before the video; "
                f"if these words are meant, write them after a space: ' {text}'"
            )


def _something_else(text: str) -> str | None:
    """Say what an argument is instead of a sentence; None where it may be one."""
    if text != text.lstrip():
        return None
    if text.startswith("-"):
        return "looks like an option"
    if "://" in text:
        return "is a URL"
    # Not Path's own, which raises for names that are too long to be one.
    if text and os.path.lexists(text):
        return f"is a {'folder' if Path(text).is_dir() else 'file'} that exists"
    if Path(text).suffix.lower() in _MEDIA:
        return "looks like a video or picture"
    return None
