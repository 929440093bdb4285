"""Damaged data sets and predictions: a score or one line, and nothing outside is read or written.

A split in each layout is damaged in its JSON (values, keys, bytes) and in its files, and evaluated
as the command line does, with a submission where a server takes one.
"""

from __future__ import annotations

import copy
import json
import os
import shutil
import sys
import zipfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from rvos_deploy.errors import RvosError
from rvos_deploy.evaluation.evaluate import evaluate
from rvos_deploy.evaluation.report import report
from rvos_deploy.rle import encode

Attempt = Callable[[str], AbstractContextManager[None]]

QUICK, MANY = 40, 1500
COMMON: dict[str, Any] = {
    "derandomize": True,
    "database": None,
    "deadline": None,
    "suppress_health_check": list(HealthCheck),
}
SIZE, FRAMES = (6, 8), ("00000", "00001")
SUBMITS = ("mevis", "ref-youtube-vos")
LONGEST = 1500
"""Characters of an error: paths of the test among them."""


# --- What is read ---------------------------------------------------------------------------------

_opened: list[str] | None = None


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if _opened is not None and event == "open" and isinstance(arguments[0], str):
        _opened.append(arguments[0])


@pytest.fixture(scope="session", autouse=True)
def _audit() -> None:
    sys.addaudithook(_hook)


@contextmanager
def opened() -> Iterator[list[str]]:
    """Names of the files that are opened meanwhile."""
    global _opened
    _opened = names = []
    try:
        yield names
    finally:
        _opened = None


# --- Whole data sets ------------------------------------------------------------------------------


def block(row: int, column: int) -> np.ndarray:
    mask = np.zeros(SIZE, np.uint8)
    mask[row : row + 2, column : column + 2] = 1
    return mask


@dataclass(frozen=True)
class Place:
    """A split in one layout, with predictions; both inside of ``inner``, canaries around it."""

    protocol: str
    inner: Path

    @property
    def predictions(self) -> Path:
        return self.inner / "predictions"

    @property
    def data(self) -> Path:
        return self.inner / "data" if self.protocol == "mevis" else self.inner / "data" / "valid"

    @property
    def meta(self) -> Path:
        if self.protocol == "mevis":
            return self.data / "meta_expressions.json"
        return self.inner / "data" / "meta_expressions" / "valid" / "meta_expressions.json"

    @property
    def jsons(self) -> list[Path]:
        return sorted(self.inner.rglob("*.json"))


def build(protocol: str, root: Path) -> Place:
    place = Place(protocol, root / "inner")
    videos: dict[str, Any] = {}
    for number, name in enumerate(("one", "two")):
        folder = place.data / "JPEGImages" / name
        folder.mkdir(parents=True)
        expressions: dict[str, Any] = {}
        for key in ("0", "1"):
            ids = {"obj_id": [int(key)], "anno_id": [2 * number + int(key)]}
            if protocol != "mevis":
                ids = {"obj_id": str(1 + int(key))}  # type: ignore[dict-item]
            expressions[key] = {"exp": f"square {key}", **ids}
            for frame in FRAMES:
                file = place.predictions / name / key / f"{frame}.png"
                file.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(block(0, 2 * int(key)) * 255).save(file)
        for frame in FRAMES:
            Image.new("RGB", SIZE[::-1], (90, 90, 90)).save(folder / f"{frame}.jpg")
            if protocol != "mevis":
                file = place.data / "Annotations" / name / f"{frame}.png"
                file.parent.mkdir(parents=True, exist_ok=True)
                image = Image.fromarray(block(0, 0) + 2 * block(3, 3))
                image.putpalette([value for i in range(256) for value in (i, i, 9)])
                image.save(file)
        videos[name] = {"frames": list(FRAMES), "expressions": expressions}
    place.meta.parent.mkdir(parents=True, exist_ok=True)
    place.meta.write_text(json.dumps({"videos": videos}))
    if protocol == "mevis":
        runs = {str(anno): [dict(encode(block(0, anno) > 0)), None] for anno in range(4)}
        (place.data / "mask_dict.json").write_text(json.dumps(runs))
    else:
        objects = {name: {"objects": {"1": {}, "2": {}}} for name in videos}
        (place.data / "meta.json").write_text(json.dumps({"videos": objects}))
    # What a name that leads outside could reach.
    for folder in (root, root / "JPEGImages", root / "x"):
        folder.mkdir(exist_ok=True)
        for suffix in ("jpg", "png"):
            for frame in (*FRAMES, "x"):
                Image.new("L", SIZE[::-1], 255).save(folder / f"{frame}.{suffix}")
    return place


@pytest.fixture
def make(tmp_path: Path) -> Callable[[str], Callable[[], Place]]:
    """A fresh copy of a data set at every call."""

    def of(protocol: str) -> Callable[[], Place]:
        build(protocol, tmp_path / "whole")

        def copied() -> Place:
            root = tmp_path / "copy"
            shutil.rmtree(root, ignore_errors=True)
            shutil.copytree(tmp_path / "whole", root)
            return Place(protocol, root / "inner")

        return copied

    return of


