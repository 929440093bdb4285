"""Write RoBERTa's tokenizer for the ``tokenizers`` library, from a user's files."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, TypeVar

import msgspec
import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from rvos_deploy.errors import InputError, one_line
from rvos_deploy.files import read_regular_file
from rvos_deploy.graph_io.tokenizer import MAXIMUM_BYTES, reraise_panics
from rvos_deploy.networks.online_refer.tokenizer import MASK, SPECIAL_TOKENS

TOKENIZER, VOCABULARY, MERGES = "tokenizer.json", "vocab.json", "merges.txt"
_NEEDED = (
    f"needed is {TOKENIZER}, or {VOCABULARY} with {MERGES}, of RoBERTa-base: "
    "https://huggingface.co/roberta-base"
)

_Tokens = dict[str, Annotated[int, msgspec.Meta(ge=0)]]
_Decoded = TypeVar("_Decoded")


@dataclass(frozen=True)
class Vocabulary:
    """Hold a byte-level byte-pair vocabulary.

    Args:
        ids: ids of all tokens, with special ones.
        merges: pairs of tokens in the order in which they are merged.
    """

    ids: dict[str, int]
    merges: list[tuple[str, str]]


class _Model(msgspec.Struct):
    """Define a byte-pair model. Files of 2020, such as RoBERTa-base's, name no type."""

    vocab: _Tokens
    merges: list[str | tuple[str, str]]
    type: str = "BPE"


class _AddedToken(msgspec.Struct):
    id: Annotated[int, msgspec.Meta(ge=0)]
    content: str


class _TokenizerJson(msgspec.Struct):
    model: _Model
    added_tokens: list[_AddedToken] = []


class _AnyModel(msgspec.Struct):
    type: str = ""


class _AnyTokenizerJson(msgspec.Struct):
    """Match any ``tokenizer.json``, but no ``vocab.json``, whose values are numbers."""

    model: _AnyModel


def read_vocabulary(source: Path, vocab_size: int) -> Vocabulary:
    """Read RoBERTa's vocabulary.

    Args:
        source: ``tokenizer.json``; or ``vocab.json`` or ``merges.txt``, with the other beside it;
            or a folder that holds them.
        vocab_size: number of rows of the text encoder's token embedding.

    Raises:
        InputError: the files are missing, damaged, or not RoBERTa's vocabulary.
    """
    try:
        file = _file_of(source)
    except OSError as error:
        raise _unreadable(source, error) from error
    with _refusing(file):
        if file.suffix == ".txt":
            vocabulary = _read_pair(file.with_name(VOCABULARY), file)
        else:
            content = _read(file)
            kind = _kind(content)
            if kind is None:
                vocabulary = _read_pair(file, file.with_name(MERGES))
            elif kind in ("BPE", ""):
                vocabulary = _from_tokenizer(content)
            else:
                raise _RefusedError(f"holds a {one_line(kind, 40)} model, not byte-level BPE")
        _check(vocabulary, vocab_size)
        _build(vocabulary)
    return vocabulary


def small_vocabulary(vocab_size: int) -> Vocabulary:
    """Return a vocabulary without merges, for random weights: every byte is a token.

    The ids are in RoBERTa's order: special tokens, tokens of bytes, ``<mask>``.

    Raises InputError: ``vocab_size`` is less than its 261 tokens.
    """
    tokens = [*SPECIAL_TOKENS, *_byte_tokens(), MASK]
    if vocab_size < len(tokens):
        raise InputError(
            f"a vocabulary of {vocab_size} tokens cannot hold every byte; "
            f"vocab_size must be at least {len(tokens)}"
        )
    return Vocabulary({token: index for index, token in enumerate(tokens)}, [])


def write_tokenizer(file: Path, vocabulary: Vocabulary) -> None:
    """Write a bundle's ``tokenizer.json``. Equal vocabularies give equal bytes."""
    content = json.loads(_build(vocabulary).to_str())
    # A merge as one string makes the file shorter, and older versions of the library read it.
    content["model"]["merges"] = [" ".join(pair) for pair in vocabulary.merges]
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":"))
    file.write_text(text, encoding="utf-8")


