"""Test the loop: exact resumption, frozen parameters, falling losses, errors of one line."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from lightning_fabric import Fabric
from safetensors.torch import load_file

from rvos_deploy.cli.train import train as command
from rvos_deploy.datasets.moving_sprites import SplitSpec, write_mevis
from rvos_deploy.errors import InputError, RvosError
from rvos_deploy.networks.pan2024.config import preset
from rvos_deploy.networks.pan2024.modules import network as network_module
from rvos_deploy.networks.pan2024.modules.clip import build_clip
from rvos_deploy.networks.pan2024.modules.frame_query_decoder import QueryDescriptors
from rvos_deploy.networks.pan2024.modules.network import RvosNetwork, VideoOutput
from rvos_deploy.networks.pan2024.modules.slot_alignment import gather_slots
from rvos_deploy.progress import ignore_counts
from rvos_deploy.training import trainer
from rvos_deploy.training.clips import Clips, collate
from rvos_deploy.training.frame_cache import (
    CachedClips,
    VideoObjective,
    cached_batches,
    fill_cache,
)
from rvos_deploy.training.objective import (
    Objective,
    learning_rate,
    loss_config,
    make_optimizer,
    select_trained,
    step_generator,
)
from rvos_deploy.training.recipe import Augmentation, Recipe, Stage
from rvos_deploy.training.recipe_file import packaged_recipes, parse_recipe, read_recipe
from rvos_deploy.training.trainer import TrainingOptions, TrainingResult, train

MINIATURE: dict[str, Any] = {
    "data": "sprites",
    "seed": 7,
    "checkpoint_every": 2,
    "preflight": False,
    "model": {
        "preset": "tiny",
        "dim": 32,
        "num_queries": 6,
        "num_heads": 4,
        "norm_groups": 8,
        "encoder_layers": 1,
        "encoder_ffn": 32,
        "fusion_dim": 32,
        "frame_decoder_layers": 1,
        "video_decoder_layers": 1,
        "decoder_ffn": 32,
        "input_size": [64, 96],
    },
    "sprites": {
        "height": 64,
        "width": 96,
        "frames": 8,
        "objects": [2, 4],
        "expressions": [1, 4],
        "emoji": False,
    },
    "loss": {"num_points": 48},
    "stage": [
        {
            "name": "frames",
            "steps": 3,
            "batch": 2,
            "length": 1,
            "learning_rate": 1e-3,
            "clip_gradient": 5.0,
        },
        {
            "name": "joint",
            "steps": 3,
            "batch": 2,
            "length": 2,
            "learning_rate": 1e-3,
            "clip_gradient": 5.0,
            "accumulate": 2,
            "single_every": 2,
            "sentences": 2,
        },
    ],
}


@pytest.fixture(scope="module")
def clip() -> torch.nn.Module:
    torch.manual_seed(1)
    return build_clip(preset("tiny"))


@pytest.fixture(autouse=True)
def one_thread(clip: torch.nn.Module, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Sum in one order on one thread; all networks share one CLIP."""
    monkeypatch.setattr(network_module, "build_clip", lambda *_: clip)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def run(out: Path, recipe: Recipe | None = None, **options: Any) -> TrainingResult:
    recipe = recipe or parse_recipe(MINIATURE)
    progress = options.pop("progress", ignore_counts)
    return train(recipe, out, TrainingOptions(accelerator="cpu", **options), progress)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, clip: torch.nn.Module) -> Path:
    """Return an uninterrupted run on one thread."""
    out = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(network_module, "build_clip", lambda *_: clip)
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        run(out)
        torch.set_num_threads(threads)
    return out


def curve(out: Path) -> list[dict[str, str]]:
    with (out / "training.csv").open(newline="") as stream:
        return [
            {key: value for key, value in row.items() if key != "seconds"}
            for row in csv.DictReader(stream)
        ]


