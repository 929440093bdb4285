"""Test that ablations differ only in what they claim, and that finished rows are not run again."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from rvos_deploy.benchmarks.studies import ablations
from rvos_deploy.benchmarks.studies.ablations import (
    THRESHOLDS,
    VARIANTS,
    Budget,
    begins_at_random,
    best_threshold,
    class_loss,
    starting_weights,
    variant_recipe,
)
from rvos_deploy.benchmarks.studies.video_queries import decode_queries
from rvos_deploy.datasets import read_mevis
from rvos_deploy.datasets.moving_sprites import SplitSpec, WorldConfig, write_mevis
from rvos_deploy.errors import InputError
from rvos_deploy.evaluation.evaluate import evaluate
from rvos_deploy.networks.pan2024.config import preset
from rvos_deploy.networks.pan2024.modules.clip import build_clip
from rvos_deploy.networks.pan2024.modules.network import build_network
from rvos_deploy.training.checkpoints import trained_weights
from rvos_deploy.training.clips import training_tokenizer
from rvos_deploy.training.recipe import CACHEABLE
from rvos_deploy.training.recipe_file import read_recipe
from rvos_deploy.training.validation import clip_masks, summary


def test_a_variant_changes_one_thing() -> None:
    recipes = {
        v.name: variant_recipe(read_recipe("sprites_tiny"), v, Budget(), 1) for v in VARIANTS
    }
    for variant in VARIANTS:
        base = asdict(recipes["full" if variant.reads_text_anew else "aligned"])
        own = asdict(recipes[variant.name])
        model, base_model = own.pop("model"), base.pop("model")
        names = dict(build_network(recipes[variant.name].model).named_parameters())
        for stage, base_stage in zip(own["stages"], base["stages"], strict=True):
            trained = stage.pop("trained")
            assert all(any(n.startswith(part) for n in names) for part in trained)
            lacking = set(base_stage.pop("trained")) - set(trained)
            assert lacking <= {"frame_decoder.mask_position"}
        assert own == base
        changed = {name for name in model if model[name] != base_model[name]}
        assert changed == {name for name, _ in variant.model}
        # The trajectory encoding uses the positions that no_mask_position removes from tokens.
        assert len(changed) + variant.foreign_text <= 1 or variant.name == "no_position"


READS_TEXT = ("text_resizer", "fusion", "text_attention", "text_ffn", "referred_head")


def test_only_parts_that_a_variant_gains_from_are_fresh(tmp_path: Path) -> None:
    torch.manual_seed(0)
    trained = trained_weights(build_network(preset("tiny")))
    save_file(trained, tmp_path / "weights.safetensors")
    for variant in VARIANTS:
        recipe = variant_recipe(read_recipe("sprites_tiny"), variant, Budget(), 5)
        file = starting_weights(
            recipe.model, variant, tmp_path / "weights.safetensors", 5, tmp_path / "mixed"
        )
        mixed = load_file(file)
        build_network(recipe.model).load_state_dict(mixed, strict=False)
        lacking = set(trained) - set(mixed)
        parts = {
            "no_text_fusion": READS_TEXT,
            "no_mask_position": ("mask_position",),
            "no_position": ("mask_position", "course"),
        }.get(variant.name, ())
        assert bool(lacking) == bool(parts)
        assert all(set(name.split(".")) & set(parts) for name in lacking)
        for name, tensor in mixed.items():
            fresh = begins_at_random(name, variant)
            expected = READS_TEXT if variant.reads_text_anew else CACHEABLE
            assert fresh == any(f".{part}." in f".{name}." for part in expected)
            # Norms, some biases and the heads' own slots begin alike, whatever the seed.
            alike = (tensor == tensor.flatten()[0]).all() or name.endswith("own_slot")
            if not fresh or not alike:
                assert torch.equal(tensor, trained[name]) != fresh, name


def test_a_foreign_tower_leaves_the_trunk_alone(tmp_path: Path) -> None:
    files = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        files.append(tmp_path / f"{seed}.safetensors")
        save_file(dict(build_clip(preset("tiny")).model.state_dict()), files[-1])
    mixed = load_file(ablations.foreign_text_clip(*files, tmp_path / "mixed.safetensors"))
    one, other = map(load_file, files)
    assert set(mixed) == set(one)
    for name, tensor in mixed.items():
        assert torch.equal(tensor, (one if name.startswith(("visual.", "logit")) else other)[name])
    build_clip(preset("tiny"), str(tmp_path / "mixed.safetensors"))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"{", "truncated"),
        (b"[]", "Expected `object`, got `array`"),
        (b'{"rows": 3}', "Expected `array`, got `int`"),
        (b'{"rows": [{"variant": "full"}]}', "missing required field `seed`"),
        (
            b'{"rows": [{"variant": "full", "seed": "1", "j_and_f": 1, "n_acc": 1, '
            b'"class_loss": 1}]}',
            "Expected `int`, got `str`",
        ),
    ],
)
def test_a_damaged_record_is_one_line(tmp_path: Path, content: bytes, reason: str) -> None:
    assert ablations.read_rows(tmp_path) == []
    (tmp_path / "ablations.json").write_bytes(content)
    with pytest.raises(InputError, match="is not a record of this study") as error:
        ablations.read_rows(tmp_path)
    assert reason in str(error.value)
    assert "\n" not in str(error.value)


def test_weights_that_cannot_serve_are_one_line(tmp_path: Path) -> None:
    good, lacking, damaged = (tmp_path / f"{name}.safetensors" for name in ("a", "b", "c"))
    save_file(dict(build_clip(preset("tiny")).model.state_dict()), good)
    save_file({"other": torch.zeros(1)}, lacking)
    damaged.write_bytes(b"no safetensors")
    with pytest.raises(InputError, match=r"b\.safetensors has no tensor"):
        ablations.foreign_text_clip(good, lacking, tmp_path / "mixed")
    with pytest.raises(InputError, match=r"c\.safetensors cannot be read as safetensors"):
        ablations.foreign_text_clip(damaged, good, tmp_path / "mixed")
    for file, message in ((lacking, "has no tensor"), (damaged, "cannot be read")):
        with pytest.raises(InputError, match=message):
            starting_weights(preset("tiny"), VARIANTS[0], file, 1, tmp_path / "mixed")
    assert not (tmp_path / "mixed").exists()


def test_queries_give_the_masks_of_validation(tmp_path: Path) -> None:
    """The threshold is the network's own."""
    torch.manual_seed(0)
    network = build_network(replace(preset("tiny"), input_size=(96, 160))).eval()
    world = WorldConfig(height=90, width=157, frames=8)
    write_mevis(tmp_path / "valid", SplitSpec(seed=3, split="valid", videos=1, config=world))
    split = read_mevis(tmp_path / "valid")
    video, tokenizer = split.videos[0], training_tokenizer()
    queries = decode_queries(network, tokenizer, video)
    threshold = float(queries.scores.median())
    network.config = replace(network.config, threshold=threshold)
    images = [video.image(index) for index in range(len(video.frames))]
    texts = [expression.text for expression in video.expressions]
    expected = clip_masks(network, tokenizer, images, texts)
    found = queries.masks(threshold)
    assert found.shape == expected.shape
    assert 0 < expected.mean() < 1
    assert (found != expected).mean() < 1e-3
    best = best_threshold(network, tokenizer, split)
    at_best = evaluate(lambda _: queries.masks(best["threshold"]), split, "mevis")
    assert best["j_and_f"] == summary(at_best)["j_and_f"]
    for other in THRESHOLDS:
        scored = summary(evaluate(lambda _, t=other: queries.masks(t), split, "mevis"))
        assert scored["j_and_f"] <= best["j_and_f"]


