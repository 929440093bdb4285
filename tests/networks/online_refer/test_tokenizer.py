"""RoBERTa's ids come from every writing of its vocabulary, and whatever a user writes is text."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from rvos_deploy.errors import BundleError, InputError
from rvos_deploy.networks.online_refer.tokenizer import (
    CONTEXT_LENGTH,
    END,
    MASK,
    SPECIAL_TOKENS,
    START,
    RobertaTokenizer,
    clean_text,
)
from rvos_deploy.networks.online_refer.tokenizer_file import (
    MERGES,
    TOKENIZER,
    VOCABULARY,
    read_vocabulary,
    small_vocabulary,
    write_tokenizer,
)

TRAINING_TEXT = [
    "a man in a red jacket is running to the left behind the white dog",
    "the person on the skateboard who's wearing a blue shirt, and doesn't move",
    "two brown dogs play with 12 balls on the grass; the 2nd one is the smaller",
    "une femme à côté du café 日本語の犬 🐕 running, jumping and walking away!!!",
]
AWKWARD = [
    "the man's dog, the dogs' man; they're, we've, I'll, he'd, DON'T",
    "UPPER Case ÄÖÜ İstanbul ẞ ΣΊΣΥΦΟΣ",
    "  double  spaces\tand\ttabs\nand lines \u00a0\u3000 ",
    "a 🐕 runs 🏃‍♂️ past 👩‍👩‍👧",
    "日本語 の 犬 и собака",
    "1234567 3.14 a1b2 ½ ²",
    "\x00\x01 control \x7f",
    "combining e\u0301 zero\u200bwidth",
    "!!!...???---___",
    "a" * 200,
]
SPECIAL = [*SPECIAL_TOKENS, MASK]
SHARED = Path(__file__).parents[4] / "shared" / "expressions" / "ref_youtube_vos_500.txt"

Encode = Callable[[str], list[int]]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``vocab.json`` and ``merges.txt``, trained as RoBERTa's were."""
    folder = tmp_path_factory.mktemp("pair")
    trained = tokenizers.ByteLevelBPETokenizer()
    trained.train_from_iterator(
        TRAINING_TEXT, vocab_size=600, min_frequency=1, special_tokens=SPECIAL
    )
    trained.save_model(str(folder))
    return folder


