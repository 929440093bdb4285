from __future__ import annotations

import http.server
import subprocess
import sys
import threading
from fractions import Fraction
from functools import partial
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image
from video_clips import HEIGHT, WIDTH, encode, moving_images

from rvos_deploy.errors import InputError, VideoError
from rvos_deploy.images import over_white
from rvos_deploy.video import Frame, SourceOptions, open_video, read_video
from rvos_deploy.video.sources.geometry import Orientation, orientation_of


def read_all(path: Path, **options: object) -> tuple[list[Frame], str | None]:
    with open_video(path, **options) as reader:  # type: ignore[arg-type]
        return list(reader), reader.damage


def test_frames_come_in_order_with_index_pts_and_duration(plain_clip: Path) -> None:
    frames, damage = read_all(plain_clip)
    assert damage is None
    assert [f.index for f in frames] == list(range(30))
    assert [f.pts for f in frames] == [float(Fraction(i, 25)) for i in range(30)]
    assert all(f.duration == pytest.approx(0.04) for f in frames)
    wanted = moving_images(30)
    for frame, image in zip(frames, wanted, strict=True):
        assert abs(frame.image[-8:].mean() - image[-8:].mean()) < 4


def test_info_is_known_before_the_first_frame_is_taken(plain_clip: Path) -> None:
    with open_video(plain_clip) as reader:
        info = reader.info
    assert (info.width, info.height, info.average_fps) == (WIDTH, HEIGHT, 25.0)
    assert (info.frame_count, info.name, info.clock_start) == (30, "plain.mp4", 0.0)


def test_max_frames_stops_early_and_is_no_damage(plain_clip: Path) -> None:
    with open_video(plain_clip, max_frames=4) as reader:
        assert reader.info.frame_count == 4
        assert len(list(reader)) == 4
        assert reader.damage is None
        assert list(reader) == []


