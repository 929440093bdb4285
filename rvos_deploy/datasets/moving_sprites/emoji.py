"""Colour emoji with their plain names, from a font of the system. Nothing is ever downloaded."""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from rvos_deploy.errors import InputError

# Names that say what is drawn, and that no shape of shapes.py bears.
EMOJI: dict[str, str] = {
    "dog": "\U0001f436", "cat": "\U0001f431", "pig": "\U0001f437", "frog": "\U0001f438",
    "rabbit": "\U0001f430", "bear": "\U0001f43b", "panda": "\U0001f43c", "fox": "\U0001f98a",
    "monkey": "\U0001f435", "lion": "\U0001f981", "turtle": "\U0001f422", "fish": "\U0001f41f",
    "butterfly": "\U0001f98b", "ladybug": "\U0001f41e", "octopus": "\U0001f419",
    "crab": "\U0001f980", "penguin": "\U0001f427", "car": "\U0001f697", "bus": "\U0001f68c",
    "bicycle": "\U0001f6b2", "rocket": "\U0001f680", "sailboat": "\u26f5",
    "helicopter": "\U0001f681", "basketball": "\U0001f3c0", "apple": "\U0001f34e",
    "banana": "\U0001f34c", "strawberry": "\U0001f353", "pizza": "\U0001f355",
    "donut": "\U0001f369", "balloon": "\U0001f388", "tree": "\U0001f333",
    "umbrella": "\u2602\ufe0f", "robot": "\U0001f916", "ghost": "\U0001f47b",
    "mushroom": "\U0001f344", "clock": "\u23f0",
}  # fmt: skip

_FILE = "NotoColorEmoji.ttf"
_STRIKE = 109  # the only size of the font's bitmaps; any other is refused


@lru_cache(maxsize=1)
def find_font() -> Path | None:
    """Return the colour emoji font, or None: looked for where fontconfig looks."""
    home = Path.home()
    own = os.environ.get("XDG_DATA_HOME") or str(home / ".local/share")
    shared = os.environ.get("XDG_DATA_DIRS") or "/usr/local/share:/usr/share"
    roots = [Path(part) / "fonts" for part in f"{shared}:{own}".split(":") if part]
    roots += [
        home / ".fonts",
        Path("/Library/Fonts"),
        home / "Library/Fonts",
    ]
    for root in roots:
        found = sorted(root.rglob(_FILE)) if root.is_dir() else []
        for path in found:
            if _draws(path):
                return path
    return None


def require_font() -> Path:
    """Return the colour emoji font.

    Raises:
        InputError: no font that Pillow can draw is installed.
    """
    font = find_font()
    if font is None:
        raise InputError(
            f"emoji need the font {_FILE} with its bitmaps, which was not found; install it "
            "(Debian: apt-get install fonts-noto-color-emoji), or do without emoji (no --emoji; in "
            "a recipe, emoji = false)"
        )
    return font


def _draws(path: Path) -> bool:
    # Newer packages may hold a vector (COLRv1) font under the same name, which Pillow cannot draw.
    try:
        return bool(np.asarray(_glyph(path, EMOJI["dog"]))[..., 3].max() > 0)
    except OSError:
        return False


def _glyph(path: Path, text: str) -> Image.Image:
    font = ImageFont.truetype(str(path), _STRIKE)
    canvas = Image.new("RGBA", (160, 160), (0, 0, 0, 0))
    ImageDraw.Draw(canvas).text((10, 10), text, font=font, embedded_color=True)
    return canvas


@lru_cache(maxsize=64)
def _master(name: str) -> Image.Image:
    glyph = _glyph(require_font(), EMOJI[name])
    return glyph.crop(glyph.getbbox())


def paint_emoji(name: str, diameter: int) -> npt.NDArray[np.uint8]:
    """Paint an emoji, its longer side filling the square: uint8 [diameter, diameter, 4], straight
    alpha.

    Raises InputError as ``require_font``.
    """
    master = _master(name)
    scale = diameter / max(master.size)
    size = (max(1, round(master.width * scale)), max(1, round(master.height * scale)))
    small = master.resize(size, Image.Resampling.LANCZOS)
    square = Image.new("RGBA", (diameter, diameter), (0, 0, 0, 0))
    square.paste(small, ((diameter - size[0]) // 2, (diameter - size[1]) // 2))
    return np.asarray(square)
