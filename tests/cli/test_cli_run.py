"""``run``: files, geometry, timing, modes, sources."""

from __future__ import annotations

import json
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import pytest

SMALL = ("--size", "64x96", "--fallback", "top1")
LONG = " ".join(["the small dog that runs to the left"] * 20)


def test_a_run_without_torch_gives_masks_overlay_and_result(
    process: Callable, output: Callable, tiny_bundle: Path, video: Path, tmp_path: Path
) -> None:
    out = output(tmp_path / "out")
    texts = ("the square moving to the right", "the ball")
    arguments = ("run", video, *texts, "-b", tiny_bundle, "-o", out.folder, *SMALL)
    result = process(*arguments, python=("-X", "importtime"))
    assert result.code == 0
    trace = [line for line in result.stderr.splitlines() if line.startswith("import time:")]
    packages = {line.rsplit("|", 1)[1].strip().split(".")[0] for line in trace}
    assert {"numpy", "onnxruntime", "av"} <= packages
    assert not packages & {"torch", "open_clip", "timm", "transformers", "onnx"}
    assert len(trace) == len(result.stderr.splitlines()), "a pipe sees no progress"
    assert result.stdout.startswith("6 frames, 2 expressions, offline: ")

    out.check(frames=6, expressions=2, size=(48, 80))
    found = out.result
    assert any(entry["area"] for frame in found["frames"] for entry in frame["expressions"])
    assert [frame["pts"] for frame in found["frames"]] == pytest.approx(
        [index / 10 for index in range(6)]
    )
    assert out.overlay.times == pytest.approx([index / 10 for index in range(6)])
    assert out.overlay.fps == pytest.approx(10)
    assert out.overlay.seconds == pytest.approx(0.6)

    assert found["schema"] == "rvos-deploy/run/1"
    assert found["expressions"] == list(texts)
    assert found["damage"] is None
    assert found["stopped"] is None
    assert found["settings"]["mode"] == "offline"
    assert found["settings"]["size"] == [64, 96]
    assert found["settings"]["bundle"] == str(tiny_bundle)
    assert found["versions"]["backend"]["name"] == "onnxruntime"
    assert found["machine"]["cores"] >= 1
    assert found["timings"]["stages"]["backbone"]["count"] == 6, "once a frame, not an expression"
    assert found["timings"]["frames_per_second"] > 0
    assert found["memory"]["peak_bytes"] > 0
    assert "the ball" in found["command"]


def test_masks_have_the_displayed_size(
    rvos: Callable, output: Callable, make_video: Callable, tiny_bundle: Path, tmp_path: Path
) -> None:
    wide = make_video(tmp_path / "wide.mp4", frames=2, size=(64, 48), aspect=Fraction(2, 1))
    out = output(tmp_path / "out")
    assert rvos("run", wide, "the dog", "-b", tiny_bundle, "-o", out.folder, *SMALL).code == 0
    out.check(frames=2, expressions=1, size=(64, 96))


def test_a_real_clip(
    rvos: Callable, output: Callable, shared_media: Path, tiny_bundle: Path, tmp_path: Path
) -> None:
    out = output(tmp_path / "out")
    clip = shared_media / "cutie_example.mp4"
    arguments = ("-b", tiny_bundle, "-o", out.folder, "--max-frames", 4)
    result = rvos("run", clip, "the person", "the dog running to the left", *arguments)
    assert (result.code, result.stderr) == (0, "")
    out.check(frames=4, expressions=2, size=(480, 640))
    assert [frame["pts"] for frame in out.result["frames"]] == pytest.approx([0, 0.04, 0.08, 0.12])
    assert out.overlay.fps == pytest.approx(25)
    assert out.overlay.seconds == pytest.approx(0.16)


def test_online_with_lookahead_gives_every_frame(
    rvos: Callable, output: Callable, tiny_bundle: Path, video: Path, tmp_path: Path
) -> None:
    out = output(tmp_path / "out")
    online = ("--mode", "online", "--lookahead", 2, "--memory", 4)
    result = rvos("run", video, "the ball", "-b", tiny_bundle, "-o", out.folder, *SMALL, *online)
    assert (result.code, result.stderr) == (0, "")
    assert result.stdout.startswith("6 frames, 1 expression, online: ")
    out.check(frames=6, expressions=1, size=(48, 80))
    settings = out.result["settings"]
    assert (settings["mode"], settings["lookahead"], settings["memory"]) == ("online", 2, 4)


