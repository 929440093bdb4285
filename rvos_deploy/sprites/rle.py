"""COCO's compressed run lengths, in NumPy: the format of MeViS's mask_dict.json.

Runs of 0 and 1 alternate down the columns, starting with 0; from the fourth on, each is stored as
its difference to the run two before; numbers are written in base 32, five bits a character, low
bits first. Method: https://github.com/cocodataset/cocoapi/blob/master/common/maskApi.c
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypedDict

import numpy as np
import numpy.typing as npt

from rvos_deploy.errors import InputError


class Rle(TypedDict):
    """A mask as MeViS stores it: ``size`` is [height, width]."""

    size: list[int]
    counts: str


def _write_numbers(numbers: npt.NDArray[np.int64]) -> str:
    # At most seven characters hold 32 bits and a sign.
    shifts = 5 * np.arange(7)
    digits = (numbers[:, None] >> shifts) & 31
    rest = numbers[:, None] >> (shifts + 5)
    done = np.where(digits & 16, rest == -1, rest == 0)
    last = done.argmax(axis=1)
    places = np.arange(7)[None, :]
    characters = digits + 32 * (places < last[:, None]) + 48
    text: bytes = characters[places <= last[:, None]].astype(np.uint8).tobytes()
    return text.decode("ascii")


def _read_numbers(text: str) -> npt.NDArray[np.int64]:
    codes = np.frombuffer(text.encode("ascii"), np.uint8).astype(np.int64) - 48
    if codes.size == 0 or codes.min() < 0 or codes.max() > 63 or codes[-1] & 32:
        raise ValueError("not compressed run lengths")
    ends = np.flatnonzero((codes & 32) == 0)
    starts = np.concatenate([[0], ends[:-1] + 1])
    lengths = ends - starts + 1
    if lengths.max() > 7:
        raise ValueError("a number of more than 7 characters")
    places = np.arange(codes.size) - np.repeat(starts, lengths)
    numbers = np.add.reduceat((codes & 31) << (5 * places), starts)
    negative = (codes[ends] & 16) != 0
    return np.where(negative, numbers - (np.int64(1) << (5 * lengths)), numbers)


def encode(mask: npt.NDArray[np.bool_]) -> Rle:
    """Encode a mask, bool [H, W], byte for byte as pycocotools does."""
    height, width = mask.shape
    flat = np.asarray(mask, np.bool_).ravel(order="F")
    changes = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    edges = np.concatenate([[0], changes, [flat.size]])
    runs = np.diff(edges)
    if flat.size and flat[0]:
        runs = np.concatenate([[0], runs])
    numbers = runs.astype(np.int64)
    numbers[3:] -= runs[1:-2]
    return {"size": [height, width], "counts": _write_numbers(numbers)}


def decode(rle: Mapping[str, object]) -> npt.NDArray[np.bool_]:
    """Decode to a mask, bool [H, W]. Raises InputError where runs and size disagree."""
    size, counts = rle.get("size"), rle.get("counts")
    if not (
        isinstance(size, list) and len(size) == 2 and all(type(s) is int and s >= 0 for s in size)
    ):
        raise InputError(f"a mask's size must be [height, width], found {size!r}")
    if not isinstance(counts, str):
        raise InputError(f"a mask's counts must be a string, found {type(counts).__name__}")
    height, width = size
    try:
        runs = _read_numbers(counts)
    except ValueError as error:
        raise InputError(f"damaged mask of size {height}x{width}: {error}") from error
    # Each run from the fourth on adds to the run two before: sums over every other number.
    runs[1::2] = np.cumsum(runs[1::2])
    runs[2::2] = np.cumsum(runs[2::2])
    if runs.min() < 0 or int(runs.sum()) != height * width:
        raise InputError(
            f"damaged mask: its runs fill {int(runs.sum())} pixels, "
            f"its size {height}x{width} has {height * width}"
        )
    values = np.arange(runs.size) % 2 == 1
    return np.repeat(values, runs).reshape((height, width), order="F")
