"""RoBERTa's tokenizer without PyTorch: the same ids as Hugging Face's ``RobertaTokenizer``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import msgspec
import numpy as np
from ftfy.fixes import fix_surrogates
from numpy.typing import NDArray

from rvos_deploy.errors import BundleError
from rvos_deploy.graph_io.tokenizer import BytePairs, TokenizerFile, check_text, enclose

CONTEXT_LENGTH = 512
"""The most tokens that RoBERTa-base takes, start and end of the sentence included."""
SPECIAL_TOKENS = ("<s>", "<pad>", "</s>", "<unk>")
"""The special tokens that every RoBERTa vocabulary has, in the order of their ids 0 to 3."""
START, PADDING, END, _ = range(len(SPECIAL_TOKENS))
MASK = "<mask>"


class _MergedPairs(BytePairs):
    """A vocabulary entry is the result of merges. Looked up as a whole, it would have other ids."""

    ignore_merges: bool = False

    def __post_init__(self) -> None:
        if self.ignore_merges:
            raise ValueError("ignore_merges is set")


class _ByteLevel(msgspec.Struct):
    """RoBERTa's rule for words. No word holds both letters and symbols, as special tokens do."""

    type: Literal["ByteLevel"]
    add_prefix_space: bool
    use_regex: bool = True

    def __post_init__(self) -> None:
        if self.add_prefix_space or not self.use_regex:
            raise ValueError("it splits text in another way than RoBERTa's")


class _Form(msgspec.Struct):
    """What the exporter writes. Without added tokens, special tokens in a sentence are text."""

    model: _MergedPairs
    pre_tokenizer: _ByteLevel
    added_tokens: Annotated[list[msgspec.Raw], msgspec.Meta(max_length=0)]
    normalizer: None


class RobertaTokenizer:
    """Byte-level byte-pair tokenizer of RoBERTa, read from a bundle's ``tokenizer.json``.

    The ids are Hugging Face's, with one exception that is meant: a special token that a sentence
    contains is plain text. (Hugging Face takes ``</s>`` for the end of the sentence.)
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
        self._file, self._length = TokenizerFile(file, content, _Form), length
        for index, token in enumerate(SPECIAL_TOKENS):
            if self._file.special(token) != index:
                raise BundleError(
                    f"{file} gives {token} the id {self._file.special(token)}, RoBERTa's is "
                    f"{index}; export again"
                )

    def __call__(self, text: str) -> NDArray[np.int64]:
        """Return ``<s>``, the sentence's ids and ``</s>``, without padding: int64 [L].

        L is at most 512, or what the text encoder is fixed to.

        Warns when the sentence is cut. Raises InputError when it is empty or not a string.
        """
        check_text(text)
        return enclose(text, self._file.encode(clean_text(text)), (START, END), self._length)


def clean_text(text: str) -> str:
    """Lower-case and collapse white space, as the published data sets do.

    A lone surrogate, which no byte sequence encodes, becomes U+FFFD.
    """
    return " ".join(fix_surrogates(text).lower().split())
