"""Every file of examples/ runs, and is short."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from rvos_deploy.datasets.moving_sprites import sample_video
from rvos_deploy.runtime.segmenter import load
from rvos_deploy.video import read_video

EXAMPLES = Path(__file__).parents[2] / "examples"
DEBIAN = Path("/usr/lib/python3/dist-packages")
FRAMES = 8
SENTENCES = ("the star that moves to the left", "the disc")


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("video") / "sample.mp4"
    sample_video(file, seed=0, frames=FRAMES)
    return file


@pytest.fixture(scope="module")
def masks(video: Path) -> NDArray[np.bool_]:
    """Masks [T,E,H,W] of the stream with its defaults."""
    with load("tiny") as segmenter, segmenter.stream(SENTENCES) as stream:
        return np.stack([r.masks for frame in read_video(video) for r in stream.push(frame)])


@pytest.fixture
def run_example(tmp_path: Path) -> Callable[..., str]:
    """Run an example in an empty folder, and return what it printed."""

    def run(name: str, *arguments: object, stdin: str = "", **variables: str) -> str:
        done = subprocess.run(
            [sys.executable, EXAMPLES / name, *map(str, arguments)],
            cwd=tmp_path,
            env={**os.environ, **variables},
            input=stdin,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


def pictures(file: Path) -> list[NDArray[np.uint8]]:
    return [np.asarray(frame.image) for frame in read_video(file)]


def assert_drawn(file: Path, video: Path, masks: NDArray[np.bool_]) -> None:
    """The output differs from the video, and most where the masks are."""
    drawn, plain = pictures(file), pictures(video)
    assert len(drawn) == len(plain) == FRAMES
    assert masks.any()
    for t in np.flatnonzero(masks.any(axis=(1, 2, 3))):
        change = np.abs(drawn[t].astype(int) - plain[t]).sum(axis=2)
        found = masks[t].any(axis=0)
        assert change[found].mean() > 2 * np.median(change[~found]) + 10


def test_examples_are_short_and_all_are_run() -> None:
    tests = Path(__file__).parents[1].rglob("test_*.py")
    tested = "".join(file.read_text(encoding="utf-8") for file in tests)
    files = [file for file in EXAMPLES.iterdir() if file.suffix in (".py", ".ipynb")]
    assert len(files) >= 5
    for file in files:
        assert re.search(rf'["/]{re.escape(file.name)}"', tested), f"no test runs {file.name}"
        lines = len(file.read_text(encoding="utf-8").splitlines())
        assert lines < 60 or file.suffix == ".ipynb", file


def test_opencv(
    run_example: Callable[..., str], video: Path, masks: NDArray[np.bool_], tmp_path: Path
) -> None:
    pytest.importorskip("cv2")
    printed = run_example("opencv_loop.py", video, "out.avi", *SENTENCES).splitlines()
    assert [line.split()[0] for line in printed] == [str(t) for t in range(FRAMES)]
    assert {len(line.split()) for line in printed} == {1 + len(SENTENCES)}
    # OpenCV decodes colours a little differently.
    assert_drawn(tmp_path / "out.avi", video, masks)


def test_supervision(
    run_example: Callable[..., str], video: Path, masks: NDArray[np.bool_], tmp_path: Path
) -> None:
    pytest.importorskip("supervision")
    printed = run_example("supervision_annotators.py", video, "out.mp4", *SENTENCES).splitlines()
    found = masks.any(axis=(2, 3)).sum(axis=1)
    assert printed == [f"{t} {count}" for t, count in enumerate(found)]
    assert_drawn(tmp_path / "out.mp4", video, masks)


def test_pyav_keeps_sound_and_times(
    run_example: Callable[..., str], video: Path, masks: NDArray[np.bool_], tmp_path: Path
) -> None:
    noisy, out = tmp_path / "noisy.mp4", tmp_path / "out.mp4"
    with_sound(video, noisy)
    run_example("pyav_to_pyav.py", noisy, out, *SENTENCES)
    assert times(out) == times(noisy)
    assert len(set(np.diff(sorted(times(noisy))))) > 1  # of a variable rate
    with av.open(noisy) as before, av.open(out) as after:
        kept = [[bytes(p) for p in f.demux(audio=0) if p.size] for f in (before, after)]
    assert kept[0] == kept[1] != []
    assert_drawn(out, noisy, masks)


def with_sound(video: Path, out: Path) -> None:
    """Write the pictures at uneven times, and a tone."""
    with av.open(out, "w") as writer:
        stream = writer.add_stream("libx264", rate=10, options={"crf": "10"})
        stream.width, stream.height, stream.pix_fmt = 224, 128, "yuv420p"
        stream.codec_context.time_base = Fraction(1, 100)
        sound = writer.add_stream("aac", rate=16000, layout="mono")
        for index, image in enumerate(pictures(video)):
            picture = av.VideoFrame.from_ndarray(image, format="rgb24")
            picture.pts, picture.time_base = 10 * index + index % 3, Fraction(1, 100)
            writer.mux(stream.encode(picture))
        writer.mux(stream.encode())
        for start in range(0, 16000, 1024):
            tone = np.sin(np.arange(start, start + 1024, dtype=np.float32) / 8)[None]
            samples = av.AudioFrame.from_ndarray(tone, format="fltp", layout="mono")
            samples.rate, samples.pts, samples.time_base = 16000, start, Fraction(1, 16000)
            writer.mux(sound.encode(samples))
        writer.mux(sound.encode())


def times(file: Path) -> list[float]:
    return [frame.pts for frame in read_video(file)]


def test_expressions_change(
    run_example: Callable[..., str], video: Path, masks: NDArray[np.bool_]
) -> None:
    first, second = SENTENCES
    commands = f"1 + {first}\n3 + {second}\n5 - {first}\n6 - {second}\n"
    printed = run_example("changing_expressions.py", video, stdin=commands).splitlines()
    present = [re.findall(rf"{first}|{second}", line) for line in printed]
    both = [first, second]
    assert present == [[], [first], [first], both, both, [second], [], []]
    assert printed[0] == "frame 0: nothing is followed"
    with load("tiny") as segmenter, segmenter.stream() as stream:
        frames = list(read_video(video))
        stream.push(frames[0])
        stream.add_expression(first)
        (result,) = stream.push(frames[1])
    assert printed[1] == f"frame 1: {first}: {result.scores[0]:.2f}, {result.masks[0].sum()} px"


def test_the_notebook(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its cells run in order, as Jupyter runs them: the last expression of a cell is its answer."""
    notebook = json.loads((EXAMPLES / "notebook.ipynb").read_text(encoding="utf-8"))
    assert notebook["nbformat"] == 4
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    for number, cell in enumerate(cells):
        assert cell["outputs"] == []
        exec(compile("".join(cell["source"]), f"cell {number}", "exec"), names)
    with Image.open(tmp_path / "notebook" / "overlay.png") as picture:
        assert picture.size == (224, 128)
    assert len(names["results"]) == 24  # type: ignore[arg-type]
    assert any(result.masks.any() for result in names["results"])  # type: ignore[attr-defined]


