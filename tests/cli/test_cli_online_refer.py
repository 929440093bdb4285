"""The commands with OnlineRefer: a network that follows one query, and scales the short side."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from rvos_deploy.bundle.engine_sidecar import plan_file
from rvos_deploy.bundle.folder import open_bundle
from rvos_deploy.datasets.moving_sprites import WorldConfig, write_mevis
from rvos_deploy.datasets.moving_sprites.writers import SplitSpec
from rvos_deploy.runtime.backends.gpu import find_gpu
from rvos_deploy.runtime.segmenter import load
from rvos_deploy.stream_settings import StreamSettings

TEXTS = ("the square moving to the right", "the disc", "what is at the left, and is red")
SMALL = ("--short-side", 64)


@pytest.fixture
def clip(make_video: Callable[..., Path], tmp_path: Path) -> Path:
    """Six frames of 102x60: sides that are no multiples of 32."""
    return make_video(tmp_path / "clip.mp4", size=(60, 102))


def test_verify_and_inspect(rvos: Callable, online_refer_bundle: Path) -> None:
    verified = rvos("verify", online_refer_bundle)
    assert (verified.code, verified.stderr) == (0, "")
    assert "49 checks passed with onnxruntime" in verified.stdout.splitlines()[-1]
    inspected = rvos("inspect", online_refer_bundle)
    assert (inspected.code, inspected.stderr) == (0, "")
    shown = " ".join(inspected.stdout.split())
    for text in (
        "model onlinerefer-tiny, 1.7 M parameters",
        "weights random, seed 0",
        "input short side 96 (96x160 of a 16:9 frame), threshold 0.0",
        "excess score of another query 0.0004",
        "track_content float32[E,64]",
        "mask_logits float32[E,H/4,W/4]",
    ):
        assert text in shown


def test_a_run_with_three_expressions(
    process: Callable, output: Callable, online_refer_bundle: Path, clip: Path, tmp_path: Path
) -> None:
    out = output(tmp_path / "out")
    arguments = ("run", clip, *TEXTS, "-b", online_refer_bundle, "-o", out.folder, *SMALL)
    result = process(*arguments, python=("-X", "importtime"))
    assert result.code == 0
    trace = result.stderr.splitlines()
    assert all(line.startswith("import time:") for line in trace), "nothing is said"
    packages = {line.rsplit("|", 1)[1].strip().split(".")[0] for line in trace}
    assert not packages & {"torch", "torchvision", "transformers", "timm", "onnx"}
    assert result.stdout.startswith("6 frames, 3 expressions, online: ")
    out.check(frames=6, expressions=3, size=(60, 102))
    found = out.result
    areas = [entry["area"] for frame in found["frames"] for entry in frame["expressions"]]
    assert all(0 < area < 60 * 102 for area in areas)
    times = [index / 10 for index in range(6)]
    assert [frame["pts"] for frame in found["frames"]] == pytest.approx(times)
    assert out.overlay.times == pytest.approx(times)
    settings = found["settings"]
    assert (settings["mode"], settings["short_side"], settings["size"]) == ("online", 64, None)
    stages = found["timings"]["stages"]
    assert stages["backbone"]["count"] == stages["frame_decoder"]["count"] == 6, "once a frame"


@pytest.mark.parametrize("media", ["cutie_example.mp4"])
def test_a_real_clip(
    rvos: Callable,
    output: Callable,
    shared_media: Path,
    online_refer_bundle: Path,
    tmp_path: Path,
    media: str,
) -> None:
    out = output(tmp_path / "out")
    arguments = ("-b", online_refer_bundle, "-o", out.folder, "--max-frames", 4)
    result = rvos("run", shared_media / media, *TEXTS, *arguments)
    assert (result.code, result.stderr) == (0, "")
    out.check(frames=4, expressions=3, size=(480, 640))
    assert [frame["pts"] for frame in out.result["frames"]] == pytest.approx([0, 0.04, 0.08, 0.12])


def masks(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.png")}


def test_modes_change_the_delay_alone_and_say_so(
    rvos: Callable, online_refer_bundle: Path, clip: Path, tmp_path: Path
) -> None:
    command = ("run", clip, *TEXTS, "-b", online_refer_bundle, *SMALL, "--out")
    assert rvos(*command, tmp_path / "online").stderr == ""
    truth = masks(tmp_path / "online")
    assert len(truth) == 18
    for name, options in {
        "--mode offline": ("--mode", "offline"),
        "--lookahead": ("--lookahead", 2),
        "--mode offline, --memory": ("--mode", "offline", "--memory", 4),
        "--memory, --anchors": ("--memory", 4, "--anchors", 2),
    }.items():
        out = tmp_path / name
        result = rvos(*command, out, *options)
        assert result.code == 0
        assert result.stderr == (
            f"note: {name}: OnlineRefer decides each frame from the frames before it, so this "
            "changes no mask; masks come later at most\n"
        )
        assert masks(out) == truth


def test_sizes(
    rvos: Callable, output: Callable, online_refer_bundle: Path, clip: Path, tmp_path: Path
) -> None:
    command = ("run", clip, TEXTS[0], "-b", online_refer_bundle, "--out", tmp_path / "out")
    both = rvos(*command, "--short-side", 64, "--size", "64x96")
    assert both.code == 2
    assert both.error == "size 64x96 and short side 64 exclude each other; leave one out"
    assert rvos(*command, "--short-side", 16).code == 2
    assert not (tmp_path / "out").exists()
    out = output(tmp_path / "out")
    assert rvos(*command, "--size", "64x96").code == 0
    out.check(frames=6, expressions=1, size=(60, 102))
    assert out.result["settings"]["size"] == [64, 96]
    assert out.result["settings"]["short_side"] is None
    with load(online_refer_bundle, threads=1) as segmenter:
        seen = {
            side: segmenter.geometry((60, 102), StreamSettings(short_side=side)).padded
            for side in (32, 64, 96)
        }
    assert seen == {32: (32, 64), 64: (64, 96), 96: (96, 160)}


def test_evaluate(rvos: Callable, online_refer_bundle: Path, tmp_path: Path) -> None:
    config = WorldConfig(height=64, width=96, frames=8, emoji=False)
    write_mevis(tmp_path / "valid", SplitSpec(2, "valid", 1, config))
    report = tmp_path / "report.json"
    data = ("--data", tmp_path / "valid", "--protocol", "mevis", "--json", report)
    result = rvos("evaluate", online_refer_bundle, *data, *SMALL, "--jobs", 1)
    assert (result.code, result.stderr) == (0, "")
    found = json.loads(report.read_text())
    assert found["videos"] == 1
    assert found["count"] == len(found["by_expression"]) >= 4
    assert 0 <= found["j_and_f"] <= 1
    later = rvos("evaluate", online_refer_bundle, *data, *SMALL, "--jobs", 1, "--mode", "offline")
    assert later.stderr.startswith("note: --mode offline: OnlineRefer decides each frame")
    assert json.loads(report.read_text())["by_expression"] == found["by_expression"]


def test_benchmark_against_pytorch(
    process: Callable, make_video: Callable, online_refer_bundle: Path, tmp_path: Path
) -> None:
    """In a process of its own, since PyTorch warns once of what it does not like."""
    video = make_video(tmp_path / "clip.mp4", frames=6)
    arguments = ("--bundle", online_refer_bundle, "--video", video, "--expressions", 2, *SMALL)
    options = ("--frames", 2, "--compare", "pytorch", "--threads", 1)
    result = process("benchmark", *arguments, *options, "--json", tmp_path / "b.json")
    assert (result.code, result.stderr) == (0, "")
    found = json.loads((tmp_path / "b.json").read_text())
    assert {"resize", "backbone", "frame_decoder", "post-processing"} <= set(found["stages"])
    assert found["short_side"] == 64
    assert found["comparison"]["reference"]["name"] == "pytorch"
    assert found["comparison"]["j_and_f"] >= 0.999
    assert "masks agree" in result.stdout.splitlines()[-1]


RANDOM = "--random-weights"
REFUSED = {
    "--size": (("--size", "64x96", RANDOM), "give --short-side instead of --size"),
    "--which": (("--which", "best", RANDOM), "'onlinerefer-tiny' does not use --which; leave -"),
    "--clip-weights": (("--clip-weights", "w", RANDOM), "does not use --clip-weights; leave -"),
    "a memory": (("--static-shapes", "64x96,2,16,8", RANDOM), "this network has no axis M, only"),
    "two sources": (("--checkpoint", "w.pth", RANDOM), "exclude each other; leave one out"),
    "no source": (
        (),
        "'onlinerefer-tiny' has no published vocabulary; pass --tokenizer, or -",
    ),
    "store": (
        ("--store", "fp16", "--precision", "bf16", RANDOM),
        "--store fp16 and --precision bf16 exclude each other",
    ),
    "a short side": (("--short-side", "16", RANDOM), "should be greater than or equal to 32"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_export_refuses_in_one_line(rvos: Callable, tmp_path: Path, name: str) -> None:
    options, message = REFUSED[name]
    result = rvos("export", "onlinerefer-tiny", "--out", tmp_path / "bundle", *options)
    assert result.code == 2
    assert message in result.error
    assert not list(tmp_path.iterdir())


def test_the_other_family_is_exported_for_a_box(rvos: Callable, tmp_path: Path) -> None:
    exported = rvos("export", "tiny", RANDOM, "--out", tmp_path / "b", *SMALL)
    assert exported.code == 2
    assert exported.error == (
        "'tiny' resizes frames into a box; give --size HxW instead of --short-side"
    )


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_export_in_half_precision_to_masks(
    rvos: Callable, output: Callable, clip: Path, tmp_path: Path, precision: str
) -> None:
    """Strict types, parity, and streams: bfloat16 runs here where its rounding is computed."""
    bundle, out = tmp_path / "bundle", output(tmp_path / "out")
    command = ("export", "onlinerefer-tiny", RANDOM, "--out", bundle, "--precision", precision)
    exported = rvos(*command, *SMALL, "--threshold", 0.01, "--json", tmp_path / "export.json")
    assert (exported.code, exported.stderr) == (0, "")
    assert "97 parity checks passed" in exported.stdout
    assert ("not proved: " in exported.stdout) == (precision == "bf16")
    manifest = open_bundle(bundle).manifest
    assert (manifest.precision, manifest.threshold) == (precision, 0.01)
    assert manifest.model["short_side"] == 64
    report = json.loads((tmp_path / "export.json").read_text())
    assert len(report["checks"]) == 97
    backend = ("--backend", "bf16-reference") if precision == "bf16" else ()
    verified = rvos("verify", bundle, *backend)
    assert verified.code == 0, verified.stderr
    assert "49 checks passed" in verified.stdout.splitlines()[-1]
    ran = rvos("run", clip, *TEXTS, "-b", bundle, "-o", out.folder, *backend)
    assert ran.code == 0, ran.stderr
    out.check(frames=6, expressions=3, size=(60, 102))
    areas = [entry["area"] for frame in out.result["frames"] for entry in frame["expressions"]]
    assert all(0 < area < 60 * 102 for area in areas)
    assert np.ptp(areas) > 0


@pytest.mark.skipif(find_gpu() is not None, reason="written for machines without a GPU")
@pytest.mark.timeout(900)
def test_an_engine_is_built_and_shown(
    rvos: Callable, online_refer_bundle: Path, tmp_path: Path
) -> None:
    """``tests/engines/test_engines_online_refer.py`` builds all of them."""
    pytest.importorskip("tensorrt_rtx", reason="pip install tensorrt-rtx-cu12")
    bundle = tmp_path / "bundle"
    bundle.mkdir()
    for file in online_refer_bundle.iterdir():
        (bundle / file.name).symlink_to(file)
    command = ("build-engine", bundle, "--target", "tensorrt-rtx", "--graph", "text_encoder")
    result = rvos(*command, "--compute-capability", "8.9")
    assert (result.code, result.stderr) == (0, "")
    line, last = result.stdout.splitlines()
    assert line.startswith("text_encoder: ")
    assert f"{bundle}: 1 engine for tensorrt-rtx " in last
    assert plan_file(bundle, "tensorrt-rtx", "text_encoder").stat().st_size > 100_000
    shown = rvos("inspect", bundle).stdout.splitlines()
    (row,) = (text for text in shown if "tensorrt-rtx" in text)
    assert row.startswith("text_encoder ")
    assert "fp32, compute capability 8.9" in row
    unknown = rvos("build-engine", bundle, "--target", "tensorrt-rtx", "--graph", "mask_head")
    assert "--graph mask_head: the bundle has backbone, text_encoder, frame_dec" in unknown.error
