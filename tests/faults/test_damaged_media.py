"""Damaged media: whatever the bytes, frames with their damage told, or one line.

Each try runs in this process: a crash of FFmpeg or Pillow would end the test run.
"""

from __future__ import annotations

import io
import os
import random
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from fractions import Fraction
from pathlib import Path
from typing import Literal

import av
import numpy as np
import pytest
from PIL import Image

from rvos_deploy.errors import InputError, VideoError
from rvos_deploy.images import displayed_size, read_image
from rvos_deploy.video import open_video

HEIGHT, WIDTH, FRAMES = 48, 64, 12
# A mutation may not make a clip longer than this: a header's lie must not cost hours.
MOST_FRAMES = 400

# Codecs whose decoders conceal what they cannot decode. The others leave that part of a picture
# unwritten: what memory held shows there; only counts, times and damage are the same again.
CONCEALING = {"h264.mp4", "fragments.mp4", "h264.mkv", "h264.ts", "mpeg4.mov", "vp9.webm"}

Attempt = Callable[[str], AbstractContextManager[None]]
OnDamage = Literal["stop", "skip"]


def pictures() -> Iterator[np.ndarray]:
    noise = np.random.default_rng(0).integers(0, 255, (HEIGHT, WIDTH, 3), np.uint8)
    for i in range(FRAMES):
        image = np.full((HEIGHT, WIDTH, 3), 20 * i, np.uint8)
        image[8:24, 8:40] = np.roll(noise, i, axis=1)[8:24, 8:40]
        yield image


def clip(name: str, codec: str, pix_fmt: str, **options: str) -> bytes:
    # A file by name, because +faststart opens it a second time.
    with tempfile.NamedTemporaryFile() as file:
        encode(file.name, name, codec, pix_fmt, options)
        return Path(file.name).read_bytes()


def encode(path: str, name: str, codec: str, pix_fmt: str, options: dict[str, str]) -> None:
    options = {"fflags": "+bitexact", **options}  # Matroska draws identifiers otherwise
    with av.open(path, "w", format=name, options=options) as container:
        stream = container.add_stream(codec, 25)
        stream.height, stream.width, stream.pix_fmt = HEIGHT, WIDTH, pix_fmt
        for i, image in enumerate(pictures()):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24").reformat(format=pix_fmt)
            frame.pts, frame.time_base = i, Fraction(1, 25)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def still(kind: str, mode: str = "RGB", **options: object) -> bytes:
    exif, file = Image.Exif(), io.BytesIO()
    exif[0x0112] = 6
    image = Image.fromarray(next(pictures())).convert(mode)
    image.save(file, kind, exif=exif, **options)  # type: ignore[arg-type]
    return file.getvalue()


CLIPS: dict[str, Callable[[], bytes]] = {
    "h264.mp4": lambda: clip("mp4", "libx264", "yuv420p", movflags="+faststart"),
    "fragments.mp4": lambda: clip("mp4", "libx264", "yuv420p", movflags="frag_keyframe+empty_moov"),
    "mpeg4.mov": lambda: clip("mov", "mpeg4", "yuv420p"),
    "prores.mov": lambda: clip("mov", "prores_ks", "yuva444p10le"),
    "h264.mkv": lambda: clip("matroska", "libx264", "yuv420p"),
    "vp9.webm": lambda: clip("webm", "libvpx-vp9", "yuv420p"),
    "mjpeg.avi": lambda: clip("avi", "mjpeg", "yuvj420p"),
    "h264.ts": lambda: clip("mpegts", "libx264", "yuv420p"),
    "clip.gif": lambda: clip("gif", "gif", "rgb8"),
    "clip.apng": lambda: clip("apng", "apng", "rgba"),
}
PICTURES: dict[str, Callable[[], bytes]] = {
    "a.png": lambda: still("PNG", "RGBA"),
    "palette.png": lambda: still("PNG", "P"),
    "a.jpg": lambda: still("JPEG"),
    "progressive.jpg": lambda: still("JPEG", progressive=True),
    "a.webp": lambda: still("WEBP"),
    "a.tiff": lambda: still("TIFF"),
    "lzw.tiff": lambda: still("TIFF", compression="tiff_lzw"),
    "a.bmp": lambda: still("BMP"),
}