@pytest.mark.parametrize("options", [{"max_frames": 0}, {"on_damage": "cry"}])
def test_wrong_arguments_are_told(plain_clip: Path, options: dict[str, object]) -> None:
    with pytest.raises(InputError):
        open_video(plain_clip, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("fps", [0, float("nan")])
def test_a_wrong_frame_rate_is_told(fps: float) -> None:
    with pytest.raises(InputError, match="fps must be above 0"):
        SourceOptions(fps=fps)


def test_variable_frame_rate_and_a_late_start_are_kept_exactly(tmp_path: Path) -> None:
    base, pts = Fraction(1, 57_600), [7_200, 64_236, 66_637, 68_072, 100_001]
    path = encode(tmp_path / "vfr.mp4", moving_images(5), pts=pts, time_base=base)
    frames, _ = read_all(path)
    assert [f.pts for f in frames] == [float(t * base) for t in pts]


def test_frames_without_pts_get_rising_ones(tmp_path: Path) -> None:
    path = encode(tmp_path / "raw.h264", moving_images(20), format="h264")
    frames, damage = read_all(path)
    assert damage is None
    assert np.allclose([f.pts for f in frames], np.arange(20) / 25)


def test_streams_joined_end_to_end_keep_one_size_and_rising_pts(tmp_path: Path) -> None:
    first = encode(tmp_path / "a.ts", moving_images(12))
    second = encode(tmp_path / "b.ts", moving_images(12, height=96, width=96))
    joined = tmp_path / "joined.ts"
    joined.write_bytes(first.read_bytes() + second.read_bytes())
    frames, _ = read_all(joined)
    assert len(frames) >= 23
    assert {f.image.shape for f in frames} == {(HEIGHT, WIDTH, 3)}
    assert np.all(np.diff([f.pts for f in frames]) > 0)


QUADRANTS = np.zeros((32, 48, 3), np.uint8)
QUADRANTS[:16, :24], QUADRANTS[:16, 24:] = (200, 0, 0), (0, 200, 0)
QUADRANTS[16:, :24], QUADRANTS[16:, 24:] = (0, 0, 200), (200, 200, 200)


@pytest.mark.skipif(
    not hasattr(av.VideoStream, "set_display_rotation"), reason="PyAV cannot write a rotation"
)
@pytest.mark.parametrize("angle", [0, 90, 180, 270])
@pytest.mark.parametrize("mirrored", [False, True])
def test_every_display_rotation_is_applied(tmp_path: Path, angle: int, mirrored: bool) -> None:
    def rotate(stream: object) -> None:
        stream.set_display_rotation(angle, hflip=mirrored)  # type: ignore[attr-defined]

    path = encode(tmp_path / "turned.mp4", [QUADRANTS] * 3, prepare=rotate)
    (frame, *_), _ = read_all(path)
    # PyAV: the angle turns counterclockwise, and the mirror comes after it.
    expected = np.rot90(QUADRANTS, angle // 90)
    expected = expected[:, ::-1] if mirrored else expected
    assert frame.image.shape == expected.shape
    assert np.abs(frame.image.astype(int) - expected)[4:12, 4:12].max() < 12
    assert np.abs(frame.image.astype(int) - expected)[-12:-4, 4:12].max() < 12


@pytest.mark.parametrize("transpose", [False, True])
@pytest.mark.parametrize("flip_x", [False, True])
@pytest.mark.parametrize("flip_y", [False, True])
def test_display_matrices_are_read_as_their_definition_says(
    transpose: bool, flip_x: bool, flip_y: bool
) -> None:
    sx, sy = (-1 if flip_x else 1), (-1 if flip_y else 1)
    a, b, c, d = (0, sy, sx, 0) if transpose else (sx, 0, 0, sy)
    orientation = orientation_of([a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30])
    assert orientation == Orientation(transpose, flip_x, flip_y)
    image = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)
    turned = orientation.apply(image)
    points = {(a * x + c * y, b * x + d * y): image[y, x] for x in range(3) for y in range(2)}
    left, top = min(x for x, _ in points), min(y for _, y in points)
    for (x, y), pixel in points.items():
        assert np.array_equal(turned[y - top, x - left], pixel)


@pytest.mark.parametrize(("ratio", "width"), [("2/1", 96), ("4/3", 64), ("1/2", 24), ("7/5", 67)])
def test_sample_aspect_ratio_gives_square_pixels(tmp_path: Path, ratio: str, width: int) -> None:
    def squeeze(stream: object) -> None:
        stream.codec_context.sample_aspect_ratio = Fraction(ratio)  # type: ignore[attr-defined]

    path = encode(tmp_path / "sar.mp4", [QUADRANTS] * 2, prepare=squeeze)
    (frame, *_), _ = read_all(path)
    assert frame.image.shape == (32, width, 3)
    assert np.abs(frame.image[4, -4].astype(int) - QUADRANTS[4, -4]).max() < 12


@pytest.mark.parametrize("pix_fmt", ["yuv420p", "yuv444p", "yuv420p10le", "gray", "bgr0"])
@pytest.mark.parametrize(("height", "width"), [(21, 33), (1, 1), (2, 3), (48, 100)])
def test_odd_sizes_and_depths_have_no_garbage_at_the_edge(
    tmp_path: Path, pix_fmt: str, height: int, width: int
) -> None:
    image = np.full((height, width, 3), 120, np.uint8)
    path = encode(tmp_path / "odd.mkv", [image] * 2, codec="ffv1", pix_fmt=pix_fmt)
    (frame, *_), _ = read_all(path)
    assert frame.image.shape == image.shape
    assert np.abs(frame.image.astype(int) - 120).max() <= 3


# FFmpeg's codes: matrix 1 = BT.709, 5 and 6 = BT.601, 9 = BT.2020, 2 = not stated (FFmpeg takes it
# for BT.601); range 1 = limited, 2 = full.
@pytest.mark.parametrize(("matrix", "kr", "kb"), [
    (1, 0.2126, 0.0722), (5, 0.299, 0.114), (6, 0.299, 0.114), (9, 0.2627, 0.0593),
    (2, 0.299, 0.114),
])  # fmt: skip
@pytest.mark.parametrize("full", [False, True])
def test_colours_follow_the_matrix_and_range_of_the_stream(
    tmp_path: Path, matrix: int, kr: float, kb: float, full: bool
) -> None:
    luma, blue, red = 120, 100, 160

    def tag(stream: object) -> None:
        context = stream.codec_context  # type: ignore[attr-defined]
        context.colorspace, context.color_range = matrix, 2 if full else 1

    def paint(frame: av.VideoFrame) -> None:
        for plane, value in zip(frame.planes, (luma, blue, red), strict=True):
            plane.update(bytes([value]) * plane.buffer_size)
        frame.colorspace, frame.color_range = matrix, 2 if full else 1

    images = [np.zeros((32, 32, 3), np.uint8)] * 2
    path = encode(tmp_path / "c.mkv", images, codec="ffv1", prepare=tag, convert=paint)
    (frame, *_), _ = read_all(path)
    y = luma / 255 if full else (luma - 16) / 219
    u, v = ((x - 128) / (255 if full else 224) for x in (blue, red))
    r, b = y + 2 * (1 - kr) * v, y + 2 * (1 - kb) * u
    g = (y - kr * r - kb * b) / (1 - kr - kb)
    wanted = 255 * np.array([r, g, b])
    assert np.abs(frame.image.reshape(-1, 3) - wanted).max() <= 3


def test_a_gif_is_composed_over_white(tmp_path: Path) -> None:
    def picture(x: int) -> Image.Image:
        image = Image.new("RGBA", (20, 10))
        image.paste((200, 30, 30, 255), (x, 2, x + 5, 8))
        return image

    path = tmp_path / "clear.gif"
    first, *others = (picture(x) for x in (0, 7, 14))
    first.save(path, save_all=True, append_images=others, duration=[40, 70, 100], disposal=2)
    frames, damage = read_all(path)
    assert damage is None
    assert np.allclose([f.pts for f in frames], [0, 0.04, 0.11])
    for frame, x in zip(frames, (0, 7, 14), strict=True):
        assert np.abs(frame.image[5, x + 2].astype(int) - (200, 30, 30)).max() < 8
        assert np.array_equal(frame.image[0, 0], [255, 255, 255])


def test_half_transparent_pixels_are_mixed_with_white() -> None:
    assert over_white(np.array([[[0, 100, 200, 128]]], np.uint8)).tolist() == [[[127, 177, 227]]]


def serve(folder: Path) -> http.server.ThreadingHTTPServer:
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args: object) -> None: ...

    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), partial(Quiet, directory=str(folder))
    )
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


