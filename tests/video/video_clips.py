"""Clips that the tests make themselves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

HEIGHT, WIDTH = 48, 64


def moving_images(count: int, height: int = HEIGHT, width: int = WIDTH) -> list[np.ndarray]:
    """Noise that moves over a changing grey: every frame differs, and costs bytes."""
    noise = np.random.default_rng(0).integers(0, 255, (height // 2, width // 2, 3), np.uint8)
    images = []
    for i in range(count):
        image = np.full((height, width, 3), (7 * i) % 256, np.uint8)
        image[: height // 2, : width // 2] = np.roll(noise, i, axis=1)
        images.append(image)
    return images


def encode(
    path: Path,
    images: Sequence[np.ndarray],
    *,
    pts: Sequence[int] | None = None,
    time_base: Fraction = Fraction(1, 25),
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    format: str | None = None,
    movflags: str = "",
    prepare: Callable[[object], None] = lambda stream: None,
    convert: Callable[[av.VideoFrame], None] = lambda frame: None,
) -> Path:
    options = {"movflags": movflags} if movflags else {}
    with av.open(str(path), "w", format=format, options=options) as container:
        private = {"g": "8"} if codec == "libx264" else {}
        stream = container.add_stream(codec, rate=25, options=private)
        stream.height, stream.width = images[0].shape[:2]
        stream.pix_fmt = pix_fmt
        stream.codec_context.time_base = time_base
        prepare(stream)
        for i, image in enumerate(images):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24").reformat(
                format=pix_fmt, threads=1
            )
            convert(frame)
            frame.pts, frame.time_base = (pts[i] if pts else i), time_base
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def store(path: Path, codec: str, size: tuple[int, int], packets: Sequence[bytes]) -> Path:
    """A clip whose frames are whole files (JPEG, PNG), one every 40 ms; ``size`` is (H, W)."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, 25)
        stream.height, stream.width = size
        stream.pix_fmt = {"mjpeg": "yuvj420p", "png": "rgb24"}[codec]
        stream.codec_context.open()
        for i, data in enumerate(packets):
            packet = av.Packet(data)
            packet.stream, packet.time_base = stream, Fraction(1, 25)
            packet.pts = packet.dts = i
            packet.duration, packet.is_keyframe = 1, True
            container.mux(packet)
    return path


def encode_with_sound(path: Path, images: Sequence[np.ndarray], seconds: int) -> Path:
    """A video at 25 fps with ``seconds`` of silence beside it."""
    with av.open(str(path), "w") as container:
        video, audio = container.add_stream("libx264", 25), container.add_stream("aac", 8000)
        video.height, video.width = images[0].shape[:2]
        video.pix_fmt = "yuv420p"
        for image in images:
            container.mux(video.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(video.encode(None))
        for i in range(seconds * 8000 // 1024):
            silence = np.zeros((1, 1024), np.float32)
            sound = av.AudioFrame.from_ndarray(silence, format="fltp", layout="mono")
            sound.sample_rate, sound.pts = 8000, i * 1024
            container.mux(audio.encode(sound))
        container.mux(audio.encode(None))
    return path
