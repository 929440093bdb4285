from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image
from video_clips import encode, moving_images

from rvos_deploy.errors import InputError, VideoError
from rvos_deploy.video import MaskWriter, VideoInfo, VideoWriter, open_video

# Seconds. Every time base up to one microsecond is kept exactly; finer ones to half a microsecond.
TOLERANCE = 1e-6


def info(height: int = 48, width: int = 64, **other: object) -> VideoInfo:
    values = {"average_fps": 25.0, "frame_count": None, "time_base": Fraction(1, 25), **other}
    return VideoInfo(width=width, height=height, name="test", **values)  # type: ignore[arg-type]


def stream_facts(path: Path) -> dict[str, object]:
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        frames = [(f.pts, f.duration) for f in container.decode(stream)]
        return {
            "pts": [float(t * stream.time_base) for t, _ in frames],
            "last": float(frames[-1][1] * stream.time_base),
            "duration": float(stream.duration * stream.time_base),
            "rate": stream.average_rate,
            "codec": stream.codec_context.name,
            "pix_fmt": stream.codec_context.pix_fmt,
            "size": (stream.width, stream.height),
        }


def transcode(source: Path, target: Path) -> list[tuple[float, float | None]]:
    with open_video(source) as reader, VideoWriter(target, reader.info) as writer:
        times = []
        for frame in reader:
            writer.write(frame.image, frame.pts, frame.duration)
            times.append((frame.pts, frame.duration))
    return times


def check_timing(source: Path, target: Path) -> None:
    times = transcode(source, target)
    facts = stream_facts(target)
    assert np.allclose(facts["pts"], [pts for pts, _ in times], rtol=0, atol=TOLERANCE)
    wanted = times[-1][0] - times[0][0] + (times[-1][1] or 0)
    assert facts["duration"] == pytest.approx(wanted, abs=TOLERANCE)
    assert facts["codec"] == "h264"
    assert facts["pix_fmt"] == "yuv420p"


def test_a_video_of_25_fps_gives_an_overlay_of_25_fps(plain_clip: Path, tmp_path: Path) -> None:
    target = tmp_path / "out" / "overlay.mp4"
    check_timing(plain_clip, target)
    facts = stream_facts(target)
    assert facts["rate"] == 25
    assert facts["duration"] == pytest.approx(1.2)
    assert facts["last"] == pytest.approx(0.04)
    assert [p.name for p in target.parent.iterdir()] == ["overlay.mp4"]


@pytest.mark.parametrize(
    "base", ["1/57600", "1/1000", "1001/30000", "1/90000", "66667/1000000", "1/14112000"]
)
def test_variable_frame_rates_and_a_late_start_are_kept(tmp_path: Path, base: str) -> None:
    time_base = Fraction(base)
    step = max(1, round(Fraction(1, 1000) / time_base))
    ticks = [tick * step for tick in (7, 11, 12, 40, 1000, 1001)]
    path = tmp_path / "vfr.mp4"
    with VideoWriter(path, info(time_base=time_base)) as writer:
        for tick, image in zip(ticks, moving_images(6), strict=True):
            writer.write(image, float(tick * time_base), float(3 * step * time_base))
    facts = stream_facts(path)
    expected = [float(t * time_base) for t in ticks]
    assert np.allclose(facts["pts"], expected, rtol=0, atol=TOLERANCE)
    assert facts["duration"] == pytest.approx(float(997 * step * time_base), abs=TOLERANCE)


@pytest.mark.parametrize("name", [
    "cutie_example.mp4", "imageio_newtonscradle.gif", "opencv_tree.avi",
    "pyscenedetect_delayed_start.mp4", "decord_video_90.mov", "decord_corrupted.mp4",
])  # fmt: skip
def test_real_clips_keep_their_timing(media: Path, tmp_path: Path, name: str) -> None:
    check_timing(media / name, tmp_path / "overlay.mp4")


def test_a_transport_stream_starts_at_once(tmp_path: Path) -> None:
    pts = [5_000_000 + 3600 * i for i in range(6)]
    source = encode(tmp_path / "a.ts", moving_images(6), pts=pts, time_base=Fraction(1, 90_000))
    target = tmp_path / "overlay.mp4"
    times = transcode(source, target)
    assert times[0][0] > 50
    facts = stream_facts(target)
    shifted = [pts - times[0][0] for pts, _ in times]
    assert np.allclose(facts["pts"], shifted, rtol=0, atol=TOLERANCE)


def test_the_last_duration_is_guessed_where_none_is_given(tmp_path: Path) -> None:
    for name, pts, expected in (("a", [0, 0.04, 0.12], 0.2), ("b", [0], 0.04)):
        path = tmp_path / f"{name}.mp4"
        with VideoWriter(path, info(time_base=Fraction(1, 1000))) as writer:
            for time in pts:
                writer.write(moving_images(1)[0], time)
        assert stream_facts(path)["duration"] == pytest.approx(expected)


