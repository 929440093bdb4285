"""Define the tokenizer of a family, and read a ``tokenizer.json`` that may be damaged."""

from __future__ import annotations

import unicodedata
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

from rvos_deploy.errors import BundleError, InputError, one_line
from rvos_deploy.files import read_regular_file

MAXIMUM_BYTES = 64 << 20
"""The largest tokenizer file that is read."""


_REPLACEMENT = "\ufffd"
# Combining marks occur in every alphabet.
_LATIN = ("LATIN", "COMBINING", "MODIFIER", "FEMININE", "MASCULINE")
# Tokens for each letter from which on a word is spelled, rather than made of parts.
_SPELLED = 0.6
_SIGNS = ("CJK", "HIRAGANA", "KATAKANA", "HANGUL")


class Tokenizer(Protocol):
    """Turn a sentence into token ids for a family's text encoder."""

    def __call__(self, text: str) -> NDArray[np.int64]:
        """Return the ids, as many as the sentence needs: int64 [L].

        Warns when the sentence is cut. Raises InputError when it is empty or not a string.
        """


class BytePairs(msgspec.Struct):
    """Require a byte-pair model that can encode every text, always with the same ids.

    A dropout would draw ids by chance. ``tokenizers`` panics over some prefixes and raises over
    some unknown tokens, but only when a text is encoded.
    """

    type: Literal["BPE"]
    dropout: None = None
    unk_token: None = None
    continuing_subword_prefix: None = None


class TokenizerForm(msgspec.Struct):
    """Describe the part of ``tokenizer.json`` that is checked before ``tokenizers`` reads it."""

    model: BytePairs


class TokenizerFile:
    """Read the ``tokenizer.json`` of a bundle by ``tokenizers``.

    Every fault in the file raises BundleError, even a fault that only a sentence reveals.
    """

    def __init__(
        self,
        file: Path,
        content: bytes | None = None,
        form: type[msgspec.Struct] = TokenizerForm,
    ) -> None:
        """Read the file.

        Args:
            file: ``tokenizer.json``.
            content: bytes of the file, if it was read and hashed before; None reads ``file``.
            form: the structure that the family requires of the JSON.

        Raises:
            BundleError: the file is not the tokenizer of a bundle.
        """
        import tokenizers

        self._file = file
        with _refusing(file):
            content = read_regular_file(file, MAXIMUM_BYTES) if content is None else content
            msgspec.json.decode(content, type=form)
            self._tokenizer = tokenizers.Tokenizer.from_buffer(content)
            # A file may ask for padding of any length; ids are neither padded nor cut here.
            self._tokenizer.no_padding()
            self._tokenizer.no_truncation()

    def special(self, token: str) -> int:
        """Return the id of a special token. Raises BundleError: the file lacks it."""
        index = self._tokenizer.token_to_id(token)
        if index is None:
            raise BundleError(f"the bundle's tokenizer has no {token}; export again")
        return int(index)

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text, without start and end.

        Raises BundleError: the file's rules fail on this text.
        """
        with _refusing(self._file):
            return list(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def pieces(self, text: str) -> list[str]:
        """Return the text of each token; U+FFFD stands for a part of a character.

        Raises BundleError: the file's rules fail on this text.
        """
        return [self._decoded(index) for index in self.encode(text)]

    def _decoded(self, index: int) -> str:
        with _refusing(self._file):
            return str(self._tokenizer.decode([index], skip_special_tokens=False))


def warn_of_unknown_words(text: str, pieces: Callable[[str], Sequence[str]]) -> None:
    """Warn once about the words that the vocabulary spells in bytes or single letters.

    The network saw no such words, so it cannot know what they mean. Words in the Latin alphabet are
    not judged: even a common name may be spelled in parts.

    Args:
        text: the sentence.
        pieces: returns the text of each token of a word.
    """
    unknown = [word for word in text.split() if _is_spelled(word, pieces)]
    if unknown:
        shown = " ".join(unknown)
        warnings.warn(
            f"the network's vocabulary has no words for '{_shortened(shown)}' and spells them in "
            "bytes, so the network cannot know what they mean; write the expression in the "
            "language that it was trained on (English)",
            stacklevel=3,
        )


def _is_spelled(word: str, pieces: Callable[[str], Sequence[str]]) -> bool:
    letters = [c for c in word if not c.isascii() and unicodedata.category(c)[0] in "LM"]
    foreign = [c for c in letters if not unicodedata.name(c, "LATIN").startswith(_LATIN)]
    # One sign of Chinese or Japanese may be a word; one letter of an alphabet (a unit) is none.
    signs = any(unicodedata.name(c, "").startswith(_SIGNS) for c in foreign)
    if not signs and len(foreign) < 2:
        return False
    found = pieces(word)
    if any(_REPLACEMENT in piece for piece in found):
        return True
    return not signs and len(found) >= _SPELLED * len(foreign)


def _shortened(text: str) -> str:
    return text if len(text) <= 40 else f"{text[:40]}..."


def enclose(text: str, ids: Sequence[int], ends: tuple[int, int], length: int) -> NDArray[np.int64]:
    """Return the ids between start and end, cut to ``length`` with a warning: int64 [L].

    Args:
        text: the sentence, for messages.
        ids: of the sentence.
        ends: ids of start and end.
        length: the most tokens that the text encoder reads, start and end included.

    Raises:
        InputError: there are no ids, so the sentence is empty.
    """
    if not ids:
        raise InputError(
            f"expression {text!r} is empty; say what to segment, for example 'the brown dog'"
        )
    kept = ids[: length - 2]
    if len(kept) < len(ids):
        warnings.warn(
            f"expression has {len(ids) + 2} tokens, the text encoder reads {length}: "
            f"the end of '{text[:40]}...' is cut; use a shorter sentence",
            stacklevel=3,
        )
    return np.array([ends[0], *kept, ends[1]], dtype=np.int64)


def check_text(text: object) -> None:
    """Raise InputError unless it is a string."""
    if not isinstance(text, str):
        raise InputError(
            f"an expression must be a string, found {type(text).__name__}; "
            "say what to segment, for example 'the brown dog'"
        )


@contextmanager
def reraise_panics() -> Iterator[None]:
    """Turn a panic of ``tokenizers``' Rust code, which is no Exception, into a ValueError."""
    try:
        yield
    except BaseException as error:
        if isinstance(error, Exception) or type(error).__name__ != "PanicException":
            raise
        raise ValueError(one_line(error)) from error


@contextmanager
def _refusing(file: Path) -> Iterator[None]:
    """Turn any error of ``tokenizers`` into a BundleError: the file is damaged."""
    try:
        with reraise_panics():
            yield
    except Exception as error:
        raise BundleError(f"{file} is not a tokenizer ({one_line(error)}); export again") from error
