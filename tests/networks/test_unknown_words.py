"""Words that a vocabulary spells in bytes or letters are told, and no others."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest

from rvos_deploy.bundle.folder import packaged_bundles
from rvos_deploy.graph_io.tokenizer import warn_of_unknown_words
from rvos_deploy.networks.pan2024.tokenizer import ClipTokenizer


@pytest.fixture(scope="module")
def tokenize() -> Callable[[str], list[str]]:
    """CLIP's vocabulary; gives the warnings of a sentence."""
    tokenizer = ClipTokenizer(packaged_bundles()["tiny"] / "tokenizer.json")

    def call(text: str) -> list[str]:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            tokenizer(text)
        return [str(warning.message) for warning in caught]

    return call


@pytest.mark.parametrize("text", [
    "the brown dog", "le chien est là, à côté", "der große Hund läuft", "çok güzel", "łódź żółć",
    "naïve café", "🐶 dog", "the dog’s “tail” — big", "2 µm, 5 °C, ½", "a \ud800 b", "ß",
])  # fmt: skip
def test_latin_words_and_signs_are_not_judged(
    tokenize: Callable[[str], list[str]], text: str
) -> None:
    assert tokenize(text) == []


@pytest.mark.parametrize("text", [
    "左边的红色圆圈", "犬", "こんにちは", "한국어 개", "الكلب البني", "собака бежит", "ο σκύλος",
    "คน", "हिन्दी कुत्ता",
])  # fmt: skip
def test_scripts_that_are_spelled_are_told(tokenize: Callable[[str], list[str]], text: str) -> None:
    (line,) = tokenize(text)
    assert "cannot know what they mean" in line
    assert "English" in line


def test_only_the_unknown_words_are_named(tokenize: Callable[[str], list[str]]) -> None:
    (line,) = tokenize("the red 圆圈 beside the 狗")
    assert "no words for '圆圈 狗' and" in line


def test_a_vocabulary_that_knows_a_script_is_silent() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_unknown_words("左边 的 狗", list)  # a sign a token
        warn_of_unknown_words("собака бежит", lambda word: [word[:3], word[3:]])


def test_letters_one_by_one_are_told() -> None:
    with pytest.warns(UserWarning, match="no words for 'собака'"):
        warn_of_unknown_words("собака", list)
