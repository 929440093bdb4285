"""Test two processes under torchrun: they divide validation and parts, and none hangs."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from rvos_deploy.datasets import DataSplit, read_mevis
from rvos_deploy.datasets.moving_sprites import SplitSpec, write_mevis
from rvos_deploy.errors import InputError
from rvos_deploy.networks.pan2024.modules.network import build_network
from rvos_deploy.training.checkpoints import find_checkpoint, load_weights, read_state
from rvos_deploy.training.clips import training_tokenizer
from rvos_deploy.training.distributed import LONGEST_WAIT
from rvos_deploy.training.logs import RunLog
from rvos_deploy.training.preparation import warn_of_other_processes
from rvos_deploy.training.recipe_file import read_recipe
from rvos_deploy.training.trainer import TrainingOptions, train
from rvos_deploy.training.validation import check_validation, share_videos, validate

ON_CPU = TrainingOptions(accelerator="cpu")
RECIPE = """
data = "{data}"
seed = 7
preflight = false
validate_every = 2
validation_videos = {videos}
[model]
preset = "tiny"
dim = 32
num_queries = 6
num_heads = 4
norm_groups = 8
encoder_layers = 1
encoder_ffn = 32
fusion_dim = 32
frame_decoder_layers = 1
video_decoder_layers = 1
decoder_ffn = 32
input_size = [64, 96]
[sprites]
height = 64
width = 96
frames = 8
objects = [2, 4]
expressions = [1, 4]
emoji = false
[augment]
short_sides = [64, 96]
long_side = 128
[loss]
num_points = 48
[[stage]]
name = "joint"
steps = {steps}
batch = 4
length = 2
learning_rate = 1e-3
accumulate = {accumulate}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the output of two processes: runs of Moving Sprites and of clips of several sizes."""
    folder = tmp_path_factory.mktemp("two")
    sprites = RECIPE.format(data="sprites", accumulate=1, videos=2, steps=1)
    (folder / "sprites.toml").write_text(sprites)
    mevis = RECIPE.format(data="mevis", accumulate=0, videos=3, steps=2)
    (folder / "mevis.toml").write_text(mevis)
    world = read_recipe(folder / "sprites.toml").sprites
    write_mevis(folder / "train", SplitSpec(seed=1, split="train", videos=3, config=world))
    write_mevis(folder / "valid", SplitSpec(seed=2, split="valid", videos=4, config=world))
    script = Path(__file__).with_name("two_processes.py")
    torchrun = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [sys.executable, "-m", *torchrun, str(script), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    return folder


def seen(folder: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads((folder / f"{name}-{rank}.json").read_text()) for rank in (0, 1)]


def rows(run: Path) -> list[dict[str, str]]:
    with (run / "validation.csv").open(newline="") as stream:
        return list(csv.DictReader(stream))


@pytest.mark.parametrize("name", ["sprites", "mevis"])
def test_scores_equal_those_of_one_process(folder: Path, tmp_path: Path, name: str) -> None:
    recipe = read_recipe(folder / f"{name}.toml")
    split = read_mevis(folder / "sprites" / "valid" if name == "sprites" else folder / "valid")
    torch.manual_seed(recipe.seed)
    network = build_network(recipe.model)
    load_weights(latest(folder / name), network)
    step, videos = read_state(latest(folder / name)).step, recipe.validation_videos
    pictures = tmp_path / "overlays" / f"step-{step:08d}"
    values = validate(network, training_tokenizer(), split, videos=videos, pictures=pictures)
    with RunLog(tmp_path, 0) as log:
        log.validation(step, "joint", values)
    assert rows(folder / name) == rows(tmp_path)
    assert len(rows(tmp_path)) == 1
    drawn = [
        sorted(p.relative_to(r) for p in r.glob("overlays/*/*.png"))
        for r in (folder / name, tmp_path)
    ]
    assert drawn[0] == drawn[1]
    assert len(drawn[0]) == videos
    for picture in drawn[0]:
        assert (folder / name / picture).read_bytes() == (tmp_path / picture).read_bytes()


@pytest.mark.parametrize(("name", "videos"), [("sprites", 2), ("mevis", 3)])
def test_no_process_evaluates_all_videos(folder: Path, name: str, videos: int) -> None:
    first, second = (set(s["evaluated"]) for s in seen(folder, name))
    assert first
    assert second
    assert not first & second
    assert len(first | second) == videos
    assert sum(len(s["evaluated"]) for s in seen(folder, name)) == videos
    best = [s["best"] for s in seen(folder, name)]
    assert best[0] == best[1] == read_state(latest(folder / name)).best


def test_one_process_renders_the_videos_that_all_score(folder: Path) -> None:
    assert [s["rendered"] for s in seen(folder, "sprites")] == [1, 0]
    assert [s["rendered"] for s in seen(folder, "mevis")] == [0, 0]


def test_clips_of_several_sizes_are_computed_one_at_a_time(folder: Path) -> None:
    shapes = [s["clips"] for s in seen(folder, "mevis")]
    # Two steps of four clips, over two processes.
    assert [len(clips) for clips in shapes] == [4, 4]
    assert {tuple(shape[:2]) for clips in shapes for shape in clips} == {(1, 2)}
    assert len({tuple(shape[2:4]) for clips in shapes for shape in clips}) > 1
    assert {tuple(s) for of in seen(folder, "sprites") for s in of["clips"]} == {(2, 2, 64, 96, 3)}


def test_an_error_of_one_process_is_raised_in_all(folder: Path) -> None:
    expected = [["InputError", "the disk of process 1 is full"], ["ParityError", "process 0"]]
    for found in seen(folder, "gathered"):
        assert found["caught"] == expected
        assert found["ranks"] == [0, 1]
        assert found["first"] == "of 0"


def test_a_process_reports_that_another_was_killed(folder: Path) -> None:
    message = seen(folder, "gathered")[0]["left alone"]
    assert message.startswith("another process of the run has ended")
    assert "\n" not in message


def test_a_long_video_does_not_end_the_wait(folder: Path) -> None:
    """The gradients' group has a limit of half an hour; the waiting group has a longer one."""
    for found in seen(folder, "gathered"):
        assert found["limit"] == LONGEST_WAIT.total_seconds()
    assert LONGEST_WAIT.total_seconds() >= 24 * 3600