def test_a_url_is_read_and_its_password_never_shown(plain_clip: Path) -> None:
    server = serve(plain_clip.parent)
    try:
        address = f"http://me:secret@127.0.0.1:{server.server_port}"
        with open_video(f"{address}/plain.mp4?token=secret") as reader:
            assert len(list(reader)) == 30
            assert reader.info.name == f"http://127.0.0.1:{server.server_port}/plain.mp4"
        with pytest.raises(VideoError) as caught:
            open_video(f"{address}/gone.mp4")
        assert "secret" not in str(caught.value)
    finally:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize("name", ["a.ts", "a.mkv", "faststart.mp4"])
def test_standard_input_is_read_as_it_arrives(tmp_path: Path, name: str) -> None:
    movflags = "+faststart" if name.endswith("mp4") else ""
    path = encode(tmp_path / name, moving_images(20), movflags=movflags)
    code = (
        "from rvos_deploy.video import open_video\n"
        "with open_video('-') as r: print(len(list(r)), r.damage, r.info.name)"
    )
    with subprocess.Popen(["cat", str(path)], stdout=subprocess.PIPE) as source:
        done = subprocess.run(
            [sys.executable, "-c", code], stdin=source.stdout, capture_output=True, check=True
        )
    assert done.stdout.decode().strip() == "20 None standard input"


def test_a_name_with_a_colon_or_a_percent_sign_is_a_file(tmp_path: Path) -> None:
    path = encode(tmp_path / "cam:1 100%.mp4", moving_images(3))
    assert len(read_all(path)[0]) == 3


def open_files(path: Path) -> int:
    return sum(1 for fd in Path("/proc/self/fd").iterdir() if fd.resolve() == path.resolve())


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="needs /proc")
def test_leaving_early_closes_the_file(plain_clip: Path) -> None:
    frames = read_video(plain_clip)
    next(frames)
    assert open_files(plain_clip) == 1
    frames.close()
    assert open_files(plain_clip) == 0
    reader = open_video(plain_clip)
    reader.close()
    reader.close()
    assert open_files(plain_clip) == 0
    assert list(reader) == []


def test_frames_are_validated_and_show_their_shape() -> None:
    image = np.zeros((4, 6, 3), np.uint8)
    frame = Frame(2, 0.08, image)
    assert repr(frame) == "Frame(index=2, pts=0.08, image=uint8[4x6x3], duration=None)"
    assert (frame.height, frame.width) == (4, 6)
    for wrong in (
        {"index": -1},
        {"pts": float("nan")},
        {"duration": -1.0},
        {"image": image[..., 0]},
        {"image": image.astype(np.float32)},
    ):
        with pytest.raises(InputError):
            Frame(**{"index": 0, "pts": 0.0, "image": image, **wrong})  # type: ignore[arg-type]


@pytest.mark.parametrize("name", [".\0\0", "a\0b.mp4", "x" * 5000, "x/" * 3000, "\0"])
def test_a_name_that_no_file_can_have(name: str) -> None:
    """Found by the fuzzer: a NUL was a ValueError of pathlib's."""
    with pytest.raises(VideoError):
        open_video(name)
