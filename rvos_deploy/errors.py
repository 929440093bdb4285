"""Define the package's errors: one line each with the finding, the requirement and the fix."""

from __future__ import annotations


class RvosError(Exception):
    """Represent any error of rvos-deploy; the command line exits with its ``exit_code``.

    Its text is one line that every terminal can print, even if it quotes a user's text or a file
    name that contains line breaks, control codes or undecodable bytes.
    """

    exit_code = 2

    def __str__(self) -> str:
        return "".join(map(_shown, super().__str__()))


def _shown(letter: str) -> str:
    if letter.isprintable():
        return letter
    return " " if letter.isspace() else letter.encode("unicode_escape").decode()


class InputError(RvosError, ValueError):
    """Report an argument, file or size that cannot be used as given."""


class VideoError(InputError):
    """Report a video that cannot be opened, or in which no frame can be decoded."""


class DownloadError(RvosError):
    """Report a file that could not be downloaded, or is not the expected file."""


class BundleError(RvosError):
    """Report a bundle that must not be loaded: missing, damaged, or of another schema."""


class BackendError(RvosError):
    """Report a back end that is not installed, or cannot run the request."""


class ParityError(RvosError):
    """Report a failed check of numbers or masks: the artefact must not be shipped."""

    exit_code = 1


def one_line(text: object, most: int = 200) -> str:
    """Return another library's message in one line of at most ``most`` printable characters.

    The message may quote a file from a stranger, and terminals obey control characters.
    """
    words = " ".join(str(text).split())[:most]
    return "".join(c if c.isprintable() else "?" for c in words)