def weights(out: Path) -> dict[str, torch.Tensor]:
    return load_file(out / "checkpoints" / "step-00000006" / "weights.safetensors")


@pytest.mark.parametrize("stop", [2, 3, 4])
def test_a_resumed_run_equals_the_uninterrupted_one(whole: Path, tmp_path: Path, stop: int) -> None:
    assert run(tmp_path, steps=stop).steps == stop
    torch.manual_seed(99)  # whatever else the process drew
    assert run(tmp_path, resume=True).steps == 6
    assert curve(tmp_path) == curve(whole)
    assert len(curve(whole)) == 6
    for name, value in weights(whole).items():
        assert torch.equal(weights(tmp_path)[name], value), name


def test_a_run_recorded_under_former_names_is_resumed(tmp_path: Path) -> None:
    recipe = parse_recipe(MINIATURE)
    recipe = replace(recipe, model=replace(recipe.model, competition=False))
    folder = run(tmp_path, recipe, steps=2).checkpoint
    state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
    state["recipe"]["gates"] = state["recipe"].pop("preflight")
    model = state["recipe"]["model"]
    assert model["alignment"] == "mask_cues", "the premise"
    model |= {"course": model.pop("trajectory_encoding"), "alignment": "sight"}
    model["rivals"] = model.pop("competition")
    (folder / "state.json").write_text(json.dumps(state), encoding="utf-8")
    with pytest.raises(InputError, match=r"was trained with another model\.competition; resume"):
        run(tmp_path, resume=True, steps=3)
    assert run(tmp_path, recipe, resume=True, steps=3).steps == 3


def test_a_killed_run_repeats_the_steps_after_its_checkpoint(whole: Path, tmp_path: Path) -> None:
    class KilledError(Exception):
        pass

    def kill(stage: str, done: int, total: int) -> None:
        if (stage, done) == ("joint", 2):  # step 5; the last checkpoint is of step 4
            raise KilledError

    with pytest.raises(KilledError):
        run(tmp_path, progress=kill)
    assert len(curve(tmp_path)) == 5
    assert run(tmp_path, resume=True).steps == 6
    assert curve(tmp_path) == curve(whole)


def test_frozen_parameters_do_not_change(
    whole: Path, tmp_path: Path, clip: torch.nn.Module
) -> None:
    before = {name: value.clone() for name, value in clip.state_dict().items()}
    recipe = parse_recipe(MINIATURE)
    part = replace(recipe.stages[0], trained=("video_decoder", "mask_head"))
    recipe = replace(recipe, stages=(part,))
    start = whole / "checkpoints" / "step-00000006" / "weights.safetensors"
    result = run(tmp_path, recipe, init_from=start)
    old, new = load_file(start), load_file(result.checkpoint / "weights.safetensors")
    changed = {name.split(".")[0] for name in old if not torch.equal(old[name], new[name])}
    assert changed == {"video_decoder", "mask_head"}
    assert old.keys() == new.keys()
    moments = load_file(result.checkpoint / "optimizer.safetensors")
    assert {name.split(".")[0] for name in moments} == {"video_decoder", "mask_head"}
    assert all(torch.equal(value, before[name]) for name, value in clip.state_dict().items())


def test_every_trained_parameter_gets_a_gradient(clip: torch.nn.Module) -> None:
    """Otherwise several processes, which wait for all gradients, would hang."""
    recipe = parse_recipe(MINIATURE)
    network = RvosNetwork(recipe.model, clip)  # type: ignore[arg-type]
    named = select_trained(network, recipe.stages[1])
    batch = collate([Clips(recipe, recipe.stages[1])[i] for i in range(2)])
    objective = Objective(network, loss_config(recipe.loss))
    objective(batch, step_generator(0, 0, 0, 0))["total"].backward()
    assert [name for name, parameter in named.items() if parameter.grad is None] == []


