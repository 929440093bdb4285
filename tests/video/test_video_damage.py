"""Videos that are cut short, scrambled, or no videos at all."""

from __future__ import annotations

import subprocess
import sys
import warnings
import wave
from pathlib import Path

import av
import numpy as np
import pytest
from video_clips import encode, encode_with_sound, moving_images

from rvos_deploy.errors import VideoError
from rvos_deploy.video import Frame, open_video, read_video

FRAMES = 40
LAYOUTS = {
    "faststart.mp4": "+faststart",
    "fragments.mp4": "frag_keyframe+empty_moov",
    "plain.ts": "",
    "plain.mkv": "",
    "plain.avi": "",
}


def cut(tmp_path: Path, name: str, keep: float = 0.6) -> Path:
    whole = encode(tmp_path / name, moving_images(FRAMES), movflags=LAYOUTS[name])
    data = whole.read_bytes()
    part = tmp_path / f"cut_{name}"
    part.write_bytes(data[: int(len(data) * keep)])
    return part


def scrambled(tmp_path: Path) -> Path:
    """An MP4 whose middle is noise: some packets cannot be decoded, the later ones can."""
    path = encode(tmp_path / "scrambled.mp4", moving_images(FRAMES), movflags="+faststart")
    data = bytearray(path.read_bytes())
    middle = int(len(data) * 0.6)
    data[middle : middle + 300] = np.random.default_rng(0).bytes(300)
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_truncated_file_gives_its_frames_then_says_so(tmp_path: Path, name: str) -> None:
    with open_video(cut(tmp_path, name)) as reader:
        frames = list(reader)
        assert 5 < len(frames) < FRAMES
        # A transport stream has no end to miss: cut between two frames, it is a shorter one.
        assert reader.damage is not None or name == "plain.ts"
        assert "\n" not in str(reader.damage)


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_whole_file_is_not_called_damaged(tmp_path: Path, name: str) -> None:
    path = encode(tmp_path / name, moving_images(FRAMES), movflags=LAYOUTS[name])
    with open_video(path) as reader:
        assert len(list(reader)) == FRAMES
        assert reader.damage is None


def test_scrambled_data_ends_the_video_or_is_skipped(tmp_path: Path) -> None:
    path = scrambled(tmp_path)
    with open_video(path) as reader:
        stopped = len(list(reader))
        assert str(reader.damage).startswith(f"decoding stopped after {stopped} frames")
    with open_video(path, on_damage="skip") as reader:
        skipping = list(reader)
        assert reader.damage is not None
    assert 5 < stopped < len(skipping) < FRAMES
    assert np.all(np.diff([f.pts for f in skipping]) > 0)


def test_what_precedes_the_damage_is_that_of_the_whole_file(tmp_path: Path) -> None:
    with open_video(cut(tmp_path, "faststart.mp4")) as reader:
        part = list(reader)
    with open_video(tmp_path / "faststart.mp4") as reader:
        for ours, whole in zip(part, reader, strict=False):
            assert np.array_equal(ours.image, whole.image)
            assert ours.pts == whole.pts


THREADS = [1, 2, 3, 8]


def read_with(
    monkeypatch: pytest.MonkeyPatch, cores: int, path: Path, on_damage: str = "stop"
) -> tuple[list[Frame], str | None]:
    """Read a video as on a machine of so many cores."""
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(cores)), raising=False)
    monkeypatch.setattr("os.cpu_count", lambda: cores)
    with open_video(path, on_damage=on_damage) as reader:  # type: ignore[arg-type]
        return list(reader), reader.damage


def whole_frames(path: Path) -> int:
    """Frames displayed before the first packet that the cut left incomplete."""
    whole: list[int] = []
    with av.open(str(path)) as container:
        for packet in container.demux(video=0):
            if packet.is_corrupt:
                return sum(pts < packet.pts for pts in whole)
            whole.append(packet.pts)
    raise AssertionError("no packet was cut")


@pytest.mark.parametrize("cores", THREADS)
@pytest.mark.parametrize("keep", [0.5, 0.6, 0.7, 0.85])
@pytest.mark.parametrize("name", ["faststart.mp4", "fragments.mp4"])
def test_no_whole_frame_before_the_damage_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, keep: float, cores: int
) -> None:
    path = cut(tmp_path, name, keep)
    frames, damage = read_with(monkeypatch, cores, path)
    assert len(frames) == whole_frames(path)
    assert f"decoding stopped after {len(frames)} frames" in str(damage)
    with open_video(tmp_path / name) as reader:
        for ours, whole in zip(frames, reader, strict=False):
            assert ours.pts == whole.pts
            assert np.array_equal(ours.image, whole.image)


