"""Files that are named as images and must not be opened as such."""

from __future__ import annotations

import os
import socket
import struct
import zlib
from pathlib import Path

from PIL import Image


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def black_png(width: int, height: int) -> bytes:
    """A valid PNG of one bit a pixel: a few kilobytes whatever its size."""
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    packer, row = zlib.compressobj(1), bytes(1 + (width + 7) // 8)
    data = b"".join(packer.compress(row) for _ in range(height)) + packer.flush()
    return b"".join((
        b"\x89PNG\r\n\x1a\n", chunk(b"IHDR", header), chunk(b"IDAT", data), chunk(b"IEND", b""),
    ))  # fmt: skip


def postscript(folder: Path) -> Path:
    path = folder / "postscript.png"
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(x) run\nshowpage\n")
    return path


def not_images(folder: Path) -> dict[str, Path]:
    """Files that are named as images and must not be opened as what they are."""
    postscript(folder)
    Image.new("RGB", (9, 9)).save(folder / "gif.png", "GIF")
    (folder / "empty.png").touch()
    (folder / "folder.png").mkdir()
    (folder / "broken.png").symlink_to("nowhere.png")
    os.mkfifo(folder / "fifo.png")
    (folder / "device.png").symlink_to("/dev/zero")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(folder / "socket.png"))
    return {path.stem: path for path in sorted(folder.iterdir())}
