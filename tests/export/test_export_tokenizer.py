"""Test that the written tokenizer gives open_clip's ids."""

from __future__ import annotations

import random
import warnings
from pathlib import Path

import pytest
from open_clip.tokenizer import SimpleTokenizer

from rvos_deploy.errors import InputError
from rvos_deploy.networks.pan2024.tokenizer import ClipTokenizer
from rvos_deploy.networks.pan2024.tokenizer_file import write_tokenizer

AWKWARD = [
    "",
    "   \t\n ",
    "word " * 200,
    "a 🐕 runs 🏃‍♂️ past the naïve café",
    "MiXeD CaSe HELLO",
    "a &amp;amp; b &lt;dog&gt; &quot;x&quot; &#39;",
    "don't we'll it's I'm they've she'd you're",
    "!!!<end_of_text>",
    "x <<START_OF_TEXT>> y!<end_of_text>",
    "the dog'\u017f bone",
    "123 4567 a1b2 3.14",
    "日本語 の 犬",
    "ünïcödé ßẞ İstanbul ǅ ﬁne",
    "â€œmojibakeâ€\x9d cafÃ©",
    "a\u00a0b\u200bc\u2028d",
    "_under_score_ -- !!! ...",
    "\x00\x01 control",
    "a" * 300,
    "combining e\u0301 and \u0345",
]


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> ClipTokenizer:
    file = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    write_tokenizer(file)
    return ClipTokenizer(file)


@pytest.fixture(scope="module")
def theirs() -> SimpleTokenizer:
    return SimpleTokenizer()


@pytest.mark.parametrize("text", AWKWARD, ids=lambda text: repr(text[:20]))
def test_unusual_text(ours: ClipTokenizer, theirs: SimpleTokenizer, text: str) -> None:
    assert ours.encode(text) == theirs.encode(text)


def test_random_text(ours: ClipTokenizer, theirs: SimpleTokenizer) -> None:
    """The text has no newest code points, because only one library knows them."""
    draw = random.Random(0)
    for _ in range(500):
        text = "".join(
            chr(draw.choice([draw.randrange(32, 127), draw.randrange(0xA0, 0x250)]))
            for _ in range(draw.randrange(40))
        )
        assert ours.encode(text) == theirs.encode(text), repr(text)


def test_real_expressions(ours: ClipTokenizer, theirs: SimpleTokenizer) -> None:
    file = Path(__file__).parents[3] / "shared" / "expressions" / "ref_youtube_vos_500.txt"
    if not file.is_file():
        pytest.skip("../shared is absent")
    lines = file.read_text(encoding="utf-8").splitlines()
    assert len(lines) == 500
    for line in lines:
        expected = theirs(line)[0]
        assert ours(line).tolist() == expected[expected != 0].tolist()


def test_long_text_is_cut_like_open_clips(ours: ClipTokenizer, theirs: SimpleTokenizer) -> None:
    text = "word " * 200
    with pytest.warns(UserWarning, match="202 tokens"):
        ids = ours(text)
    assert ids.tolist() == theirs(text)[0].tolist()


def test_text_that_just_fits_is_not_cut(ours: ClipTokenizer) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(ours("word " * 75)) == 77


@pytest.mark.parametrize("text", ["", "  \n\t "])
def test_empty_text_is_refused(ours: ClipTokenizer, text: str) -> None:
    with pytest.raises(InputError, match="is empty"):
        ours(text)
