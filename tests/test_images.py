"""Images of strangers: known formats, bounded sizes, regular files."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from hostile_images import black_png, not_images, postscript
from PIL import Image, ImageOps, features

from rvos_deploy.errors import InputError
from rvos_deploy.images import MAX_PIXELS, MAX_SIDE, displayed_size, oversize, read_image, read_rgb

ORIENTATIONS = range(1, 9)
KINDS = ["jpg", "png", "tiff", "webp", "bmp"]


@pytest.mark.parametrize("kind", KINDS)
def test_every_format_is_read_as_it_was_written(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"a.{kind}"
    Image.new("RGB", (12, 8), (10, 200, 30)).save(path, lossless=True)
    assert displayed_size(path) == (12, 8)
    assert read_rgb(path).shape == (8, 12, 3)
    assert np.abs(read_rgb(path).astype(int) - (10, 200, 30)).max() <= 2
    assert read_image(path).size == (12, 8)


@pytest.mark.parametrize("orientation", ORIENTATIONS)
@pytest.mark.parametrize("kind", ["jpg", "png", "tiff", "webp"])
def test_exif_turns_size_and_pixels_as_pillow_does(
    tmp_path: Path, kind: str, orientation: int
) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (8, 12, 3), np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"a.{kind}"
    Image.fromarray(pixels).save(path, exif=exif, lossless=True)
    with Image.open(path) as image:
        wanted = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    assert np.array_equal(read_rgb(path), wanted)
    assert displayed_size(path) == wanted.shape[1::-1]


@pytest.mark.skipif(not features.check("webp"), reason="this Pillow has no WebP")
@pytest.mark.parametrize("kind", ["png", "tiff", "webp"])
def test_hidden_pixels_are_white(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"a.{kind}"
    Image.new("RGBA", (4, 4), (0, 0, 0, 0)).save(path, lossless=True)
    assert (read_rgb(path) == 255).all()


def test_a_photograph_of_a_phone_is_a_jpeg(tmp_path: Path) -> None:
    path, image = tmp_path / "a.jpg", Image.new("RGB", (12, 8), (200, 0, 0))
    image.save(path, "MPO", save_all=True, append_images=[image])
    assert read_rgb(path).shape == (8, 12, 3)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs a POSIX system")
def test_what_is_no_image_is_refused_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # a socket's address is short
    found = not_images(Path())
    assert len(found) == 8
    for name, path in found.items():
        for read in (read_rgb, read_image, displayed_size):
            with pytest.raises(InputError) as caught:
                read(path)
            text = str(caught.value)
            assert path.name in text, name
            assert "\n" not in text, name


def test_postscript_starts_no_other_program(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trap, started = tmp_path / "gs", tmp_path / "started"
    trap.write_text(f"#!/bin/sh\ntouch {started}\n")
    trap.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    path = postscript(tmp_path)
    with pytest.raises(InputError, match="is not an image that can be read"):
        read_rgb(path)
    assert not started.exists()


@pytest.mark.parametrize(
    ("width", "height"), [(20_000, 20_000), (1, 20_000), (20_000, 1), (9_500, 9_500)]
)
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_picture_too_large_is_refused_before_it_is_decoded(
    tmp_path: Path, width: int, height: int
) -> None:
    path = tmp_path / "large.png"
    path.write_bytes(black_png(width, height))
    for read in (read_rgb, read_image, displayed_size):
        with pytest.raises(InputError, match="too large: at most 16384 pixels a side"):
            read(path)


def test_the_limits_are_inclusive(tmp_path: Path) -> None:
    assert oversize(MAX_SIDE, MAX_PIXELS // MAX_SIDE) is None
    assert oversize(MAX_SIDE + 1, 1) is not None
    assert oversize(MAX_PIXELS // 9000 + 1, 9000) is not None
    path = tmp_path / "long.png"
    path.write_bytes(black_png(1, MAX_SIDE))
    assert read_rgb(path).shape == (MAX_SIDE, 1, 3)