def latest(run: Path) -> Path:
    found = find_checkpoint(run)
    assert found is not None
    return found


def test_resuming_with_another_number_of_processes_warns(folder: Path) -> None:
    """One process resumes the run of two, for another stage."""
    run, recipe = folder / "sprites", read_recipe(folder / "sprites.toml")
    assert read_state(latest(run)).processes == 2
    more = replace(recipe.stages[0], name="more", steps=2)
    longer = replace(recipe, stages=(*recipe.stages, more), validate_every=0)

    def go_on(steps: int) -> list[str]:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            train(longer, run, replace(ON_CPU, resume=True, steps=steps))
        return [str(w.message) for w in caught if "was trained with" in str(w.message)]

    (line,) = go_on(2)
    assert line.startswith(f"{run}/checkpoints/step-00000001 was trained with 2 processes, and")
    assert "goes on with 1: " in line
    assert "the numbers will differ from those of an uninterrupted run" in line
    assert "\n" not in line
    assert read_state(latest(run)).processes == 1
    assert go_on(3) == []


def test_the_command_warns_in_one_line(rvos: Any, tmp_path: Path) -> None:
    file, run = tmp_path / "recipe.toml", tmp_path / "run"
    text = RECIPE.format(data="sprites", accumulate=4, videos=1, steps=2)
    file.write_text(text.replace("validate_every = 2", ""))
    call = ("train", file, "--out", run, "--steps")
    assert rvos(*call, 1).code == 0
    state = latest(run) / "state.json"
    state.write_text(state.read_text().replace('"processes": 1', '"processes": 8'))
    result = rvos(*call, 2, "--resume")
    assert result.code == 0
    (line,) = [line for line in result.stderr.splitlines() if "trained with" in line]
    assert line.startswith(f"warning: {run}/checkpoints/step-00000001 was trained with 8 processes")


def test_a_state_without_a_number_of_processes_does_not_warn() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_other_processes(Path("step-1"), None, 4)
        warn_of_other_processes(Path("step-1"), 4, 4)
    with pytest.warns(UserWarning, match="with 1 process, and the run goes on with 4"):
        warn_of_other_processes(Path("step-1"), 1, 4)


def video(frames: int, expressions: int) -> Any:
    return SimpleNamespace(frames=range(frames), expressions=range(expressions))


@pytest.mark.parametrize("processes", [1, 2, 3, 8])
def test_videos_are_divided_whole_and_evenly(processes: int) -> None:
    videos = [video(f, e) for f, e in ((50, 2), (400, 9), (60, 3), (60, 3), (1, 1), (200, 4))]
    shares = share_videos(videos, processes)
    assert shares == share_videos(videos, processes)
    assert sorted(number for share in shares for number in share) == list(range(6))
    assert all(share == sorted(share) for share in shares)
    loads = [sum(len(videos[i].frames) * len(videos[i].expressions) for i in s) for s in shares]
    # No process could do better than the longest video, or than an even share.
    assert max(loads) == max(3600, sum(loads) if processes == 1 else 0)
    assert (min(loads) > 0) == (processes <= 6)


def test_a_split_that_cannot_be_scored_is_refused_before_the_first_step(folder: Path) -> None:
    split = read_mevis(folder / "valid")
    check_validation(split, 2)
    blind = DataSplit(split.meta, (split.videos[0], replace(split.videos[1], annotation=None)))
    with pytest.raises(
        InputError, match="has no ground truth, so nothing can be scored on the way"
    ):
        check_validation(blind, 2)
    check_validation(blind, 1)
    silent = DataSplit(split.meta, tuple(replace(v, expressions=()) for v in split.videos))
    with pytest.raises(InputError, match="lists no expression for its first 3 videos"):
        check_validation(silent, 3)


def test_a_run_recorded_by_an_older_version_is_resumed(folder: Path, tmp_path: Path) -> None:
    """A field of a later version has the value by which the older version behaved."""
    recipe = read_recipe(folder / "sprites.toml")
    stage = replace(recipe.stages[0], steps=2, batch=1)
    recipe = replace(recipe, validate_every=0, stages=(stage,))
    train(recipe, tmp_path, replace(ON_CPU, steps=1))
    file = latest(tmp_path) / "state.json"
    state = json.loads(file.read_text())
    del state["processes"], state["recipe"]["model"]["slot_position"]
    file.write_text(json.dumps(state))
    result = train(recipe, tmp_path, replace(ON_CPU, resume=True, steps=2))
    assert result.steps == 2
    state["recipe"]["model"]["slot_position"] = "separate"
    (latest(tmp_path) / "state.json").write_text(json.dumps({**state, "step": 2, "stage_step": 2}))
    with pytest.raises(InputError, match="trained with another model"):
        train(recipe, tmp_path, replace(ON_CPU, resume=True))
