"""The bit-level steps, each against one line of plain NumPy or SciPy."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage

from rvos_deploy.evaluation import packed


def unpack(bits: packed.Words, width: int) -> NDArray[np.bool_]:
    octets = np.ascontiguousarray(bits).view(np.uint8)
    return np.unpackbits(octets, axis=-1, bitorder="little")[..., :width].astype(bool)


def random_masks(width: int, *, density: float = 0.4) -> NDArray[np.bool_]:
    return np.random.default_rng(width).random((2, 13, width)) < density


@pytest.mark.parametrize("width", [1, 8, 63, 64, 65, 200])
def test_pack_keeps_every_pixel_and_sets_no_other(width: int) -> None:
    masks = random_masks(width)
    bits = packed.pack(masks)
    assert bits.shape == (2, 13, -(-width // 64))
    assert np.array_equal(unpack(bits, width), masks)
    assert packed.count(bits) == masks.sum()


def test_count_without_numpy_2() -> None:
    bits = packed.pack(random_masks(200))[:, 2:9]
    assert packed._count_without_numpy_2(bits) == packed.count(bits) > 0


@pytest.mark.parametrize("width", [1, 63, 64, 65, 200])
def test_boundaries_leave_no_bit_beyond_the_last_column(width: int) -> None:
    marks = packed.boundaries(packed.pack(random_masks(width)), width)
    assert packed.count(marks) == unpack(marks, width).sum()


def test_crop_keeps_the_pixels_of_both_masks() -> None:
    masks = np.zeros((2, 20, 300), bool)
    masks[0, 5, 70] = masks[1, 9, 130] = True
    cropped = packed.crop(packed.pack(masks))
    assert cropped.shape == (2, 5, 2)
    assert packed.count(cropped) == 2


@pytest.mark.parametrize("width", [20, 64, 130])
@pytest.mark.parametrize("radius", [0, 1, 2, 3, 8, 17, 66])
def test_dilate_equals_a_structuring_element(width: int, radius: int) -> None:
    masks = random_masks(width, density=0.005)
    # What leaves a row at its ends must not enter the next one, nor be missed where none is next.
    masks[0, [0, 6, -1], 0] = masks[1, [0, 6, -1], -1] = True
    span = np.arange(-radius, radius + 1)
    disk = span[:, None] ** 2 + span[None, :] ** 2 <= radius * radius
    dilated = unpack(packed.dilate(packed.pack(masks), radius), width)
    for ours, mask in zip(dilated, masks, strict=True):
        assert np.array_equal(ours, ndimage.binary_dilation(mask, disk))
