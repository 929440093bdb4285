from __future__ import annotations

import os
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hostile_images import not_images
from PIL import Image

from rvos_deploy.errors import VideoError
from rvos_deploy.video import open_video
from rvos_deploy.video.sources.folder import natural_key
from rvos_deploy.video.sources.options import SourceOptions


def save(path: Path, grey: int = 100, size: tuple[int, int] = (40, 30), **options: object) -> Path:
    Image.new("RGB", size, (grey, grey, grey)).save(path, **options)  # type: ignore[arg-type]
    return path


def test_images_come_in_natural_order_at_the_given_rate(tmp_path: Path) -> None:
    for grey, name in ((20, "f2.png"), (100, "f10.PNG"), (10, "F1.bmp"), (200, "f100.webp")):
        save(tmp_path / name, grey)
    save(tmp_path / "._f1.png", size=(1, 1))
    (tmp_path / "readme.txt").write_text("not a frame")
    with open_video(tmp_path, options=SourceOptions(fps=50)) as reader:
        frames = list(reader)
        info = reader.info
    assert [round(float(f.image.mean()), -1) for f in frames] == [10, 20, 100, 200]
    assert [f.pts for f in frames] == [0, 0.02, 0.04, 0.06]
    assert (info.time_base, info.average_fps, info.frame_count) == (Fraction(1, 50), 50, 4)
    assert (info.width, info.height, info.name) == (40, 30, tmp_path.name)


def test_the_default_rate_is_25(tmp_path: Path) -> None:
    for i in range(3):
        save(tmp_path / f"{i}.jpg")
    with open_video(tmp_path, max_frames=2) as reader:
        assert [(f.pts, f.duration) for f in reader] == [(0.0, 0.04), (0.04, 0.04)]


def test_natural_order_takes_any_mixture() -> None:
    names = ["b1", "1b", "a10", "a9", "a09", "10", "2", ""]
    ordered = ["", "1b", "2", "10", "a09", "a9", "a10", "b1"]
    assert sorted(names, key=natural_key) == ordered


def test_an_image_of_another_size_is_named(tmp_path: Path) -> None:
    save(tmp_path / "1.png")
    save(tmp_path / "2.png", size=(41, 30))
    with pytest.raises(VideoError, match=r"2\.png is 41x30, but 1\.png is 40x30"):
        open_video(tmp_path)


def test_rotation_transparency_palette_and_depth_are_those_of_a_viewer(tmp_path: Path) -> None:
    turned = np.zeros((40, 30, 3), np.uint8)
    turned[:, :15] = 200
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise by 90 degrees
    lying = Image.fromarray(np.ascontiguousarray(np.rot90(turned)))
    lying.save(tmp_path / "0.jpg", exif=exif, quality=95)
    Image.new("RGBA", (30, 40), (0, 0, 0, 0)).save(tmp_path / "1.png")
    Image.new("P", (30, 40), 0).save(tmp_path / "2.png")
    Image.fromarray(np.full((40, 30), 50_000, np.uint16)).save(tmp_path / "3.png")
    Image.new("1", (30, 40), 1).save(tmp_path / "4.png")
    Image.new("CMYK", (30, 40), (0, 0, 0, 255)).save(tmp_path / "5.jpg")
    with open_video(tmp_path) as reader:
        images = [f.image for f in reader]
        assert reader.damage is None
    assert {image.shape for image in images} == {(40, 30, 3)}
    assert np.abs(images[0].astype(int) - turned)[:, [5, 25]].max() < 8
    levels = [round(float(image.mean())) for image in images[1:]]
    assert levels == [255, 0, 195, 255, 0]


def broken(path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (30, 40, 3), np.uint8)
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[:1500])


def test_a_damaged_image_ends_the_video_or_is_left_out(tmp_path: Path) -> None:
    for i in range(5):
        save(tmp_path / f"{i}.png")
    broken(tmp_path / "3.png")
    with open_video(tmp_path) as reader:
        assert len(list(reader)) == 3
        assert "3.png" in str(reader.damage)
    with open_video(tmp_path, on_damage="skip") as reader:
        frames = list(reader)
        assert "3.png" in str(reader.damage)
    assert [f.index for f in frames] == [0, 1, 2, 4]
    assert frames[-1].pts == pytest.approx(0.16)


def test_a_folder_of_damaged_images_is_refused(tmp_path: Path) -> None:
    broken(tmp_path / "0.png")
    with pytest.raises(VideoError, match="no frame of"):
        open_video(tmp_path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs a POSIX system")
def test_what_is_no_file_is_told_and_never_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "frames").mkdir()
    monkeypatch.chdir(tmp_path / "frames")  # a socket's address is short
    for name, path in not_images(Path()).items():
        path.rename(f"5_{name}.png")
    for i in (1, 2, 9):
        save(Path(f"{i}.png"))
    with open_video(Path()) as reader:
        assert len(list(reader)) == 2
        assert "reading stopped after 2 frames: there is no file 5_broken" in str(reader.damage)
    with open_video(Path(), on_damage="skip") as reader:
        found = [(frame.index, frame.name) for frame in reader]
        assert found[:2] == [(0, "1.png"), (1, "2.png")]
        assert found[2] == (10, "9.png")  # the places of the 8 between stay free
        assert "7 more such problems" in str(reader.damage)
