"""Test model presets as recipes, on data of both layouts, with warnings and refusals."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from lightning_fabric import Fabric
from PIL import Image

from rvos_deploy.datasets import find_layout
from rvos_deploy.datasets.moving_sprites import SplitSpec, WorldConfig, write_mevis
from rvos_deploy.errors import InputError
from rvos_deploy.networks.pan2024.config import PRESETS
from rvos_deploy.training.preparation import (
    missing_validation,
    read_training_data,
    read_validation_data,
)
from rvos_deploy.training.recipe_file import read_recipe

WORLD = WorldConfig(height=64, width=96, frames=8, objects=(2, 2), expressions=(1, 3))


@pytest.fixture(scope="module")
def mevis(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "mine"
    write_mevis(folder, SplitSpec(seed=1, split="train", videos=1, config=WORLD))
    return folder


@pytest.fixture(scope="module")
def youtube(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a train split of Ref-YouTube-VOS: one video of two frames, one object."""
    root = tmp_path_factory.mktemp("rvos")
    for kind, suffix in (("JPEGImages", "jpg"), ("Annotations", "png")):
        (root / "train" / kind / "v").mkdir(parents=True)
        for name in ("00000", "00005"):
            pixels = np.zeros((64, 96), np.uint8)
            pixels[20:40, 30:60] = 1
            image = Image.fromarray(pixels)
            image.putpalette([0, 0, 0, 200, 0, 0])
            image = image.convert("RGB") if suffix == "jpg" else image
            image.save(root / "train" / kind / "v" / f"{name}.{suffix}")
    listed = root / "meta_expressions" / "train"
    listed.mkdir(parents=True)
    expressions = {"0": {"exp": "a red box", "obj_id": "1"}}
    video = {"frames": ["00000", "00005"], "expressions": expressions}
    (listed / "meta_expressions.json").write_text(json.dumps({"videos": {"v": video}}))
    return root / "train"


@pytest.fixture
def without_truth(mevis: Path, tmp_path: Path) -> Path:
    """Return a split without masks, like MeViS's ``valid``."""
    folder = shutil.copytree(mevis, tmp_path / "valid")
    (folder / "mask_dict.json").unlink()
    for meta in folder.glob("meta_expressions*.json"):
        content = json.loads(meta.read_text())
        for video in content["videos"].values():
            video.pop("objects", None)
            video["expressions"] = {
                key: {"exp": expression["exp"]} for key, expression in video["expressions"].items()
            }
        meta.write_text(json.dumps(content))
    return folder


def test_the_ground_truth_decides_the_layout(
    mevis: Path, youtube: Path, without_truth: Path
) -> None:
    assert find_layout(mevis) == "mevis"
    assert find_layout(mevis / "meta_expressions.json") == "mevis"
    assert find_layout(youtube) == "ref-youtube-vos"
    assert find_layout(without_truth) is None


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("kind", ["mevis", "ref-youtube-vos"])
def test_a_preset_trains_in_one_joint_stage_on_a_data_set(
    name: str, kind: str, request: pytest.FixtureRequest
) -> None:
    folder = request.getfixturevalue("mevis" if kind == "mevis" else "youtube")
    recipe = read_recipe(name, data=folder)
    assert recipe.model == PRESETS[name]
    assert recipe.data == kind
    assert [stage.name for stage in recipe.stages] == ["joint"]
    split = read_training_data(recipe, folder)
    assert split is not None
    assert split.has_truth
    # Clips have about the size that the network reads later.
    assert min(recipe.augment.short_sides) <= recipe.model.input_size[0] <= recipe.augment.long_side
    assert read_recipe(name, ["stage.joint.steps=7"], folder).steps == 7


def test_tiny_without_data_is_the_packaged_recipe_on_sprites() -> None:
    assert read_recipe("tiny") == read_recipe("sprites_tiny")
    assert read_recipe("tiny", ["data=sprites"]) == read_recipe("sprites_tiny")


def test_other_presets_need_data_or_a_request_to_render() -> None:
    recipe = read_recipe("base")
    with pytest.raises(InputError, match="needs --data DIR"):
        read_training_data(recipe, None)
    rendered = read_recipe("base", ["data=sprites"])
    assert (rendered.data, rendered.model) == ("sprites", PRESETS["base"])
    assert read_training_data(rendered, None) is None


def test_the_data_kind_can_be_set(mevis: Path) -> None:
    recipe = read_recipe("tiny", ["data=ref-youtube-vos"], mevis)
    assert recipe.data == "ref-youtube-vos"
    with pytest.raises(InputError, match=r"is laid out as mevis.*pass --set data=mevis"):
        read_training_data(recipe, mevis)
    with pytest.raises(InputError, match="data 'mewis' is unknown"):
        read_recipe("tiny", ["data=mewis"], mevis)


def test_a_recipe_of_the_other_layout_is_refused(youtube: Path) -> None:
    recipe = read_recipe("mevis_large")
    with pytest.raises(InputError, match=r"ref-youtube-vos.*pass --set data=ref-youtube-vos"):
        read_training_data(recipe, youtube)
    read_training_data(read_recipe("mevis_large", ["data=ref-youtube-vos"]), youtube)


def test_data_is_never_ignored(mevis: Path) -> None:
    recipe = read_recipe("sprites_tiny", ["sprites.emoji=false"])
    with pytest.raises(InputError, match='--data is not used by data = "sprites"') as caught:
        read_training_data(recipe, mevis)
    advised = str(caught.value).split("'")[1]
    assert read_recipe(advised, data=mevis).data == "mevis"


def test_a_split_without_ground_truth_is_refused_before_training(
    without_truth: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="has no ground truth; train on a split that has masks"):
        read_recipe("tiny", data=without_truth)
    with pytest.raises(InputError, match="has no ground truth, so J&F cannot be measured"):
        read_validation_data(Fabric(), read_recipe("mevis_tiny"), tmp_path, without_truth)


def test_a_validation_split_is_read_in_its_own_layout(
    mevis: Path, youtube: Path, tmp_path: Path
) -> None:
    for name in ("mevis_tiny", "sprites_tiny"):
        for folder in (mevis, youtube):
            split = read_validation_data(Fabric(), read_recipe(name), tmp_path, folder)
            assert split is not None
            assert split.has_truth


@pytest.mark.parametrize(
    ("name", "changes", "valid", "warns"),
    [
        ("mevis_tiny", [], False, True),
        ("mevis_large", [], False, True),
        ("mevis_tiny", [], True, False),
        ("mevis_tiny", ["validate_every=0"], False, False),
        ("sprites_tiny", [], False, False),
    ],
)
def test_validation_without_a_split_warns(
    name: str, changes: list[str], valid: bool, warns: bool
) -> None:
    warning = missing_validation(read_recipe(name, changes), "valid" if valid else None)
    assert (warning is not None) == warns
    if warning is not None:
        assert "--valid DIR" in warning
        assert "\n" not in warning


def test_an_unknown_name_lists_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        read_recipe(tmp_path / "huge")
    for known in ("sprites_tiny", "mevis_tiny", "mevis_large", *PRESETS):
        assert known in str(caught.value)