@pytest.mark.parametrize("on_damage", ["stop", "skip"])
@pytest.mark.parametrize(("name", "count"), [("frag_trunc.mp4", 8), ("fs_trunc.mp4", 4)])
def test_the_clips_that_lost_frames(
    inputs: Path, monkeypatch: pytest.MonkeyPatch, name: str, count: int, on_damage: str
) -> None:
    reference, _ = read_with(monkeypatch, 1, inputs / name, on_damage)
    assert len(reference) == count
    for cores in THREADS:
        frames, damage = read_with(monkeypatch, cores, inputs / name, on_damage)
        assert damage is not None
        assert [f.pts for f in frames] == [f.pts for f in reference]
        for ours, wanted in zip(frames, reference, strict=True):
            assert np.array_equal(ours.image, wanted.image)


@pytest.mark.parametrize("on_damage", ["stop", "skip"])
def test_scrambled_data_gives_the_same_frames_on_every_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, on_damage: str
) -> None:
    path = scrambled(tmp_path)
    (alone, told), (together, told_too) = (
        read_with(monkeypatch, cores, path, on_damage) for cores in (1, 3)
    )
    assert told == told_too
    assert [f.pts for f in alone] == [f.pts for f in together]
    for ours, wanted in zip(alone, together, strict=True):
        assert np.array_equal(ours.image, wanted.image)


def test_read_video_warns_of_damage_once_at_the_end(tmp_path: Path) -> None:
    path = cut(tmp_path, "faststart.mp4")
    with pytest.warns(RuntimeWarning, match="is damaged: ") as caught:
        frames = list(read_video(path))
    assert len(caught) == 1
    assert len(frames) > 5
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(list(read_video(path, max_frames=3))) == 3


def make_sound(path: Path) -> Path:
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, 8000, 0, "NONE", ""))
        file.writeframes(bytes(16000))
    return path


def make(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def unreadable_sources(folder: Path) -> dict[str, tuple[Path, str]]:
    noise = np.random.default_rng(0).bytes(50_000)
    (folder / "none").mkdir()
    return {
        "missing": (folder / "gone.mp4", "there is no file"),
        "empty": (make(folder / "empty.mp4", b""), "is empty"),
        "noise": (make(folder / "noise.mp4", noise), "is not a video"),
        "text": (make(folder / "notes.txt", b"hello\n" * 99), "is a text file"),
        "toml": (make(folder / "a.toml", b"[tool]\nname = 'x'\n" * 99), ""),
        "sound": (make_sound(folder / "a.wav"), "has no video stream (found: audio)"),
        "folder": (folder / "none", "holds no image"),
        "cut before any frame": (cut(folder, "faststart.mp4", 0.2), ""),
    }


def test_what_is_no_video_is_told_in_one_line(tmp_path: Path) -> None:
    for name, (source, expected) in unreadable_sources(tmp_path).items():
        with pytest.raises(VideoError) as caught:
            open_video(source)
        text = str(caught.value)
        assert expected in text, name
        assert source.name in text, name
        assert "\n" not in text, name
        assert ";" in text, f"{name}: the error does not say how to mend it: {text}"


def test_an_mp4_with_its_index_at_the_end_cannot_be_piped(tmp_path: Path) -> None:
    path = encode(tmp_path / "plain.mp4", moving_images(60, height=240, width=320))
    code = "from rvos_deploy.video import open_video; open_video('-')"
    with subprocess.Popen(["cat", str(path)], stdout=subprocess.PIPE) as source:
        done = subprocess.run(
            [sys.executable, "-c", code], stdin=source.stdout, capture_output=True, check=False
        )
    assert "pipe MPEG-TS, Matroska or fragmented MP4" in done.stderr.decode()


def test_a_longer_sound_track_is_no_damage(tmp_path: Path) -> None:
    for name in ("long.mkv", "long.mp4", "long.ts"):
        path = encode_with_sound(tmp_path / name, moving_images(25), seconds=5)
        with open_video(path) as reader:
            assert len(list(reader)) == 25
            assert reader.damage is None


def test_a_terminal_on_standard_input_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal:
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr("sys.stdin", Terminal())
    with pytest.raises(VideoError, match="nothing is piped"):
        open_video("-")