@pytest.fixture(scope="module")
def written(pair: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    file = tmp_path_factory.mktemp("bundle") / TOKENIZER
    write_tokenizer(file, read_vocabulary(pair, 600))
    return file.read_bytes()


@pytest.fixture(scope="module")
def ours(written: bytes) -> RobertaTokenizer:
    return RobertaTokenizer(Path(TOKENIZER), written)


@pytest.fixture(scope="module")
def theirs(pair: Path) -> Encode:
    """Ids of transformers, after what the published data sets do to a sentence."""
    roberta = pytest.importorskip("transformers").RobertaTokenizer
    tokenizer = roberta.from_pretrained(str(pair))
    return lambda text: list(tokenizer(" ".join(text.lower().split()))["input_ids"])


@pytest.fixture(scope="module")
def plain(pair: Path) -> Encode:
    """Byte-pair encoding as the GPT-2 and RoBERTa papers describe it, special tokens left out."""
    words = pytest.importorskip("regex").compile(
        r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
    )
    ids = json.loads((pair / VOCABULARY).read_text(encoding="utf-8"))
    lines = (pair / MERGES).read_text(encoding="utf-8").split("\n")[1:-1]
    rank = {tuple(line.split(" ")): number for number, line in enumerate(lines)}
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    letters = {byte: chr(byte) for byte in printable}
    letters |= {byte: chr(256 + number) for number, byte in enumerate(others)}

    @cache
    def merged(word: str) -> list[int]:
        parts = [letters[byte] for byte in word.encode()]
        while len(parts) > 1:
            best = min(pairwise(parts), key=lambda found: rank.get(found, len(rank)))
            if best not in rank:
                break
            joined, at = [], 0
            while at < len(parts):
                width = 2 if tuple(parts[at : at + 2]) == best else 1
                joined.append("".join(parts[at : at + width]))
                at += width
            parts = joined
        return [ids[part] for part in parts]

    def encode(text: str) -> list[int]:
        found = words.findall(" ".join(text.lower().split()))
        return [START, *(index for word in found for index in merged(word)), END]

    return encode


@pytest.mark.parametrize("text", [*TRAINING_TEXT, *AWKWARD], ids=lambda text: repr(text[:20]))
def test_ids_equal_transformers(
    ours: RobertaTokenizer, theirs: Encode, plain: Encode, text: str
) -> None:
    ids = ours(text)
    assert ids.dtype == np.int64
    assert ids.tolist() == theirs(text) == plain(text)


def test_ids_of_real_expressions(ours: RobertaTokenizer, theirs: Encode, plain: Encode) -> None:
    if not SHARED.is_file():
        pytest.skip("../shared is absent")
    lines = SHARED.read_text(encoding="utf-8").splitlines()
    assert len(lines) == 500
    for line in lines:
        assert ours(line).tolist() == theirs(line) == plain(line), line


ASSIGNED = st.characters(exclude_categories=["Cn", "Cs"])
"""Unassigned code points are letters in the tables of one library and none in those of another."""
pieces = st.sampled_from([*SPECIAL, "the dog", " ", "'s", "</", "<", ">", "12", "é", "\t"])
sentences = st.lists(pieces | st.text(ASSIGNED, max_size=5), max_size=8).map("".join)


@pytest.mark.filterwarnings("ignore:the network's vocabulary has no words:UserWarning")
@settings(max_examples=300, deadline=None, database=None)
@given(text=sentences.filter(str.strip))
def test_generated_text_is_encoded_plainly(
    ours: RobertaTokenizer, plain: Encode, text: str
) -> None:
    ids = ours(text).tolist()
    assert ids == plain(text)
    assert not set(ids[1:-1]) & set(range(len(SPECIAL)))


@pytest.mark.parametrize("token", SPECIAL)
@pytest.mark.parametrize(
    "place", ["{}", "{} the dog", "the dog {}", "the{}dog", "!!{}!!", "{0}{0}"]
)
def test_a_special_token_is_spelled(
    ours: RobertaTokenizer, plain: Encode, token: str, place: str
) -> None:
    for text in (place.format(token), place.format(token.upper())):
        ids = ours(text).tolist()
        assert ids == plain(text)
        assert not set(ids[1:-1]) & set(range(len(SPECIAL)))


def test_a_lone_surrogate_is_replaced(ours: RobertaTokenizer) -> None:
    """A terminal hands over bytes that are no text as lone surrogates."""
    assert ours("the \udce9 dog").tolist() == ours("the \ufffd dog").tolist()
    assert clean_text("A\ud83d\udc15 B") == "a🐕 b"


@pytest.mark.parametrize("text", ["", " \n\t\u3000 "])
def test_empty_text_is_refused(ours: RobertaTokenizer, text: str) -> None:
    with pytest.raises(InputError, match="is empty"):
        ours(text)


@pytest.mark.parametrize("text", [None, 5, b"dog", ["dog"]])
def test_what_is_no_text_is_refused(ours: RobertaTokenizer, text: object) -> None:
    with pytest.raises(InputError, match="must be a string"):
        ours(text)  # type: ignore[arg-type]


def test_a_long_sentence_is_cut_with_a_warning(
    ours: RobertaTokenizer, written: bytes, plain: Encode
) -> None:
    text = "dog " * 600
    count = len(plain(text))
    with pytest.warns(UserWarning, match=f"{count} tokens, the text encoder reads 512"):
        ids = ours(text)
    assert len(ids) == CONTEXT_LENGTH
    assert [ids[0], ids[-1]] == [START, END]
    fixed = RobertaTokenizer(Path(TOKENIZER), written, length=8)
    with pytest.warns(UserWarning, match="reads 8"):
        assert fixed(text).tolist() == [*ids[:7].tolist(), END]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(fixed("!1!1!1")) == 8


def as_json(pair: Path, change: Callable[[dict[str, Any]], None] = lambda tree: None) -> str:
    """``tokenizer.json`` as Hugging Face publishes it, of the same vocabulary."""
    tokenizer = tokenizers.ByteLevelBPETokenizer(str(pair / VOCABULARY), str(pair / MERGES))
    tokenizer.add_special_tokens(SPECIAL)
    tokenizer.enable_truncation(5)
    tokenizer.enable_padding(length=9)
    tree = json.loads(tokenizer.to_str())
    change(tree)
    return json.dumps(tree)


def untyped(tree: dict[str, Any]) -> None:
    """As in 2020: no type, merges as strings, empty affixes."""
    tree["model"] |= {"continuing_subword_prefix": "", "end_of_word_suffix": ""}
    tree["model"]["merges"] = [" ".join(merge) for merge in tree["model"]["merges"]]
    del tree["model"]["type"]


def specials_apart(tree: dict[str, Any]) -> None:
    for token in SPECIAL:
        del tree["model"]["vocab"][token]


@pytest.mark.parametrize(
    "form", ["folder", "vocab", "merges", "crlf", "json", "json folder", "untyped", "apart"]
)
def test_every_form_gives_the_same_file(pair: Path, tmp_path: Path, form: str) -> None:
    write_tokenizer(tmp_path / "expected", read_vocabulary(pair, 600))
    sources = {"folder": pair, "vocab": pair / VOCABULARY, "merges": pair / MERGES}
    changes = {"untyped": untyped, "apart": specials_apart}
    if form == "crlf":
        for name in (VOCABULARY, MERGES):
            content = (pair / name).read_bytes().replace(b"\n", b"\r\n")
            (tmp_path / name).write_bytes(content)
        source = tmp_path
    elif form in sources:
        source = sources[form]
    else:
        source = tmp_path / TOKENIZER
        source.write_text(as_json(pair, changes.get(form, lambda tree: None)), encoding="utf-8")
        source = tmp_path if form == "json folder" else source
    write_tokenizer(tmp_path / "found", read_vocabulary(source, 600))
    assert (tmp_path / "found").read_bytes() == (tmp_path / "expected").read_bytes()


def test_the_small_vocabulary_spells_bytes(tmp_path: Path) -> None:
    write_tokenizer(tmp_path / TOKENIZER, small_vocabulary(300))
    again = read_vocabulary(tmp_path / TOKENIZER, 261)
    assert again == small_vocabulary(261)
    assert again.ids[MASK] == 260
    ours = RobertaTokenizer(tmp_path / TOKENIZER)
    for text in ["the dog</s>", "🐕 é", bytes(range(33, 127)).decode().lower()]:
        ids = ours(text).tolist()
        assert len(ids) == len(text.encode()) + 2
        assert set(ids[1:-1]) <= set(range(4, 260))


def test_a_small_embedding_cannot_hold_the_bytes() -> None:
    with pytest.raises(InputError, match="at least 261"):
        small_vocabulary(260)


def drop_mask(tree: dict[str, Any]) -> None:
    del tree["model"]["vocab"][MASK]
    del tree["added_tokens"][SPECIAL.index(MASK)]


def swap_ends(tree: dict[str, Any]) -> None:
    vocabulary = tree["model"]["vocab"]
    vocabulary["<s>"], vocabulary["</s>"] = 2, 0
    tree["added_tokens"] = []


def wordpiece(tree: dict[str, Any]) -> None:
    tree["model"] = {"type": "WordPiece", "unk_token": "[UNK]", "vocab": {"[PAD]": 0}}


def unigram(tree: dict[str, Any]) -> None:
    tree["model"] = {"type": "Unigram", "vocab": [["<s>", 0.0]]}


def drop_byte(tree: dict[str, Any]) -> None:
    tree["model"] |= {"merges": [], "vocab": dict.fromkeys(SPECIAL, 0)}
    tree["model"]["vocab"] = {token: index for index, token in enumerate(SPECIAL)}


def repeat_id(tree: dict[str, Any]) -> None:
    tree["model"]["vocab"]["Ġthe"] = tree["model"]["vocab"]["Ġa"]


def unknown_merge(tree: dict[str, Any]) -> None:
    tree["model"]["merges"].append(["Ġthe", "zebra"])


def odd_merge(tree: dict[str, Any]) -> None:
    tree["model"]["merges"].append("Ġthe")


def two_ids(tree: dict[str, Any]) -> None:
    tree["added_tokens"][0]["id"] = 7


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (drop_mask, "lacks <mask>"),
        (swap_ends, "<s> has the id 2, not 0"),
        (wordpiece, "holds a WordPiece model"),
        (unigram, "holds a Unigram model"),
        (drop_byte, "lacks 256 of the 256 bytes"),
        (repeat_id, "uses an id twice"),
        (unknown_merge, "zebra"),
        (odd_merge, "not a pair of tokens"),
        (two_ids, "has two ids for <s>"),
    ],
)
def test_another_vocabulary_is_refused(
    pair: Path, tmp_path: Path, change: Callable[[dict[str, Any]], None], words: str
) -> None:
    file = tmp_path / TOKENIZER
    file.write_text(as_json(pair, change), encoding="utf-8")
    refused(file, words)


