"""A seed determines every byte of its data on every machine."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from rvos_deploy.datasets.moving_sprites import (
    SplitSpec,
    WorldConfig,
    caption_example,
    contrast_pair,
    find_font,
    find_video,
    make_video,
    sample_video,
    write_mevis,
)
from rvos_deploy.datasets.moving_sprites.rng import stream
from rvos_deploy.errors import InputError

SPRITES = ("make-data", "sprites", "--split", "valid", "--seed", 987241, "--videos", 3, "--jobs", 1)
SMALL = WorldConfig(height=64, width=96, frames=8, emoji=True)


def _digest(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.mark.parametrize(
    "variables",
    [
        {"PYTHONHASHSEED": "1"},
        {"PYTHONHASHSEED": "2", "LC_ALL": "C", "TZ": "Asia/Tokyo"},
        {"OMP_NUM_THREADS": "3", "OPENBLAS_NUM_THREADS": "3", "PYTHONUTF8": "0"},
    ],
    ids=["hash 1", "hash 2, locale, time zone", "threads"],
)
def test_the_same_bytes_with_and_without_a_font(
    variables: dict[str, str],
    emoji_font: dict[str, str],
    no_emoji_font: dict[str, str],
    process: Callable,
    tmp_path: Path,
) -> None:
    """Once, seed 987241 gave J&F .780 with the font installed and .757 without."""
    found = []
    for name, font in (("with", emoji_font), ("without", no_emoji_font)):
        # The second run has none of the variables; it is the reference for all parameters.
        own = {**os.environ, **font, **(variables if name == "with" else {})}
        for command, out in ((SPRITES, name), (("make-data", "sample"), f"{name}/sample.mp4")):
            result = process(*command, "--out", tmp_path / out, env=own)
            assert result.code == 0, result.stderr
        found.append(_digest(tmp_path / name))
    assert found[0] == found[1]
    assert len(found[0]) == 3 * 24 + 5


def test_only_the_option_draws_emoji(emoji_font: dict[str, str], tmp_path: Path) -> None:
    assert find_font() is not None
    rng = stream(1)
    video = make_video(7, "train", 1)
    assert video.config.emoji is False
    for index in range(20):
        assert not any(o.look.is_emoji for o in make_video(7, "train", index).objects)
    sample = sample_video(tmp_path / "sample.mp4", seed=2, size=(64, 96), frames=8)
    assert sample.video.config.emoji is False
    for split in ("train", "valid"):
        captions = [caption_example(rng, 32, split=split).caption for _ in range(40)]
        captions += [example.caption for example in contrast_pair(rng, 32, split=split)]
        assert not any(word in text.split() for text in captions for word in ("dog", "cat", "fox"))
    assert any(o.look.is_emoji for i in range(20) for o in make_video(7, "train", i, SMALL).objects)


def test_the_sample_does_not_follow_the_number_of_cores(tmp_path: Path) -> None:
    """x264 cuts a frame into one slice per thread, and records the number of threads."""
    path = tmp_path / "sample.mp4"
    sample_video(path, seed=0)
    assert b" threads=1 " in path.read_bytes()
    assert b"sliced_threads=0" in path.read_bytes()


def test_a_config_needs_no_font(no_emoji_font: dict[str, str]) -> None:
    assert find_font() is None
    assert SMALL.emoji is True


def test_emoji_without_their_font_are_refused_before_anything_is_written(
    no_emoji_font: dict[str, str], tmp_path: Path
) -> None:
    folder = tmp_path / "new" / "valid"
    attempts: list[Callable[[], object]] = [
        lambda: make_video(1, "train", 0, SMALL),
        lambda: find_video(1, "train", (), SMALL),
        lambda: sample_video(tmp_path / "x.mp4", seed=1, emoji=True),
        lambda: write_mevis(folder, SplitSpec(seed=1, split="valid", videos=1, config=SMALL)),
        lambda: caption_example(stream(1), 32, emoji=True),
        lambda: contrast_pair(stream(1), 32, emoji=True),
    ]
    for attempt in attempts:
        with pytest.raises(
            InputError, match=r"NotoColorEmoji\.ttf.*install it.*no --emoji"
        ) as info:
            attempt()
        assert "\n" not in str(info.value)
    assert not list(tmp_path.iterdir())


def test_a_font_that_cannot_be_drawn_is_none(emoji_font: dict[str, str], tmp_path: Path) -> None:
    font = Path(emoji_font["XDG_DATA_DIRS"]) / "fonts" / "NotoColorEmoji.ttf"
    for damaged in (b"", b"no font", font.read_bytes()[:300]):
        font.write_bytes(damaged)
        find_font.cache_clear()
        assert find_font() is None
        with pytest.raises(InputError, match="NotoColorEmoji"):
            make_video(1, "train", 0, SMALL)


def test_the_data_set_says_what_decided_its_pixels(
    emoji_font: dict[str, str], tmp_path: Path
) -> None:
    font = Path(emoji_font["XDG_DATA_DIRS"]) / "fonts" / "NotoColorEmoji.ttf"

    def sources(name: str, config: WorldConfig) -> dict[str, Any]:
        out = write_mevis(
            tmp_path / name, SplitSpec(seed=1, split="valid", videos=1, config=config)
        )
        told = json.loads((out / "sprites.json").read_text())
        assert told["world"]["emoji"] is config.emoji
        return told["sources"]

    size: dict[str, Any] = {"height": 64, "width": 96, "frames": 8}
    assert sources("plain", WorldConfig(**size)) == {}
    assert sources("emoji", SMALL) == {
        "emoji_font": {
            "file": "NotoColorEmoji.ttf",
            "sha256": hashlib.sha256(font.read_bytes()).hexdigest(),
        }
    }
    photos = []
    for count in (1, 2):
        folder = tmp_path / f"{count} photos"
        folder.mkdir()
        for number in range(count):
            Image.new("RGB", (96, 64)).save(folder / f"{number}.png")
        photos.append(sources(str(count), WorldConfig(**size, photos=str(folder)))["photos"])
    assert [told["files"] for told in photos] == [1, 2]
    assert len({told["names_and_sizes_sha256"] for told in photos}) == 2