def files(root: Path) -> dict[str, bytes]:
    """All files outside of the split, by name."""
    return {
        str(path): path.read_bytes()
        for path in root.rglob("*")
        if path.is_file() and not path.is_relative_to(root / "inner")
    }


def hold(place: Place) -> str | None:
    """Evaluate: None for a score, else the error, which must be ours and one line."""
    before = files(place.inner.parent)
    said, code = None, 0
    submission = place.inner / "s.zip" if place.protocol in SUBMITS else None
    with opened() as names:
        try:
            found = evaluate(place.predictions, place.data, place.protocol, submission=submission)
            json.dumps(report(found, {})).encode()
        except RvosError as error:
            said, code = str(error), error.exit_code
    if said is not None:
        assert code == 2
        assert "\n" not in said
        assert len(said.encode()) < LONGEST, said
    outside = [
        name
        for name in names
        if name.endswith((".jpg", ".png", ".json"))
        and not Path(os.path.normpath(name)).is_relative_to(place.inner)
    ]
    assert not outside
    assert files(place.inner.parent) == before
    if submission is not None:
        assert submission.is_file() == (said is None)
        if said is None:
            for name in zipfile.ZipFile(submission).namelist():
                assert ".." not in name.split("/")
                assert not name.startswith("/")
    assert not list(place.inner.glob(".*"))
    return said


# --- Damage ---------------------------------------------------------------------------------------

OUTSIDE = ("../../x", "../x", "/etc/passwd", "..", ".", "", "a/b", "a\\b", "c:x", "x\x00", "x\n")
values = st.one_of(
    st.none(),
    st.booleans(),
    st.floats(allow_nan=True),
    st.integers(-2, 300),
    st.sampled_from([2**31, 2**63, 10**30, -1, "1" * 5000, "\ud800", "²", "é" * 300, "\x1b[2J"]),
    st.sampled_from(OUTSIDE),
    st.text(max_size=5),
    st.sampled_from([{}, [], [[]], [{}], {"a": {"b": []}}, [None], ["0"], {"0": {}}]),
    st.just({"size": list(SIZE), "counts": [0, 48]}),
    st.builds(lambda depth: _nested(depth), st.sampled_from([5, 300])),
)


def _nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


@st.composite
def edits(draw: Any) -> list[tuple[int, str, Any]]:
    """Which node of the tree, what becomes of it, and the new value or key."""
    kind = st.sampled_from(["set", "set", "set", "delete", "rename", "twice"])
    one = st.tuples(st.integers(0, 10**6), kind, values)
    return draw(st.lists(one, min_size=1, max_size=3))


def nodes(tree: Any) -> Iterator[tuple[Any, Any]]:
    """Containers and keys of every value below."""
    keys = tree.keys() if isinstance(tree, dict) else range(len(tree))
    for key in list(keys):
        yield tree, key
        if isinstance(tree[key], (dict, list)):
            yield from nodes(tree[key])


def apply(tree: Any, changes: list[tuple[int, str, Any]]) -> Any:
    for place, kind, value in changes:
        known = list(nodes(tree)) if isinstance(tree, (dict, list)) else []
        if not known:
            return value
        container, key = known[place % len(known)]
        if kind == "set":
            container[key] = copy.deepcopy(value)
        elif kind == "delete":
            del container[key]
        elif kind == "twice" and isinstance(container, list):
            container.append(copy.deepcopy(container[key]))
        elif kind == "rename" and isinstance(container, dict):
            container[str(value)] = container.pop(key)
    return tree


def run(body: Callable[..., None], examples: int, *strategies: Any) -> None:
    settings(max_examples=examples, **COMMON)(given(*strategies)(body))()


def damaged_trees(attempt: Attempt, whole: Callable[[], Place], examples: int) -> None:
    def body(which: int, changes: list[tuple[int, str, Any]]) -> None:
        place = whole()
        file = place.jsons[which % len(place.jsons)]
        file.write_text(json.dumps(apply(json.loads(file.read_text()), changes)))
        with attempt("damaged data sets"):
            hold(place)

    run(body, examples, st.integers(0, 5), edits())


def damaged_bytes(attempt: Attempt, whole: Callable[[], Place], examples: int) -> None:
    """Any file, images too: bytes changed, inserted, cut."""

    def body(which: int, at: int, inserted: bytes, removed: int, cut: bool) -> None:
        place = whole()
        known = sorted(path for path in place.inner.rglob("*") if path.is_file())
        file = known[which % len(known)]
        raw = file.read_bytes()
        at %= len(raw) + 1
        file.write_bytes(raw[:at] + inserted + (b"" if cut else raw[at + removed :]))
        with attempt("damaged data sets"):
            hold(place)

    numbers = st.integers(0, 10**6)
    run(body, examples, numbers, numbers, st.binary(max_size=4), st.integers(0, 4), st.booleans())


