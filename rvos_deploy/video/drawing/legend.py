"""Draw the legend: which colour belongs to which expression."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image as Pillow
from PIL import ImageDraw, ImageFont

from rvos_deploy.video.drawing.palette import colour_of
from rvos_deploy.video.frames import Image

_BACKDROP = (16, 16, 16, 168)
_TEXT = (255, 255, 255, 255)
_DIMMED = (190, 190, 190, 150)
_WIDEST_SCORE = "0.00"
_LONGEST_LABEL = 300  # characters; no legend is wider


class _Layout(NamedTuple):
    """Hold sizes in pixels."""

    font: int
    row: int
    pad: int
    chip: int
    width: int
    rows: int


class _Panel(NamedTuple):
    """Hold a drawing that is ready to be blended: ``colour`` is multiplied by its alpha."""

    colour: NDArray[np.uint16]  # [h, w, 3]
    clear: NDArray[np.uint16]  # [h, w, 1], 256 minus the alpha


def draw_legend(
    image: Image,
    labels: Sequence[str],
    present: Sequence[bool],
    scores: Sequence[float] | None,
    numbers: Sequence[int],
) -> None:
    """Draw the legend into ``image``, uint8 [H, W, 3], in place; skip images that are too small.

    Expressions that are not ``present`` are dimmed; ``numbers`` choose the colours. Everything but
    the scores is drawn once and cached.
    """
    layout = _layout(image.shape[0], image.shape[1], len(labels))
    if layout is None or not labels:
        return
    shown = layout.rows if len(labels) <= layout.rows else layout.rows - 1
    panel = _panel(
        tuple(labels), tuple(present[:shown]), scores is not None, tuple(numbers[:shown]), layout
    )
    _blend(image, panel, layout.pad, layout.pad)
    for row in range(shown if scores is not None else 0):
        tile = _score(f"{scores[row]:.2f}", present[row], layout)  # type: ignore[index]
        right = layout.pad + panel.clear.shape[1] - layout.pad
        top = layout.pad + layout.pad // 2 + row * layout.row
        _blend(image, tile, top, right - tile.clear.shape[1])


def _layout(height: int, width: int, labels: int) -> _Layout | None:
    font = min(48, max(12, round(min(height, width) / 30)))
    row, pad = round(font * 1.5), max(3, font // 2)
    # At most two fifths of the picture: a legend must not hide the objects that it explains.
    rows = min(labels, (2 * height // 5 - 2 * pad) // row)
    # A long expression may be cut, but on a narrow picture nothing would remain of it.
    available = min(width - 2 * pad, max(round(0.7 * width), 30 * font))
    if rows < 1 or available < 8 * font:
        return None
    return _Layout(font, row, pad, chip=round(font * 0.85), width=available, rows=rows)


@lru_cache(maxsize=64)
def _panel(
    labels: tuple[str, ...],
    present: tuple[bool, ...],
    scored: bool,
    numbers: tuple[int, ...],
    layout: _Layout,
) -> _Panel:
    font = _font(layout.font)
    left = 2 * layout.pad + layout.chip
    right = layout.pad + (round(font.getlength(_WIDEST_SCORE)) + layout.pad if scored else 0)
    texts = [shorten(label, font, layout.width - left - right) for label in labels[: len(present)]]
    if len(present) < len(labels):
        texts.append(f"and {len(labels) - len(present)} more")
    width = left + round(max(font.getlength(text) for text in texts)) + right
    height = layout.row * len(texts) + 2 * (layout.pad // 2)
    canvas = Pillow.new("RGBA", (width, height))
    draw = ImageDraw.Draw(canvas)
    draw.rounded_rectangle((0, 0, width - 1, height - 1), layout.pad, fill=_BACKDROP)
    for row, text in enumerate(texts):
        top = layout.pad // 2 + row * layout.row
        here = row < len(present) and present[row]
        middle = top + layout.row // 2
        draw.text((left, middle), text, fill=_TEXT if here else _DIMMED, font=font, anchor="lm")
        if row < len(present):
            _draw_chip(draw, layout, middle, (*colour_of(numbers[row]), 255), filled=here)
    return _ready(canvas)


def _draw_chip(
    draw: ImageDraw.ImageDraw,
    layout: _Layout,
    middle: int,
    colour: tuple[int, int, int, int],
    *,
    filled: bool,
) -> None:
    top = middle - layout.chip // 2
    box = (layout.pad, top, layout.pad + layout.chip - 1, top + layout.chip - 1)
    line = max(1, layout.font // 10)
    draw.rectangle(box, fill=colour if filled else None, outline=colour, width=line)


@lru_cache(maxsize=512)
def _score(text: str, present: bool, layout: _Layout) -> _Panel:
    font = _font(layout.font)
    canvas = Pillow.new("RGBA", (max(1, round(font.getlength(text))), layout.row))
    fill = _TEXT if present else _DIMMED
    draw = ImageDraw.Draw(canvas)
    draw.text((0, layout.row // 2), text, fill=fill, font=font, anchor="lm")
    return _ready(canvas)


def _ready(canvas: Pillow.Image) -> _Panel:
    pixels = np.asarray(canvas).astype(np.uint16)
    alpha = pixels[..., 3:] + (pixels[..., 3:] >> 7)  # 0..255 to 0..256: avoids a division
    return _Panel(pixels[..., :3] * alpha, 256 - alpha)


def _blend(image: Image, panel: _Panel, top: int, left: int) -> None:
    height, width = panel.clear.shape[:2]
    under = image[top : top + height, left : left + width]
    blended = under * panel.clear
    blended += panel.colour
    blended >>= 8
    under[...] = blended


@lru_cache(maxsize=16)
def _font(size: int) -> ImageFont.FreeTypeFont:
    font = ImageFont.load_default(size)
    assert isinstance(font, ImageFont.FreeTypeFont), "Pillow was built without FreeType"
    return font


def shorten(text: str, font: ImageFont.FreeTypeFont, available: float) -> str:
    """Return ``text`` on one line, cut by an ellipsis if it is wider than ``available`` pixels.

    Characters that the font lacks become boxes; characters that cannot be drawn are dropped.
    """
    text = text.encode("utf-8", "ignore").decode()  # lone surrogates are not characters
    text = "".join(c for c in " ".join(text.split()) if c.isprintable())
    if len(text) <= _LONGEST_LABEL and font.getlength(text) <= available:
        return text
    low, high = 0, min(len(text), _LONGEST_LABEL)
    while low < high:
        middle = (low + high + 1) // 2
        fits = font.getlength(text[:middle].rstrip() + "…") <= available
        low, high = (middle, high) if fits else (low, middle - 1)
    return text[:low].rstrip() + "…"
