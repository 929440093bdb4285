"""Tokenize for RoBERTa without PyTorch, with the ids of Hugging Face's ``RobertaTokenizer``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import msgspec
import numpy as np
from ftfy.fixes import fix_surrogates
from numpy.typing import NDArray

from rvos_deploy.errors import BundleError
from rvos_deploy.graph_io.tokenizer import (
    BytePairs,
    TokenizerFile,
    check_text,
    enclose,
    warn_of_unknown_words,
)

CONTEXT_LENGTH = 512
"""Maximum number of tokens for RoBERTa-base, with start and end of the sentence."""
SPECIAL_TOKENS = ("<s>", "<pad>", "</s>", "<unk>")
"""Special tokens of every RoBERTa vocabulary, in the order of their ids 0 to 3."""
START, PADDING, END, _ = range(len(SPECIAL_TOKENS))
MASK = "<mask>"


class _MergedPairs(BytePairs):
    """Require that words are merged from bytes; looking up whole words would give other ids."""

    ignore_merges: bool = False

    def __post_init__(self) -> None:
        if self.ignore_merges:
            raise ValueError("ignore_merges is set")


class _ByteLevel(msgspec.Struct):
    """Require RoBERTa's rule for words. Unlike special tokens, no word has letters and symbols."""

    type: Literal["ByteLevel"]
    add_prefix_space: bool
    use_regex: bool = True

    def __post_init__(self) -> None:
        if self.add_prefix_space or not self.use_regex:
            raise ValueError("it splits text differently from RoBERTa's tokenizer")


class _Form(msgspec.Struct):
    """Define the exported form. Without added tokens, special tokens in a sentence are text."""

    model: _MergedPairs
    pre_tokenizer: _ByteLevel
    added_tokens: Annotated[list[msgspec.Raw], msgspec.Meta(max_length=0)]
    normalizer: None


class RobertaTokenizer:
    """Tokenize by RoBERTa's byte-level byte pairs, from a bundle's ``tokenizer.json``.

    The ids are Hugging Face's, with one deliberate exception: a special token in a sentence is
    plain text. (Hugging Face reads ``</s>`` as the end of the sentence.)
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
        self._file, self._length = TokenizerFile(file, content, _Form), length
        for index, token in enumerate(SPECIAL_TOKENS):
            if self._file.special(token) != index:
                raise BundleError(
                    f"{file} has the id {self._file.special(token)} for {token}, RoBERTa's is "
                    f"{index}; export again"
                )

    def __call__(self, text: str) -> NDArray[np.int64]:
        """Return ``<s>``, the sentence's ids and ``</s>``, without padding: int64 [L].

        L is at most 512, or the fixed length of the text encoder.

        Warns if the sentence is cut, or has words that the vocabulary spells in bytes.

        Raises InputError: the sentence is empty or not a string.
        """
        check_text(text)
        cleaned = clean_text(text)
        warn_of_unknown_words(cleaned, self._file.pieces)
        return enclose(text, self._file.encode(cleaned), (START, END), self._length)


def clean_text(text: str) -> str:
    """Convert to lower case and collapse white space, as the published data sets do.

    A lone surrogate, which has no encoding, becomes U+FFFD.
    """
    return " ".join(fix_surrogates(text).lower().split())
