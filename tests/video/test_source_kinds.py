"""Globs, files of several pictures, raw frames, cameras by number, several video streams, names."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image
from video_clips import encode, moving_images

from rvos_deploy.errors import InputError, VideoError
from rvos_deploy.video import SourceOptions, open_video, read_video
from rvos_deploy.video.sources.address import kind_of

# --- Folders and globs ----------------------------------------------------------------------------


def save(path: Path, grey: int, size: tuple[int, int] = (8, 6)) -> None:
    path.parent.mkdir(exist_ok=True, parents=True)
    Image.new("RGB", size, (grey, grey, grey)).save(path)


def greys(frames: list) -> list[int]:
    return [int(frame.image.mean()) for frame in frames]


def test_frames_of_a_folder_keep_the_names_of_their_files(tmp_path: Path) -> None:
    for grey, name in ((10, "00005.jpg"), (20, "00010.jpg"), (30, "a 1.tif"), (40, "b.webp")):
        save(tmp_path / name, grey)
    frames = list(read_video(tmp_path))
    assert [frame.name for frame in frames] == ["00005.jpg", "00010.jpg", "a 1.tif", "b.webp"]
    assert [frame.index for frame in frames] == [0, 1, 2, 3]
    assert [frame.with_image(frame.image).name for frame in frames][:1] == ["00005.jpg"]
    assert frames[0].without_image().name == "00005.jpg"


def test_a_video_has_no_names(plain_clip: Path) -> None:
    assert {frame.name for frame in read_video(plain_clip)} == {None}


def test_a_glob_reads_its_images_in_natural_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for grey, name in ((10, "f2.png"), (20, "f10.png"), (30, "g1.png"), (40, "f3.jpg")):
        save(tmp_path / name, grey)
    frames = list(read_video(f"{tmp_path}/f*.png"))
    assert [frame.name for frame in frames] == ["f2.png", "f10.png"]
    assert greys(frames) == [10, 20]
    monkeypatch.chdir(tmp_path)
    assert greys(list(read_video("*.png"))) == [10, 20, 30]
    assert greys(list(read_video("f?.*"))) == [10, 40]
    assert greys(list(read_video("[g]*"))) == [30]


def test_a_glob_over_folders_keeps_names_that_differ(tmp_path: Path) -> None:
    for grey, name in ((10, "a/1.png"), (20, "b/1.png"), (30, "b/2.png")):
        save(tmp_path / name, grey)
    frames = list(read_video(f"{tmp_path}/**/*.png"))
    assert [frame.name for frame in frames] == ["a/1.png", "b/1.png", "b/2.png"]
    assert greys(frames) == [10, 20, 30]


def test_a_glob_of_one_video_reads_it(plain_clip: Path) -> None:
    assert len(list(read_video(f"{plain_clip.parent}/pl*.mp4"))) == 30


def test_what_a_glob_cannot_be(tmp_path: Path, plain_clip: Path) -> None:
    save(tmp_path / "1.png", 10)
    with pytest.raises(VideoError, match=r"no file matches .*/x\*\.png; check the pattern"):
        open_video(f"{tmp_path}/x*.png")
    with pytest.raises(VideoError, match=r"2 files match .* and plain\.mp4 is not an image"):
        open_video(f"{tmp_path}/*")


def test_a_file_may_have_such_a_name(tmp_path: Path, plain_clip: Path) -> None:
    path = plain_clip.rename(tmp_path / "what? [1] *.mp4")
    assert kind_of(str(path)) == "file"
    assert len(list(read_video(path))) == 30


# --- Files of several pictures --------------------------------------------------------------------


def test_an_animated_webp_has_its_own_times(tmp_path: Path) -> None:
    pictures = [Image.new("RGBA", (20, 10), (50 * i, 0, 200, 255)) for i in range(4)]
    pictures[2].putalpha(0)
    first, *others = pictures
    path = tmp_path / "a.webp"
    first.save(path, save_all=True, append_images=others, duration=[40, 80, 200, 40], lossless=True)
    with open_video(path) as reader:
        assert reader.info.frame_count == 4
        frames = list(reader)
        assert reader.damage is None
    assert [frame.pts for frame in frames] == pytest.approx([0, 0.04, 0.12, 0.32])
    assert [frame.duration for frame in frames] == pytest.approx([0.04, 0.08, 0.2, 0.04])
    assert [frame.image[0, 0].tolist() for frame in frames] == [
        [0, 0, 200], [50, 0, 200], [255, 255, 255], [150, 0, 200],
    ]  # fmt: skip


def test_pages_of_a_tiff_are_frames(tmp_path: Path) -> None:
    pages = [Image.fromarray(image) for image in moving_images(5)]
    path = tmp_path / "a.tif"
    pages[0].save(path, save_all=True, append_images=pages[1:], compression="tiff_lzw")
    frames = list(read_video(path, options=SourceOptions(fps=10)))
    assert [frame.pts for frame in frames] == pytest.approx([0, 0.1, 0.2, 0.3, 0.4])
    for frame, image in zip(frames, moving_images(5), strict=True):
        assert np.array_equal(frame.image, image)


def test_a_page_of_another_size_ends_the_video(tmp_path: Path) -> None:
    pages = [Image.new("RGB", size, 90) for size in ((20, 10), (20, 10), (30, 10))]
    path = tmp_path / "a.tif"
    pages[0].save(path, save_all=True, append_images=pages[1:])
    with open_video(path) as reader:
        assert len(list(reader)) == 2
        assert reader.damage == (
            "reading stopped after 2 frames: picture 2 is 30x10, but the first one 20x10"
        )


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data:UserWarning")
def test_a_cut_animation_gives_its_whole_pictures(tmp_path: Path) -> None:
    pages = [Image.fromarray(image) for image in moving_images(8)]
    path = tmp_path / "a.tif"
    pages[0].save(path, save_all=True, append_images=pages[1:])
    path.write_bytes(path.read_bytes()[:30_000])
    with open_video(path) as reader:
        frames = list(reader)
        assert 0 < len(frames) < 8
        assert reader.damage is not None
        assert reader.damage.startswith(f"reading stopped after {len(frames)} frames: ")


# --- Raw frames -----------------------------------------------------------------------------------

RAW = SourceOptions(raw="64x48@30000/1001")


@pytest.mark.parametrize("where", ["pipe", "file", "fifo"])
def test_raw_frames_are_read_as_they_are(
    tmp_path: Path, piped: Callable[[bytes], str], fifo: Path, where: str
) -> None:
    images = moving_images(7)
    data = np.stack(images).tobytes()
    if where == "pipe":
        source = piped(data)
    elif where == "fifo":
        source = str(fifo)
        threading.Thread(target=fifo.write_bytes, args=(data,), daemon=True).start()
    else:
        source = str(tmp_path / "a.rgb")
        Path(source).write_bytes(data)
    with open_video(source, options=RAW, timeout=20) as reader:
        assert (reader.info.width, reader.info.height) == (64, 48)
        frames = list(reader)
        assert reader.damage is None
    assert [frame.pts for frame in frames] == pytest.approx([i * 1001 / 30000 for i in range(7)])
    for frame, image in zip(frames, images, strict=True):
        assert np.array_equal(frame.image, image)


def test_a_wrong_size_is_suspected(piped: Callable[[bytes], str]) -> None:
    name = piped(np.stack(moving_images(3)).tobytes())
    with open_video(name, options=SourceOptions(raw="60x48@25"), timeout=20) as reader:
        assert len(list(reader)) == 3
        assert reader.damage == (
            "after 3 frames, 1728 bytes are left, and a frame of 60x48 has 8640; check the size in "
            "--raw"
        )


def test_less_than_a_frame(piped: Callable[[bytes], str]) -> None:
    with pytest.raises(VideoError, match=r"no frame of standard input, raw 64x48, could"):
        open_video(piped(b"x" * 100), options=RAW, timeout=20)


@pytest.mark.parametrize(
    "raw", ["", "640x480", "640@25", "640*480@25", "640x480@0", "0x4@25", "64x48@1/0", "99999x9@5"]
)
def test_wrong_raw_formats(raw: str) -> None:
    with pytest.raises(InputError, match="--raw"):
        SourceOptions(raw=raw)


def test_a_raw_file_that_is_missing() -> None:
    with pytest.raises(VideoError, match=r"there is no file gone\.rgb"):
        open_video("gone.rgb", options=RAW)


# --- Cameras --------------------------------------------------------------------------------------


def test_a_small_number_is_a_camera_unless_a_file_has_that_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert [kind_of(name) for name in ("0", "12", "-1", "123", "1.5")] == [
        "device", "device", "file", "file", "file",
    ]  # fmt: skip
    encode(tmp_path / "a.mp4", moving_images(3)).rename("0")
    assert kind_of("0") == "file"
    assert len(list(read_video("0"))) == 3


@pytest.mark.skipif(sys.platform != "linux", reason="the error names Linux's devices")
def test_a_camera_that_is_absent_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert not os.path.exists("/dev/video97")  # noqa: PTH110
    with pytest.raises(VideoError, match=r"there is no camera 97 \(/dev/video97\); cameras here: "):
        open_video("97")


# --- Several video streams ------------------------------------------------------------------------


@pytest.fixture
def two_streams(tmp_path: Path) -> Path:
    """Streams of 64x48 (grey 50) and 32x16 (grey 200)."""
    path = tmp_path / "two.mkv"
    with av.open(str(path), "w") as container:
        streams = []
        for width, height in ((64, 48), (32, 16)):
            stream = container.add_stream("ffv1", rate=25)
            stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
            streams.append(stream)
        for i in range(4):
            for stream, grey in zip(streams, (50, 200), strict=True):
                image = np.full((stream.height, stream.width, 3), grey, np.uint8)
                frame = av.VideoFrame.from_ndarray(image, format="rgb24")
                frame.pts = i
                container.mux(stream.encode(frame))
        for stream in streams:
            container.mux(stream.encode(None))
    return path


@pytest.mark.parametrize(("number", "size", "grey"), [(0, (48, 64), 50), (1, (16, 32), 200)])
def test_a_video_stream_by_its_number(
    two_streams: Path, number: int, size: tuple[int, int], grey: int
) -> None:
    with open_video(two_streams, options=SourceOptions(video_stream=number)) as reader:
        frames = list(reader)
        assert reader.notes == ()
    assert len(frames) == 4
    assert frames[0].image.shape[:2] == size
    assert abs(frames[0].image.astype(int) - grey).max() <= 3


def test_further_streams_are_told(two_streams: Path) -> None:
    with pytest.warns(RuntimeWarning, match="has 2 video streams") as caught:
        reader = open_video(two_streams)
    reader.close()
    assert str(caught[0].message) == (
        "two.mkv has 2 video streams (0: 64x48, 1: 32x16); number 0 is read, choose another one by "
        "--video-stream N"
    )


def test_a_stream_that_is_not_there(two_streams: Path) -> None:
    with pytest.raises(InputError, match=r"has no video stream 2; there are: 0: 64x48, 1: 32x16"):
        open_video(two_streams, options=SourceOptions(video_stream=2))
