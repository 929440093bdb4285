"""What the tests of the command line share: ways to call it, clips, copies of the bundle.

Test modules cannot import one another (``--import-mode=importlib``), so helpers are fixtures that
return functions.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from importlib.resources import files
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from rvos_deploy.bundle.folder import MANIFEST, write_manifest
from rvos_deploy.cli.app import run_command_line

PROGRAM = "from rvos_deploy.cli.app import main; main()"


@dataclass(frozen=True)
class Result:
    """What a command left behind."""

    code: int
    stdout: str
    stderr: str

    @property
    def error(self) -> str:
        """The only line of an error; anything more, a traceback above all, fails the test."""
        lines = self.stderr.splitlines()
        assert len(lines) == 1, self.stderr
        assert lines[0].startswith("error: "), self.stderr
        assert not self.stdout
        return lines[0].removeprefix("error: ")


Call = Callable[..., Result]


@pytest.fixture
def rvos(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Call:
    """Call the command line in this process, as the installed program does."""

    def call(*arguments: object) -> Result:
        monkeypatch.setattr(sys, "argv", ["rvos-deploy", *map(str, arguments)])
        capfd.readouterr()
        code = run_command_line()
        captured = capfd.readouterr()
        return Result(code, captured.out, captured.err)

    return call


def answer_signals() -> None:
    """A test run in the background (a job of a shell, nohup) has inherited ignored signals."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


