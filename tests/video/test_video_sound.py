"""The sound of the input in a written video: the same tone at the same time, and no more of it."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
import pytest
from video_clips import moving_images

from rvos_deploy.video import VideoWriter, open_video
from rvos_deploy.video.sinks.sound import SoundTrack
from rvos_deploy.video.sources.registry import sound_of

RATE = 44_100
FRAME = 1024 / RATE  # of AAC: a copied sound begins and ends with a whole one
TONE = 0.5
"""Seconds at which a tone begins, after silence."""


def clip(
    path: Path, codec: str = "aac", *, sample_format: str = "fltp", start: float = 0.0
) -> Path:
    """Two seconds of 64x48 at 10 fps, a tone from ``TONE`` on; the clock begins at ``start``."""
    samples = np.arange(2 * RATE)
    tone = np.where(samples >= TONE * RATE, np.sin(samples * 0.1) * 0.8, 0).astype(np.float32)
    if sample_format == "s16":
        tone = (tone * 32_767).astype(np.int16)
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=10, options={"preset": "ultrafast"})
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        sound = container.add_stream(codec, rate=RATE)
        sound.codec_context.layout = "mono"
        for index, image in enumerate(moving_images(20)):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts, frame.time_base = index + round(start * 10), Fraction(1, 10)
            container.mux(video.encode(frame))
        for at in range(0, tone.size, 1024):
            piece = av.AudioFrame.from_ndarray(
                tone[None, at : at + 1024], format=sample_format, layout="mono"
            )
            piece.sample_rate = RATE
            piece.pts, piece.time_base = at + round(start * RATE), Fraction(1, RATE)
            container.mux(sound.encode(piece))
        container.mux(video.encode(None))
        container.mux(sound.encode(None))
    return path


class Heard(NamedTuple):
    codec: str
    tone: float
    seconds: float


def heard(path: Path) -> Heard | None:
    """The codec, and when the tone begins after the first picture, and how long the sound is."""
    with av.open(str(path)) as container:
        if not container.streams.audio:
            return None
        video = next(container.decode(video=0))
        container.seek(0)
        stream = container.streams.audio[0]
        frames = list(container.decode(stream))
        begin = float(frames[0].pts * frames[0].time_base)
        sound = np.concatenate([frame.to_ndarray().reshape(1, -1)[0] for frame in frames])
        loud = np.abs(sound / np.abs(sound).max()) > 0.3
        tone = begin + float(loud.argmax()) / RATE - float(video.pts * video.time_base)
        return Heard(stream.codec_context.name, tone, sound.size / RATE)


def transcode(source: Path, target: Path, frames: slice = slice(None)) -> SoundTrack | None:
    sound = SoundTrack.open(str(source))
    with open_video(source) as reader, VideoWriter(target, reader.info, sound=sound) as writer:
        for frame in list(reader)[frames]:
            writer.write(frame.host_image(), frame.pts, frame.duration)
    return sound


@pytest.mark.parametrize(
    ("name", "codec", "sample_format", "described"),
    [
        ("a.mp4", "aac", "fltp", "aac, copied"),
        ("a.mkv", "aac", "fltp", "aac, copied"),
        ("a.mov", "pcm_s16le", "s16", "pcm_s16le, encoded as aac"),
        ("a.mkv", "flac", "s16", "flac, encoded as aac"),
    ],
)
def test_the_sound_is_that_of_the_input(
    tmp_path: Path, name: str, codec: str, sample_format: str, described: str
) -> None:
    source = clip(tmp_path / name, codec, sample_format=sample_format)
    sound = transcode(source, tmp_path / "overlay.mp4")
    assert sound is not None
    assert sound.described == described
    found = heard(tmp_path / "overlay.mp4")
    assert found is not None
    assert found.codec == "aac"
    assert found.tone == pytest.approx(TONE, abs=0.005)
    assert found.seconds == pytest.approx(2, abs=2 * FRAME)


def test_a_transport_stream_whose_clock_runs_already(tmp_path: Path) -> None:
    source = clip(tmp_path / "a.ts", start=100.0)
    transcode(source, tmp_path / "overlay.mp4")
    found, wanted = heard(tmp_path / "overlay.mp4"), heard(source)
    assert found is not None
    assert wanted is not None
    assert found.tone == pytest.approx(wanted.tone, abs=0.005)


def test_the_sound_ends_with_the_pictures(tmp_path: Path) -> None:
    source = clip(tmp_path / "a.mp4")
    transcode(source, tmp_path / "short.mp4", slice(7))
    found = heard(tmp_path / "short.mp4")
    assert found is not None
    assert found.tone == pytest.approx(TONE, abs=0.005)
    assert found.seconds == pytest.approx(0.7, abs=2 * FRAME)


def test_the_sound_is_written_beside_its_pictures(tmp_path: Path) -> None:
    """A player that reads the file in order has both: no packet is half a second late."""
    transcode(clip(tmp_path / "a.mp4"), tmp_path / "overlay.mp4")
    with av.open(str(tmp_path / "overlay.mp4")) as container:
        packets = [p for p in container.demux() if p.pts is not None]
    places = sorted((p.pos, float(p.pts * p.time_base)) for p in packets)
    times = [time for _, time in places]
    assert max(np.maximum.accumulate(times) - times) < 0.5


def test_a_video_without_sound_has_none(plain_clip: Path, tmp_path: Path) -> None:
    assert SoundTrack.open(str(plain_clip)) is None
    transcode(plain_clip, tmp_path / "overlay.mp4")
    assert heard(tmp_path / "overlay.mp4") is None


@pytest.mark.parametrize("name", ["nothing.mp4", ".", "/dev/null", "x\0y"])
def test_what_cannot_be_opened_has_no_sound(name: str) -> None:
    assert SoundTrack.open(name) is None


def test_damaged_sound_does_not_damage_the_video(tmp_path: Path) -> None:
    source = clip(tmp_path / "a.mp4")
    content = bytearray(source.read_bytes())
    with av.open(str(source)) as container:
        packets = list(container.demux(audio=0))
    for packet in packets[20:]:
        if packet.pos is not None:
            content[packet.pos : packet.pos + packet.size] = bytes(packet.size)
    source.write_bytes(content)
    transcode(source, tmp_path / "overlay.mp4")
    with open_video(tmp_path / "overlay.mp4") as reader:
        assert len(list(reader)) == 20
        assert reader.damage is None


def test_streams_that_were_joined(tmp_path: Path) -> None:
    """Their times go back in the middle, which no container takes."""
    part = clip(tmp_path / "a.ts", start=10.0).read_bytes()
    (tmp_path / "joined.ts").write_bytes(part + part)
    transcode(tmp_path / "joined.ts", tmp_path / "overlay.mp4")
    with open_video(tmp_path / "overlay.mp4") as reader:
        assert len(list(reader)) == 40
    found = heard(tmp_path / "overlay.mp4")
    assert found is not None
    assert found.seconds == pytest.approx(4, abs=0.3)


def test_a_packet_that_the_container_refuses_ends_the_sound_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: SoundTrack, seconds: float, *, last: bool = False) -> None:
        output, self._output = self._output, Refuses()  # type: ignore[assignment]
        mux_until(self, seconds, last=last)
        self._output = output

    class Refuses:
        def mux(self, packet: object) -> None:
            raise av.ArgumentError(22, "Invalid argument")

    mux_until = SoundTrack.mux_until
    monkeypatch.setattr(SoundTrack, "mux_until", refuse)
    sound = transcode(clip(tmp_path / "a.mp4"), tmp_path / "overlay.mp4")
    assert sound is not None
    assert sound.described == "aac, copied, damaged"
    with open_video(tmp_path / "overlay.mp4") as reader:
        assert len(list(reader)) == 20


def test_only_a_file_has_its_sound_taken(tmp_path: Path) -> None:
    source = clip(tmp_path / "a.mp4")
    assert sound_of(source) == sound_of(str(source)) == str(source)
    for name in (tmp_path, "-", "rtsp://host/a", "/dev/null", object()):
        assert sound_of(name) is None
