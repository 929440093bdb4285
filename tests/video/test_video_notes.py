"""High dynamic range is told, because its frames are tone-mapped."""

from __future__ import annotations

import warnings
from pathlib import Path

import av
import pytest
from video_clips import encode, moving_images

from rvos_deploy.video import open_video, read_video

# FFmpeg's codes (AVCOL_TRC_*): 1 and 14 are SDR (BT.709, BT.2020), 2 is not stated.
PQ, HLG, SDR = 16, 18, [1, 2, 14]


def clip(path: Path, transfer: int) -> Path:
    def tag(stream: object) -> None:
        context = stream.codec_context  # type: ignore[attr-defined]
        context.color_trc, context.color_primaries, context.colorspace = transfer, 9, 9

    def paint(frame: av.VideoFrame) -> None:
        frame.color_trc, frame.color_primaries, frame.colorspace = transfer, 9, 9

    return encode(path, moving_images(3), pix_fmt="yuv420p10le", prepare=tag, convert=paint)


@pytest.mark.parametrize(("transfer", "name"), [(PQ, "PQ"), (HLG, "HLG")])
@pytest.mark.parametrize("container", ["a.mp4", "a.mkv", "a.ts"])
def test_high_dynamic_range_is_told(
    tmp_path: Path, container: str, transfer: int, name: str
) -> None:
    path = clip(tmp_path / container, transfer)
    with pytest.warns(RuntimeWarning, match=rf"{container} is high dynamic range") as caught:
        reader = open_video(path)
    with reader:
        assert len(list(reader)) == 3
        assert reader.damage is None
        (note,) = reader.notes
    assert f"transfer {name}" in note
    assert "tone-mapped to BT.709" in note
    assert "\n" not in note
    assert len(caught) == 1


@pytest.mark.parametrize("transfer", SDR)
def test_standard_range_is_not(tmp_path: Path, transfer: int) -> None:
    path = clip(tmp_path / "a.mp4", transfer)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with open_video(path) as reader:
            assert reader.notes == ()


@pytest.mark.parametrize(("name", "told"), [("hdr10", 1), ("hlg", 1), ("sdr_twin", 0)])
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_the_clips_that_lost_their_objects(inputs: Path, name: str, told: int) -> None:
    with open_video(inputs / f"{name}.mp4") as reader:
        assert len(reader.notes) == told


def test_read_video_warns_too(tmp_path: Path) -> None:
    with pytest.warns(RuntimeWarning, match="high dynamic range"):
        assert len(list(read_video(clip(tmp_path / "a.mp4", PQ)))) == 3