@pytest.fixture
def gi_folder(tmp_path: Path) -> Path:
    """Debian's bindings alone, beside this environment's packages."""
    folder = tmp_path / "bindings"
    folder.mkdir()
    tag = f"cpython-{sys.version_info.major}{sys.version_info.minor}-"
    if not list((DEBIAN / "gi").glob(f"_gi.{tag}*")):
        pytest.skip("Debian's python3-gi for this Python is absent")
    (folder / "gi").symlink_to(DEBIAN / "gi")
    probe = (
        "import gi; gi.require_version('Gst', '1.0'); from gi.repository import Gst; Gst.init(None)"
        "; names = ['avidemux', 'avimux', 'jpegdec', 'jpegenc', 'appsrc', 'videoconvert']; "
        "assert all(map(Gst.ElementFactory.find, names))"
    )
    found = subprocess.run(
        [sys.executable, "-c", probe],
        env={**os.environ, "PYTHONPATH": str(folder)},
        capture_output=True,
        check=False,
    )
    if found.returncode:
        pytest.skip("GStreamer's bindings, or its plugins for AVI and JPEG, are absent")
    return folder


def test_gstreamer(
    run_example: Callable[..., str],
    video: Path,
    masks: NDArray[np.bool_],
    tmp_path: Path,
    gi_folder: Path,
) -> None:
    # Not every GStreamer decodes H.264, so it gets JPEG.
    with av.open(tmp_path / "in.avi", "w") as writer:
        stream = writer.add_stream("mjpeg", rate=10)
        stream.width, stream.height, stream.pix_fmt = 224, 128, "yuvj420p"
        stream.options = {"qmin": "1", "q": "1"}
        for image in pictures(video):
            writer.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        writer.mux(stream.encode())
    run_example(
        "gstreamer.py",
        f"filesrc location={tmp_path}/in.avi ! avidemux ! jpegdec",
        f"jpegenc quality=95 ! avimux ! filesink location={tmp_path}/out.avi",
        *SENTENCES,
        PYTHONPATH=str(gi_folder),
    )
    assert_drawn(tmp_path / "out.avi", video, masks)
