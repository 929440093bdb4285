"""Wrong arguments to the Python API: only errors of ours come out, in one line each."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, seed
from hypothesis import settings as examples
from hypothesis import strategies as st

import rvos_deploy as rvos
from rvos_deploy.errors import InputError, RvosError
from rvos_deploy.video import Frame

Attempt = Callable[[str], AbstractContextManager[None]]
KIND = "API misuse"
SMALL: dict[str, Any] = {"size": (32, 32), "fallback": "top1"}
IMAGE = np.zeros((32, 32, 3), np.uint8)


class Awkward:
    """An object whose every conversion fails."""

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        raise RuntimeError("no")

    def __eq__(self, other: object) -> bool:
        raise RuntimeError("no")


anything = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 3) | st.integers(),
    st.floats(),
    st.complex_numbers(),
    st.text(max_size=6),
    st.binary(max_size=6),
    st.fractions(),
    st.sampled_from(
        [
            np.int64(2),
            np.uint8(0),
            np.float32("nan"),
            np.bool_(True),
            np.array([1, 2]),
            np.zeros(()),
        ]
    ),
    st.sampled_from(
        [object(), int, len, Awkward(), np.str_("dog"), Path("dog"), range(3), slice(2)]
    ),
    st.lists(st.integers(-40, 70) | st.text(max_size=3) | st.none() | st.binary(), max_size=3),
    st.tuples(st.integers(-40, 70), st.floats() | st.integers(0, 128)),
    st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
    st.sets(st.integers(), max_size=2),
    st.builds(iter, st.just(["dog"])),
)
images = st.one_of(
    anything,
    st.builds(
        np.zeros,
        st.lists(st.integers(0, 4), max_size=4).map(tuple),
        st.sampled_from(["uint8", "int8", "float32", "bool", "complex64", "U1", "O", "V3"]),
    ),
)


@pytest.fixture(scope="module")
def segmenter(tiny_bundle: Path) -> Iterator[rvos.Segmenter]:
    with rvos.load(tiny_bundle) as loaded:
        yield loaded


def held(attempt: Attempt, call: Callable[[], object]) -> None:
    """The call succeeds, or raises an error of ours with one line."""
    with attempt(KIND):
        message = "it succeeded"
        try:
            call()
        except RvosError as error:
            message = str(error)
        assert len(message.splitlines()) == 1, message


@pytest.fixture(scope="module")
def misuse(attempt: Attempt, segmenter: rvos.Segmenter) -> Callable[[Any, Any, str], None]:
    """Give two values of any type to one method."""

    def settings_of(one: Any, other: Any) -> None:
        for name in ("mode", "lookahead", "memory", "anchors", "threshold", "fallback", "size"):
            held(attempt, lambda name=name: rvos.StreamSettings(**{name: one}))  # type: ignore[misc]
        held(attempt, lambda: rvos.StreamSettings(mask_budget=one, masks=other))

    def stream_of(one: Any, other: Any) -> None:
        held(attempt, lambda: segmenter.stream(one).close())
        held(attempt, lambda: segmenter.stream([one, other]).close())
        held(attempt, lambda: segmenter.stream(["dog"], one).close())
        held(attempt, lambda: segmenter.stream(["dog"], on_stage=one).close())
        held(attempt, lambda: segmenter.encode_text(one))

    def use_of(one: Any, other: Any) -> None:
        with segmenter.stream(["dog"], rvos.StreamSettings(**SMALL)) as stream:
            held(attempt, lambda: stream.push(one))
            held(attempt, lambda: stream.add_expression(one))
            held(attempt, lambda: stream.remove_expression(one))
            held(attempt, lambda: stream.push(other))
            held(attempt, lambda: list(stream.flush()))
            # Whatever was refused, the stream goes on.
            assert len(stream.push(Frame(10**6, 1e6, IMAGE))) == 1

    def load_of(one: Any, other: Any) -> None:
        held(attempt, lambda: rvos.load(one).close())
        for name in ("backend", "device", "threads", "precision_hint"):
            held(attempt, lambda name=name: rvos.load("nowhere", **{name: one}).close())  # type: ignore[misc]
        held(attempt, lambda: rvos.load("nowhere", backend=one, device=other).close())

    methods = {"settings": settings_of, "stream": stream_of, "use": use_of, "load": load_of}
    return lambda one, other, method: methods[method](one, other)


METHODS = pytest.mark.parametrize("method", ["settings", "stream", "use", "load"])


@METHODS
@seed(24)
@examples(max_examples=60, deadline=None, database=None)
@given(one=images, other=images)
@pytest.mark.filterwarnings("ignore:expression has")
def test_any_argument(misuse: Callable[..., None], method: str, one: Any, other: Any) -> None:
    misuse(one, other, method)


@pytest.mark.slow
@METHODS
@examples(max_examples=1500, deadline=None, database=None)
@given(one=images, other=images)
@pytest.mark.filterwarnings("ignore:expression has")
def test_many_arguments(misuse: Callable[..., None], method: str, one: Any, other: Any) -> None:
    misuse(one, other, method)


@pytest.mark.parametrize(
    ("expressions", "message"),
    [
        ([5], r"expression must be a string, found int"),
        ([b"dog"], r"expression must be a string, found bytes"),
        ([None], r"expression must be a string, found NoneType"),
        ([["dog"]], r"expression must be a string, found list"),
        (None, r"expressions must be a list of sentences, found NoneType; write \['the"),
        (5, r"expressions must be a list of sentences, found int"),
        ({"dog": 1}, r"expressions must be a list of sentences, found dict"),
        ({"dog"}, r"expressions must be a list of sentences, found set"),
        ("dog", r"write \['dog'\]"),
        (b"dog", r"expressions must be a list"),
    ],
)
def test_expressions(
    attempt: Attempt, segmenter: rvos.Segmenter, expressions: Any, message: str
) -> None:
    with attempt(KIND), pytest.raises(InputError, match=message):
        segmenter.stream(expressions)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"size": 64}, r"size must be two numbers, \(height, width\), for example \(256, 448\)"),
        ({"size": "64x96"}, r"size must be two numbers"),
        ({"size": (64, 96, 3)}, r"size must be two numbers"),
        ({"size": (64, 96.0)}, r"size must be a whole number, found 96\.0 \(float\)"),
        ({"size": (True, 64)}, r"size must be a whole number, found True"),
        ({"lookahead": True}, r"lookahead must be a whole number, found True \(bool\)"),
        ({"lookahead": 1.0}, r"lookahead must be a whole number, found 1\.0 \(float\)"),
        ({"memory": "64"}, r"memory must be a whole number, found '64' \(str\)"),
        ({"anchors": None}, r"anchors must be a whole number, found None"),
        ({"mask_budget": 1e9}, r"mask_budget must be a whole number"),
        ({"threshold": float("nan")}, r"threshold must lie in 0\.\.1, found nan"),
        ({"threshold": "0.5"}, r"threshold must be a number in 0\.\.1, found '0\.5' \(str\)"),
        ({"threshold": True}, r"threshold must be a number in 0\.\.1, found True"),
        ({"mode": None}, r"mode must be one of online, offline; found None"),
        ({"fallback": []}, r"fallback must be one of none, top1; found \[\] \(list\)"),
    ],
)
def test_settings(attempt: Attempt, changes: dict[str, Any], message: str) -> None:
    with attempt(KIND), pytest.raises(InputError, match=message):
        rvos.StreamSettings(**changes)


@pytest.mark.parametrize("given", [{"mode": "online"}, "online", 64, rvos.StreamSettings])
def test_settings_of_another_type(attempt: Attempt, segmenter: rvos.Segmenter, given: Any) -> None:
    with attempt(KIND), pytest.raises(InputError, match=r"settings must be StreamSettings, found"):
        segmenter.stream(["dog"], given)


def test_numbers_of_numpy_are_numbers() -> None:
    settings = rvos.StreamSettings(
        lookahead=np.int64(2),  # type: ignore[arg-type]
        memory=np.uint8(5),  # type: ignore[arg-type]
        threshold=np.float32(0.5),  # type: ignore[arg-type]
        size=[np.int32(64), 96],  # type: ignore[arg-type, list-item]
    )
    assert settings == rvos.StreamSettings(lookahead=2, memory=5, threshold=0.5, size=(64, 96))
    assert {type(x) for x in (settings.lookahead, settings.memory, *(settings.size or ()))} == {int}
    assert type(settings.threshold) is float
    assert rvos.StreamSettings(threshold=Fraction(1, 2)).threshold == 0.5  # type: ignore[arg-type]
    assert hash(settings) == hash(rvos.StreamSettings(**settings.__dict__))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"bundle": None}, r"bundle must be the path of a folder.*found None.*load\('tiny'\)"),
        ({"bundle": b"tiny"}, r"bundle must be the path"),
        ({"bundle": "x" * 5000}, r"bundle"),
        ({"bundle": "tiny\0"}, r"is not a bundle"),
        ({"bundle": "tiny", "backend": None}, r"backend must be a name, found None.*'auto'"),
        ({"bundle": "tiny", "device": 0}, r"device must be a name, found 0 \(int\)"),
        ({"bundle": "tiny", "threads": 0}, r"threads must be at least 1, found 0"),
        ({"bundle": "tiny", "threads": 1.5}, r"threads must be a whole number, found 1\.5"),
        ({"bundle": "tiny", "threads": True}, r"threads must be a whole number, found True"),
        ({"bundle": "tiny", "precision_hint": 16}, r"precision_hint must be a name or None.*16"),
        (
            {"bundle": "tiny", "precision_hint": "fp8\n"},
            r"unknown precision hint 'fp8'; known: bf16",
        ),
    ],
)
def test_load(attempt: Attempt, arguments: dict[str, Any], message: str) -> None:
    with attempt(KIND), pytest.raises(RvosError, match=message):
        rvos.load(**arguments)


@pytest.mark.parametrize(
    ("quoted", "shown"),
    [
        ("a\nb", "a b"),
        ("a\r\x1e\u2028b", "a   b"),
        ("\x1b[31mred", r"\x1b[31mred"),
        (b"\xff.mp4".decode("utf-8", "surrogateescape"), r"\udcff.mp4"),
        ("a  b \u00e9\u72ac", "a  b \u00e9\u72ac"),
    ],
)
def test_errors_are_one_line_whatever_they_quote(attempt: Attempt, quoted: str, shown: str) -> None:
    with attempt(KIND):
        with pytest.raises(RvosError) as error:
            rvos.load(quoted)
        assert str(error.value).startswith(f"{shown} is not a bundle")
        assert len(str(error.value).encode().splitlines()) == 1


@pytest.mark.parametrize("number", [True, "0", None, 1, -1, 0.0, [0], np.array([0, 1])])
def test_numbers_of_expressions(attempt: Attempt, segmenter: rvos.Segmenter, number: Any) -> None:
    with (
        attempt(KIND),
        segmenter.stream(["dog"]) as stream,
        pytest.raises(InputError, match=r"no expression .* in this stream; there are 0"),
    ):
        stream.remove_expression(number)
    with segmenter.stream(["dog"]) as stream:
        stream.remove_expression(np.int64(0))  # type: ignore[arg-type]
        assert stream.expressions == {}


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (None, r"NumPy array, uint8 \[H, W, 3\] \(RGB\), found NoneType"),
        ("frame.png", r"NumPy array, uint8 .* found str; read files with rvos_deploy\.read_video"),
        (IMAGE.astype(np.float32), r"found float32 \[32, 32, 3\]; pass \(image \* 255\)"),
        (IMAGE[..., 0], r"uint8 \[H, W, 3\] \(RGB\), found uint8 \[32, 32\]; pass np\.repeat"),
        (np.zeros((32, 32, 4), np.uint8), r"found uint8 \[32, 32, 4\]; pass image\[\.\.\., :3\]"),
        (np.zeros((0, 32, 3), np.uint8), r"found uint8 \[0, 32, 3\]; it has no pixels"),
    ],
)
def test_images(attempt: Attempt, segmenter: rvos.Segmenter, image: Any, message: str) -> None:
    with (
        attempt(KIND),
        segmenter.stream(["dog"]) as stream,
        pytest.raises(InputError, match=message),
    ):
        stream.push(image)
