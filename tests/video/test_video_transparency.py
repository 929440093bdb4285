"""Transparency: every format that stores it is composed over the same white."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from video_clips import encode, moving_images

from rvos_deploy.video import open_video

# name: encoder, pixel format. (ProRes 4444, QuickTime Animation, lossless ones, WebM.)
FORMATS = {
    "vp8.webm": ("libvpx", "yuva420p"),
    "vp9.webm": ("libvpx-vp9", "yuva420p"),
    "vp9.mkv": ("libvpx-vp9", "yuva420p"),
    "prores.mov": ("prores_ks", "yuva444p10le"),
    "animation.mov": ("qtrle", "argb"),
    "png.mov": ("png", "rgba"),
    "ffv1.mkv": ("ffv1", "yuva420p"),
    "ffv1_bgra.mkv": ("ffv1", "bgra"),
    "utvideo.avi": ("utvideo", "gbrap"),
    "clip.apng": ("apng", "rgba"),
}
HIDDEN, SHOWN = (slice(4, 28), slice(4, 28)), (slice(4, 28), slice(36, 60))


def half_hidden(path: Path, codec: str, pix_fmt: str, count: int = 4) -> Path:
    """Green clips of 64x32 whose left half is black and hidden."""
    picture = np.zeros((32, 64, 4), np.uint8)
    picture[:, 32:] = (20, 180, 40, 255)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25)
        stream.height, stream.width = picture.shape[:2]
        stream.pix_fmt = pix_fmt
        if codec.startswith("libvpx"):
            stream.bit_rate = 1_000_000
            stream.metadata["alpha_mode"] = "1"
            stream.options = {"auto-alt-ref": "0"}  # the encoder refuses it beside alpha
        for i in range(count):
            frame = av.VideoFrame.from_ndarray(picture, format="rgba").reformat(format=pix_fmt)
            frame.pts, frame.time_base = i, Fraction(1, 25)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


@pytest.mark.parametrize("name", FORMATS)
def test_hidden_pixels_are_white_and_shown_ones_themselves(tmp_path: Path, name: str) -> None:
    codec, pix_fmt = FORMATS[name]
    if codec not in av.codecs_available:
        pytest.skip(f"this FFmpeg has no {codec}")
    with open_video(half_hidden(tmp_path / name, codec, pix_fmt)) as video:
        frames = list(video)
        assert video.damage is None
        assert video.notes == ()
    assert len(frames) == 4
    for frame in frames:
        assert frame.image[HIDDEN].min() >= 250
        assert np.abs(frame.image[SHOWN].astype(int) - (20, 180, 40)).max() < 12


@pytest.mark.parametrize("name", ["alpha_vp8.webm", "alpha_vp9.webm"])
def test_the_clips_that_were_black_are_white(inputs: Path, name: str) -> None:
    with av.open(str(inputs / name)) as container:
        native = [f.to_ndarray(format="rgb24") for f in container.decode(video=0)]
    with open_video(inputs / name) as video:
        frames = list(video)
    assert len(frames) == len(native) == 12
    for frame, colour in zip(frames, native, strict=True):
        # Composing over white only ever lightens.
        assert (frame.image.astype(int) >= colour.astype(int) - 8).all()
        assert (frame.image.astype(int) - colour).max() > 100


@pytest.mark.parametrize("codec", ["libvpx", "libvpx-vp9"])
def test_a_webm_without_transparency_is_decoded_as_ever(tmp_path: Path, codec: str) -> None:
    path = encode(tmp_path / "plain.webm", moving_images(5), codec=codec)
    with av.open(str(path)) as container:
        wanted = [f.to_ndarray(format="rgb24") for f in container.decode(video=0)]
    with open_video(path) as video:
        for frame, image in zip(video, wanted, strict=True):
            assert np.abs(frame.image.astype(int) - image).max() <= 3


def test_an_ffmpeg_without_the_decoder_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = half_hidden(tmp_path / "a.webm", "libvpx-vp9", "yuva420p")
    monkeypatch.setattr("av.codecs_available", {"vp9"})
    with pytest.warns(RuntimeWarning, match=r"a\.webm has transparency"):
        video = open_video(path)
    with video:
        assert len(list(video)) == 4
        assert len(video.notes) == 1
