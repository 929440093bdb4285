"""Fixtures that simulate machines with and without the colour emoji font.

The font that this module writes maps every emoji of the package to one picture, which is enough to
find, draw and record the font.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator

import pytest
from PIL import Image, ImageDraw

from rvos_deploy.datasets.moving_sprites import looks
from rvos_deploy.datasets.moving_sprites.render import paint_sprite

PIXELS = 109


def _picture() -> bytes:
    image = Image.new("RGBA", (PIXELS, PIXELS), (0, 0, 0, 0))
    ImageDraw.Draw(image).ellipse((4, 4, PIXELS - 5, PIXELS - 5), fill=(240, 180, 20, 255))
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def _bitmaps() -> tuple[bytes, bytes]:
    """Return the tables CBLC and CBDT: glyph 1 as a PNG (image format 17), index format 1."""
    png = _picture()
    glyph = struct.pack(">BBbbB", PIXELS, PIXELS, 0, PIXELS, PIXELS)
    glyph += struct.pack(">I", len(png)) + png
    index = struct.pack(">HHI", 1, 1, 8)  # glyphs 1..1; their subtable follows
    index += struct.pack(">HHI2I", 1, 17, 4, 0, len(glyph))
    line = struct.pack(">bbBbbbbbbbbb", PIXELS, 0, PIXELS, *[0] * 9)
    size = struct.pack(">IIII", 56, len(index), 1, 0) + line + line
    size += struct.pack(">HHBBBb", 1, 1, PIXELS, PIXELS, 32, 1)
    version = struct.pack(">HH", 3, 0)
    return version + struct.pack(">I", 1) + size + index, version + glyph


def _characters() -> bytes:
    """Return the table cmap, format 12, which maps every character of the emoji to glyph 1."""
    codes = sorted({ord(character) for text in looks.EMOJI.values() for character in text})
    groups = b"".join(struct.pack(">III", code, code, 1) for code in codes)
    body = struct.pack(">HHIII", 12, 0, 16 + len(groups), 0, len(codes)) + groups
    return struct.pack(">HHHHI", 0, 1, 3, 10, 12) + body


def font_bytes() -> bytes:
    """Return an OpenType font with colour bitmaps of 109 pixels and no outlines."""
    cblc, cbdt = _bitmaps()
    head = struct.pack(
        ">IIIIHHQQhhhhHHhhh",
        0x10000,
        0,
        0,
        0x5F0F3CF5,
        0,
        1024,
        0,
        0,
        0,
        0,
        1024,
        1024,
        0,
        8,
        2,
        0,
        0,
    )
    tables = {
        b"CBDT": cbdt,
        b"CBLC": cblc,
        b"cmap": _characters(),
        b"head": head,
        b"hhea": struct.pack(">IhhhHhhhhhhhhhhhH", 0x10000, 1024, 0, 0, 1024, *[0] * 11, 2),
        b"hmtx": struct.pack(">HhHh", 1024, 0, 1024, 0),
        b"maxp": struct.pack(">IH", 0x5000, 2),
    }
    start = 12 + 16 * len(tables)
    entries, data = b"", b""
    for tag, table in tables.items():
        entries += tag + struct.pack(">III", zlib.crc32(table), start + len(data), len(table))
        data += table + bytes(-len(table) % 4)
    return struct.pack(">IHHHH", 0x10000, len(tables), 64, 2, 48) + entries + data


def _forget() -> None:
    looks.find_font.cache_clear()
    looks._cropped_glyph.cache_clear()
    paint_sprite.cache_clear()


@pytest.fixture
def no_emoji_font(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Hide the font here, and in a process that gets the returned variables."""
    empty = str(tmp_path_factory.mktemp("no-fonts"))
    yield from _places({"XDG_DATA_DIRS": empty, "XDG_DATA_HOME": empty, "HOME": empty})


@pytest.fixture
def emoji_font(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Install our font here, and in a process that gets the returned variables."""
    root = tmp_path_factory.mktemp("fonts")
    (root / "fonts").mkdir()
    (root / "fonts" / "NotoColorEmoji.ttf").write_bytes(font_bytes())
    yield from _places({"XDG_DATA_DIRS": str(root), "XDG_DATA_HOME": str(root), "HOME": str(root)})


def _places(variables: dict[str, str]) -> Iterator[dict[str, str]]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in variables.items():
            patch.setenv(name, value)
        _forget()
        yield variables
    _forget()
