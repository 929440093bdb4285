"""CLIP's tokenizer without PyTorch: the same ids as open_clip's, cut to what a sentence needs."""

from __future__ import annotations

import html
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import ftfy
import msgspec
import numpy as np
import tokenizers
from numpy.typing import NDArray

from rvos_deploy.errors import BundleError, InputError, one_line
from rvos_deploy.files import read_regular_file

CONTEXT_LENGTH = 77
"""The most tokens that a CLIP text tower takes, start and end of text included."""
_MAXIMUM_BYTES = 64 << 20
START_OF_TEXT, END_OF_TEXT = "<start_of_text>", "<end_of_text>"

# Special tokens are no text: in a sentence they are spelled. Tokenizers of older bundles match them
# as whole words, so the sentence is cut behind their "<". That is where a word ends anyway: CLIP's
# words are runs of letters, or of symbols.
_INSIDE_SPECIAL_TOKENS = re.compile(r"(?<=<)(?=start_of_text>|end_of_text>)")


class _BytePairs(msgspec.Struct):
    """What CLIP's has not: a dropout would draw ids by chance, and ``tokenizers`` panics over some
    prefixes and raises over some unknown tokens, but only when a text is encoded.
    """

    type: Literal["BPE"]
    dropout: None = None
    unk_token: None = None
    continuing_subword_prefix: None = None


class _Form(msgspec.Struct):
    """The part of ``tokenizer.json`` that is checked before ``tokenizers`` reads it."""

    model: _BytePairs


class Tokenizer:
    """Byte-pair tokenizer of CLIP, read from a bundle's ``tokenizer.json``.

    The ids are open_clip's, with one exception that is meant: a special token that a sentence
    contains, in any case or writing, is plain text. (open_clip takes it for the token itself unless
    it follows a symbol, and the text encoder would read the sentence up to there.)
    """

    def __init__(
        self, file: Path, content: bytes | None = None, length: int = CONTEXT_LENGTH
    ) -> None:
        """Read the file.

        Args:
            file: ``tokenizer.json``.
            content: of the file, where it was read and hashed before; ``file`` is named then.
            length: the most tokens that the text encoder takes.

        Raises:
            BundleError: not the tokenizer of a bundle.
        """
        self._file, self._length = file, length
        with _refusing(file):
            content = read_regular_file(file, _MAXIMUM_BYTES) if content is None else content
            msgspec.json.decode(content, type=_Form)
            self._tokenizer = tokenizers.Tokenizer.from_buffer(content)
            # A file may ask for padding of any length; ids are neither padded nor cut here.
            self._tokenizer.no_padding()
            self._tokenizer.no_truncation()
        self._start = self._special(START_OF_TEXT)
        self._end = self._special(END_OF_TEXT)

    def _special(self, token: str) -> int:
        index = self._tokenizer.token_to_id(token)
        if index is None:
            raise BundleError(f"the bundle's tokenizer has no {token}; export again")
        return int(index)

    def encode(self, text: str) -> list[int]:
        """Ids of the text between start and end, neither added nor cut.

        Raises InputError when it is no text.
        """
        check_text(text)
        pieces = _INSIDE_SPECIAL_TOKENS.split(clean_text(text))
        with _refusing(self._file):
            return [
                index
                for piece in pieces
                for index in self._tokenizer.encode(piece, add_special_tokens=False).ids
            ]

    def __call__(self, text: str) -> NDArray[np.int64]:
        """Ids from start to end of text, as long as the sentence needs: int64 [L].

        L is at most 77, or what the text encoder is fixed to.

        Warns when the sentence is cut. Raises InputError when it is empty or no text.
        """
        ids = self.encode(text)
        if not ids:
            raise InputError(
                f"expression {text!r} is empty; say what to segment, for example 'the brown dog'"
            )
        kept = ids[: self._length - 2]
        if len(kept) < len(ids):
            warnings.warn(
                f"expression has {len(ids) + 2} tokens, the text encoder reads {self._length}: "
                f"the end of '{text[:40]}...' is cut; use a shorter sentence",
                stacklevel=2,
            )
        return np.array([self._start, *kept, self._end], dtype=np.int64)


@contextmanager
def _refusing(file: Path) -> Iterator[None]:
    """What ``tokenizers`` raises, when it is read and when it is used, means that it is damaged."""
    try:
        yield
    except BaseException as error:
        # Plain Exceptions, or a panic of its Rust code, which is none.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise BundleError(f"{file} is not a tokenizer ({one_line(error)}); export again") from error


def check_text(text: object) -> None:
    """Raise InputError unless it is a string."""
    if not isinstance(text, str):
        raise InputError(
            f"an expression must be a string, found {type(text).__name__}; "
            "say what to segment, for example 'the brown dog'"
        )


def clean_text(text: str) -> str:
    """As open_clip does: mend mojibake, undo HTML entities, collapse white space, lower-case."""
    unescaped = html.unescape(html.unescape(ftfy.fix_text(text)))
    return " ".join(unescaped.split()).lower()
