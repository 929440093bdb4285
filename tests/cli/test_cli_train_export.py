"""From a training run to a bundle, by the commands that each step prints."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from rvos_deploy.bundle.folder import open_bundle
from rvos_deploy.errors import InputError
from rvos_deploy.export.source import find_source
from rvos_deploy.export.weights import Weights, load_with_origin
from rvos_deploy.graph_io.frame_geometry import letterbox, resize_frame, upsample_mask
from rvos_deploy.networks.pan2024.config import ModelConfig, preset
from rvos_deploy.networks.pan2024.modules.checkpoint import (
    clip_fingerprint,
    load_checkpoint,
    read_provenance,
)
from rvos_deploy.networks.pan2024.modules.clip import build_clip
from rvos_deploy.networks.pan2024.modules.inference import segment_clip, tokenize
from rvos_deploy.networks.pan2024.modules.network import build_network
from rvos_deploy.training.clips import training_tokenizer
from rvos_deploy.video import read_video

RECIPE = """
data = "sprites"
seed = 1
checkpoint_every = 1
validate_every = 0
preflight = false
[model]
preset = "tiny"
initializer = "weighted"
num_queries = 6
competition = false
input_size = [64, 96]
threshold = 0.0
[sprites]
height = 64
width = 96
frames = 8
[loss]
num_points = 16
[[stage]]
name = "joint"
steps = 2
batch = 1
length = 2
learning_rate = 1e-5
"""
"""A run of seconds with switches and a size that are no preset's; the masks stay those of the seed,
which are neither empty nor full.
"""


@dataclass(frozen=True)
class Run:
    """A training run, the CLIP file that it was given, and what ``train`` printed."""

    folder: Path
    clip: Path
    printed: list[str]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, process: Callable) -> Run:
    work = tmp_path_factory.mktemp("training")
    torch.manual_seed(77)
    clip = work / "my clip.safetensors"
    save_file(build_clip(preset("tiny")).model.state_dict(), clip)
    (work / "mine.toml").write_text(RECIPE)
    result = process("train", work / "mine.toml", "--out", work / "run", "--clip-weights", clip)
    assert result.code == 0, result.stderr
    return Run(work / "run", clip, result.stdout.splitlines())


def test_each_command_as_the_one_before_printed_it(
    trained: Run, process: Callable, make_video: Callable, tmp_path: Path
) -> None:
    """The bundle's masks are those of the network that was trained, but for near ties."""
    assert trained.printed[-2] == "export it:"
    command = shlex.split(trained.printed[-1])
    assert command[0] == "rvos-deploy"
    # The file may go: the run keeps what it was trained with.
    moved = trained.clip.rename(trained.clip.with_suffix(".moved"))
    result = process(*command[1:])
    moved.rename(trained.clip)
    assert result.code == 0, result.stderr
    assert "latest, step 2" in result.stdout.splitlines()[0]
    bundle = Path(command[command.index("--out") + 1])

    video = make_video(tmp_path / "clip.mp4", frames=4)
    words, out = "the square that moves", tmp_path / "out"
    result = process("run", video, words, "-b", bundle, "--out", out, "--mode", "offline")
    assert result.code == 0, result.stderr
    from PIL import Image

    files = sorted((out / "masks" / "0").glob("*.png"))
    found = np.stack([np.asarray(Image.open(file)) > 0 for file in files])
    expected = trainers_masks(trained, video, words)
    assert expected.any()
    assert not expected.all()
    # ONNX Runtime and PyTorch sum in another order: a logit of nearly zero may change its sign.
    assert (found != expected).mean() < 0.002

    manifest = json.loads((bundle / "manifest.json").read_text())
    origin = manifest["weights"]["origin"]
    assert origin["network"]["run"] == "run"
    assert (origin["network"]["checkpoint"], origin["network"]["step"]) == ("latest", 2)
    assert origin["network"]["recorded"] is origin["clip"]["recorded"] is True
    assert origin["clip"]["file"] == "clip.safetensors"
    assert origin["clip"]["fingerprint"] == clip_fingerprint(
        build_clip(preset("tiny"), str(trained.clip))
    )
    assert manifest["model"]["num_queries"] == 6
    assert manifest["model"]["initializer"] == "weighted"
    shown = " ".join(process("inspect", bundle).stdout.split())
    assert "latest of training run run, step 2" in shown
    assert "its checkpoint names this fingerprint" in shown
    assert process("verify", bundle).stderr == ""


def trainers_masks(trained: Run, video: Path, words: str) -> np.ndarray:
    """Masks bool [T,H,W] by the trainer's own network, put together without ``export``."""
    config = ModelConfig.from_dict(
        json.loads((trained.folder / "recipe.json").read_text())["model"]
    )
    network = build_network(config, str(trained.clip)).eval()
    latest = (trained.folder / "checkpoints" / "latest").read_text().strip()
    load_checkpoint(network, trained.folder / "checkpoints" / latest / "weights.safetensors")
    images = [frame.image for frame in read_video(video)]
    geometry = letterbox(images[0].shape[:2], config.input_size)
    frames = [torch.from_numpy(resize_frame(image, geometry)) for image in images]
    logits = segment_clip(network, frames, tokenize(training_tokenizer(), [words])).mask_logits
    return np.stack([upsample_mask(one, geometry) for one in logits[0].numpy()])


def checkpoint_of(trained: Run) -> Path:
    source = find_source(str(trained.folder))
    assert source.checkpoint is not None
    return source.checkpoint


