"""The whole way in miniature: data, CLIP, network, bundle, proof, score."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest

RECIPE = """
model = "tiny"
data = "sprites"
checkpoint_every = 2
validate_every = 4
validation_videos = 1

[sprites]
height = 64
width = 96
frames = 8
emoji = false

[loss]
num_points = 64

[[stage]]
name = "frames"
steps = 2
batch = 2
length = 1
kinds = ["appearance", "relation", "plural", "no_target"]
learning_rate = 6e-4

[[stage]]
name = "video"
steps = 2
batch = 2
length = 3
trained = ["initializer", "video_decoder", "mask_head"]
cached = 4
sentences = 2
learning_rate = 4e-4

[[stage]]
name = "joint"
steps = 2
batch = 1
length = 2
single_every = 2
learning_rate = 1e-4
"""


@pytest.mark.slow  # CI runs the README's commands, which go the same way
def test_from_nothing_to_a_score(rvos: Callable, tmp_path: Path) -> None:
    recipe, clip, run, bundle = (tmp_path / n for n in ("recipe.toml", "clip", "run", "run-bundle"))
    recipe.write_text(RECIPE)

    def done(*arguments: object) -> str:
        result = rvos(*arguments)
        assert result.code == 0, result.stderr
        return str(result.stdout)

    world = ("--size", "64x96", "--frames", 8, "--no-emoji")
    done("make-data", "sprites", "--split", "valid", "--videos", 2, "--out", tmp_path, *world)
    few = ("--steps", 3, "--batch", 4, "--image-size", 32, "--workers", 0)
    pretrained = rvos("pretrain-clip", "--out", clip, *few)
    # Three steps teach nothing, so the preflight check of such a tower says nothing.
    assert pretrained.code in (0, 1)
    assert "opposite motion words" in pretrained.stdout
    weights = ("--clip-weights", clip / "clip.safetensors")
    shown = done("train", recipe, "--out", run, *weights, "--no-preflight")
    assert "step 6 of 6" in shown
    program, *printed = shlex.split(shown.splitlines()[-1])
    assert (program, printed[-1]) == ("rvos-deploy", str(bundle))
    done(*printed, "--store", "fp16", "--size", "64x96", "--threshold", 0.4)
    done("verify", bundle)
    report = tmp_path / "report.json"
    done("evaluate", bundle, "--data", tmp_path / "valid", "--protocol", "mevis", "--json", report)
    found = json.loads(report.read_text())
    assert found["videos"] == 2
    assert found["count"] == len(found["by_expression"]) >= 8
    assert 0 <= found["j_and_f"] <= 1
    manifest = json.loads((bundle / "manifest.json").read_text())
    assert manifest["weights"]["stored"] == "fp16"
    assert manifest["input_size"] == [64, 96]
    assert manifest["threshold"] == manifest["model"]["threshold"] == 0.4
