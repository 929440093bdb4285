"""``run`` on input that was refused, lost or let in once."""

from __future__ import annotations

import io
import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image


def test_photographs_in_a_pipe_are_turned(
    start: Callable[..., subprocess.Popen[str]],
    tiny_bundle: Path,
    tmp_path: Path,
    output: Callable,
) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    photographs = io.BytesIO()
    for grey in (50, 100, 150):
        Image.new("RGB", (80, 48), (grey, grey, grey)).save(photographs, "JPEG", exif=exif)
    out = tmp_path / "out"
    with subprocess.Popen(["cat", "-"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as cat:
        child = start("run", "-", "the dog", "-b", tiny_bundle, "-o", out, stdin=cat.stdout)
        assert cat.stdin is not None
        cat.stdin.write(photographs.getvalue())
        cat.stdin.close()
        _, errors = child.communicate(timeout=120)
    assert (child.returncode, errors) == (0, "")
    output(out).check(frames=3, expressions=1, size=(80, 48))


def test_a_tiff_is_a_video_of_one_frame(rvos: Callable, tiny_bundle: Path, tmp_path: Path) -> None:
    path, out = tmp_path / "a.tiff", tmp_path / "out"
    Image.new("RGB", (120, 80)).save(path)
    result = rvos("run", path, "the dog", "-b", tiny_bundle, "-o", out)
    assert (result.code, result.stderr) == (0, "")
    assert json.loads((out / "result.json").read_text())["notes"] == []


def test_high_dynamic_range_is_warned_of_and_recorded(
    rvos: Callable, tiny_bundle: Path, tmp_path: Path
) -> None:
    path, out = tmp_path / "hdr.mp4", tmp_path / "out"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 80, 48, "yuv420p10le"
        stream.codec_context.color_trc = 16
        image = av.VideoFrame.from_ndarray(np.zeros((48, 80, 3), np.uint8), format="rgb24")
        container.mux(stream.encode(image))
        container.mux(stream.encode(None))
    result = rvos("run", path, "the dog", "-b", tiny_bundle, "-o", out)
    assert result.code == 0
    (line,) = result.stderr.splitlines()
    assert line.startswith("warning: hdr.mp4 is high dynamic range (transfer PQ)")
    (note,) = json.loads((out / "result.json").read_text())["notes"]
    assert line == f"warning: hdr.mp4 {note}"


def test_a_playlist_needs_the_option(
    rvos: Callable, tiny_bundle: Path, video: Path, tmp_path: Path, output: Callable
) -> None:
    playlist, out = tmp_path / "a.ffconcat", tmp_path / "out"
    playlist.write_text(f"ffconcat version 1.0\nfile {video.name}\n")
    call = ("run", playlist, "the dog", "-b", tiny_bundle, "-o", out)
    refused = rvos(*call)
    assert refused.code == 2
    assert "--allow-playlists" in refused.error
    assert not out.exists()
    assert rvos(*call, "--allow-playlists").code == 0
    output(out).check(frames=6, expressions=1, size=(48, 80))


def test_a_long_signed_url_is_a_url(rvos: Callable, tiny_bundle: Path, tmp_path: Path) -> None:
    """Its query is longer than any file's name, over which pathlib raised."""
    url = f"http://127.0.0.1:9/video.mp4?signature={'a' * 400}"
    result = rvos("run", url, "the dog", "-b", tiny_bundle, "-o", tmp_path / "out")
    assert result.code == 2
    assert result.error.startswith("http://127.0.0.1:9/video.mp4 cannot be opened")
    assert "aaa" not in result.error


@pytest.mark.parametrize("name", ["x" * 5000, "x/" * 3000, f"{'y' * 300}.mp4"])
def test_a_name_that_is_too_long(
    rvos: Callable, tiny_bundle: Path, tmp_path: Path, name: str
) -> None:
    result = rvos("run", name, "the dog", "-b", tiny_bundle, "-o", tmp_path / "out")
    assert result.code == 2
    assert result.error
    assert not (tmp_path / "out").exists()
