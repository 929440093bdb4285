"""Which frames are read: --start, --end, --stride, max_frames, over all kinds of sources."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from video_clips import encode, moving_images

from rvos_deploy.errors import InputError
from rvos_deploy.video import SourceOptions, open_video
from rvos_deploy.video.sources.selection import Place, parse_place


@pytest.mark.parametrize(("text", "place"), [
    ("10s", (10, "s")), ("0.5s", (0.5, "s")), (".5s", (0.5, "s")), ("1:30", (90, "s")),
    ("1:02:03.5", (3723.5, "s")), ("300f", (300, "f")), (" 2f ", (2, "f")),
])  # fmt: skip
def test_places(text: str, place: tuple[float, str]) -> None:
    assert parse_place("--start", text) == Place(*place)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "text", ["", "10", "1.5f", "-1s", "1e3s", "s", "1:2:3:4", "ten", "1:", "nans"]
)
def test_a_place_without_a_unit_is_neither(text: str) -> None:
    with pytest.raises(InputError, match="--start"):
        SourceOptions(start=text)


@pytest.mark.parametrize("options", [
    {"start": "5s", "end": "5s"}, {"start": "9f", "end": "3f"}, {"end": "0f"}, {"stride": "0f"},
    {"stride": "0s"},
])  # fmt: skip
def test_a_selection_without_a_frame_is_refused(options: dict[str, str]) -> None:
    with pytest.raises(InputError, match=r"--end|--stride"):
        SourceOptions(**options)  # type: ignore[arg-type]


# (options, max_frames, indices of the selected ones of 30 frames at 25 fps)
SELECTIONS = [
    ({"start": "10f"}, None, range(10, 30)),
    ({"start": "0.4s"}, None, range(10, 30)),
    ({"end": "10f"}, None, range(10)),
    ({"end": "0.4s"}, None, range(10)),
    ({"stride": "7f"}, None, range(0, 30, 7)),
    ({"start": "3f", "end": "20f", "stride": "5f"}, None, range(3, 20, 5)),
    ({"start": "0.39s", "end": "20f"}, None, range(10, 20)),
    ({"stride": "0.1s"}, None, [0, 3, 5, 8, 10, 13, 15, 18, 20, 23, 25, 28]),
    ({"start": "10f", "stride": "2f"}, 3, [10, 12, 14]),
    ({"start": "29f"}, None, [29]),
    ({"stride": "0.01s"}, 4, range(4)),
]


def make_source(kind: str, folder: Path) -> Path | str:
    images = moving_images(30)
    if kind in ("mp4", "ts", "mkv"):
        return encode(folder / f"a.{kind}", images)
    if kind == "raw":
        path = folder / "a.rgb"
        path.write_bytes(np.stack(images).tobytes())
        return path
    pictures = [Image.fromarray(image) for image in images]
    if kind == "webp":
        pictures[0].save(
            folder / "a.webp", save_all=True, append_images=pictures[1:], duration=40, lossless=True
        )
        return folder / "a.webp"
    if kind == "tiff":
        pictures[0].save(folder / "a.tif", save_all=True, append_images=pictures[1:])
        return folder / "a.tif"
    for index, picture in enumerate(pictures):
        picture.save(folder / f"{index}.png")
    return folder if kind == "folder" else f"{folder}/*.png"


@pytest.mark.parametrize("kind", ["mp4", "ts", "mkv", "raw", "webp", "tiff", "folder", "glob"])
def test_selected_frames_are_those_of_the_whole(tmp_path: Path, kind: str) -> None:
    """Index, time and every pixel: a selected frame is the same frame."""
    source = make_source(kind, tmp_path)
    raw = {"raw": "64x48@25"} if kind == "raw" else {}
    with open_video(source, options=SourceOptions(**raw)) as reader:  # type: ignore[arg-type]
        whole = list(reader)
        assert reader.damage is None
        assert reader.info.frame_count in (30, None)
    assert [frame.index for frame in whole] == list(range(30))
    start = whole[0].pts
    for options, most, wanted in SELECTIONS:
        chosen = SourceOptions(**options, **raw)  # type: ignore[arg-type]
        with open_video(source, options=chosen, max_frames=most) as reader:
            frames = list(reader)
            assert reader.damage is None
            expected = len(list(wanted))
            if reader.info.frame_count is not None:
                assert abs(reader.info.frame_count - expected) <= 1, options
        assert [frame.index for frame in frames] == list(wanted), (kind, options)
        for frame in frames:
            same = whole[frame.index]
            assert (frame.pts, frame.duration, frame.name) == (same.pts, same.duration, same.name)
            assert np.array_equal(frame.image, same.image)
            assert frame.pts == pytest.approx(start + frame.index / 25)


def test_times_count_from_the_start_that_a_player_shows(tmp_path: Path) -> None:
    """A transport stream's clock began earlier; an MP4 whose first frame is late shows it late."""
    late = encode(tmp_path / "late.mp4", moving_images(20), pts=[50 + i for i in range(20)])
    with open_video(late, options=SourceOptions(start="2.4s")) as reader:
        assert [frame.index for frame in reader] == list(range(10, 20))
    shifted = encode(tmp_path / "a.ts", moving_images(20), pts=[500 + i for i in range(20)])
    with open_video(shifted, options=SourceOptions(start="0.4s")) as reader:
        frames = list(reader)
        assert [frame.index for frame in frames] == list(range(10, 20))
        assert reader.info.clock_start == frames[0].pts > 20


def test_variable_frame_rate_is_selected_by_time(tmp_path: Path) -> None:
    path = encode(tmp_path / "vfr.mp4", moving_images(6), pts=[0, 1, 2, 30, 31, 60])
    with open_video(path, options=SourceOptions(stride="1s")) as reader:
        assert [frame.index for frame in reader] == [0, 3, 5]


@pytest.mark.parametrize("kind", ["mp4", "raw", "webp", "folder"])
def test_a_start_behind_the_end_is_told(tmp_path: Path, kind: str) -> None:
    source = make_source(kind, tmp_path)
    options = SourceOptions(start="1:00", raw="64x48@25" if kind == "raw" else None)
    with pytest.raises(InputError, match=r"30 frames, to 1\.16 s, are all outside of --start 60s"):
        open_video(source, options=options)


def test_nothing_behind_the_end_is_read(piped: Callable[[bytes], str]) -> None:
    """A live source may never give another frame."""
    images = np.stack(moving_images(3))
    name = piped(images.tobytes())
    options = SourceOptions(raw="64x48@25", end="2f")
    with open_video(name, options=options, timeout=5) as reader:
        assert [frame.index for frame in reader] == [0, 1]
        assert reader.damage is None