@pytest.fixture(scope="session")
def start() -> Callable[..., subprocess.Popen[str]]:
    """Start the command line as a process of its own."""

    def launch(*arguments: object, python: tuple[str, ...] = (), **options: Any) -> Any:
        return subprocess.Popen(
            [sys.executable, *python, "-c", PROGRAM, *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=answer_signals,
            **options,
        )

    return launch


@pytest.fixture(scope="session")
def process(start: Callable[..., subprocess.Popen[str]]) -> Call:
    """Run the command line as a process of its own, to its end."""

    def call(*arguments: object, **options: Any) -> Result:
        child = start(*arguments, **options)
        try:
            stdout, stderr = child.communicate(timeout=120)
        finally:
            child.kill()
        return Result(child.returncode, stdout, stderr)

    return call


def _scene(index: int, height: int, width: int) -> NDArray[np.uint8]:
    """A bright square that moves to the right over a slope."""
    y, x = np.mgrid[:height, :width]
    image = np.stack([x * 120 // width, y * 120 // height, (x + y) % 100], axis=-1)
    left = (3 * index) % (width - 16)
    image[height // 4 : height // 4 + 16, left : left + 16] = (240, 220, 60)
    return image.astype(np.uint8)


@pytest.fixture(scope="session")
def make_video() -> Callable[..., Path]:
    """Write an H.264 clip; ``aspect`` is the pixels' own (sample aspect ratio)."""

    def make(
        path: Path,
        frames: int = 6,
        *,
        size: tuple[int, int] = (48, 80),
        fps: int = 10,
        aspect: Fraction | None = None,
        **options: str,
    ) -> Path:
        with av.open(str(path), "w", options=options) as container:
            stream = container.add_stream("libx264", rate=fps, options={"preset": "ultrafast"})
            stream.height, stream.width = size
            stream.pix_fmt = "yuv420p"
            if aspect is not None:
                stream.codec_context.sample_aspect_ratio = aspect
            for index in range(frames):
                frame = av.VideoFrame.from_ndarray(_scene(index, *size), format="rgb24")
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
        return path

    return make


@pytest.fixture
def video(make_video: Callable[..., Path], tmp_path: Path) -> Path:
    """Six frames of 80x48 at 10 fps."""
    return make_video(tmp_path / "clip.mp4")


@pytest.fixture
def frame_folder(tmp_path: Path) -> Path:
    """Three images of 65x49: sides that no video codec likes."""
    folder = tmp_path / "frames"
    folder.mkdir()
    for index in range(3):
        Image.fromarray(_scene(index, 49, 65)).save(folder / f"{index}.png")
    return folder


@pytest.fixture
def bundle_copy(tiny_bundle: Path, tmp_path: Path) -> Callable[..., Path]:
    """A bundle whose files are links, but for those named, which are copies to be changed."""

    def make(*changed: str) -> Path:
        folder = tmp_path / "changed-bundle"
        folder.mkdir()
        for file in tiny_bundle.iterdir():
            if file.name in changed:
                shutil.copy(file, folder / file.name)
            else:
                (folder / file.name).symlink_to(file)
        return folder

    return make


@pytest.fixture(scope="session")
def resign() -> Callable[..., None]:
    """Write a bundle's hashes anew, as whoever forges one would; more files may be listed."""

    def sign(folder: Path, *more: str, manifest: dict[str, Any] | None = None) -> None:
        file = folder / MANIFEST
        content = json.loads(file.read_text(encoding="utf-8")) if manifest is None else manifest
        names = {*content.pop("files"), *more}
        kept = {k: v for k, v in content.items() if k not in ("schema", "manifest_sha256")}
        file.unlink()  # it may be a link to the one that all tests share
        write_manifest(folder, kept, names)

    return sign


@pytest.fixture
def small_recipe(tmp_path: Path) -> Path:
    """The packaged recipe in small: steps of a second, each with a checkpoint; no emoji font."""
    packaged = files("rvos_deploy") / "configs" / "sprites_tiny.toml"
    text = packaged.read_text(encoding="utf-8")
    for old, new in (
        ("emoji = true", "emoji = false"),
        ("batch = 32", "batch = 2"),
        ("checkpoint_every = 150", "checkpoint_every = 1"),
        ("validate_every = 2000", "validate_every = 0"),
    ):
        assert old in text
        text = text.replace(old, new)
    path = tmp_path / "small.toml"
    path.write_text(text, encoding="utf-8")
    return path


@dataclass(frozen=True)
class Overlay:
    """What ``overlay.mp4`` holds: frames' times and sizes, and the whole's length."""

    times: list[float]
    sizes: set[tuple[int, int]]
    fps: float
    seconds: float


@dataclass(frozen=True)
class Output:
    """A run's folder, read back."""

    folder: Path

    @property
    def result(self) -> dict[str, Any]:
        return json.loads((self.folder / "result.json").read_text(encoding="utf-8"))

    def mask(self, expression: int, frame: int | str) -> NDArray[np.uint8]:
        """One PNG, which must be 8-bit grey, 0 and 255; ``frame`` is its number, or its name."""
        name = frame if isinstance(frame, str) else f"{frame:05d}"
        with Image.open(self.folder / "masks" / str(expression) / f"{name}.png") as image:
            assert image.mode == "L"
            pixels = np.asarray(image)
        assert set(np.unique(pixels)) <= {0, 255}
        return pixels

    @property
    def overlay(self) -> Overlay:
        with av.open(str(self.folder / "overlay.mp4")) as container:
            stream = container.streams.video[0]
            frames = list(container.decode(stream))
            return Overlay(
                [float(frame.time) for frame in frames],
                {(frame.height, frame.width) for frame in frames},
                float(stream.average_rate),
                float(stream.duration * stream.time_base),
            )

    def files(self) -> set[str]:
        """Every file, hidden ones too."""
        return {
            str(path.relative_to(self.folder))
            for path in self.folder.rglob("*")
            if not path.is_dir()
        }

    def check(
        self, frames: int, expressions: int, size: tuple[int, int], names: list[str] | None = None
    ) -> None:
        """Exactly the files of so many frames, each whole, and all telling the same.

        ``names``: names of the frames' files; None: their numbers.
        """
        names = names or [f"{t:05d}" for t in range(frames)]
        masks = {f"masks/{e}/{name}.png" for e in range(expressions) for name in names}
        assert self.files() == masks | {"overlay.mp4", "result.json"}
        assert [frame["index"] for frame in self.result["frames"]] == list(range(frames))
        assert [frame["file"] for frame in self.result["frames"]] == names
        for frame in self.result["frames"]:
            assert len(frame["expressions"]) == expressions
            for number, entry in enumerate(frame["expressions"]):
                mask = self.mask(number, frame["file"])
                assert mask.shape == size
                _check_entry(entry, mask > 0)
        overlay = self.overlay
        assert len(overlay.times) == frames
        assert overlay.sizes == {tuple(side + side % 2 for side in size)}


def _check_entry(entry: dict[str, Any], mask: NDArray[np.bool_]) -> None:
    assert set(entry) == {"score", "area", "box"}
    assert 0.0 <= entry["score"] <= 1.0
    assert entry["area"] == mask.sum()
    if not mask.any():
        assert entry["box"] is None
        return
    rows, columns = np.nonzero(mask)
    left, top = columns.min(), rows.min()
    width, height = columns.max() - left + 1, rows.max() - top + 1
    assert entry["box"] == [left, top, width, height]


@pytest.fixture(scope="session")
def output() -> Callable[[Path], Output]:
    """Read a run's folder back."""
    return Output


@pytest.fixture(autouse=True)
def _no_terminal_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Colours and widths of the shell that runs the tests do not matter."""
    for name in ("COLUMNS", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
        assert name not in os.environ