def test_the_loss_is_that_of_the_last_steps_of_the_video_stage(tmp_path: Path) -> None:
    log = tmp_path / "training.csv"
    steps = [f"{step},video,,{step}.0" for step in range(1, 151)]
    log.write_text("\n".join(["step,stage,frame_class,video_class", *steps]) + "\n")
    assert class_loss(log) == sum(range(51, 151)) / 100


def test_rows_are_added_one_by_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[str] = []

    def fake(variant: ablations.Variant, recipe: Any, *rest: Any) -> dict[str, float]:
        ran.append(f"{variant.name} {recipe.seed}")
        if len(ran) == 3:
            raise KeyboardInterrupt
        found = {"j_and_f": 0.5 + 0.1 * len(ran), "j_and_f_no_target": 0.25, "n_acc": 0.25}
        return {**found, "class_loss": 1.0 - 0.1 * len(ran)}

    monkeypatch.setattr(ablations, "run_variant", fake)
    monkeypatch.setattr(ablations, "_validation", lambda *_: None)
    app = typer.Typer()
    app.command()(ablations.main)
    given = [
        str(tmp_path),
        "--clip-weights",
        "c",
        "--weights",
        "w",
        "--only",
        "aligned",
        "--only",
        "sentence",
    ]
    CliRunner().invoke(app, given)
    assert CliRunner().invoke(app, given).exit_code == 0
    assert ran == ["aligned 1", "sentence 1", "aligned 2", "aligned 2", "sentence 2"]
    rows = json.loads((tmp_path / "ablations.json").read_text())["rows"]
    assert [f"{row['variant']} {row['seed']}" for row in rows] == [*ran[:2], *ran[3:]]
    assert (tmp_path / "ablations.md").read_text() == (
        "| variant | seeds | J&F | no target | N-acc | class loss | J&F by seed | loss by seed |\n"
        "|---|---|---|---|---|---|---|---|\n"
        "| `aligned` | 1, 2 | 0.750 | 0.250 | 0.250 | 0.750 |  |  |\n"
        "| `sentence` | 1, 2 | 0.850 | 0.250 | 0.250 | 0.650 | +0.100, +0.100 | -0.100, -0.100 |\n"
    )
    refused = CliRunner().invoke(app, [*given, "--only", "foreign_text"])
    assert refused.exit_code == 2
    assert "needs --other-clip" in refused.output