def damaged(data: bytes, rng: random.Random) -> bytes:
    """One to three mutations: flipped bits, other numbers, noise, cuts, parts twice or gone."""
    out = bytearray(data)
    for _ in range(rng.randint(1, 3)):
        if len(out) < 16:
            break
        # Headers are short: half of the mutations go there.
        end = len(out) - 8 if rng.random() < 0.5 else min(len(out) - 8, 600)
        place, length = rng.randrange(end), rng.choice((1, 4, 16, 64, 300))
        kind = rng.choice(("flip", "number", "noise", "cut", "remove", "double", "zero"))
        if kind == "flip":
            out[place] ^= 1 << rng.randrange(8)
        elif kind == "number":
            value = rng.choice((0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF))
            size = rng.choice((1, 2, 4, 8))
            value &= (1 << 8 * size) - 1
            out[place : place + size] = value.to_bytes(size, rng.choice(("big", "little")))
        elif kind == "noise":
            out[place : place + length] = rng.randbytes(length)
        elif kind == "cut":
            del out[max(place, 8) :]
        elif kind == "remove":
            del out[place : place + length]
        elif kind == "double":
            out[place:place] = out[place : place + length]
        else:
            out[place : place + length] = bytes(length)
    return bytes(out)


def read(path: Path, cores: int, on_damage: OnDamage, patch: pytest.MonkeyPatch) -> object:
    """What comes out: the frames' bytes and times, and the damage; or the error's one line."""
    patch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)), raising=False)
    try:
        with open_video(path, on_damage=on_damage, max_frames=MOST_FRAMES) as reader:
            frames, pts = [], -np.inf
            for number, frame in enumerate(reader):
                assert frame.index == number
                assert frame.pts > pts
                assert frame.image.shape == (reader.info.height, reader.info.width, 3)
                pts = frame.pts
                pixels = frame.image.tobytes() if path.name in CONCEALING else b""
                frames.append((frame.pts, frame.duration, pixels))
            assert frames
            assert "\n" not in str(reader.damage)
            return frames, reader.damage
    except VideoError as error:
        text = str(error)
        assert "\n" not in text
        assert path.name in text
        return text


def try_clips(folder: Path, name: str, count: int, seed: int, attempt: Attempt) -> None:
    whole, rng = CLIPS[name](), random.Random(f"{seed} {name}")
    for number in range(count):
        path = folder / name
        path.write_bytes(damaged(whole, rng))
        for on_damage in ("stop", "skip"):
            with (
                attempt("damaged videos"),
                pytest.MonkeyPatch.context() as patch,
                warnings.catch_warnings(),
            ):
                warnings.simplefilter("ignore")
                one = read(path, 1, on_damage, patch)
                assert one == read(path, 2, on_damage, patch), f"{name}, mutation {number}"


def try_pictures(folder: Path, name: str, count: int, seed: int, attempt: Attempt) -> None:
    whole, rng = PICTURES[name](), random.Random(f"{seed} {name}")
    for number in range(count):
        path = folder / name
        path.write_bytes(damaged(whole, rng))
        with (
            attempt("damaged pictures"),
            pytest.MonkeyPatch.context() as patch,
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore")
            read(path, 1, "stop", patch)
            read(folder, 1, "skip", patch)
            for function in (read_image, displayed_size):
                told = name
                try:
                    function(path)
                except InputError as error:
                    told = str(error)
                assert "\n" not in told, f"mutation {number}"
                assert name in told


def test_the_clips_are_whole_before_they_are_damaged(tmp_path: Path) -> None:
    for name, make in {**CLIPS, **PICTURES}.items():
        path = tmp_path / name
        path.write_bytes(make())
        with pytest.MonkeyPatch.context() as patch:
            frames, damage = read(path, 1, "stop", patch)  # type: ignore[misc]
        assert (len(frames), damage) == (FRAMES if name in CLIPS else 1, None), name


@pytest.mark.parametrize("name", CLIPS)
def test_damaged_videos(tmp_path: Path, name: str, attempt: Attempt) -> None:
    try_clips(tmp_path, name, 6, 0, attempt)


@pytest.mark.parametrize("name", PICTURES)
def test_damaged_pictures(tmp_path: Path, name: str, attempt: Attempt) -> None:
    try_pictures(tmp_path, name, 12, 0, attempt)


@pytest.mark.slow
@pytest.mark.parametrize("name", CLIPS)
def test_many_damaged_videos(tmp_path: Path, name: str, attempt: Attempt) -> None:
    try_clips(tmp_path, name, 400, 1, attempt)


@pytest.mark.slow
@pytest.mark.parametrize("name", PICTURES)
def test_many_damaged_pictures(tmp_path: Path, name: str, attempt: Attempt) -> None:
    try_pictures(tmp_path, name, 1500, 1, attempt)
