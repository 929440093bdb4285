from __future__ import annotations

import numpy as np
import pytest
from PIL import ImageFont

from rvos_deploy.errors import InputError
from rvos_deploy.video import draw_overlay
from rvos_deploy.video.drawing.legend import shorten
from rvos_deploy.video.drawing.palette import colour_of

H, W = 240, 320


def grey(level: int = 128) -> np.ndarray:
    return np.full((H, W, 3), level, np.uint8)


def one_mask(box: tuple[slice, slice] = (slice(150, 200), slice(100, 180))) -> np.ndarray:
    mask = np.zeros((1, H, W), bool)
    mask[0][box] = True
    return mask


def test_a_mask_is_tinted_and_outlined_in_its_colour_and_nothing_else_changes() -> None:
    image, mask = grey(), one_mask()
    drawn = draw_overlay(image, mask, ["it"])
    assert drawn.dtype == np.uint8
    assert np.array_equal(image, grey())
    assert np.array_equal(drawn[150, 120], colour_of(0))
    assert np.array_equal(drawn[199, 179], colour_of(0))
    inside = drawn[175, 140].astype(int)
    assert np.abs(inside - (144 * 128 + 112 * np.array(colour_of(0))) / 256).max() <= 1
    assert drawn[149, 120].max() < 64
    assert np.array_equal(drawn[147, 120], [128, 128, 128])
    assert np.array_equal(drawn[220:], image[220:])


def test_a_mask_at_the_border_of_the_picture_has_no_line_there() -> None:
    drawn = draw_overlay(grey(), one_mask((slice(150, H), slice(0, W))), ["it"])
    assert not np.array_equal(drawn[H - 1, 5], colour_of(0))
    assert np.array_equal(drawn[150, 5], colour_of(0))


@pytest.mark.parametrize("level", [0, 128, 255])
def test_the_legend_can_be_read_on_any_frame(level: int) -> None:
    drawn = draw_overlay(grey(level), one_mask(), ["HHHHHH"])
    panel = drawn[8:24, 10:100].astype(int).sum(axis=2)
    backdrop, text = np.median(panel) / 3, panel.max() / 3
    assert text > 225
    assert backdrop < 110


def test_an_empty_mask_dims_its_legend() -> None:
    masks = np.concatenate([one_mask(), np.zeros((1, H, W), bool)])
    drawn = draw_overlay(grey(), masks, ["HHHHHH", "HHHHHH"]).astype(int).sum(axis=2)
    row = 18
    first, second = drawn[6 : 6 + row, 30:90], drawn[6 + row : 6 + 2 * row, 30:90]
    assert second.max() < first.max() - 150


def test_scores_are_shown_and_change_while_the_rest_is_kept() -> None:
    low = draw_overlay(grey(), one_mask(), ["it"], [0.11])
    high = draw_overlay(grey(), one_mask(), ["it"], [0.88])
    changed = np.flatnonzero((low != high).any(axis=(0, 2)))
    assert changed.size > 0
    assert np.ptp(changed) < 40
    assert not np.array_equal(low, draw_overlay(grey(), one_mask(), ["it"]))


def test_long_text_is_shortened_with_an_ellipsis() -> None:
    font = ImageFont.load_default(14)
    assert isinstance(font, ImageFont.FreeTypeFont)
    text = "the brown dog that runs to the left " * 20
    short = shorten(text, font, 150)
    assert short.endswith("…")
    assert text.startswith(short[:-1])
    assert 120 < font.getlength(short) <= 150
    assert shorten("a\n b\t\x00c", font, 150) == "a b c"


STRANGE = ["狗在跑", "הכלב", "собака", "🐕 dog", "\ud800 lone", "", " ", "x" * 10_000, "\x00\x07"]


@pytest.mark.parametrize("label", STRANGE)
def test_any_text_can_be_drawn(label: str) -> None:
    drawn = draw_overlay(grey(), one_mask(), [label], [float("nan")])
    assert drawn.shape == (H, W, 3)


@pytest.mark.parametrize(
    ("height", "width"), [(1, 1), (2, 3), (16, 16), (33, 2000), (2000, 33), (97, 131)]
)
def test_any_size_can_be_drawn(height: int, width: int) -> None:
    image = np.zeros((height, width, 3), np.uint8)
    masks = np.ones((3, height, width), bool)
    assert draw_overlay(image, masks, ["a", "b" * 99, "c"], [0, 1, 0.5]).shape == image.shape


def test_many_expressions_leave_most_of_the_picture_free() -> None:
    masks = np.zeros((60, H, W), bool)
    drawn = draw_overlay(grey(), masks, [f"number {i}" for i in range(60)], [0.5] * 60)
    assert np.array_equal(drawn[H // 2 :], grey()[H // 2 :])


def test_no_expression_changes_nothing() -> None:
    assert np.array_equal(draw_overlay(grey(), np.zeros((0, H, W), bool), []), grey())


def test_colours_are_distinct() -> None:
    assert len({colour_of(i) for i in range(40)}) == 40


def test_shapes_that_do_not_agree_are_told() -> None:
    for masks, labels, scores in (
        (one_mask(), ["a", "b"], None),
        (one_mask()[:, 1:], ["a"], None),
        (one_mask().astype(np.uint8), ["a"], None),
        (one_mask(), ["a"], [0.1, 0.2]),
    ):
        with pytest.raises(InputError):
            draw_overlay(grey(), masks, labels, scores)  # type: ignore[arg-type]
