"""Distinguish expressions on the command line from misplaced arguments."""

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
    """Refuse texts that are hardly sentences: another video, a folder, a URL, an option.

    Such texts are accepted after a space, which the tokenizer drops: ``" dog"``.

    Raises:
        InputError: an expression looks like another argument; the message has both remedies.
    """
    for text in texts:
        found = _something_else(text)
        if found is not None:
            raise InputError(
                f"expression '{text}' {found}; give one video per run ('rvos-deploy batch' takes "
                "many), and options before the video; if you mean these words, put a space before "
                f"them: ' {text}'"
            )


def _something_else(text: str) -> str | None:
    """Describe an argument that is not a sentence; None if it may be a sentence."""
    if text != text.lstrip():
        return None
    if text.startswith("-"):
        return "looks like an option"
    if "://" in text:
        return "is a URL"
    # Path.exists would raise for a text that is too long for a file name.
    if text and os.path.lexists(text):
        return f"is a {'folder' if Path(text).is_dir() else 'file'} that exists"
    if Path(text).suffix.lower() in _MEDIA:
        return "looks like a video or picture"
    return None
