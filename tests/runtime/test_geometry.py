"""Fitting frames into the network's input and masks back onto the frame."""

from __future__ import annotations

import numpy as np
import pytest

from rvos_deploy.errors import InputError
from rvos_deploy.graph_io.frame_geometry import (
    PADDING,
    letterbox,
    resize_frame,
    upsample_logits,
    upsample_mask,
)


@pytest.mark.parametrize(
    ("display", "content", "padded"),
    [
        ((480, 640), (256, 341), (256, 352)),
        ((640, 480), (341, 256), (352, 256)),
        ((256, 448), (256, 448), (256, 448)),
        ((1080, 1920), (252, 448), (256, 448)),
        ((1, 1), (256, 256), (256, 256)),
        ((1386, 3026), (205, 448), (224, 448)),
        ((3, 1000), (1, 448), (32, 448)),
    ],
)
def test_frames_are_fitted_and_padded(display, content, padded) -> None:  # type: ignore[no-untyped-def]
    geometry = letterbox(display, (256, 448))
    assert (geometry.content, geometry.padded) == (content, padded)
    assert geometry == letterbox(display, (448, 256)), "the box has no orientation of its own"


def test_an_impossible_frame_is_refused() -> None:
    with pytest.raises(InputError, match="0x5 pixels"):
        letterbox((5, 0), (256, 448))


def test_padding_lies_right_and_below_and_has_the_mean_colour() -> None:
    geometry = letterbox((90, 157), (96, 160))
    frame = resize_frame(np.full((90, 157, 3), 255, dtype=np.uint8), geometry)
    height, width = geometry.content
    assert frame.shape == (1, 96, 160, 3)
    assert (frame[0, :height, :width] == 255).all()
    assert (frame[0, height:] == PADDING).all()
    assert (frame[0, :, width:] == PADDING).all()


@pytest.mark.parametrize("display", [(90, 157), (480, 854), (33, 57), (41, 20)])
def test_masks_come_back_where_they_were(display: tuple[int, int]) -> None:
    """A logit map that is a plane has its zero line where bilinear resizing says, to a pixel."""
    geometry = letterbox(display, (96, 160))
    rows, columns = (side // 4 for side in geometry.padded)
    x = np.tile(np.arange(columns) + 0.5, (rows, 1))
    boundary = 0.6 * geometry.content[1] / 4
    mask = upsample_mask((x - boundary).astype(np.float32), geometry)
    assert mask.shape == display
    centres = (np.arange(display[1]) + 0.5) / display[1]
    assert (mask == (centres > 0.6)[None]).mean() >= 1 - 1 / display[1]


@pytest.mark.parametrize("display", [(90, 157), (480, 854), (33, 57), (41, 20), (96, 160)])
@pytest.mark.parametrize("level", [-9.0, -2.5, 0.0, 9.0])
def test_columns_that_are_left_out_are_background(display: tuple[int, int], level: float) -> None:
    """Only columns with a positive logit are upsampled; the mask is that of all, bit by bit."""
    random = np.random.default_rng(int(level * 10) + 100)
    geometry = letterbox(display, (96, 160))
    shape = tuple(side // 4 for side in geometry.padded)
    noise = random.standard_normal(shape).astype(np.float32)
    island = np.full(shape, -9.0, dtype=np.float32)
    island[shape[0] // 2, shape[1] // 2] = level + 9.1
    least = np.where(noise > -level, np.float32(1e-38), np.float32(-1e-38))
    broken = noise.copy()
    broken[::3, ::2], broken[1::3, 1::2] = np.nan, np.inf
    for logits in (noise + np.float32(level), island, least, broken, -broken):
        mask = upsample_mask(logits, geometry)
        assert mask.dtype == np.bool_
        assert np.array_equal(mask, upsample_logits(logits, geometry) > 0)


def test_the_padding_never_reaches_the_mask() -> None:
    geometry = letterbox((64, 64), (96, 160))
    assert geometry.padded == geometry.content
    geometry = letterbox((70, 100), (96, 160))
    logits = np.full((24, geometry.padded[1] // 4), -1.0, dtype=np.float32)
    logits[:, -1] = 5.0 if geometry.padded[1] - geometry.content[1] >= 8 else -1.0
    assert not upsample_mask(logits, geometry)[:, : -100 * 8 // geometry.content[1]].any()


def test_bilinear_resizing_equals_a_plain_float64_one() -> None:
    random = np.random.default_rng(0)
    geometry = letterbox((101, 143), (96, 160))
    logits = random.standard_normal((24, geometry.padded[1] // 4)).astype(np.float32)
    mask = upsample_mask(logits, geometry)
    wide = logits.astype(np.float64)

    def positions(count: int, content: int, size: int):  # type: ignore[no-untyped-def]
        place = (np.arange(count) + 0.5) * content / 4 / count - 0.5
        low = np.floor(place).astype(int)
        return np.clip(low, 0, size - 1), np.clip(low + 1, 0, size - 1), place - low

    top, bottom, down = positions(101, geometry.content[0], wide.shape[0])
    left, right, across = positions(143, geometry.content[1], wide.shape[1])
    upper = wide[top][:, left] * (1 - across) + wide[top][:, right] * across
    lower = wide[bottom][:, left] * (1 - across) + wide[bottom][:, right] * across
    plain = upper * (1 - down[:, None]) + lower * down[:, None]
    # Pillow keeps float32 between its passes: signs may differ where the value is zero to 1e-5.
    assert (mask == (plain > 0))[np.abs(plain) > 1e-5].all()