@pytest.mark.parametrize(("height", "width"), [(33, 47), (1, 1), (20, 31), (17, 16)])
def test_odd_sizes_are_padded_with_their_own_edge(tmp_path: Path, height: int, width: int) -> None:
    image = np.full((height, width, 3), 60, np.uint8)
    image[:, -1] = image[-1] = 180
    path = tmp_path / "odd.mp4"
    with VideoWriter(path, info(height, width)) as writer:
        for i in range(3):
            writer.write(image, i / 25)
    assert stream_facts(path)["size"] == (width + width % 2, height + height % 2)
    with open_video(path) as reader:
        decoded = next(reader).image.astype(int)
    assert np.abs(decoded[-1, -1] - 180).max() < 16
    assert np.abs(decoded[:height, :width] - image).mean() < 8


def test_colours_survive_the_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "red.mp4"
    image = np.full((720, 1280, 3), (200, 30, 60), np.uint8)
    with VideoWriter(path, info(720, 1280)) as writer:
        writer.write(image, 0.0)
    with open_video(path) as reader:
        assert np.abs(next(reader).image.astype(int) - image).max() <= 4


def test_an_interrupted_run_leaves_a_complete_overlay(tmp_path: Path) -> None:
    path = tmp_path / "overlay.mp4"
    with pytest.raises(KeyboardInterrupt):
        interrupted_after_seven(path)
    assert [p.name for p in tmp_path.iterdir()] == ["overlay.mp4"]
    with open_video(path) as reader:
        assert len(list(reader)) == 7
        assert reader.damage is None


def interrupted_after_seven(path: Path) -> None:
    with VideoWriter(path, info()) as writer:
        for i, image in enumerate(moving_images(7)):
            writer.write(image, i / 25)
            assert not path.exists()
        raise KeyboardInterrupt


def test_without_a_frame_nothing_is_left_behind(tmp_path: Path) -> None:
    with VideoWriter(tmp_path / "none.mp4", info()):
        pass
    with pytest.raises(InputError), VideoWriter(tmp_path / "bad.mp4", info()) as writer:
        writer.write(np.zeros((1, 2, 3), np.uint8), 0.0)
    assert list(tmp_path.iterdir()) == []


def test_misuse_is_told(tmp_path: Path) -> None:
    image = moving_images(1)[0]
    writer = VideoWriter(tmp_path / "a.mp4", info())
    writer.write(image, 0.04)
    with pytest.raises(InputError, match="pts must rise"):
        writer.write(image, 0.04)
    with pytest.raises(InputError, match="finite"):
        writer.write(image, float("nan"))
    with pytest.raises(InputError, match="resize"):
        writer.write(image[1:], 0.08)
    writer.close()
    writer.close()
    with pytest.raises(InputError, match="closed"):
        writer.write(image, 0.08)
    assert len(stream_facts(tmp_path / "a.mp4")["pts"]) == 1  # type: ignore[arg-type]


def test_a_place_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(VideoError, match="cannot be written"):
        VideoWriter(tmp_path / "file" / "a.mp4", info()).write(moving_images(1)[0], 0.0)
    with pytest.raises(VideoError, match="cannot be written"):
        MaskWriter(tmp_path / "file").write(0, 0, np.ones((2, 2), bool))


def test_masks_are_grey_pngs_in_the_mevis_layout(tmp_path: Path) -> None:
    mask = np.random.default_rng(0).random((37, 51)) > 0.5
    path = MaskWriter(tmp_path).write(3, 42, mask)
    assert path == tmp_path / "3" / "00042.png"
    with Image.open(path) as image:
        assert image.mode == "L"
        assert np.array_equal(np.asarray(image), mask * np.uint8(255))
    MaskWriter(tmp_path).write(3, 42, ~mask)
    with Image.open(path) as image:
        assert np.array_equal(np.asarray(image) > 0, ~mask)
    assert [p.name for p in path.parent.iterdir()] == ["00042.png"]


@pytest.mark.parametrize(
    "mask", [np.zeros((2, 2), np.uint8), np.zeros((1, 2, 2), bool), np.zeros((0, 2), bool)]
)
def test_what_is_no_mask_is_refused(tmp_path: Path, mask: np.ndarray) -> None:
    with pytest.raises(InputError, match=r"bool \[H, W\]"):
        MaskWriter(tmp_path).write(0, 0, mask)


def test_a_failed_png_leaves_neither_it_nor_a_temporary_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def half(self: Image.Image, path: Path, **options: object) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", half)
    with pytest.raises(VideoError, match="No space left"):
        MaskWriter(tmp_path).write(0, 0, np.ones((2, 2), bool))
    assert list(tmp_path.iterdir()) == []


def test_nothing_here_imports_torch() -> None:
    import subprocess
    import sys

    code = (
        "import rvos_deploy.video, rvos_deploy.video.pipeline, sys, json;"
        "print(json.dumps([m for m in sys.modules if m in ('torch', 'onnxruntime')]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert json.loads(done.stdout) == []
