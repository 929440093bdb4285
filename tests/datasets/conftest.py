"""Fixtures: small data sets in the published layouts."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from rvos_deploy.rle import encode

SIZE = (6, 8)
FRAMES = ("00000", "00002", "00001")  # unsorted; the masks are in this order


def block(top: int, left: int) -> np.ndarray:
    """Return a mask of a block of two by two pixels."""
    mask = np.zeros(SIZE, bool)
    mask[top : top + 2, left : left + 2] = True
    return mask


def write_frames(folder: Path, names: tuple[str, ...], size: tuple[int, int] = SIZE) -> None:
    folder.mkdir(parents=True)
    for name in names:
        Image.fromarray(np.full((*size, 3), int(name) * 40, np.uint8)).save(folder / f"{name}.jpg")


@pytest.fixture
def edit() -> Callable[[Path, Callable[[Any], None]], None]:
    """Return a function that changes a JSON file."""

    def change(path: Path, how: Callable[[Any], None]) -> None:
        content = json.loads(path.read_text())
        how(content)
        path.write_text(json.dumps(content))

    return change


@pytest.fixture
def mevis(tmp_path: Path) -> Path:
    """Write one video of three frames: 7 moves right, 8 stays, 9 is in one frame."""
    root = tmp_path / "mevis" / "valid_u"
    write_frames(root / "JPEGImages" / "abc", FRAMES)
    runs = {
        # In the order of FRAMES: time 0, 2, 1.
        "7": [encode(block(0, 2 * t)) for t in (0, 2, 1)],
        "8": [encode(block(4, 0))] * 3,
        "9": [None, encode(block(2, 6)), None],
    }
    (root / "mask_dict.json").write_text(json.dumps(runs))
    expressions = {
        "0": {"exp": "moves right", "obj_id": [0], "anno_id": [7]},
        "1": {"exp": "all but one", "obj_id": [0, 2], "anno_id": [7, 9]},
        "2": {"exp": "nothing", "obj_id": [], "anno_id": []},
    }
    objects = [{"obj_id": k, "anno_id": 7 + k, "name": "square"} for k in range(3)]
    video = {
        "vid_id": 0,
        "frames": list(FRAMES),
        "expressions": expressions,
        "objects": objects,
    }
    (root / "meta_expressions.json").write_text(json.dumps({"videos": {"abc": video}}))
    return root


@pytest.fixture
def ref_youtube_vos(tmp_path: Path) -> Path:
    """Write one train video with objects 1 and 2, and two valid videos, one of them from test."""
    root = tmp_path / "ref-youtube-vos"
    frames = ("00000", "00005")
    for split, videos in (("train", ("t1",)), ("valid", ("v1", "v2"))):
        listed = {}
        for name in videos:
            write_frames(root / split / "JPEGImages" / name, frames)
            expressions: dict[str, Any] = {"0": {"exp": "a dog"}, "1": {"exp": "a cat"}}
            if split == "train":
                expressions["0"]["obj_id"], expressions["1"]["obj_id"] = "2", "1"
            listed[name] = {"expressions": expressions, "frames": list(frames)}
        meta = root / "meta_expressions" / split / "meta_expressions.json"
        meta.parent.mkdir(parents=True)
        meta.write_text(json.dumps({"videos": listed}))
    test = root / "meta_expressions" / "test" / "meta_expressions.json"
    test.parent.mkdir(parents=True)
    test.write_text(json.dumps({"videos": {"v2": {"expressions": {}, "frames": []}}}))
    annotations = root / "train" / "Annotations" / "t1"
    annotations.mkdir(parents=True)
    for step, name in enumerate(frames):
        indices = (block(0, step) * 1 + block(4, 4) * 2 + block(2, 6) * 3).astype(np.uint8)
        indices[0, 7] = 255
        image = Image.fromarray(indices, "L")
        image.putpalette([value for i in range(256) for value in (i, 255 - i, 40)])
        assert image.mode == "P"
        image.save(annotations / f"{name}.png")
    return root
