"""Run-length masks: equal to pycocotools in both forms; damaged ones are refused in one line."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from rvos_deploy.errors import InputError
from rvos_deploy.rle import MAX_PIXELS, decode, encode

Attempt = Callable[[str], AbstractContextManager[None]]

QUICK, MANY = 200, 10_000
COMMON: dict[str, Any] = {
    "derandomize": True,
    "database": None,
    "deadline": None,
    "suppress_health_check": list(HealthCheck),
}

masks = st.tuples(st.integers(1, 40), st.integers(1, 40)).flatmap(
    lambda shape: arrays(np.bool_, shape, elements=st.booleans(), fill=st.booleans())
)
numbers = st.one_of(
    st.integers(-3, 70), st.integers(), st.sampled_from([2**31, 2**32, 2**62, 2**63, 10**400])
)
odd = st.one_of(st.none(), st.booleans(), st.floats(), st.text(max_size=3), st.just([[]]))
counts = st.one_of(
    st.text(max_size=30),
    st.text(st.characters(min_codepoint=40, max_codepoint=120), max_size=40),
    st.binary(max_size=30),
    st.lists(numbers, max_size=12),
    st.lists(st.one_of(numbers, odd), max_size=6),
    odd,
)
sizes = st.one_of(
    st.lists(st.integers(0, 9), min_size=2, max_size=2),
    st.lists(st.one_of(numbers, odd), max_size=3),
    odd,
)


def differential(mask: np.ndarray) -> None:
    theirs = pytest.importorskip("pycocotools.mask")
    wanted = theirs.encode(np.asfortranarray(mask.astype(np.uint8)))
    mine = encode(mask)
    assert mine["counts"].encode() == wanted["counts"]
    assert np.array_equal(decode(mine), mask)
    assert np.array_equal(decode(wanted), mask)
    flat = np.concatenate([[False], mask.ravel(order="F"), [not mask[-1, -1]]])
    edges = np.flatnonzero(flat[1:] != flat[:-1])
    runs = np.diff(np.concatenate([[0], edges])).tolist()
    listed = {"size": list(mask.shape), "counts": runs}
    assert np.array_equal(decode(json.loads(json.dumps(listed))), mask)
    coded = theirs.frPyObjects(listed, *mask.shape)
    assert np.array_equal(theirs.decode(coded).astype(bool), mask)


def refuse_or_fill(rle: dict[str, Any]) -> None:
    """One line, or a mask of the size that is stated, which is never a huge one."""
    try:
        mask = decode(rle)
    except InputError as error:
        said = str(error)
    else:
        assert list(mask.shape) == list(rle["size"])
        assert mask.size <= MAX_PIXELS
        return
    assert "\n" not in said
    assert len(said) < 300


def run(body: Callable[[Any], None], strategy: Any, examples: int) -> None:
    settings(max_examples=examples, **COMMON)(given(strategy)(body))()


def equal_to_pycocotools(attempt: Attempt, examples: int) -> None:
    def body(mask: np.ndarray) -> None:
        with attempt("run lengths against pycocotools"):
            differential(mask)

    run(body, masks, examples)


def made_up(attempt: Attempt, examples: int) -> None:
    def body(rle: dict[str, Any]) -> None:
        with attempt("damaged run lengths"):
            refuse_or_fill(rle)

    run(body, st.fixed_dictionaries({"size": sizes, "counts": counts}), examples)


def changed(attempt: Attempt, examples: int) -> None:
    """Whole masks of which some characters were changed, inserted or cut off."""

    def body(drawn: tuple[np.ndarray, int, str, int]) -> None:
        mask, place, inserted, removed = drawn
        rle = dict(encode(mask))
        text = rle["counts"]
        place %= len(text) + 1
        rle["counts"] = text[:place] + inserted + text[place + removed :]
        with attempt("damaged run lengths"):
            refuse_or_fill(rle)

    character = st.characters(min_codepoint=45, max_codepoint=115)
    run(
        body,
        st.tuples(masks, st.integers(0, 10**6), st.text(character, max_size=8), st.integers(0, 9)),
        examples,
    )


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_sample_equals_pycocotools(attempt: Attempt) -> None:
    equal_to_pycocotools(attempt, QUICK)


def test_a_sample_of_damage(attempt: Attempt) -> None:
    made_up(attempt, QUICK)
    changed(attempt, QUICK)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_many(attempt: Attempt) -> None:
    equal_to_pycocotools(attempt, MANY // 5)
    made_up(attempt, MANY)
    changed(attempt, MANY)


@pytest.mark.parametrize(
    "rle",
    [
        {"size": [2**40, 2**40], "counts": "0"},
        {"size": [10**9, 10**9], "counts": [10**18]},
        {"size": [1, MAX_PIXELS + 1], "counts": [MAX_PIXELS + 1]},
        {"size": [8, 8], "counts": "oooooo0" * 50_000},
        {"size": [8, 8], "counts": [0] * 1_000_000},
        {"size": [8, 8], "counts": [2**64, -(2**64) + 64]},
    ],
    ids=["side", "area", "one too many", "long string", "long list", "wraps"],
)
def test_nothing_is_allocated_for_what_is_stated(attempt: Attempt, rle: dict[str, Any]) -> None:
    with attempt("damaged run lengths"), pytest.raises(InputError):
        decode(rle)
