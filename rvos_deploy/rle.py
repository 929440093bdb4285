"""Encode and decode masks as COCO run lengths in NumPy.

Runs of 0 and 1 alternate down the columns, starting with 0. The runs are a list of numbers, or a
compressed string. In a string, each run from the fourth on is stored as its difference to the run
two before, and each number is written in base 32, five bits per character, low bits first. Method:
https://github.com/cocodataset/cocoapi/blob/master/common/maskApi.c
"""

from __future__ import annotations

import reprlib
from collections.abc import Mapping, Sequence
from typing import TypedDict

import numpy as np
import numpy.typing as npt

from rvos_deploy.errors import InputError

MAX_PIXELS = 2**27
"""Pixels of the largest mask that is decoded, a frame of 16K video, which limits the memory."""


class Rle(TypedDict):
    """Hold a mask as MeViS stores it: ``size`` is [height, width]."""

    size: list[int]
    counts: str


def _write_numbers(numbers: npt.NDArray[np.int64]) -> str:
    # Seven characters hold 35 bits, enough for 32 bits and a sign.
    shifts = 5 * np.arange(7)
    digits = (numbers[:, None] >> shifts) & 31
    rest = numbers[:, None] >> (shifts + 5)
    done = np.where(digits & 16, rest == -1, rest == 0)
    last = done.argmax(axis=1)
    places = np.arange(7)[None, :]
    characters = digits + 32 * (places < last[:, None]) + 48
    text: bytes = characters[places <= last[:, None]].astype(np.uint8).tobytes()
    return text.decode("ascii")


def _read_numbers(text: str | bytes) -> npt.NDArray[np.int64]:
    if isinstance(text, str):
        if not text.isascii():
            raise ValueError("its counts hold a character that is not ASCII")
        text = text.encode("ascii")
    codes = np.frombuffer(text, np.uint8).astype(np.int64) - 48
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


def mask_size(rle: Mapping[str, object]) -> tuple[int, int]:
    """Return the stated height and width of a mask, before any memory is allocated.

    Raises:
        InputError: ``size`` is not [height, width], or has more than ``MAX_PIXELS`` pixels.
    """
    size = rle.get("size")
    if not (
        isinstance(size, (list, tuple))
        and len(size) == 2
        and all(type(side) is int and side >= 0 for side in size)
    ):
        raise InputError(f"a mask's size must be [height, width], found {_shown(size)}")
    height, width = size
    if height * width > MAX_PIXELS:
        raise InputError(
            f"a mask of {_shown(height)}x{_shown(width)} pixels exceeds the limit of {MAX_PIXELS} "
            "pixels"
        )
    return height, width


def decode(rle: Mapping[str, object]) -> npt.NDArray[np.bool_]:
    """Decode a mask to bool [H, W].

    ``counts`` is a compressed string (str or bytes) or a list of run lengths; COCO writes both.

    Raises:
        InputError: the runs are damaged, or do not add up to the size of the mask.
    """
    height, width = mask_size(rle)
    pixels, counts = height * width, rle.get("counts")
    try:
        if isinstance(counts, (str, bytes)):
            runs = _decompress(counts, pixels)
        elif isinstance(counts, (list, tuple)):
            runs = _listed_runs(counts, pixels)
        else:
            raise ValueError(
                f"its counts must be a string or a list of numbers, found {_shown(counts)}"
            )
    except ValueError as error:
        raise InputError(f"damaged mask of size {height}x{width}: {error}") from error
    if int(runs.sum()) != pixels:
        raise InputError(
            f"damaged mask: its runs fill {int(runs.sum())} pixels, "
            f"its size {height}x{width} has {pixels}"
        )
    values = np.arange(runs.size) % 2 == 1
    return np.repeat(values, runs).reshape((height, width), order="F")


def _decompress(counts: str | bytes, pixels: int) -> npt.NDArray[np.int64]:
    runs = _read_numbers(counts)
    _check_count(runs.size, pixels)
    # Each run from the fourth on is a difference to the run two before: sum every other number.
    runs[1::2] = np.cumsum(runs[1::2])
    runs[2::2] = np.cumsum(runs[2::2])
    for run in (int(runs.min()), int(runs.max())):
        _check_run(run, pixels)
    return runs


def _listed_runs(counts: Sequence[object], pixels: int) -> npt.NDArray[np.int64]:
    _check_count(len(counts), pixels)
    for run in counts:
        if type(run) is not int:
            raise ValueError(f"its counts must be whole numbers, found {_shown(run)}")
        _check_run(run, pixels)
    return np.array(counts, np.int64)


def _check_count(count: int, pixels: int) -> None:
    # A few empty runs are harmless, but very many would overflow the sums.
    if count > 2 * pixels + 2:
        raise ValueError(f"{count} runs for {pixels} pixels")


def _check_run(run: int, pixels: int) -> None:
    if not 0 <= run <= pixels:
        raise ValueError(f"a run of {_shown(run)} pixels")


def _shown(value: object) -> str:
    """Return the representation of a value, shortened to a few characters."""
    if isinstance(value, int) and abs(value) > 10**15:
        return "a huge number"
    return reprlib.repr(value)
