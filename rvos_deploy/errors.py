"""The errors raised on purpose: one line that says what was found, what was needed, and the fix."""

from __future__ import annotations


class RvosError(Exception):
    """Base of all errors of rvos-deploy. ``exit_code`` is what the command line returns for it.

    Its text is one line that every terminal can show, also where it quotes a user's words or the
    name of a file that hold line breaks, control codes or bytes that are no text.
    """

    exit_code = 2

    def __str__(self) -> str:
        return "".join(map(_shown, super().__str__()))


def _shown(letter: str) -> str:
    if letter.isprintable():
        return letter
    return " " if letter.isspace() else letter.encode("unicode_escape").decode()


class InputError(RvosError, ValueError):
    """An argument, file or size that cannot be used as given."""


class VideoError(InputError):
    """A video that cannot be opened, or holds no frame that can be decoded."""


class DownloadError(RvosError):
    """A file that could not be fetched, or is not the one that was expected."""


class BundleError(RvosError):
    """A bundle that must not be loaded: missing, damaged, or of another schema."""


class BackendError(RvosError):
    """A back end that is not installed, or cannot run what was asked of it."""


class ParityError(RvosError):
    """A check of numbers or masks that failed: the artefact must not be shipped."""

    exit_code = 1


def one_line(text: object, most: int = 200) -> str:
    """Another library's words for a line of ours: no line breaks, no control characters, not long.

    They may hold what a stranger wrote into a file, and a terminal obeys control characters.
    """
    words = " ".join(str(text).split())[:most]
    return "".join(c if c.isprintable() else "?" for c in words)