def test_a_folder_of_images_of_odd_size(
    rvos: Callable, output: Callable, tiny_bundle: Path, frame_folder: Path, tmp_path: Path
) -> None:
    out = output(tmp_path / "out")
    result = rvos("run", frame_folder, "the ball", "-b", tiny_bundle, "-o", out.folder, *SMALL)
    assert (result.code, result.stderr) == (0, "")
    out.check(frames=3, expressions=1, size=(49, 65), names=["0", "1", "2"])


def test_standard_input_is_a_stream(
    process: Callable, output: Callable, make_video: Callable, tiny_bundle: Path, tmp_path: Path
) -> None:
    out = output(tmp_path / "out")
    piped = make_video(tmp_path / "piped.mkv", frames=4)
    with piped.open("rb") as stdin:
        result = process(
            "run", "-", "the ball", "-b", tiny_bundle, "-o", out.folder, *SMALL, stdin=stdin
        )
    assert (result.code, result.stderr) == (0, "")
    out.check(frames=4, expressions=1, size=(48, 80))
    assert out.result["settings"]["mode"] == "online"


def test_a_second_run_replaces_the_first_and_nothing_else(
    rvos: Callable, output: Callable, tiny_bundle: Path, video: Path, tmp_path: Path
) -> None:
    out = output(tmp_path / "out")
    common = ("-b", tiny_bundle, "-o", out.folder, *SMALL)
    assert rvos("run", video, "the ball", "the dog", *common).code == 0
    (out.folder / "notes.txt").write_text("mine", encoding="utf-8")
    (out.folder / "masks.zip").write_bytes(b"mine")
    assert rvos("run", video, "the cat", *common, "--max-frames", 2).code == 0
    assert (out.folder / "notes.txt").read_text(encoding="utf-8") == "mine"
    assert (out.folder / "masks.zip").read_bytes() == b"mine"
    for name in ("notes.txt", "masks.zip"):
        (out.folder / name).unlink()
    out.check(frames=2, expressions=1, size=(48, 80))
    assert out.result["expressions"] == ["the cat"]


def test_a_run_that_cannot_start_keeps_the_one_before(
    rvos: Callable, output: Callable, tiny_bundle: Path, video: Path, tmp_path: Path
) -> None:
    out = output(tmp_path / "out")
    common = ("-b", tiny_bundle, "-o", out.folder, *SMALL)
    assert rvos("run", video, "the ball", *common).code == 0
    assert rvos("run", tmp_path / "gone.mp4", "the ball", *common).code == 2
    assert rvos("run", video, " ", *common).code == 2
    out.check(frames=6, expressions=1, size=(48, 80))


def test_more_than_77_tokens_is_a_warning(
    rvos: Callable, output: Callable, tiny_bundle: Path, video: Path, tmp_path: Path
) -> None:
    out = output(tmp_path / "out")
    result = rvos(
        "run", video, LONG, "-b", tiny_bundle, "-o", out.folder, *SMALL, "--max-frames", 1
    )
    assert result.code == 0
    (warning,) = result.stderr.splitlines()
    assert warning.startswith("warning: ")
    assert "77" in warning
    assert "shorter" in warning
    out.check(frames=1, expressions=1, size=(48, 80))


def test_result_json_has_a_line_a_frame(
    rvos: Callable, tiny_bundle: Path, video: Path, tmp_path: Path
) -> None:
    assert rvos("run", video, "the ball", "-b", tiny_bundle, "-o", tmp_path / "o", *SMALL).code == 0
    lines = (tmp_path / "o" / "result.json").read_text(encoding="utf-8").splitlines()
    frames = [json.loads(line.rstrip(",")) for line in lines if line.startswith('{"index"')]
    assert [frame["index"] for frame in frames] == list(range(6))


def test_masks_of_somebody_else_are_left_alone(
    rvos: Callable, tiny_bundle: Path, video: Path, tmp_path: Path
) -> None:
    truth = tmp_path / "out" / "masks" / "annotations.json"
    truth.parent.mkdir(parents=True)
    truth.write_text("mine", encoding="utf-8")
    rvos("run", video, "the ball", "-b", tiny_bundle, "-o", tmp_path / "out", *SMALL)
    assert truth.read_text(encoding="utf-8") == "mine"
