"""A split whose scores can be worked out by hand, and masks for it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from rvos_deploy.rle import encode

Mask = NDArray[np.bool_]
SIZE = (32, 48)


def box(top: int, left: int, height: int = 8, width: int = 8) -> Mask:
    mask = np.zeros(SIZE, bool)
    mask[top : top + height, left : left + width] = True
    return mask


def write_mask(path: Path, mask: Mask, value: int = 255) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(mask.astype(np.uint8) * value).save(path)


@pytest.fixture
def make_box() -> Callable[..., Mask]:
    return box


@pytest.fixture
def save_mask() -> Callable[..., None]:
    return write_mask


def write_split(
    root: Path,
    videos: Mapping[str, Mapping[str, tuple[str | None, list[int]]]],
    masks: Mapping[int, list[Mask | None]],
    frames: int,
) -> Path:
    """videos: by name, then by expression id: its kind and its anno_ids."""
    listed: dict[str, Any] = {}
    names = [f"{t:05d}" for t in range(frames)]
    for name, expressions in videos.items():
        folder = root / "JPEGImages" / name
        folder.mkdir(parents=True)
        for frame in names:
            image = np.random.default_rng(int(frame)).integers(0, 255, (*SIZE, 3), np.uint8)
            Image.fromarray(image).save(folder / f"{frame}.jpg")
        entries: dict[str, Any] = {}
        for key, (kind, annos) in expressions.items():
            entries[key] = {"exp": f"{name} {key}", "obj_id": annos, "anno_id": annos}
            if kind is not None:
                entries[key]["kind"] = kind
        listed[name] = {"vid_id": 0, "frames": names, "expressions": entries}
    (root / "meta_expressions_v2.json").write_text(json.dumps({"videos": listed}))
    runs = {
        str(anno): [None if m is None else encode(m) for m in rows] for anno, rows in masks.items()
    }
    (root / "mask_dict.json").write_text(json.dumps(runs))
    return root


@pytest.fixture
def split(tmp_path: Path) -> Path:
    """Two videos of four frames: four expressions with a target, two without."""
    videos: dict[str, dict[str, tuple[str | None, list[int]]]] = {
        "one": {"0": ("motion", [1]), "1": ("plural", [1, 2]), "2": ("no_target", [])},
        "two": {"0": ("motion", [3]), "5": ("no_target", []), "7": ("motion", [3])},
    }
    masks: dict[int, list[Mask | None]] = {
        1: [box(4, 4)] * 4,
        2: [box(20, 20)] * 4,
        3: [box(4, 4), None, None, box(4, 4)],
    }
    return write_split(tmp_path / "split", videos, masks, 4)


@pytest.fixture
def predictions(tmp_path: Path) -> Path:
    """See test_the_numbers for what each of them scores."""
    root = tmp_path / "predictions"
    empty = np.zeros(SIZE, bool)
    said: dict[str, list[Mask | None]] = {
        "one/0": [box(4, 4), box(4, 4), box(22, 38), None],
        "one/1": [box(4, 4), box(20, 20), box(4, 4) | box(20, 20), empty],
        "one/2": [empty, empty, ~empty, empty],
        "two/0": [box(4, 4), empty, empty, box(4, 4)],
        "two/5": [empty] * 4,
        "two/7": [empty] * 4,
    }
    for name, line in said.items():
        for t, mask in enumerate(line):
            if mask is not None:
                write_mask(root / name / f"{t:05d}.png", mask)
    return root


@pytest.fixture
def ref_davis(tmp_path: Path) -> Path:
    """Two frames, objects 1 to 3, of which two annotators describe the first two."""
    root = tmp_path / "ref-davis"
    names = ("00000", "00001")
    for name in names:
        image = root / "valid" / "JPEGImages" / "car" / f"{name}.jpg"
        image.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", SIZE[::-1], (90, 90, 90)).save(image)
        indices = box(2, 2) * 1 + box(2, 20) * 2 + (box(20, 30) * 3 if name == "00000" else 0)
        png = Image.fromarray(indices.astype(np.uint8), "L")
        png.putpalette([value for i in range(256) for value in (i, i, 255 - i)])
        path = root / "valid" / "Annotations" / "car" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        png.save(path)
    texts = {str(k): {"exp": f"text {k}", "obj_id": str(1 + k // 2)} for k in range(4)}
    meta = root / "meta_expressions" / "valid" / "meta_expressions.json"
    meta.parent.mkdir(parents=True)
    meta.write_text(json.dumps({"videos": {"car": {"expressions": texts, "frames": names}}}))
    return root / "valid"
