"""``benchmark``: stages, percentiles, and the comparison with PyTorch."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rvos_deploy.bundle.folder import PYTORCH, open_bundle, write_manifest
from rvos_deploy.cli.benchmark import attention_line
from rvos_deploy.cpu_ops import ms_deform_attn as kernel

STAGES = {
    "decode",
    "resize",
    "backbone",
    "frame_decoder",
    "alignment",
    "memory",
    "video_decoder",
    "mask_head",
    "post-processing",
}
SMALL = ("--size", "64x96", "--frames", "2")


def check_times(summary: dict[str, Any], count: int) -> None:
    assert summary["count"] == count
    times = summary["milliseconds"]
    assert 0 < times["p50"] <= times["p90"] <= times["p95"] <= times["p99"]


def test_stages_and_comparison(
    rvos: Callable, make_video: Callable, tiny_bundle: Path, tmp_path: Path
) -> None:
    clip = make_video(tmp_path / "clip.mp4", frames=8)
    result = rvos(
        "benchmark",
        *("--bundle", tiny_bundle, "--video", clip, "--expressions", 2, "--frames", 2),
        *("--size", "96x160"),
        *("--compare", "pytorch", "--threads", 1, "--json", tmp_path / "benchmark.json"),
    )
    assert (result.code, result.stderr) == (0, "")
    found = json.loads((tmp_path / "benchmark.json").read_text(encoding="utf-8"))
    assert found["schema"] == "rvos-deploy/benchmark/latency/1"
    assert found["command"] == "benchmark"
    assert set(found["stages"]) == STAGES
    for summary in (*found["stages"].values(), found["end_to_end"]):
        check_times(summary, count=2)
    assert found["warm_up_frames"] == 3
    assert found["expressions"] == 2
    assert (found["input_size"], found["size"], found["short_side"]) == ([96, 160], [96, 160], None)
    assert found["overlapped"]["frames_per_second"] > 0
    assert found["memory"]["peak_bytes"] > 0
    assert {"versions", "machine", "threads"} <= set(found)
    comparison = found["comparison"]
    assert comparison["reference"]["name"] == "pytorch"
    assert comparison["j_and_f"] >= 0.999
    assert comparison["ratio"] > 0
    for side in ("ours", "theirs"):
        check_times(comparison[side], count=2)

    title, choice, attention, header, *rows = result.stdout.splitlines()
    assert title.startswith("tiny in 96x160, 2 expressions, onnxruntime on cpu, 1 thread;")
    assert choice.startswith("--backend auto: onnxruntime; ")
    assert found["versions"]["backend"]["auto"] in choice
    assert attention.startswith("deformable attention: function body; ")
    assert header.split() == ["stage", "p50", "p90", "p99", "count"]
    assert {row.split()[0] for row in rows[: len(STAGES)]} == STAGES
    assert rows[-2].startswith("whole job, stages overlapped")
    assert f"{comparison['ratio']:.2f} times the speed of eager PyTorch" in rows[-1]
    assert "masks agree" in rows[-1]


def test_without_a_video_one_is_rendered(rvos: Callable, tiny_bundle: Path, tmp_path: Path) -> None:
    arguments = ("--bundle", tiny_bundle, "--size", "64x96", "--json", tmp_path / "b.json")
    result = rvos("benchmark", *arguments, "--frames", 5)
    assert (result.code, result.stderr) == (0, "")
    found = json.loads((tmp_path / "b.json").read_text(encoding="utf-8"))
    assert found["video"] == "Moving Sprites, 854x480"
    assert found["end_to_end"]["count"] == 5
    assert "comparison" not in found


def test_a_video_too_short_to_measure(
    rvos: Callable, make_video: Callable, tiny_bundle: Path, tmp_path: Path
) -> None:
    clip = make_video(tmp_path / "clip.mp4", frames=3)
    result = rvos("benchmark", "--bundle", tiny_bundle, "--video", clip, *SMALL)
    assert result.code == 2
    assert "has 3 frames; a benchmark needs more than the 3 that warm up" in result.error


def test_two_frames_of_the_rendered_video(rvos: Callable, tiny_bundle: Path) -> None:
    assert rvos("benchmark", "--bundle", tiny_bundle, *SMALL).code == 0


def test_it_says_how_deformable_attention_ran_and_how_it_would_be_faster(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert attention_line({"deformable_attention": "AVX2"}).endswith(": CPU kernel, AVX2")
    monkeypatch.setattr(kernel, "available", lambda: True)
    assert "function body; --backend openvino has" in attention_line({"name": "onnxruntime"})
    monkeypatch.setattr(kernel, "available", lambda: False)
    for backend in ({"deformable_attention": "function body"}, {"name": "onnxruntime"}):
        assert attention_line(backend).endswith(f"function body; {kernel.NOT_BUILT}")


def test_the_packaged_bundle_against_pytorch_in_any_folder(
    rvos: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = rvos("benchmark", "--frames", 2, "--compare", "pytorch", "--json", "b.json")
    assert (result.code, result.stderr) == (0, "")
    found = json.loads(Path("b.json").read_text(encoding="utf-8"))
    assert found["input_size"] == [128, 224]  # the bundle's own size
    assert found["comparison"]["j_and_f"] >= 0.999
    assert found["comparison"]["reference"]["precision"] == "fp32"


def test_a_bundle_that_does_not_hold_pytorchs_weights(rvos: Callable, tmp_path: Path) -> None:
    packaged = open_bundle("tiny")
    shutil.copytree(packaged.path, tmp_path / "old")
    manifest = packaged.manifest.as_dict()
    kept = {k: v for k, v in manifest.items() if k not in ("schema", "manifest_sha256", "files")}
    write_manifest(tmp_path / "old", kept, set(packaged.manifest.files) - {PYTORCH})
    compare = ("benchmark", "--bundle", tmp_path / "old", "--frames", 2, "--compare", "pytorch")
    result = rvos(*compare)
    assert result.code == 2
    assert "--checkpoint FILE" in result.error
    assert "--clip-weights FILE" in result.error
    checkpoints = Path(__file__).parents[2] / "benchmarks/checkpoints"
    given = ("--checkpoint", checkpoints / "tiny.safetensors")
    result = rvos(*compare, *given, "--clip-weights", checkpoints / "tiny_clip.safetensors")
    assert (result.code, result.stderr) == (0, "")
    assert rvos(*compare, "--clip-weights", checkpoints / "tiny_clip.safetensors").code == 2
    assert "belongs to --compare" in rvos("benchmark", *given).error
