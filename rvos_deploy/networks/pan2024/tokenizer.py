"""CLIP's tokenizer without PyTorch: the same ids as open_clip's, cut to what a sentence needs."""

from __future__ import annotations

import html
import re
from pathlib import Path

import ftfy
import numpy as np
from numpy.typing import NDArray

from rvos_deploy.graph_io.tokenizer import TokenizerFile, check_text, enclose

CONTEXT_LENGTH = 77
"""The most tokens that a CLIP text tower takes, start and end of text included."""
START_OF_TEXT, END_OF_TEXT = "<start_of_text>", "<end_of_text>"

# Special tokens are no text: in a sentence they are spelled. Tokenizers of older bundles match them
# as whole words, so the sentence is cut behind their "<". That is where a word ends anyway: CLIP's
# words are runs of letters, or of symbols.
_INSIDE_SPECIAL_TOKENS = re.compile(r"(?<=<)(?=start_of_text>|end_of_text>)")


class ClipTokenizer:
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
        self._file, self._length = TokenizerFile(file, content), length
        self._ends = self._file.special(START_OF_TEXT), self._file.special(END_OF_TEXT)

    def encode(self, text: str) -> list[int]:
        """Ids of the text between start and end, neither added nor cut.

        Raises InputError when it is no text.
        """
        check_text(text)
        pieces = _INSIDE_SPECIAL_TOKENS.split(clean_text(text))
        return [index for piece in pieces for index in self._file.encode(piece)]

    def __call__(self, text: str) -> NDArray[np.int64]:
        """Ids from start to end of text, as long as the sentence needs: int64 [L].

        L is at most 77, or what the text encoder is fixed to.

        Warns when the sentence is cut. Raises InputError when it is empty or no text.
        """
        return enclose(text, self.encode(text), self._ends, self._length)


def clean_text(text: str) -> str:
    """As open_clip does: mend mojibake, undo HTML entities, collapse white space, lower-case."""
    unescaped = html.unescape(html.unescape(ftfy.fix_text(text)))
    return " ".join(unescaped.split()).lower()