def _build(vocabulary: Vocabulary) -> tokenizers.Tokenizer:
    tokenizer = tokenizers.Tokenizer(models.BPE(vocabulary.ids, vocabulary.merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


class _RefusedError(Exception):
    """Report a fault of the file, as the predicate of a sentence about it."""


@contextmanager
def _refusing(file: Path) -> Iterator[None]:
    try:
        with reraise_panics():
            yield
    except InputError:
        raise
    except _RefusedError as error:
        raise InputError(f"{file} {error}; {_NEEDED}") from error
    except Exception as error:
        raise InputError(f"{file} is not a vocabulary ({one_line(error)}); {_NEEDED}") from error


def _file_of(source: Path) -> Path:
    """Return ``tokenizer.json`` or ``vocab.json`` of a folder, or else the file ``source``."""
    if not source.is_dir():
        return source
    if (source / TOKENIZER).exists():
        return source / TOKENIZER
    if (source / VOCABULARY).exists() and (source / MERGES).exists():
        return source / VOCABULARY
    names = sorted(path.name for path in source.iterdir())
    shown = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
    raise InputError(f"{source} holds no tokenizer, but {shown or 'no file'}; {_NEEDED}")


def _read(file: Path) -> bytes:
    try:
        return read_regular_file(file, MAXIMUM_BYTES)
    except OSError as error:
        raise _unreadable(file, error) from error


def _unreadable(path: Path, error: OSError) -> InputError:
    return InputError(f"{path} cannot be read: {error.strerror}; {_NEEDED}")


def _kind(content: bytes) -> str | None:
    """Return the model's type of a ``tokenizer.json`` ("" if it names none); None: another file."""
    try:
        return msgspec.json.decode(content, type=_AnyTokenizerJson).model.type
    except msgspec.ValidationError:
        return None


def _from_tokenizer(content: bytes) -> Vocabulary:
    decoded = msgspec.json.decode(content, type=_TokenizerJson)
    ids = dict(decoded.model.vocab)
    for token in decoded.added_tokens:
        if ids.setdefault(token.content, token.id) != token.id:
            raise _RefusedError(f"has two ids for {one_line(token.content, 40)}")
    return Vocabulary(ids, [_pair(merge) for merge in decoded.model.merges])


def _read_pair(vocabulary: Path, merges: Path) -> Vocabulary:
    with _refusing(vocabulary):
        ids = msgspec.json.decode(_read(vocabulary), type=_Tokens)
    with _refusing(merges):
        lines = _read(merges).decode("utf-8").replace("\r\n", "\n").split("\n")
        pairs = [_pair(line) for line in lines if line and not line.startswith("#version")]
    return Vocabulary(ids, pairs)


def _pair(merge: str | tuple[str, str]) -> tuple[str, str]:
    parts = merge.split(" ") if isinstance(merge, str) else list(merge)
    if len(parts) != 2 or not all(parts) or any(" " in part for part in parts):
        raise _RefusedError(
            f"has the merge {one_line(repr(merge), 40)}, which is not a pair of tokens"
        )
    return parts[0], parts[1]


def _byte_tokens() -> list[str]:
    """Return the letters that stand for the 256 bytes, in the order of their code points."""
    return sorted(pre_tokenizers.ByteLevel.alphabet())


def _check(vocabulary: Vocabulary, vocab_size: int) -> None:
    """Raise _RefusedError unless the vocabulary is RoBERTa's and fits the text encoder."""
    ids = vocabulary.ids
    missing = [token for token in (*SPECIAL_TOKENS, MASK) if token not in ids]
    if missing:
        raise _RefusedError(f"is not a vocabulary of RoBERTa: it lacks {', '.join(missing)}")
    for index, token in enumerate(SPECIAL_TOKENS):
        if ids[token] != index:
            raise _RefusedError(
                f"is not a vocabulary of RoBERTa: {token} has the id {ids[token]}, not {index}"
            )
    absent = sum(token not in ids for token in _byte_tokens())
    if absent:
        raise _RefusedError(f"is not a byte-level vocabulary: it lacks {absent} of the 256 bytes")
    if max(ids.values()) >= vocab_size:
        raise _RefusedError(
            f"has ids up to {max(ids.values())}, the text encoder has {vocab_size} tokens"
        )
    if sorted(ids.values()) != list(range(len(ids))):
        raise _RefusedError("uses an id twice, or leaves one out")
