"""Test ``--set``: changes, refusals, and that the recorded recipe is the changed one."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rvos_deploy.errors import InputError
from rvos_deploy.training.recipe import LossSettings, Recipe, Stage
from rvos_deploy.training.recipe_changes import apply_changes
from rvos_deploy.training.recipe_file import packaged_recipes, parse_recipe, read_recipe

STAGE = {"name": "joint", "steps": 5, "batch": 2, "length": 2, "learning_rate": 1e-3}
CONTENT: dict[str, Any] = {
    "model": "tiny",
    "data": "sprites",
    "loss": {"dice": 3.0},
    "stage": [STAGE, {**STAGE, "name": "v 1.0-a", "loss": {"mask": 2.0}}],
}


def changed(*texts: str) -> Recipe:
    return parse_recipe(apply_changes(CONTENT, texts))


@pytest.mark.parametrize(
    ("former", "named"),
    [
        ("gates", "preflight"),
        ("model.course", "model.trajectory_encoding"),
        ("model.rivals", "model.competition"),
    ],
)
def test_former_names_of_keys_name_the_present_ones(
    tmp_path: Path, former: str, named: str
) -> None:
    line = f"the key '{former}' is now named '{named}'"
    with pytest.raises(InputError, match=f"^--set {former}=false: {line}$"):
        apply_changes(CONTENT, [f"{former}=false"])
    table, _, key = former.rpartition(".")
    file = tmp_path / "mine.toml"
    top = "" if table else f"{key} = false\n"
    file.write_text(
        f'data = "sprites"\n{top}[model]\npreset = "tiny"\n'
        + (f"{key} = false\n" if table else "")
        + "[[stage]]\nname = 'a'\nsteps = 1\nbatch = 1\nlength = 1\nlearning_rate = 1e-3\n"
    )
    with pytest.raises(InputError) as caught:
        read_recipe(file)
    assert str(caught.value) == f"recipe {file}: {line}; rename it"
    # The premise: the recipe is sound under the present name.
    file.write_text(file.read_text().replace(f"{key} =", f"{named.rpartition('.')[2]} ="))
    assert read_recipe(file).stages[0].name == "a"


def test_the_former_name_of_an_alignment_names_the_present_one() -> None:
    content = {**CONTENT, "model": {"preset": "tiny", "alignment": "sight"}}
    with pytest.raises(InputError, match=r"^model\.alignment 'sight' is now named 'mask_cues'; re"):
        apply_changes(content, [])


@pytest.mark.parametrize(
    ("text", "found", "expected"),
    [
        ("seed=3", lambda r: r.seed, 3),
        (" seed = 3 ", lambda r: r.seed, 3),
        ("preflight=false", lambda r: r.preflight, False),
        ("precision=bf16-mixed", lambda r: r.precision, "bf16-mixed"),
        ('precision="16-mixed"', lambda r: r.precision, "16-mixed"),
        ("model=base", lambda r: r.model.name, "base"),
        ("model.preset=base", lambda r: r.model.name, "base"),
        ("model.initializer=weighted", lambda r: r.model.initializer, "weighted"),
        ("model.input_size=[64, 96]", lambda r: r.model.input_size, (64, 96)),
        ("sprites.photos=/data/my-photos", lambda r: r.sprites.photos, "/data/my-photos"),
        ("sprites.photos=none", lambda r: r.sprites.photos, None),
        ("sprites.objects=[2, 3]", lambda r: r.sprites.objects, (2, 3)),
        ("augment.short_sides=[64,80]", lambda r: r.augment.short_sides, (64, 80)),
        ("augment={flip=0.25}", lambda r: r.augment.flip, 0.25),
        ("loss.mask=2", lambda r: r.loss, LossSettings(dice=3.0, mask=2.0)),
        ("stage.0.steps=200", lambda r: [s.steps for s in r.stages], [200, 5]),
        ("stage.1.learning_rate=1e-5", lambda r: r.stages[1].learning_rate, 1e-5),
        ("stage.joint.steps=200", lambda r: [s.steps for s in r.stages], [200, 5]),
        ("stage.v 1.0-a.steps=7", lambda r: [s.steps for s in r.stages], [5, 7]),
        ("stage.0.window=20", lambda r: r.stages[0].window, 20),
        ("stage.0.window=none", lambda r: r.stages[0].window, None),
        ("stage.0.kinds=['motion']", lambda r: r.stages[0].kinds, ("motion",)),
        (
            "stage.0.loss.num_points=16",
            lambda r: r.stages[0].loss,
            LossSettings(dice=3.0, num_points=16),
        ),
        (
            "stage.1.loss.dice=4",
            lambda r: r.stages[1].loss,
            LossSettings(dice=4.0, mask=2.0),
        ),
        ("stage.1.loss=none", lambda r: r.stages[1].loss, None),
        (
            "stage.1.loss={similarity = 0.25}",
            lambda r: r.stages[1].loss,
            LossSettings(dice=3.0, similarity=0.25),
        ),
        ("loss.match_class=1", lambda r: r.loss.match_class, 1.0),
    ],
)
def test_one_key_changes(text: str, found: Any, expected: Any) -> None:
    before = copy.deepcopy(CONTENT)
    assert found(changed(text)) == expected
    assert before == CONTENT


def test_nothing_else_changes_and_the_last_change_counts() -> None:
    plain = parse_recipe(CONTENT)
    found = changed("seed=3", "stage.joint.steps=9", "seed=4", "model.competition=false")
    first: Stage = replace(plain.stages[0], steps=9)
    assert found == replace(
        plain,
        seed=4,
        model=replace(plain.model, competition=False),
        stages=(first, plain.stages[1]),
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("steps", "write KEY=VALUE, for example stage.0.steps=200"),
        ("=3", "write KEY=VALUE"),
        ("seed=", "write KEY=VALUE"),
        ("sede=3", "unknown key 'sede'; known: data, seed, .*model.KEY, .*stage.N.KEY"),
        ("stages=[]", "unknown key 'stages'"),
        ("stage=[]", "unknown key 'stage'; .*stage.N.KEY"),
        ("model.colour=3", "unknown key 'colour'; known: name, clip, .*preset"),
        ("loss.musk=3", "unknown key 'musk'; known: frame_class, "),
        ("loss.dice.x=3", "unknown key 'dice.x'"),
        ("stage.0.stepz=3", "unknown key 'stepz'; known: name, steps, "),
        ("stage.0.loss.musk=3", "unknown key 'musk'; known: frame_class, "),
        ("stage.0=3", "name a key of the stage, for example stage.0.steps"),
        (
            "stage.2.steps=3",
            r"no such stage; known: stage.0.KEY \(joint\), stage.1.KEY \(v 1.0-a\)",
        ),
        ("stage.99999999999999999999.steps=3", "no such stage"),
        ("stage.-1.steps=3", "no such stage"),
        ("stage.video.steps=3", "no such stage"),
        ("seed=x", "Expected int, got str"),
        ("seed=1.5", "Expected int, got float"),
        ("seed=true", "Expected int, got bool"),
        ("seed=none", "'seed' cannot be none"),
        ("stage.0.steps=2020-01-01", "Expected int"),
        ("stage.0.loss.dice=x", "Expected float, got str"),
        ("model.input_size=[64]", "Expected array of length 2"),
        (
            "model.initializer=best",
            "unknown initializer 'best'; known: aligned, weighted, sentence",
        ),
        ("precision=half", "unknown precision 'half'; known: 32-true"),
        ("loss=3", "'loss' is a table; set one of its keys, as loss.KEY=VALUE"),
        ("stage.0.name=first=1", "not in TOML syntax"),
        ("seed=1 2", "not in TOML syntax"),
        ("seed=1\nworkers=2", "not in TOML syntax"),
        ("sprites.photos=my photos", r'not in TOML syntax; write .*"some words"'),
        ("augment.short_sides=[64", "not in TOML syntax"),
    ],
)
def test_a_wrong_change_is_one_line_that_names_the_key(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        apply_changes(CONTENT, [text])
    assert str(caught.value).startswith(f"--set {' '.join(text.split())}: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("stage.joint.steps=0", "stage 'joint': steps must be at least 1, found 0"),
        ("data=mewis", "data 'mewis' is unknown; known: sprites, mevis"),
        ("model=huge", "unknown preset 'huge'"),
        ("model.dim=30", "dim 30 is not a multiple of num_heads"),
        ("stage.0.loss.frame_objects=3", "Expected str, got int"),
        ("augment={colour=1}", "augment has unknown 'colour'"),
    ],
)
def test_every_check_of_a_recipe_applies(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        changed(text)


def test_stages_of_one_name_have_numbers() -> None:
    content = {**CONTENT, "stage": [STAGE, STAGE]}
    with pytest.raises(InputError, match=r"several stages .* by its number"):
        apply_changes(content, ["stage.joint.steps=9"])
    recipe = parse_recipe(apply_changes(content, ["stage.1.steps=9"]))
    assert [stage.steps for stage in recipe.stages] == [5, 9]


@pytest.mark.parametrize("name", sorted(packaged_recipes()))
def test_every_key_of_every_recipe_can_be_set_to_its_value(name: str) -> None:
    """The test covers every key and every type."""
    recipe = read_recipe(name)
    texts = list(_assignments(recipe.as_dict()))
    assert len(texts) > 80
    assert read_recipe(name, texts) == replace(
        recipe,
        # Written out, a stage's losses are its own.
        stages=tuple(replace(stage, loss=stage.loss or recipe.loss) for stage in recipe.stages),
    )


def _assignments(recipe: dict[str, Any]) -> Any:
    """Yield ``KEY=VALUE`` for every field."""
    for key, value in recipe.items():
        if key == "stages":
            for number, stage in enumerate(value):
                own = {**stage, "loss": stage["loss"] or recipe["loss"]}
                yield from (f"stage.{number}.{text}" for text in _assignments(own))
        elif isinstance(value, dict):
            yield from (f"{key}.{text}" for text in _assignments(value))
        else:
            yield f"{key}={_toml(value)}"


def _toml(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(_toml, value))}]"
    if isinstance(value, bool):
        return str(value).lower()
    return {None: "none"}.get(value) or (f'"{value}"' if isinstance(value, str) else repr(value))
