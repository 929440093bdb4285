"""Run lengths survive round trips and equal those of pycocotools byte for byte."""

from __future__ import annotations

import numpy as np
import pytest

from rvos_deploy.errors import InputError
from rvos_deploy.rle import decode, encode


def awkward_masks() -> list[np.ndarray]:
    rng = np.random.Generator(np.random.PCG64(3))
    masks = [
        np.zeros((7, 5), bool),
        np.ones((7, 5), bool),
        np.ones((1, 1), bool),
        np.zeros((1, 1), bool),
        np.eye(9, 4, dtype=bool),
        np.ones((1, 300), bool),
        np.arange(300)[:, None] % 2 == 0,
        np.indices((40, 31)).sum(axis=0) % 2 == 0,
        np.zeros((1080, 1920), bool),
        np.ones((1080, 1920), bool),
    ]
    masks[8][-1, -1] = True
    for height, width in ((3, 200), (200, 3), (128, 224), (480, 854)):
        noise = rng.random((height, width))
        masks += [noise < share for share in (0.002, 0.5, 0.998)]
        masks.append(np.hypot(*(np.indices((height, width)) - 50)) < 40)
    return masks


@pytest.mark.parametrize("mask", awkward_masks(), ids=lambda m: f"{m.shape}-{int(m.sum())}")
def test_round_trip(mask: np.ndarray) -> None:
    assert np.array_equal(decode(encode(mask)), mask)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_equal_to_pycocotools_both_ways() -> None:
    theirs = pytest.importorskip("pycocotools.mask")
    for mask in awkward_masks():
        wanted = theirs.encode(np.asfortranarray(mask.astype(np.uint8)))
        rle = encode(mask)
        assert rle["size"] == wanted["size"]
        assert rle["counts"].encode() == wanted["counts"]
        assert np.array_equal(theirs.decode(wanted).astype(bool), decode(rle))
        assert np.array_equal(decode(wanted), mask)  # bytes, as pycocotools gives them


def test_a_list_of_runs() -> None:
    mask = decode({"size": [3, 2], "counts": [1, 3, 2]})
    assert np.array_equal(mask, [[False, True], [True, False], [True, False]])
    assert not decode({"size": [3, 2], "counts": [6]}).any()
    assert decode({"size": [3, 2], "counts": [0, 6]}).all()


@pytest.mark.parametrize(
    ("rle", "message"),
    [
        ({"size": [4, 4], "counts": "5"}, "fill 5 pixels"),
        ({"size": [4], "counts": "`0"}, "height, width"),
        ({"size": [4, 4], "counts": b"\xff0"}, "damaged"),
        ({"size": [4, 4], "counts": "`0;"}, "fill 27 pixels"),
        ({"size": [4, 4], "counts": "04O0"}, "a run of -"),
        ({"size": [4, 4], "counts": [20, -4]}, "a run of 20 pixels"),
        ({"size": [4, 4], "counts": [-4, 20]}, "a run of -4 pixels"),
        ({"size": [4, 4], "counts": [3, 4, 5]}, "fill 12 pixels"),
        ({"size": [4, 4], "counts": [8, True, 7]}, "whole numbers, found True"),
        ({"size": [4, 4], "counts": [8.0, 8]}, "whole numbers, found 8.0"),
        ({"size": [4, 4], "counts": []}, "fill 0 pixels"),
        ({"size": [4, 4], "counts": [0] * 40}, "40 runs for 16 pixels"),
        ({"size": [4, 4], "counts": None}, "a list of numbers, found None"),
        ({"size": [10**6, 10**6], "counts": "0"}, "exceeds the limit of 134217728"),
        ({"size": [10**400, 1], "counts": "0"}, "a huge numberx1 pixels exceeds"),
        ({"size": [4, "4"], "counts": "0"}, "height, width"),
        ({"size": None, "counts": "0"}, "height, width"),
        ({"size": [4, 4], "counts": ""}, "damaged"),
        ({"size": [4, 4], "counts": "P"}, "damaged"),
        ({"size": [4, 4], "counts": "\u00e9"}, "damaged"),
        ({"size": [4, 4], "counts": " "}, "damaged"),
        ({"size": [4, 4]}, "string"),
    ],
)
def test_damage_is_named(rle: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        decode(rle)
