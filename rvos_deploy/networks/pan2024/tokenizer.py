"""Tokenize for CLIP without PyTorch, with open_clip's ids but without its padding."""

from __future__ import annotations

import html
import re
from pathlib import Path

import ftfy
import numpy as np
from numpy.typing import NDArray

from rvos_deploy.graph_io.tokenizer import TokenizerFile, check_text, enclose, warn_of_unknown_words

CONTEXT_LENGTH = 77
"""Maximum number of tokens for a CLIP text tower, with start and end of text."""
START_OF_TEXT, END_OF_TEXT = "<start_of_text>", "<end_of_text>"

# A special token in a sentence is plain text, and must be spelled. Tokenizers of older bundles
# match special tokens as whole words, so the sentence is split after their "<". A word ends there
# anyway: CLIP's words are runs of letters, or of symbols.
_INSIDE_SPECIAL_TOKENS = re.compile(r"(?<=<)(?=start_of_text>|end_of_text>)")


class ClipTokenizer:
    """Tokenize by CLIP's byte pairs, from a bundle's ``tokenizer.json``.

    The ids are open_clip's, with one deliberate exception: a special token in a sentence, in any
    spelling, is plain text. (open_clip reads it as the token itself unless it follows a symbol, and
    then the text encoder ignores the rest of the sentence.)
    """

    def __init__(
        self, file: Path, content: bytes | None = None, length: int = CONTEXT_LENGTH
    ) -> None:
        """Read the file.

        Args:
            file: ``tokenizer.json``.
            content: content of the file, if it was read and hashed before; then errors name
                ``file``.
            length: maximum number of tokens for the text encoder.

        Raises:
            BundleError: the file is not the tokenizer of a bundle.
        """
        self._file, self._length = TokenizerFile(file, content), length
        self._ends = self._file.special(START_OF_TEXT), self._file.special(END_OF_TEXT)

    def encode(self, text: str) -> list[int]:
        """Return the ids of the text, without start and end, and without a limit of the length.

        Raises InputError: the text is not a string.
        """
        check_text(text)
        pieces = _INSIDE_SPECIAL_TOKENS.split(clean_text(text))
        return [index for piece in pieces for index in self._file.encode(piece)]

    def __call__(self, text: str) -> NDArray[np.int64]:
        """Return the ids from start to end of text, without padding: int64 [L].

        L is at most 77, or the fixed length of the text encoder.

        Warns if the sentence is cut, or has words that the vocabulary spells in bytes.

        Raises InputError: the sentence is empty or not a string.
        """
        ids = self.encode(text)
        warn_of_unknown_words(clean_text(text), self._file.pieces)
        return enclose(text, ids, self._ends, self._length)


def clean_text(text: str) -> str:
    """Clean as open_clip: repair mojibake and HTML entities, collapse white space, lower-case."""
    unescaped = html.unescape(html.unescape(ftfy.fix_text(text)))
    return " ".join(unescaped.split()).lower()