@pytest.mark.parametrize("protocol", ["mevis", "ref-youtube-vos", "ref-davis"])
def test_a_sample(attempt: Attempt, make: Callable, protocol: str) -> None:
    whole = make(protocol)
    assert hold(whole()) is None
    damaged_trees(attempt, whole, QUICK)
    damaged_bytes(attempt, whole, QUICK // 2)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("protocol", ["mevis", "ref-youtube-vos", "ref-davis"])
def test_many(attempt: Attempt, make: Callable, protocol: str) -> None:
    whole = make(protocol)
    damaged_trees(attempt, whole, MANY)
    damaged_bytes(attempt, whole, MANY)


# --- Each kind by itself --------------------------------------------------------------------------


def text_of(text: str | bytes) -> Callable[[Path], None]:
    return lambda file: file.write_bytes(text.encode() if isinstance(text, str) else text) and None


def nothing(file: Path) -> None:
    file.unlink()


def folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


def fifo(file: Path) -> None:
    file.unlink()
    os.mkfifo(file)


def loop(file: Path) -> None:
    file.unlink()
    file.symlink_to(file.name)


def sparse(file: Path) -> None:
    with file.open("wb") as stream:
        stream.truncate(2**43)  # 8 TiB


WHOLE_FILES = {
    "missing": nothing,
    "folder": folder,
    "fifo": fifo,
    "symlink loop": loop,
    "sparse 8 TiB": sparse,
    "empty": text_of(""),
    "binary": text_of(bytes(range(256))),
    "null": text_of("null"),
    "number": text_of("1e999"),
    "list": text_of("[]"),
    "no key": text_of("{}"),
    "null videos": text_of('{"videos": null}'),
    "list of videos": text_of('{"videos": ["one"]}'),
    "200,000 brackets": text_of("[" * 200_000),
    "200,000 objects": text_of('{"videos":' * 200_000),
    "brackets inside": text_of('{"videos": {"one": ' + "[" * 100_000),
    "huge number": text_of('{"videos": ' + "9" * 100_000 + "}"),
    "not a number": text_of('{"videos": NaN}'),
    "doubles": text_of('{"videos": {"one": {}, "one": {}}}'),
    "utf-16": text_of('{"videos": 3}'.encode("utf-16")),
}


@pytest.mark.parametrize("kind", list(WHOLE_FILES))
@pytest.mark.parametrize("protocol", ["mevis", "ref-davis"])
def test_the_list_of_expressions(
    attempt: Attempt, make: Callable, protocol: str, kind: str
) -> None:
    place = make(protocol)()
    WHOLE_FILES[kind](place.meta)
    with attempt("damaged data sets"):
        assert hold(place) is not None


@pytest.mark.parametrize("kind", [k for k in WHOLE_FILES if "video" not in k])
def test_the_masks(attempt: Attempt, make: Callable, kind: str) -> None:
    place = make("mevis")()
    WHOLE_FILES[kind](place.data / "mask_dict.json")
    with attempt("damaged data sets"):
        assert "mask_dict.json" in str(hold(place))


@pytest.mark.parametrize("name", OUTSIDE, ids=repr)
@pytest.mark.parametrize("protocol", ["mevis", "ref-youtube-vos"])
def test_names_that_lead_elsewhere(
    attempt: Attempt, make: Callable, protocol: str, name: str
) -> None:
    """As a video, a frame and an expression; files lie where they would lead."""
    whole = make(protocol)
    for kind in ("video", "frame", "expression"):
        place = whole()
        content = json.loads(place.meta.read_text())
        video = content["videos"]["one"]
        if kind == "video":
            content["videos"][name] = content["videos"].pop("one")
        elif kind == "frame":
            video["frames"][1] = name
        else:
            video["expressions"][name] = video["expressions"].pop("0")
        place.meta.write_text(json.dumps(content))
        with attempt("names that lead elsewhere"):
            assert "is not the name of a file or folder" in str(hold(place)), kind


def test_uncompressed_run_lengths_are_read(make: Callable) -> None:
    place = make("mevis")()
    file = place.data / "mask_dict.json"
    content = json.loads(file.read_text())
    for anno in content:
        flat = (block(0, int(anno)) > 0).ravel(order="F")
        edges = np.flatnonzero(np.diff(np.concatenate([[0], flat, [2]])))
        runs = np.diff(np.concatenate([[0], edges])).tolist()
        content[anno] = [{"size": list(SIZE), "counts": runs}, None]
    compressed = evaluate(place.predictions, place.data).scores
    file.write_text(json.dumps(content))
    assert evaluate(place.predictions, place.data).scores == compressed
    content["2"][0]["counts"] = [10**9, 48 - 10**9]
    file.write_text(json.dumps(content))
    assert hold(place) == (
        f"{file}: 2: video two, frame 00000: damaged mask of size 6x8: a run of 1000000000 pixels; "
        "download the file again"
    )


def test_the_command_says_one_line(rvos: Callable, make: Callable) -> None:
    place = make("mevis")()
    place.meta.write_text("[" * 200_000)
    result = rvos("evaluate", place.predictions, "--data", place.data, "--jobs", 1)
    assert result.code == 2
    assert "nested too deeply" in result.error
