"""Compute with masks as bits, 64 pixels per word, so that one NumPy operation covers a frame.

Bits beyond the last column are 0, unless a function's docstring says otherwise.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

WORD = 64
Words = NDArray[np.uint64]


def pack(masks: NDArray[Any]) -> Words:
    """Pack masks to bits: column x is bit x % 64 of word x // 64 of its row.

    ``masks``: bool or integer [..., H, W]; any non-zero value is foreground.
    Returns little-endian uint64 [..., H, ceil(W / 64)].
    """
    octets = np.packbits(masks, axis=-1, bitorder="little")
    words = -(-masks.shape[-1] // WORD)
    padded = np.zeros((*masks.shape[:-1], words * WORD // 8), np.uint8)
    padded[..., : octets.shape[-1]] = octets
    return padded.view("<u8")


def count(bits: Words) -> int:
    """Count the pixels that are set."""
    if hasattr(np, "bitwise_count"):
        return int(np.bitwise_count(bits).sum(dtype=np.int64))
    return _count_without_numpy_2(bits)


def _count_without_numpy_2(bits: Words) -> int:
    return int.from_bytes(bits.tobytes(), "little").bit_count()


def boundaries(bits: Words, width: int) -> Words:
    """Mark the pixels that differ from their right, lower or lower-right neighbour.

    This is the 1-pixel boundary map that DAVIS adopts from Martin's Berkeley benchmark: it lies
    half a pixel towards the origin. Pixels outside the image repeat the edge, so the image's border
    is not a boundary.

    ``bits``: words [..., H, N] of masks ``width`` pixels wide. Returns words of the same shape.
    """
    right: Words = bits >> np.uint64(1)
    right[..., :-1] |= bits[..., 1:] << (WORD - 1)
    changes = bits ^ right
    word, bit = divmod(width - 1, WORD)
    changes[..., word] &= np.uint64((1 << bit) - 1)  # the last column has no right neighbour

    marks: Words = changes.copy()
    marks[..., :-1, :] |= changes[..., 1:, :]
    marks[..., :-1, :] |= bits[..., :-1, :] ^ bits[..., 1:, :]
    return marks


def crop(bits: Words) -> Words:
    """Crop masks [K, H, N] to the rows and words with pixels; at least one pixel must be set."""
    either: Words = np.bitwise_or.reduce(bits, axis=0)
    rows = np.flatnonzero(either.any(axis=1))
    words = np.flatnonzero(either.any(axis=0))
    cropped: Words = bits[:, rows[0] : rows[-1] + 1, words[0] : words[-1] + 1]
    return cropped


def dilate(bits: Words, radius: int) -> Words:
    """Dilate each mask by the disk of offsets with dx^2 + dy^2 <= radius^2.

    A disk is a stack of horizontal runs, which grow from its poles to its equator. So one pass
    widens the masks step by step, and merges each width into the rows where the disk has it. The
    result is exact for any radius; the cost grows with the radius, not with its square.

    ``bits``: words [K, H, N]. Returns words of the same shape; bits beyond the last column may be
    set, so combine the result with a mask.
    """
    masks, height, words = bits.shape
    widest = min(radius, words * WORD)
    # Empty words end each row, so that bits that leave a row never reach the next one.
    spread = np.zeros((masks, height, words + -(-widest // WORD)), np.uint64)
    spread[..., :words] = bits
    dilated = np.zeros_like(spread)
    half_width = 0
    for offset in range(min(radius, height - 1), -1, -1):
        target = min(math.isqrt(radius * radius - offset * offset), widest)
        while half_width < target:
            # A longer step would need copies outside the image, which are not stored.
            step = min(target - half_width, half_width + 1, WORD - 1)
            spread = _widen(spread, step)
            half_width += step
        dilated[:, offset:] |= spread[:, : height - offset]
        dilated[:, : height - offset] |= spread[:, offset:]
    return dilated[..., :words]


def _widen(bits: Words, step: int) -> Words:
    """Merge the bits with copies that are shifted by ``step`` columns (1..63) to either side."""
    flat = bits.reshape(-1)
    near, far = np.uint64(step), np.uint64(WORD - step)
    wider = flat | (flat << near)
    wider |= flat >> near
    wider[1:] |= flat[:-1] >> far  # bits that leave a word enter its neighbour
    wider[:-1] |= flat[1:] << far
    shaped: Words = wider.reshape(bits.shape)
    return shaped
