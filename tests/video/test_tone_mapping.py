"""High dynamic range is mapped to BT.709: against formulas in float64, and against real clips."""

from __future__ import annotations

import warnings
from pathlib import Path

import av
import numpy as np
import pytest
from numpy.typing import NDArray
from video_clips import encode, moving_images

from rvos_deploy.video import open_video
from rvos_deploy.video.sources.tone_mapping import hlg_to_light, pq_to_nits, tone_map

PQ, HLG = 16, 18  # FFmpeg's codes


def srgb(light: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)


def plain(signal: NDArray[np.uint16], transfer: str) -> NDArray[np.float64]:
    """The whole mapping pixel by pixel in float64, without tables; 0 to 255."""
    value = signal / 65535
    white, peak = (
        (203.0, 1000 / 203) if transfer == "PQ" else (1.0, float(hlg_to_light(np.array(1.0))))
    )
    light = (pq_to_nits(value) if transfer == "PQ" else hlg_to_light(value)) / white
    matrix = np.array(
        [[1.6605, -0.5876, -0.0728], [-0.1246, 1.1329, -0.0083], [-0.0182, -0.1006, 1.1187]]
    )
    light = np.maximum(light @ matrix.T, 0)
    largest = light.max(axis=-1, keepdims=True)
    t, w = np.maximum(largest - 0.8, 0) / 0.2, (peak - 0.8) / 0.2
    mapped = np.minimum(0.8 + 0.2 * t * (1 + t / w**2) / (1 + t), 1)
    scale = np.where(largest > 0.8, mapped / np.maximum(largest, 1e-9), 1)
    return 255 * srgb(light * scale)


@pytest.mark.parametrize("transfer", ["PQ", "HLG"])
def test_tables_err_by_at_most_one_level(transfer: str) -> None:
    codes = np.random.default_rng(1).integers(0, 4096, (64, 97, 3), np.uint16)
    signal = (codes << 4) | (codes >> 8)  # 12 bits, as FFmpeg scales them to 16
    mapped = tone_map(signal, transfer).astype(float)  # type: ignore[arg-type]
    assert mapped.shape == signal.shape
    # Half a level of rounding, and the steps of the table of sRGB, which is steep in the dark.
    assert np.abs(mapped - plain(signal, transfer)).max() <= 1.5


def test_levels_that_standards_state() -> None:
    """BT.2408: SDR white is at 203 nits, 58 % in PQ, and at 75 % in HLG."""
    assert pq_to_nits(np.array([0.0, 0.5807, 1.0])) == pytest.approx([0, 203, 10_000], abs=0.5)
    assert hlg_to_light(np.array([0.0, 0.5, 0.75])) == pytest.approx(
        [0, 1 / 12 / 0.26496, 1], abs=1e-4
    )


@pytest.mark.parametrize("transfer", ["PQ", "HLG"])
def test_grey_stays_grey_and_brighter_stays_brighter(transfer: str) -> None:
    ramp = np.repeat(np.linspace(0, 65535, 200).astype(np.uint16)[None, :, None], 3, axis=2)
    mapped = tone_map(ramp, transfer).astype(int)[0]  # type: ignore[arg-type]
    assert np.abs(mapped - mapped[:, :1]).max() <= 1
    assert (np.diff(mapped[:, 0]) >= 0).all()
    assert (mapped[0] == 0).all()
    assert mapped[-1, 0] == 255


@pytest.mark.parametrize(("name", "unmapped"), [("hdr10", 31), ("hlg", 27)])
@pytest.mark.filterwarnings("ignore:.*high dynamic range:RuntimeWarning")
def test_the_clips_come_out_like_their_twin(inputs: Path, name: str, unmapped: int) -> None:
    with open_video(inputs / "sdr_twin.mp4", max_frames=12) as reader:
        twin = np.stack([frame.image for frame in reader]).astype(int)
    with open_video(inputs / f"{name}.mp4") as reader:
        mapped = np.stack([frame.image for frame in reader]).astype(int)
    error = np.abs(mapped - twin)
    # They were encoded anew, so pixels at edges differ. Without mapping, the error is above 27.
    assert error.mean() < 2.5 < unmapped
    assert np.percentile(error, 95) <= 6


def clip(path: Path, transfer: int, level: int) -> Path:
    """A clip of one 10-bit grey level."""

    def tag(stream: object) -> None:
        context = stream.codec_context  # type: ignore[attr-defined]
        context.color_trc, context.color_primaries, context.colorspace = transfer, 9, 9

    def paint(frame: av.VideoFrame) -> None:
        frame.color_trc, frame.color_primaries, frame.colorspace = transfer, 9, 9
        for plane, value in zip(frame.planes, (level, 512, 512), strict=True):
            plane.update(np.full(plane.buffer_size // 2, value, "<u2").tobytes())

    images = moving_images(2)
    return encode(path, images, codec="ffv1", pix_fmt="yuv420p10le", prepare=tag, convert=paint)


@pytest.mark.parametrize(("transfer", "signal"), [(PQ, 0.5807), (HLG, 0.75), (PQ, 0.3), (HLG, 0.3)])
def test_a_stream_is_mapped_by_its_own_transfer(
    tmp_path: Path, transfer: int, signal: float
) -> None:
    level = round(64 + signal * 876)  # limited range
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        with open_video(clip(tmp_path / "a.mkv", transfer, level)) as reader:
            image = next(reader).image
    code = np.full((1, 1, 3), round((level - 64) / 876 * 65535), np.uint16)
    wanted = tone_map(code, "PQ" if transfer == PQ else "HLG")[0, 0, 0]
    assert np.abs(image.astype(int) - int(wanted)).max() <= 1
    assert 20 < wanted < 250
