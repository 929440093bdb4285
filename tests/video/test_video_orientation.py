"""EXIF orientation, wherever it stands, and side data that PyAV has no name for."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from av.sidedata.sidedata import Type
from PIL import Image, ImageOps
from video_clips import store

from rvos_deploy.errors import VideoError
from rvos_deploy.video import open_video

ORIENTATIONS = range(1, 9)
QUADRANTS = np.zeros((32, 48, 3), np.uint8)
QUADRANTS[:16, :24], QUADRANTS[:16, 24:] = (200, 0, 0), (0, 200, 0)
QUADRANTS[16:, :24], QUADRANTS[16:, 24:] = (0, 0, 200), (200, 200, 200)


def picture(kind: str, orientation: int) -> bytes:
    exif, file = Image.Exif(), io.BytesIO()
    exif[0x0112] = orientation
    kind = {"jpg": "JPEG"}.get(kind, kind.upper())
    Image.fromarray(QUADRANTS).save(file, kind, exif=exif, lossless=True, quality=95)
    return file.getvalue()


def transposed(data: bytes) -> np.ndarray:
    return np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB"))


def assert_same_quadrants(image: np.ndarray, wanted: np.ndarray) -> None:
    """The colours of all quadrants, away from their edges, which compression blurs."""
    assert image.shape == wanted.shape
    for rows in (slice(4, 12), slice(-12, -4)):
        for columns in (slice(4, 12), slice(-12, -4)):
            difference = image[rows, columns].astype(int) - wanted[rows, columns]
            assert np.abs(difference).max() < 12


@pytest.mark.parametrize("orientation", ORIENTATIONS)
@pytest.mark.parametrize("kind", ["jpg", "png", "tiff", "webp"])
def test_a_picture_is_the_same_as_a_file_in_a_folder_and_as_pillow_turns_it(
    tmp_path: Path, kind: str, orientation: int
) -> None:
    data = picture(kind, orientation)
    path = tmp_path / f"a.{kind}"
    path.write_bytes(data)
    for source in (path, tmp_path):
        with open_video(source) as reader:
            (frame,) = reader
            assert reader.damage is None
            assert (reader.info.frame_count, reader.info.name) == (1, source.name)
        assert np.array_equal(frame.image, transposed(data))
        assert (frame.pts, frame.duration) == (0.0, 0.04)


@pytest.mark.parametrize("orientation", ORIENTATIONS)
@pytest.mark.parametrize("kind", ["jpg", "png", "webp"])
def test_a_piped_picture_is_turned(
    piped: Callable[[bytes], str], kind: str, orientation: int
) -> None:
    data = picture(kind, orientation)
    with open_video(piped(data)) as reader:
        (frame,) = reader
    assert_same_quadrants(frame.image, transposed(data))


def test_a_piped_tiff_is_refused_in_one_line(piped: Callable[[bytes], str]) -> None:
    with pytest.raises(VideoError, match=r"no frame of standard input .* or give a file name"):
        open_video(piped(picture("tiff", 6)))  # FFmpeg reads a TIFF only where it can seek


@pytest.mark.parametrize("orientation", ORIENTATIONS)
@pytest.mark.parametrize("name", ["a.avi", "a.mov"])
def test_jpegs_of_a_video_are_turned(tmp_path: Path, name: str, orientation: int) -> None:
    data = picture("jpg", orientation)
    path = store(tmp_path / name, "mjpeg", QUADRANTS.shape[:2], [data] * 3)
    with open_video(path) as reader:
        frames = list(reader)
    assert len(frames) == 3
    for frame in frames:
        assert_same_quadrants(frame.image, transposed(data))


def test_photographs_end_to_end_are_a_video(tmp_path: Path, piped: Callable[[bytes], str]) -> None:
    data = b"".join(picture("jpg", orientation) for orientation in (6, 6, 8))
    path = tmp_path / "a.mjpeg"
    path.write_bytes(data)
    for source in (path, piped(data)):
        with open_video(source) as reader:
            frames = list(reader)
        assert len(frames) == 3
        for frame, orientation in zip(frames, (6, 6, 8), strict=True):
            assert_same_quadrants(frame.image, transposed(picture("jpg", orientation)))


def test_side_data_that_comes_late_stops_nothing(inputs: Path) -> None:
    with open_video(inputs / "mjpeg_late.mov") as reader:
        frames = list(reader)
        assert reader.damage is None
    assert [frame.image.shape for frame in frames] == [(128, 224, 3)] * 24


def test_side_data_without_a_name_is_a_kind_of_its_own() -> None:
    unknown = Type(31_337)
    assert unknown.value == 31_337
    assert unknown is not Type.DISPLAYMATRIX
    assert Type(Type.DISPLAYMATRIX.value) is Type.DISPLAYMATRIX


def test_a_picture_without_its_end_is_refused_in_one_line(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    path = tmp_path / "a.jpg"
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(VideoError, match=r"no frame of .*a\.jpg.* is damaged"):
        open_video(path)


def test_a_name_that_lies_is_read_as_what_it_is(tmp_path: Path, plain_clip: Path) -> None:
    lying = tmp_path / "clip.jpg"
    lying.write_bytes(plain_clip.read_bytes())
    with open_video(lying) as reader:
        assert len(list(reader)) == 30
    moving = [Image.new("RGB", (8, 8), (i * 60, 0, 0)) for i in range(3)]
    moving[0].save(tmp_path / "moving.png", save_all=True, append_images=moving[1:])
    with open_video(tmp_path / "moving.png") as reader:
        assert len(list(reader)) == 3
