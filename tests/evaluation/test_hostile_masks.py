"""Predicted masks of strangers: what is no image of a sane size is refused in one line."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hostile_images import black_png, not_images
from PIL import Image

from rvos_deploy.errors import InputError
from rvos_deploy.evaluation.evaluate import ScoringOptions, evaluate

NAME = Path("two") / "5" / "00002.png"


def refused(predictions: Path, split: Path) -> str:
    with pytest.raises(InputError) as caught:
        evaluate(predictions, split, options=ScoringOptions(jobs=1))
    text = str(caught.value)
    assert str(NAME) in text
    assert "\n" not in text
    return text


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs a POSIX system")
def test_what_is_no_image_is_refused(
    split: Path, predictions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "x").mkdir()
    monkeypatch.chdir(tmp_path / "x")  # a socket's address is short
    found = not_images(Path())
    found.pop("broken")  # a link to nothing is a missing mask
    assert len(found) == 7
    mask = predictions / NAME
    for name, path in found.items():
        mask.unlink()
        mask.symlink_to(path.absolute())
        text = refused(predictions, split)
        if name not in ("postscript", "gif", "empty"):
            assert "is a folder, device, FIFO or socket" in text


@pytest.mark.parametrize(("width", "height"), [(20_000, 20_000), (1, 20_000)])
def test_a_mask_too_large_is_refused(
    split: Path, predictions: Path, width: int, height: int
) -> None:
    (predictions / NAME).write_bytes(black_png(width, height))
    assert "too large: at most" in refused(predictions, split)


def test_the_command_says_it_in_one_line(
    split: Path, predictions: Path, rvos: Callable, tmp_path: Path
) -> None:
    mask = predictions / NAME
    mask.unlink()
    os.mkfifo(mask)
    result = rvos("evaluate", predictions, "--data", split)
    assert result.code == 2
    assert "is a folder, device, FIFO or socket" in result.error


def test_a_turned_frame_has_the_size_of_its_pixels(split: Path) -> None:
    from rvos_deploy.datasets import read_mevis

    video = read_mevis(split).videos[0]
    exif = Image.Exif()
    exif[0x0112] = 6
    with Image.open(video.frames[0]) as image:
        image.load()
    image.save(video.frames[0], exif=exif)
    assert video.size == video.image(0).shape[:2] == (48, 32)
