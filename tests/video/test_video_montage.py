"""Strips: moments side by side, found tinted, truth outlined."""

from __future__ import annotations

import numpy as np

from rvos_deploy.video import draw_montage

BAR = 32


def test_found_is_tinted_and_truth_outlined() -> None:
    images = [np.full((64, 96, 3), 10 * t, np.uint8) for t in range(9)]
    masks, truth = np.zeros((2, 9, 2, 64, 96), np.bool_)
    masks[:, 0, 20:40, 20:40] = True
    truth[:, 0, 20:40, 24:44] = True
    truth[4, 1, 0:10, 0:10] = True
    drawn = draw_montage(images, masks, truth, ["one", "two"])
    assert drawn.shape == (2 * (64 + BAR), 5 * 96, 3)
    for place, t in enumerate((0, 2, 4, 6, 8)):
        tile = drawn[BAR : BAR + 64, 96 * place : 96 * (place + 1)]
        assert (tile[50:60, 60:90] == 10 * t).all()
        assert (tile[20, 24:44] == 255).all()
        assert (tile[20:40, 43] == 255).all()
        assert not (tile[28:32, 30:36] == 255).all(axis=-1).any()
        assert (tile[30, 30] != 10 * t).any()
    other = drawn[BAR + 64 + BAR :, 2 * 96 : 3 * 96]
    # At the border of the frame too.
    assert (other[0, :10] == 255).all()
    assert (other[3:7, 3:7] == 40).all()


def test_few_frames_are_shown_once() -> None:
    images = [np.zeros((64, 96, 3), np.uint8)] * 2
    none = np.zeros((2, 1, 64, 96), np.bool_)
    assert draw_montage(images, none, none, ["one"]).shape == (64 + BAR, 2 * 96, 3)
