"""Whatever a user writes is text: no special token comes out of it, and the ids are open_clip's."""

from __future__ import annotations

import html
import re
from collections.abc import Callable
from contextlib import AbstractContextManager

import pytest
from hypothesis import given, seed, settings
from hypothesis import strategies as st

from rvos_deploy.bundle.folder import packaged_bundles
from rvos_deploy.errors import InputError
from rvos_deploy.graph_io.probe import END_OF_TEXT, START_OF_TEXT
from rvos_deploy.networks.pan2024.tokenizer import ClipTokenizer

Attempt = Callable[[str], AbstractContextManager[None]]

KIND = "special tokens in user text"
TOKENS = ("<start_of_text>", "<end_of_text>")

FULL_WIDTH = {code: code + 0xFEE0 for code in range(0x21, 0x7F)}
WRITINGS: tuple[Callable[[str], str], ...] = (
    str,
    str.upper,
    str.title,
    html.escape,
    lambda token: html.escape(html.escape(token)),
    lambda token: token.translate(FULL_WIDTH),
    lambda token: "".join(f"&#{ord(letter)};" for letter in token),
    lambda token: token[:-1],
    lambda token: f"<{token}>",
    lambda token: token.replace("s", "\u017f"),
    lambda token: token + "\u0301",
)
"""Ways to write a token that cleaning undoes, or does not."""

ASSIGNED = st.characters(exclude_categories=["Cn", "Cs"])
"""Unassigned code points are letters in the tables of one library and none in those of another."""

written = st.builds(lambda token, write: write(token), *map(st.sampled_from, (TOKENS, WRITINGS)))
words = st.sampled_from(["the dog", " ", "!!!", "<", ">", "_", "&", "'s", "3", "\u00e9t\u00e9", ""])
sentences = st.lists(written | words | st.text(ASSIGNED, max_size=4), max_size=8).map("".join)


@pytest.fixture(scope="module", params=["packaged", "exported now"])
def ours(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ClipTokenizer:
    """Of a bundle made before (its tokenizer matches special tokens), and of one made now."""
    if request.param == "packaged":
        return ClipTokenizer(packaged_bundles()["tiny"] / "tokenizer.json")
    pytest.importorskip("open_clip")
    from rvos_deploy.networks.pan2024.tokenizer_file import write_tokenizer

    file = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    write_tokenizer(file)
    return ClipTokenizer(file)


@pytest.fixture(scope="module")
def spelled() -> Callable[[str], list[int]]:
    """open_clip's ids when its special tokens are left out of what it takes for a word."""
    tokenizer = pytest.importorskip("open_clip.tokenizer").SimpleTokenizer()
    pattern, flags = tokenizer.pat.pattern, tokenizer.pat.flags
    without = pattern.removeprefix("|".join(TOKENS) + "|")
    assert without != pattern
    tokenizer.pat = pytest.importorskip("regex").compile(without, flags)
    return tokenizer.encode  # type: ignore[no-any-return]


def test_a_special_token_after_a_symbol_as_open_clip_has_it(ours: ClipTokenizer) -> None:
    open_clip = pytest.importorskip("open_clip.tokenizer").SimpleTokenizer()
    expected = [11194, 283, 806, 318, 539, 318, 4160, 285]
    assert open_clip.encode("!!!<end_of_text>") == expected
    assert ours.encode("!!!<end_of_text>") == expected


@pytest.mark.parametrize("token", TOKENS)
@pytest.mark.parametrize(
    "place", ["{}", "{} the dog", "the dog{}", "the {} dog", "!!!{}", "a{0}{0}"]
)
def test_a_special_token_is_spelled(
    ours: ClipTokenizer, spelled: Callable[[str], list[int]], token: str, place: str
) -> None:
    for write in WRITINGS:
        text = place.format(write(token))
        ids = ours(text).tolist()
        assert [ids[0], ids[-1]] == [START_OF_TEXT, END_OF_TEXT]
        assert ids[1:-1] == spelled(text), repr(text)


def check(
    attempt: Attempt, ours: ClipTokenizer, spelled: Callable[[str], list[int]], text: str
) -> None:
    with attempt(KIND):
        ids = ours.encode(text)
        assert not {START_OF_TEXT, END_OF_TEXT} & set(ids)
        # Two things that are not about special tokens differ: see the exporter's words.
        if not re.search(r"\u0345|'\u017f", text):
            assert ids == spelled(text)


@seed(11)
@settings(max_examples=300, deadline=None, database=None)
@given(text=sentences)
def test_generated_text(attempt: Attempt, ours: ClipTokenizer, spelled, text: str) -> None:  # type: ignore[no-untyped-def]
    check(attempt, ours, spelled, text)


@pytest.mark.slow
@settings(max_examples=5_000, deadline=None, database=None)
@given(text=sentences)
def test_much_generated_text(attempt: Attempt, ours: ClipTokenizer, spelled, text: str) -> None:  # type: ignore[no-untyped-def]
    check(attempt, ours, spelled, text)


@pytest.mark.parametrize("text", [None, 5, b"dog", ["dog"], object()])
def test_what_is_no_text(attempt: Attempt, ours: ClipTokenizer, text: object) -> None:
    with attempt("expressions that are no text"), pytest.raises(InputError, match="a string"):
        ours(text)  # type: ignore[arg-type]