def test_the_loss_falls_on_one_repeated_clip(clip: torch.nn.Module) -> None:
    torch.manual_seed(0)
    recipe = parse_recipe(MINIATURE)
    stage = replace(recipe.stages[1], learning_rate=3e-3)
    network = RvosNetwork(recipe.model, clip)  # type: ignore[arg-type]
    optimizer = make_optimizer(select_trained(network, stage), stage)
    batch = collate([Clips(recipe, stage)[0]])
    objective, totals = Objective(network, loss_config(recipe.loss)), []
    for step in range(25):
        loss = objective(batch, step_generator(0, step, 0, 0))["total"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        totals.append(loss.item())
    assert sum(totals[-3:]) < 0.75 * sum(totals[:3])


def cached_recipe(**changes: Any) -> Recipe:
    recipe = parse_recipe(MINIATURE)
    video = replace(
        recipe.stages[1],
        name="video",
        steps=3,
        accumulate=1,
        single_every=0,
        trained=("initializer", "video_decoder", "mask_head"),
        cached=3,
        cache_stride=8,
        sentences=2,
        loss=replace(recipe.loss, num_points=16),
    )
    return replace(recipe, stages=(recipe.stages[0], replace(video, **changes)))


@pytest.mark.parametrize("cached_length", [0, 5])
def test_a_cached_stage_trains_the_video_part_and_resumes(
    tmp_path: Path, cached_length: int
) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    recipe = cached_recipe(cached_length=cached_length)
    run(whole, recipe)
    run(parts, recipe, steps=4)
    made = {file: file.stat().st_mtime_ns for file in parts.glob("cache/video/shard-*")}
    run(parts, recipe, resume=True)
    assert curve(parts)[3:] == curve(whole)[3:]
    # Its shards were used again, not made again.
    assert made == {file: file.stat().st_mtime_ns for file in made}
    assert len(made) == 1
    before = load_file(whole / "checkpoints" / "step-00000004" / "weights.safetensors")
    changed = {n.split(".")[0] for n in before if not torch.equal(before[n], weights(whole)[n])}
    assert changed == {"initializer", "video_decoder", "mask_head"}


def test_cached_clips_equal_the_output_of_the_frame_part(
    tmp_path: Path, clip: torch.nn.Module
) -> None:
    recipe = cached_recipe()
    stage = recipe.stages[1]
    network = RvosNetwork(recipe.model, clip)  # type: ignore[arg-type]
    clips = Clips(recipe, stage)
    fabric = Fabric(accelerator="cpu", devices=1)
    cached = fill_cache(fabric, network, clips, 10, tmp_path / "cache")
    raw, (kept, spoken) = collate([clips[12]]), cached[2, 7]
    with torch.no_grad():
        output = network.eval()(raw.frames, raw.token_ids)
    close: dict[str, Any] = {"atol": 4e-3, "rtol": 1e-3}
    parts = {
        **output.frames.descriptors._asdict(),
        "mask_embeddings": output.frames.mask_embeddings,
    }
    for name, part in parts.items():
        torch.testing.assert_close(kept[name].float(), part, **close)
    assert torch.equal(kept["order"], output.video.order[0])
    assert torch.equal(kept["ages"], raw.ages[0])
    assert kept["features"].shape == (2, 32, 8, 12)
    assert torch.equal(kept["masks"], F.avg_pool2d(raw.masks[0].float(), 4) >= 0.5)
    assert torch.equal(spoken[0]["referred"], clips[12].referred)
    known = clips.sentences(12)
    assert torch.equal(known[0].token_ids, clips[12].token_ids)
    drawn = set()
    for draw in range(20):
        own, other = cached[2, draw].sentences
        assert torch.equal(own["tokens"], spoken[0]["tokens"])
        with torch.no_grad():
            texts = [network.encode_text(s.token_ids[None]) for s in known]
        distances = [
            float((other["sentence"].float() - text.sentence[0]).abs().max()) for text in texts
        ]
        number = int(np.argmin(distances))
        assert number
        assert torch.equal(other["referred"], known[number].referred)
        torch.testing.assert_close(other["tokens"].float(), texts[number].tokens[0], **close)
        drawn.add(number)
    assert drawn == set(range(1, len(known)))


def test_a_cached_clip_is_mirrored_with_its_text(tmp_path: Path, clip: torch.nn.Module) -> None:
    """Positions are mirrored, contents are not, and left and right are swapped in the text."""
    plain, always = (cached_recipe(sentences=9, mirror=m).stages[1] for m in (0.001, 1.0))
    recipe = cached_recipe(sentences=9, mirror=0.001)
    recipe = replace(recipe, sprites=replace(recipe.sprites, expressions=(6, 9)))
    network = RvosNetwork(recipe.model, clip)  # type: ignore[arg-type]
    fabric = Fabric(accelerator="cpu", devices=1)
    clips = Clips(recipe, plain)
    seen = fill_cache(fabric, network, clips, 10, tmp_path)
    turned = CachedClips(tmp_path, always, recipe.seed)
    told_apart = 0
    for index in range(3):
        before, after = seen[index, 5], turned[index, 5]
        moved = {n for n, part in before.clip.items() if not torch.equal(part, after.clip[n])}
        assert moved == {"position", "features", "masks"}
        for name in ("features", "masks"):
            assert torch.equal(after.clip[name], before.clip[name].flip(-1))
        signs = torch.tensor([-1.0, 1, 1, 1, 1])
        assert torch.equal(after.clip["position"].float(), before.clip["position"].float() * signs)
        known = clips.sentences(10 + index)
        ids = {tuple(s.token_ids.tolist()): s for s in known}
        assert len(ids) == len(known) >= 6
        with torch.no_grad():
            texts = {i: network.encode_text(torch.tensor(i)[None]).tokens[0] for i in ids}
            mirrored = {
                i: network.encode_text(s.mirrored_ids[None]).tokens[0] for i, s in ids.items()
            }
        for was, now in zip(before.sentences, after.sentences, strict=True):
            own = [i for i, text in texts.items() if near(text, was["tokens"])]
            assert len(own) == 1
            assert near(mirrored[own[0]], now["tokens"])
            assert torch.equal(was["referred"], now["referred"])
            told_apart += not near(was["tokens"].float(), now["tokens"])
    assert told_apart, "the premise: some sentence says left or right"


def near(text: torch.Tensor, kept: torch.Tensor) -> bool:
    return text.shape == kept.shape and torch.allclose(text, kept.float(), atol=4e-3)


def rolled(descriptors: QueryDescriptors) -> torch.Tensor:
    """Replace aligned slots: in frame t of a clip, slot n has query n + t."""
    batch, length, slots = descriptors.score.shape
    return ((torch.arange(slots) + torch.arange(length)[:, None]) % slots).repeat(batch, 1, 1)


@pytest.fixture
def network(clip: torch.nn.Module) -> RvosNetwork:
    torch.manual_seed(2)
    return RvosNetwork(cached_recipe().model, clip)  # type: ignore[arg-type]


def test_a_step_reads_some_frames_of_a_longer_cached_clip(
    tmp_path: Path, network: RvosNetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Frames are drawn anew each time, ascending; slots keep the order of the whole clip."""
    monkeypatch.setattr(network, "slot_order", rolled)
    recipe = cached_recipe(cached_length=5, window=8)
    stage = recipe.stages[1]
    fabric = Fabric(accelerator="cpu", devices=1)
    cached = fill_cache(fabric, network, Clips(recipe, stage), 10, tmp_path)
    whole = collate([Clips(recipe, replace(stage, length=5))[12]])
    with torch.no_grad():
        output = network.eval()(whole.frames, whole.token_ids, whole.ages)
    descriptors = output.frames.descriptors
    masks = F.avg_pool2d(whole.masks[0].float(), 4) >= 0.5
    # No two frames look alike: what was drawn can be told.
    assert (
        torch.cdist(descriptors.queries.flatten(1), descriptors.queries.flatten(1)) > 0.05
    ).sum() == 20
    assert len(set(whole.ages[0].tolist())) == 5
    close: dict[str, Any] = {"atol": 4e-3, "rtol": 1e-3}  # float16
    pairs = set()
    for draw in range(60):
        kept = cached[2, draw].clip
        drawn = kept["order"][:, 0].tolist()
        assert len(drawn) == 2
        assert drawn == sorted(set(drawn))
        assert torch.equal(kept["order"], output.video.order[0, drawn])
        for name, fact in descriptors._asdict().items():
            torch.testing.assert_close(kept[name].float(), fact[drawn], **close)
        embeddings = output.frames.mask_embeddings[drawn]
        torch.testing.assert_close(kept["mask_embeddings"].float(), embeddings, **close)
        features = F.avg_pool2d(output.frames.mask_features, 2)[drawn]
        torch.testing.assert_close(kept["features"].float(), features, **close)
        assert torch.equal(kept["masks"], masks[:, drawn])
        ages = whole.ages[0, drawn]
        assert kept["ages"].tolist() == [int(ages[0] - ages[1]), 0]
        assert torch.equal(kept["ages"], cached[2, draw].clip["ages"])
        pairs.add(tuple(drawn))
    # Ten pairs, 60 draws: one of them is missed with a probability of 0.02, and seeds are fixed.
    assert len(pairs) == 10


def test_the_video_part_uses_the_order_of_the_cached_clip(
    tmp_path: Path, network: RvosNetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(network, "slot_order", rolled)
    recipe = cached_recipe(cached_length=5)
    stage = recipe.stages[1]
    fabric = Fabric(accelerator="cpu", devices=1)
    cached = fill_cache(fabric, network, Clips(recipe, stage), 10, tmp_path)
    (batch,) = cached_batches(cached, recipe, stage, range(1, 2), 0, 1)
    batch = batch.to(torch.device("cpu"))
    assert batch.queries.shape[:2] == batch.order.shape[:2] == batch.ages.shape == (2, 2)
    assert batch.order.dtype == batch.ages.dtype == torch.int64
    assert (batch.order[:, :, 0] > torch.arange(2)).any(), "the premise: not the first frames"
    assert {x.dtype for x in (*batch[:5], *batch[7:10])} == {torch.float32}
    made = []
    decode = network.decode_video

    def spy(*arguments: Any) -> VideoOutput:
        made.append(decode(*arguments))
        assert torch.equal(arguments[3], batch.ages)
        return made[-1]

    monkeypatch.setattr(network, "decode_video", spy)
    objective = VideoObjective(network, loss_config(recipe.loss), lambda count: count)
    losses = objective(batch, step_generator(0, 0, 0, 0))
    assert losses["total"].isfinite()
    tokens = network.frame_decoder.tokens(QueryDescriptors(*batch[:4]))
    assert torch.equal(made[0].aligned_queries, gather_slots(tokens, batch.order))
    embeddings = gather_slots(batch.mask_embeddings, batch.order)
    assert torch.equal(made[0].frame_mask_embeddings, embeddings)


def test_single_frames_are_cached_with_any_initializer(
    tmp_path: Path, clip: torch.nn.Module
) -> None:
    """All clips then have the same order, and a shard must store it for each clip."""
    recipe = cached_recipe(cached=2, length=1)
    model = replace(recipe.model, initializer="weighted")
    network = RvosNetwork(model, clip)  # type: ignore[arg-type]
    fabric = Fabric(accelerator="cpu", devices=1)
    clips = Clips(replace(recipe, model=model), recipe.stages[1])
    cached = fill_cache(fabric, network, clips, 10, tmp_path)
    for index in range(2):
        assert cached[index, 0].clip["order"].tolist() == [list(range(6))]


def test_a_cache_is_kept_while_its_clips_have_as_many_frames(
    tmp_path: Path, network: RvosNetwork
) -> None:
    """The number of frames that a step reads does not affect the cache."""
    fabric = Fabric(accelerator="cpu", devices=1)

    def fill(**changes: int) -> int:
        recipe = cached_recipe(cached=1, **changes)
        fill_cache(fabric, network, Clips(recipe, recipe.stages[1]), 10, tmp_path)
        return (tmp_path / "shard-00000.safetensors").stat().st_mtime_ns

    first = fill(length=2, cached_length=3)
    assert fill(length=1, cached_length=3) == fill(length=3) == first
    assert fill(length=3, cached_length=4) > first


def test_a_cache_with_another_order_of_slots_is_replaced(
    tmp_path: Path, clip: torch.nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The variant and the tracker's source decide the order, and no weight does."""
    recipe = cached_recipe(cached=1, length=2)
    fabric = Fabric(accelerator="cpu", devices=1)

    def fill(initializer: str) -> int:
        torch.manual_seed(0)
        model = replace(recipe.model, initializer=initializer)  # type: ignore[arg-type]
        network = RvosNetwork(model, clip)  # type: ignore[arg-type]
        fill_cache(fabric, network, Clips(recipe, recipe.stages[1]), 10, tmp_path)
        return (tmp_path / "shard-00000.safetensors").stat().st_mtime_ns

    first = fill("aligned")
    assert fill("aligned") == first
    second = fill("weighted")
    assert second > first
    monkeypatch.setattr("inspect.getsource", lambda module: "another tracker")
    assert fill("weighted") > second


def test_validation_keeps_the_best_checkpoint_and_writes_overlays(
    whole: Path, tmp_path: Path
) -> None:
    recipe = replace(parse_recipe(MINIATURE), validate_every=2, validation_videos=1)
    recipe = replace(recipe, stages=recipe.stages[:1])
    result = run(tmp_path, recipe)
    with (tmp_path / "validation.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["step"] for row in rows] == ["2", "3"]
    assert result.best == max(float(row["j_and_f"]) for row in rows)
    assert result.best_checkpoint is not None
    assert list(tmp_path.glob("overlays/step-00000003/*.png"))
    assert list(tmp_path.glob("tensorboard/events*"))
    # Looking on changes nothing.
    assert curve(tmp_path) == curve(whole)[:3]


def test_a_data_set_in_a_folder_trains_and_validates(tmp_path: Path) -> None:
    recipe = parse_recipe(MINIATURE)
    for name in ("train", "valid"):
        write_mevis(tmp_path / name, SplitSpec(seed=1, split=name, videos=1, config=recipe.sprites))
    recipe = replace(
        recipe,
        data="mevis",
        validate_every=2,
        augment=Augmentation(short_sides=(64, 80), long_side=128),
        stages=(replace(recipe.stages[1], steps=2, single_every=0, sentences=1),),
    )
    result = run(tmp_path / "run", recipe, data=tmp_path / "train", valid=tmp_path / "valid")
    assert result.steps == 2
    assert result.best is not None


def test_a_stage_changes_the_losses_that_it_names() -> None:
    content = {**MINIATURE, "loss": {"num_points": 48, "video_class": 6.0}}
    first, second = content["stage"]
    recipe = parse_recipe({**content, "stage": [{**first, "loss": {"num_points": 16}}, second]})
    changed, same = recipe.stages
    assert same.loss is None
    assert changed.loss == replace(recipe.loss, num_points=16)
    assert changed.loss.video_class == 6.0
    for wrong in ({"colour": 1}, 3):
        with pytest.raises(InputError, match=r"stage\.loss"):
            parse_recipe({**content, "stage": [{**first, "loss": wrong}]})


def test_the_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seeds = []

    def spy(recipe: Recipe, *places: Any, **options: Any) -> TrainingResult:
        seeds.append(recipe.seed)
        return train(recipe, *places, **options)

    monkeypatch.setattr(trainer, "train", spy)
    file = tmp_path / "recipe.toml"
    file.write_text(
        'model = "tiny"\ndata = "sprites"\nprecision = "bf16-mixed"\n'
        "[sprites]\nheight = 64\nwidth = 96\nemoji = false\nobjects = [2, 4]\n"
        "expressions = [1, 4]\n[loss]\nnum_points = 32\n"
        '[[stage]]\nname = "frames"\nsteps = 2\nbatch = 1\nlength = 1\nlearning_rate = 1e-3\n'
    )
    options: dict[str, Any] = {"seed": 4}
    with pytest.raises(InputError, match="has no published weights; train some with 'rvos-deploy"):
        command(str(file), tmp_path / "run", **options)
    command(str(file), tmp_path / "run", steps=1, preflight=False, **options)
    command(str(file), tmp_path / "run", resume=True, gates=False, **options)
    shown = capsys.readouterr().out
    folder = tmp_path / "run" / "checkpoints" / "step-00000002"
    assert f"{folder}: step 2 of 2" in shown
    run = tmp_path / "run"
    assert shown.endswith(f"export it:\nrvos-deploy export {run} --out {run}-bundle\n")
    assert seeds == [4, 4, 4]


def test_rate_warms_up_and_falls() -> None:
    stage = Stage("a", steps=110, batch=1, length=1, learning_rate=1.0, warmup=10, final_rate=0.1)
    rates = [learning_rate(stage, step) for step in range(110)]
    assert rates[0] == pytest.approx(1 / 11)
    assert max(rates) == rates[10] == 1.0
    assert rates[60] == pytest.approx(0.55)
    assert rates[-1] == pytest.approx(0.1, abs=1e-3)
    assert learning_rate(replace(stage, schedule="constant"), 100) == 1.0


def test_a_loss_that_is_not_finite_stops_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Objective.forward

    def broken(*arguments: Any) -> dict[str, torch.Tensor]:
        return {k: v * float("nan") for k, v in original(*arguments).items()}

    monkeypatch.setattr(Objective, "forward", broken)
    with pytest.raises(RvosError, match=r"loss of step 1 is nan.*lower learning_rate"):
        run(tmp_path)
    assert not list(tmp_path.glob("checkpoints/step-*"))


def test_recipes_are_read_without_the_emoji_font(no_emoji_font: dict[str, str]) -> None:
    """The packaged weights were trained with emoji, and every recipe of theirs says so."""
    folder = Path(__file__).parents[2] / "benchmarks" / "checkpoints"
    made = [*folder.glob("*.toml"), "sprites_tiny"]
    assert len(made) >= 6
    assert all(read_recipe(name).sprites.emoji is True for name in made)
    assert read_recipe("mevis_large").sprites.emoji is False


def test_training_with_emoji_is_refused_without_their_font(
    no_emoji_font: dict[str, str], tmp_path: Path
) -> None:
    recipe = parse_recipe({**MINIATURE, "sprites": {**MINIATURE["sprites"], "emoji": True}})
    with pytest.raises(InputError, match=r"NotoColorEmoji.*in a recipe, emoji = false"):
        train(recipe, tmp_path / "run", TrainingOptions())
    assert not (tmp_path / "run").exists()


def test_packaged_recipes_are_valid() -> None:
    assert {"sprites_tiny", "mevis_large"} <= set(packaged_recipes())
    for name in packaged_recipes():
        assert read_recipe(name).steps > 0
        assert loss_config(read_recipe(name).loss).points.num_points > 0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nonsense =", "Invalid value"),
        ('data = "sprites"', "needs 'model' and 'data'"),
        ('model = "tiny"\ndata = "sprites"', r"at least one \[\[stage\]\]"),
        ('model = "tiny"\ndata = "mevi"\n[[stage]]\nname = "a"', "stage lacks"),
        ('model = "huge"\ndata = "mevis"', "unknown preset 'huge'"),
        ('model = "tiny"\ndata = "sprites"\n[stage]\nname = "a"', r"written as \[\[stage\]\]"),
        ('model = "tiny"\ndata = "sprites"\n[loss]\nmusk = 1.0', "loss has unknown 'musk'"),
        ('model = "tiny"\ndata = "sprites"\nseed = "1"', "recipe: seed: Expected `int`, got `str`"),
        ('model = "tiny"\ndata = "sprites"\nworkers = true', "workers: Expected `int`, got `bool`"),
        (
            'model = "tiny"\ndata = "sprites"\n[augment]\nshort_sides = 3',
            "Expected `array`, got `int`",
        ),
    ],
)
def test_a_wrong_recipe_is_one_line(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "recipe.toml"
    file.write_text(text)
    with pytest.raises(InputError, match=message) as caught:
        read_recipe(file)
    assert str(caught.value).startswith(f"recipe {file}: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "change",
    [
        {"schedule": "step"},
        {"steps": 0},
        {"learning_rate": 0.0},
        {"batch": 3, "accumulate": 2},
        {"kinds": ["movement"]},
        {"cached": 10},
        {"sentences": 0},
        {"cached": 10, "trained": ["encoder"]},
        {"cached": 10, "trained": ["initializer"], "length": 3, "cached_length": 2},
        {"cached": 10, "trained": ["initializer"], "cached_length": -1},
        {"cached": 10, "trained": ["initializer"], "mirror": 1.5},
        {"mirror": 0.5},
        {"cached_length": 8},
    ],
    ids=str,
)
def test_a_wrong_stage_is_named(change: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="stage 'frames'"):
        parse_recipe({**MINIATURE, "stage": [{**MINIATURE["stage"][0], **change}]})


def test_a_cached_clip_has_at_least_the_frames_of_a_clip() -> None:
    stage = {**MINIATURE["stage"][0], "length": 3, "cached": 10, "trained": ["initializer"]}
    for enough in (0, 3, 8):
        parse_recipe({**MINIATURE, "stage": [{**stage, "cached_length": enough}]})
    with pytest.raises(InputError, match="cached_length 2 is less than length 3"):
        parse_recipe({**MINIATURE, "stage": [{**stage, "cached_length": 2}]})


def test_a_run_that_cannot_start_gives_one_line(whole: Path, tmp_path: Path) -> None:
    recipe = parse_recipe(MINIATURE)
    folder = replace(recipe, data="mevis", stages=recipe.stages[:1])
    cases: list[tuple[str, Callable[[], Any]]] = [
        ("nothing.toml does not exist", lambda: read_recipe(tmp_path / "nothing.toml")),
        ("needs --data DIR", lambda: run(tmp_path, folder)),
        (str(tmp_path / "none"), lambda: run(tmp_path, folder, data=tmp_path / "none")),
        ("--data is not used", lambda: run(tmp_path, data=tmp_path)),
        ("holds a run; go on with --resume", lambda: run(whole)),
        ("another seed", lambda: run(whole, replace(recipe, seed=8), resume=True)),
        ("frame_objects", lambda: run(tmp_path, wrong_objects(recipe))),
        ("does not exist", lambda: run(tmp_path, init_from=tmp_path / "w.safetensors")),
    ]
    for message, call in cases:
        with pytest.raises(InputError, match=message) as caught:
            call()
        assert "\n" not in str(caught.value)
    assert os.listdir(tmp_path) == []  # noqa: PTH208


def wrong_objects(recipe: Recipe) -> Recipe:
    return replace(recipe, loss=replace(recipe.loss, frame_objects="some"))


def test_other_clip_weights_are_refused(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainer, "clip_fingerprint", lambda _: "another")
    with pytest.raises(InputError, match="other CLIP weights"):
        run(whole, resume=True)
    assert trainer.RECIPE == "recipe.json"