def test_a_checkpoint_records_its_network(trained: Run) -> None:
    provenance = read_provenance(checkpoint_of(trained))
    assert provenance is not None
    assert provenance.config == find_source(str(trained.folder)).config
    assert (provenance.clip_source, provenance.step) == ("clip.safetensors", 2)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"initializer": "aligned"}, "initializer = 'weighted'"),
        ({"initializer": "sentence"}, "initializer = 'weighted'"),
        ({"alignment": "cosine"}, "alignment = 'mask_cues'"),
        ({"hiding": "threshold"}, "hiding = 'ramp'"),
        ({"temporal_position": False}, "temporal_position = True"),
        ({"frame_masks": False}, "frame_masks = True"),
        ({"num_heads": 4}, "num_heads = 8"),
        ({"fusion_heads": 2}, "fusion_heads = 4"),
        ({"num_points": 2}, "num_points = 4"),
        ({"norm_groups": 16}, "norm_groups = 32"),
        ({"position_cycles": 1.0}, "position_cycles = 4.0"),
        ({"fusion_layer_scale": 0.5}, "fusion_layer_scale = 0.1"),
        ({"clip": "convnext_base_w_320"}, "clip = 'rvos_tiny'"),
    ],
)
def test_another_switch_is_refused(trained: Run, change: dict[str, object], named: str) -> None:
    """Most of these keep every name and shape, so that only the record can tell."""
    config = replace(find_source(str(trained.folder)).config, **change)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=named) as caught:
        load_with_origin(config, Weights(checkpoint_of(trained), str(trained.clip)))
    assert "was trained with" in str(caught.value)


def test_what_does_not_change_the_weights_may_differ(trained: Run) -> None:
    config = find_source(str(trained.folder)).config
    free = replace(config, name="mine", threshold=0.9, input_size=(128, 224))
    network, origin = load_with_origin(free, Weights(checkpoint_of(trained), str(trained.clip)))
    assert origin.network.recorded
    assert network.config == free


def test_a_preset_with_the_runs_checkpoint_is_refused(
    trained: Run, process: Callable, tmp_path: Path
) -> None:
    """What ``train`` used to print."""
    out = tmp_path / "bundle"
    result = process("export", "tiny", "--checkpoint", checkpoint_of(trained), "--out", out)
    assert result.code == 2
    assert "num_queries = 6" in result.error
    assert "export the folder of the training run" in result.error
    assert not out.exists()


def test_no_clip_or_another_one_is_refused(trained: Run, tmp_path: Path) -> None:
    config, file = find_source(str(trained.folder)).config, checkpoint_of(trained)
    with pytest.raises(InputError, match=r"holds no CLIP part.*clip\.safetensors.*--clip-weights"):
        load_with_origin(config, Weights(file))
    other = tmp_path / "other.safetensors"
    torch.manual_seed(78)
    save_file(build_clip(config).model.state_dict(), other)
    with pytest.raises(InputError, match=r"fingerprint [0-9a-f]{32}.*other\.safetensors holds"):
        load_with_origin(config, Weights(file, str(other)))
    # One number of a million is another CLIP.
    state = build_clip(config, str(trained.clip)).model.state_dict()
    state["text_projection"].view(-1)[12345] += 1e-3
    save_file(state, other)
    with pytest.raises(InputError, match="fingerprint"):
        load_with_origin(config, Weights(file, str(other)))


def test_a_run_is_resumed_with_its_own_clip(
    trained: Run, process: Callable, tmp_path: Path
) -> None:
    import shutil

    run = shutil.copytree(trained.folder, tmp_path / "run")
    recipe = trained.folder.parent / "mine.toml"
    longer = tmp_path / "longer.toml"
    longer.write_text(
        recipe.read_text() + RECIPE[RECIPE.index("[[stage]]") :].replace("joint", "on")
    )
    result = process("train", longer, "--out", run, "--resume")
    assert result.code == 0, result.stderr
    assert "step 4 of 4" in result.stdout


def test_sources_that_cannot_be_exported(trained: Run, tmp_path: Path) -> None:
    cases = [
        ((str(tmp_path),), "holds no checkpoint.*--out"),
        (("nonsense",), "neither the folder of a training run, nor a recipe.*nor a preset"),
        ((str(tmp_path / "absent.toml"),), "does not exist"),
        ((str(trained.folder), Path("w.safetensors")), "leave --checkpoint out"),
        ((str(trained.folder), None, None, "best"), "has no best checkpoint"),
        (("tiny", None, None, "latest"), "leave --which out"),
    ]
    for arguments, message in cases:
        with pytest.raises(InputError, match=message):
            find_source(*arguments)  # type: ignore[arg-type]


def test_a_new_bundle_must_say_where_its_weights_came_from(
    bundle_copy: Callable, resign: Callable, process: Callable
) -> None:
    folder = bundle_copy("manifest.json")
    manifest = json.loads((folder / "manifest.json").read_text())
    assert open_bundle(folder).manifest.revision == 1
    del manifest["weights"]["origin"]
    resign(folder, manifest=manifest)
    result = process("verify", folder)
    assert result.code == 2
    assert "weights.origin is missing" in result.error
    del manifest["revision"]
    manifest["files"] = json.loads((folder / "manifest.json").read_text())["files"]
    resign(folder, manifest=manifest)
    result = process("verify", folder)
    assert result.code == 0
    (warning,) = result.stderr.splitlines()
    assert "does not say where its weights came from" in warning