def refused(source: Path, words: str, vocab_size: int = 600) -> None:
    with pytest.raises(InputError) as raised:
        read_vocabulary(source, vocab_size)
    message = str(raised.value)
    assert words in message
    assert "\n" not in message
    assert "https://huggingface.co/roberta-base" in message


def test_ids_beyond_the_embedding_are_refused(pair: Path) -> None:
    tokens = len(read_vocabulary(pair, 600).ids)
    refused(pair, f"ids up to {tokens - 1}, the text encoder has {tokens - 1} tokens", tokens - 1)
    assert len(read_vocabulary(pair, tokens).ids) == tokens


def test_missing_files_are_refused(pair: Path, tmp_path: Path) -> None:
    refused(tmp_path, "but no file")
    (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\n", encoding="utf-8")
    (tmp_path / "config.json").write_text('{"model_type": "bert"}', encoding="utf-8")
    refused(tmp_path, "but config.json, vocab.txt")
    refused(tmp_path / "vocab.txt", "vocab.json cannot be read: No such file")
    refused(tmp_path / "config.json", "config.json is not a vocabulary")
    refused(tmp_path / "absent", "absent cannot be read: No such file")
    refused(tmp_path / ("long" * 100), "cannot be read: File name too long")
    (tmp_path / VOCABULARY).write_bytes((pair / VOCABULARY).read_bytes())
    refused(tmp_path, "holds no tokenizer, but config.json, vocab.json, vocab.txt")
    refused(tmp_path / VOCABULARY, "merges.txt cannot be read: No such file")


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"{", b"\xff\xfe", b"[" * 100_000, b'{"<s>": -1}', b'{"<s>": 1e99}']
)
def test_damaged_files_are_refused(pair: Path, tmp_path: Path, content: bytes) -> None:
    (tmp_path / TOKENIZER).write_bytes(content)
    refused(tmp_path, f"{TOKENIZER} is not a vocabulary")
    (tmp_path / TOKENIZER).unlink()
    (tmp_path / MERGES).write_bytes((pair / MERGES).read_bytes())
    (tmp_path / VOCABULARY).write_bytes(content)
    refused(tmp_path, f"{VOCABULARY} is not a vocabulary")


def test_damaged_merges_are_refused(pair: Path, tmp_path: Path) -> None:
    (tmp_path / VOCABULARY).write_bytes((pair / VOCABULARY).read_bytes())
    for content, words in [(b"a b c\n", "not a pair"), (b"\xff", "is not a vocabulary")]:
        (tmp_path / MERGES).write_bytes(content)
        refused(tmp_path, words)


def set_ignore_merges(tree: dict[str, Any]) -> None:
    tree["model"]["ignore_merges"] = True


def set_dropout(tree: dict[str, Any]) -> None:
    tree["model"]["dropout"] = 0.1


def set_prefix_space(tree: dict[str, Any]) -> None:
    tree["pre_tokenizer"]["add_prefix_space"] = True


def set_no_regex(tree: dict[str, Any]) -> None:
    tree["pre_tokenizer"]["use_regex"] = False


def set_whitespace(tree: dict[str, Any]) -> None:
    tree["pre_tokenizer"] = {"type": "Whitespace"}


def set_normalizer(tree: dict[str, Any]) -> None:
    tree["normalizer"] = {"type": "Lowercase"}


def add_token(tree: dict[str, Any]) -> None:
    """Otherwise a valid file: only the sentence ``</s>`` would show the difference."""
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    tree["added_tokens"] = [{"id": 2, "content": "</s>", "special": True, **flags}]


def drop_start(tree: dict[str, Any]) -> None:
    del tree["model"]["vocab"]["<s>"]


def move_start(tree: dict[str, Any]) -> None:
    tree["model"]["vocab"] |= {"<s>": 1, "<pad>": 0}


def subword_prefix(tree: dict[str, Any]) -> None:
    tree["model"]["continuing_subword_prefix"] = "##"


@pytest.mark.parametrize(
    "change",
    [
        set_ignore_merges,
        set_dropout,
        set_prefix_space,
        set_no_regex,
        set_whitespace,
        set_normalizer,
        add_token,
        drop_start,
        move_start,
        subword_prefix,
        unknown_merge,
    ],
)
def test_a_damaged_bundle_is_refused(
    written: bytes, change: Callable[[dict[str, Any]], None]
) -> None:
    tree = json.loads(written)
    RobertaTokenizer(Path(TOKENIZER), json.dumps(tree).encode())
    change(tree)
    with pytest.raises(BundleError, match="export again"):
        RobertaTokenizer(Path(TOKENIZER), json.dumps(tree).encode())


@settings(max_examples=150, deadline=None, database=None)
@given(data=st.data())
def test_random_damage_is_refused_or_harmless(written: bytes, data: st.DataObject) -> None:
    content = bytearray(written)
    at = data.draw(st.integers(0, len(content) - 1))
    end = data.draw(st.integers(at, min(len(content), at + 40)))
    content[at:end] = data.draw(st.binary(max_size=8))
    for form in (content, content[:at]):
        with suppress(BundleError):
            RobertaTokenizer(Path(TOKENIZER), bytes(form))("the brown dog 2 🐕")


def test_clips_tokenizer_is_refused(tiny_bundle: Path) -> None:
    refused(tiny_bundle, "lacks <s>, <pad>, </s>, <unk>, <mask>", 100_000)
    with pytest.raises(BundleError, match="is not a tokenizer"):
        RobertaTokenizer(tiny_bundle / TOKENIZER)
