"""Damaged training runs, recipes, weights: read or refused in one line, nothing overwritten."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import struct
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from rvos_deploy.errors import InputError, RvosError
from rvos_deploy.networks.modules.published_file import read_published
from rvos_deploy.networks.pan2024.config import preset
from rvos_deploy.networks.pan2024.modules import network as network_module
from rvos_deploy.networks.pan2024.modules.checkpoint import load_checkpoint
from rvos_deploy.networks.pan2024.modules.clip import build_clip
from rvos_deploy.networks.pan2024.modules.network import RvosNetwork
from rvos_deploy.training import clip_pretraining
from rvos_deploy.training.clips import training_tokenizer
from rvos_deploy.training.preparation import make_network
from rvos_deploy.training.recipe import Recipe, Stage
from rvos_deploy.training.recipe_file import parse_recipe, read_recipe
from rvos_deploy.training.trainer import TrainingOptions, TrainingResult, train

Attempt = Callable[[str], AbstractContextManager[None]]

QUICK, MANY = 25, 400
COMMON: dict[str, Any] = {
    "derandomize": True,
    "database": None,
    "deadline": None,
    "suppress_health_check": list(HealthCheck),
}
CONTENT: dict[str, Any] = {
    "data": "sprites",
    "seed": 7,
    "checkpoint_every": 1,
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
        {"name": "a", "steps": 2, "batch": 1, "length": 1, "learning_rate": 1e-3},
        {
            "name": "b",
            "steps": 2,
            "batch": 1,
            "length": 2,
            "learning_rate": 1e-3,
            "trained": ["initializer", "video_decoder"],
            "cached": 3,
        },
    ],
}
RECIPE = parse_recipe(CONTENT)
PLACE = "checkpoints/step-00000001"


@pytest.fixture(scope="module")
def clip() -> torch.nn.Module:
    torch.manual_seed(1)
    return build_clip(preset("tiny"))


@pytest.fixture(autouse=True)
def _one_clip(clip: torch.nn.Module, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(network_module, "build_clip", lambda *_: clip)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def go_on(run: Path, steps: int = 1, recipe: Recipe = RECIPE) -> TrainingResult:
    options = TrainingOptions(resume=True, steps=steps, cpp_ops=False, accelerator="cpu")
    return train(recipe, run, options)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, clip: torch.nn.Module) -> Path:
    """A run of one step, in the middle of its first stage."""
    out = tmp_path_factory.mktemp("run") / "whole"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(network_module, "build_clip", lambda *_: clip)
        go_on(out)
    shutil.rmtree(out / "tensorboard")
    return out


@pytest.fixture
def copied(whole: Path, tmp_path: Path) -> Callable[[], Path]:
    def copy() -> Path:
        shutil.rmtree(tmp_path / "run", ignore_errors=True)
        shutil.copytree(whole, tmp_path / "run", symlinks=True)
        return tmp_path / "run"

    return copy


def contents(run: Path) -> dict[str, Any]:
    """Every file: its bytes, or its kind; not what TensorBoard adds."""
    return {
        str(path.relative_to(run)): path.read_bytes()
        if path.is_file()
        else (str(path.readlink()) if path.is_symlink() else path.stat().st_mode)
        for path in run.rglob("*")
        if "tensorboard" not in path.parts
    }


def hold(run: Path, steps: int = 1) -> str | None:
    """Resume without doing a step: None when that went well, else the error, in one line."""
    before = contents(run)
    if (said := refusal(lambda: go_on(run, steps))) is not None:
        assert contents(run) == before, "something was overwritten"
    return said


def refusal(call: Callable[[], object]) -> str | None:
    """The error of a call, one of ours and one line; None when it went well."""
    try:
        call()
    except RvosError as error:
        said, code = str(error), error.exit_code
    else:
        return None
    assert code == 2
    assert "\n" not in said
    assert len(said) < 1500, said
    return said


# --- Kinds of damage ------------------------------------------------------------------------------


def header(content: bytes | dict[str, Any], data: bytes = b"") -> bytes:
    """A safetensors file."""
    text = content if isinstance(content, bytes) else json.dumps(content).encode()
    return struct.pack("<Q", len(text)) + text + data


class Trap:
    """Would write a file when unpickled."""

    def __reduce__(self) -> Any:
        return Path.touch, (Path("sprung"),)


def tensors(change: Callable[[dict[str, torch.Tensor]], None]) -> Callable[[Path], None]:
    def damage(file: Path) -> None:
        content = {name: tensor.clone() for name, tensor in load_file(file).items()}
        change(content)
        save_file(content, file)

    return damage


def state(**values: Any) -> Callable[[Path], None]:
    def damage(file: Path) -> None:
        file.write_text(json.dumps({**json.loads(file.read_text()), **values}))

    return damage


def raw(content: bytes | str) -> Callable[[Path], None]:
    return lambda file: (
        file.write_bytes(content.encode() if isinstance(content, str) else content) and None
    )


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def gone(file: Path) -> None:
    file.unlink()


def loop(file: Path) -> None:
    file.unlink()
    file.symlink_to(file.name)


def folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


def fifo(file: Path) -> None:
    file.unlink()
    os.mkfifo(file)


def first(content: dict[str, torch.Tensor], end: str) -> str:
    return next(name for name in content if name.endswith(end))


def rename(old: str, new: Callable[[str], str]) -> Callable[[dict[str, torch.Tensor]], None]:
    def change(content: dict[str, torch.Tensor]) -> None:
        name = first(content, old)
        content[new(name)] = content.pop(name)

    return change


def set_to(end: str, value: torch.Tensor) -> Callable[[dict[str, torch.Tensor]], None]:
    return lambda content: content.update({first(content, end): value})


ANY_FILE = {
    "missing": gone,
    "symlink loop": loop,
    "folder": folder,
    "fifo": fifo,
    "cut": cut,
    "empty": raw(b""),
    "binary": raw(bytes(range(256)) * 4),
    "pickle": raw(pickle.dumps(Trap())),
}
STATES = {
    **ANY_FILE,
    "null": raw("null"),
    "deep": raw('{"recipe":' * 100_000),
    "brackets": raw("[" * 200_000),
    "step is text": state(step="a"),
    "step is negative": state(step=-1),
    "step is true": state(step=True),
    "step is a fraction": state(step=0.5),
    "step is huge": state(step=10**30),
    "step elsewhere": state(step=2),
    "stage 99": state(stage=99),
    "stage is null": state(stage=None),
    "stage_step beyond": state(stage_step=99),
    "recipe is a list": state(recipe=[]),
    "recipe is empty": state(recipe={}),
    "no stages": state(recipe={**RECIPE.as_dict(), "stages": 3}),
    "another recipe": state(recipe={**RECIPE.as_dict(), "seed": 8}),
    "another clip": state(clip="0"),
    "best is text": state(best="good"),
    "scaler is nested": state(scaler={"scale": {}}),
    "versions is a list": state(versions=["1"]),
    "another schema": state(schema="rvos-deploy/training-state/2"),
}
SAFETENSORS = {
    **ANY_FILE,
    "4 TB header": raw(struct.pack("<Q", 4 << 40) + b"{}"),
    "header beyond the file": raw(struct.pack("<Q", 4096) + b"{}"),
    "deep header": raw(header(b'{"a":' * 20_000)),
    "huge shape": raw(header({"a": {"dtype": "F32", "shape": [2**62, 8], "data_offsets": [0, 0]}})),
    "unknown dtype": raw(header({"a": {"dtype": "X", "shape": [0], "data_offsets": [0, 0]}})),
}
MOMENTS = {
    **SAFETENSORS,
    "key without a slash": tensors(rename("/exp_avg", lambda name: "exp_avg")),
    "key of nothing": tensors(rename("/exp_avg", lambda name: "/")),
    "unknown part": tensors(rename("/exp_avg", lambda name: name + "_x")),
    "unknown parameter": tensors(rename("/exp_avg", lambda name: "x" + name)),
    "missing part": tensors(lambda c: c.pop(first(c, "/exp_avg_sq")) is None),
    "wrong shape": tensors(set_to("/exp_avg", torch.zeros(3, 1, 4))),
    "wrong dtype": tensors(lambda c: set_to("/exp_avg", c[first(c, "/exp_avg")].int())(c)),
    "half": tensors(lambda c: set_to("/exp_avg", c[first(c, "/exp_avg")].half())(c)),
    "step is a vector": tensors(set_to("/step", torch.ones(2))),
    "step is a whole number": tensors(set_to("/step", torch.tensor(1))),
    "step is not a number": tensors(set_to("/step", torch.tensor(float("nan")))),
}
WEIGHTS = {
    **SAFETENSORS,
    "lacks one": tensors(lambda c: c.pop(first(c, "bias")) is None),
    "has another": tensors(lambda c: c.update(x=torch.zeros(1))),
    "wrong shape": tensors(set_to("bias", torch.zeros(7, 7))),
    "wrong dtype": tensors(lambda c: set_to("bias", c[first(c, "bias")].long())(c)),
    "complex": tensors(lambda c: set_to("bias", c[first(c, "bias")].to(torch.complex64))(c)),
}
POINTERS = {
    **{k: v for k, v in ANY_FILE.items() if k not in ("missing", "cut")},
    "leads elsewhere": raw("../../../etc"),
    "absolute": raw("/etc"),
    "of nothing": raw("step-00000099"),
    "two lines": raw("step-00000001\nstep-00000002"),
    "long": raw("step-" + "1" * 5000),
}
TABLES = {
    **{k: v for k, v in ANY_FILE.items() if k in ("binary", "pickle")},
    "no step": raw("a,b\n1,2\n"),
    "step is text": raw("step,stage\none,a\n"),
    "nul": raw(b"step,stage\n1\x00,a\n\xff\n"),
}
SLOW = pytest.mark.slow
CASES = [
    *((f"{PLACE}/state.json", kind, damage) for kind, damage in STATES.items()),
    *((f"{PLACE}/optimizer.safetensors", kind, damage) for kind, damage in MOMENTS.items()),
    *((f"{PLACE}/weights.safetensors", kind, damage) for kind, damage in WEIGHTS.items()),
    *(("checkpoints/latest", kind, damage) for kind, damage in POINTERS.items()),
    *(("training.csv", kind, damage) for kind, damage in TABLES.items()),
]


SAMPLE = {
    "null",
    "deep",
    "step is text",
    "stage 99",
    "another recipe",
    "key without a slash",
    "wrong shape",
    "wrong dtype",
    "pickle",
    "binary",
    "4 TB header",
    "symlink loop",
    "leads elsewhere",
}


@pytest.mark.parametrize(
    ("name", "kind", "damage"),
    [
        pytest.param(*case, id="-".join(case[:2]), marks=() if case[1] in SAMPLE else SLOW)
        for case in CASES
    ],
)
def test_a_damaged_run_is_refused(
    attempt: Attempt, copied: Callable, name: str, kind: str, damage: Callable[[Path], Any]
) -> None:
    run = copied()
    damage(run / name)
    with attempt("damaged training runs"):
        assert hold(run, steps=4) is not None, "it was resumed"
    assert not Path("sprung").exists()


def test_a_whole_run_goes_on(copied: Callable) -> None:
    assert hold(copied()) is None
    assert go_on(copied(), steps=2).steps == 2


@pytest.mark.parametrize("kind", list(POINTERS))
def test_a_damaged_best_is_seen_before_training(
    attempt: Attempt, copied: Callable, kind: str
) -> None:
    run = copied()
    (run / "checkpoints" / "best").write_text("step-00000001\n")
    assert hold(run) is None
    POINTERS[kind](run / "checkpoints" / "best")
    with attempt("damaged training runs"):
        assert "best" in str(hold(run, steps=4))


def test_a_checkpoint_folder_in_a_loop(attempt: Attempt, copied: Callable) -> None:
    run = copied()
    shutil.rmtree(run / PLACE)
    (run / PLACE).symlink_to("step-00000001")
    with attempt("damaged training runs"):
        assert "names step-00000001, which is not there" in str(hold(run))
    shutil.rmtree(run / "checkpoints")
    (run / "checkpoints").symlink_to("checkpoints")
    with attempt("damaged training runs"):
        assert "cannot be read" in str(hold(run))


# --- At random ------------------------------------------------------------------------------------


def at_random(attempt: Attempt, copied: Callable, examples: int) -> None:
    run = copied()
    names = sorted(str(p.relative_to(run)) for p in run.rglob("*") if p.is_file())

    def body(which: int, place: int, head: bool, inserted: bytes, removed: int, cut: bool) -> None:
        run = copied()
        file = run / names[which % len(names)]
        content = file.read_bytes()
        place %= min(len(content), 4000 if head else len(content)) + 1
        end = b"" if cut else content[place + removed :]
        file.write_bytes(content[:place] + inserted + end)
        with attempt("training runs, bytes at random"):
            hold(run)

    number, flag = st.integers(0, 10**6), st.booleans()
    strategy = (number, number, flag, st.binary(max_size=3), st.integers(0, 3), flag)
    settings(max_examples=examples, **COMMON)(given(*strategy)(body))()


def test_a_sample_at_random(attempt: Attempt, copied: Callable) -> None:
    at_random(attempt, copied, QUICK)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_many_at_random(attempt: Attempt, copied: Callable) -> None:
    at_random(attempt, copied, MANY)


# --- Recipes --------------------------------------------------------------------------------------

values = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.sampled_from([2**31, 10**40, -1, 0]),
    st.text(max_size=4),
    st.sampled_from([[], {}, [1], ["a"], [[]], {"a": 1}, [64, 96], [64, "a"], "../../x", "a\nb"]),
)


def recipes_at_random(attempt: Attempt, examples: int) -> None:
    names = ["model", "sprites", "loss", "augment", "stage", "recipe"]
    known = [
        *(name for kind in (Recipe, Stage) for name in kind.__dataclass_fields__),
        *CONTENT["model"],
        *CONTENT["sprites"],
        "num_points",
        "short_sides",
        "crop",
        "a\nb",
    ]

    def body(changes: list[tuple[str, str, Any]]) -> None:
        content = json.loads(json.dumps(CONTENT))
        for table, key, value in changes:
            place = content if table == "recipe" else content.setdefault(table, {})
            place = place[0] if table == "stage" and place else place
            if isinstance(place, dict):
                place[key] = value
        with attempt("recipes at random"):
            refusal(lambda: parse_recipe(content))

    change = st.tuples(st.sampled_from(names), st.sampled_from(known), values)
    strategy = st.lists(change, min_size=1, max_size=2)
    settings(max_examples=examples, **COMMON)(given(strategy)(body))()


def test_a_sample_of_recipes(attempt: Attempt) -> None:
    recipes_at_random(attempt, 10 * QUICK)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_many_recipes(attempt: Attempt) -> None:
    recipes_at_random(attempt, 10 * MANY)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"\xff\xfe\x00", "is not text in UTF-8"),
        (b"a = " + b"[" * 100_000, "recipe .*"),
        (b"a = " + b"{a = " * 10_000, "recipe .*"),
        (b"#" * (2**20 + 1), "so it is none"),
        (b'data = 1\nmodel = "tiny"', "data: Expected `str`, got `int`"),
        (b'data = "sprites"\n[model]\npreset = ["tiny"]', "model must be a preset's name"),
        (b'data = "sprites"\n[model]\npreset = "tiny"\ndim = "a"', "model: dim: Expected `int`"),
        (b'"a\\nb" = 1\ndata = "sprites"\nmodel = "tiny"', r"recipe has unknown 'a\\nb'"),
        (b'data = "sprites"\nmodel = "tiny"\nseed = 99999999999999', "seed must be at most"),
    ],
)
def test_damaged_recipe_files(attempt: Attempt, tmp_path: Path, content: bytes, said: str) -> None:
    file = tmp_path / "recipe.toml"
    if content.endswith(b"99999999999999") or b"data = 1" in content:
        content += b'\n[[stage]]\nname = "a"\nsteps = 1\nbatch = 1\nlength = 1\nlearning_rate = 1.0'
    file.write_bytes(content)
    with attempt("damaged recipes"), pytest.raises(InputError, match=said) as caught:
        read_recipe(file)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "name", ["../../home", "/etc", "..", ".", "", "a/b", "a\\b", "a\n", "x" * 99]
)
def test_a_stage_is_no_way_out_of_the_run(attempt: Attempt, name: str) -> None:
    """The folder of its cache is emptied."""
    with attempt("names that lead elsewhere"), pytest.raises(InputError, match="a stage's name"):
        Stage(name, steps=1, batch=1, length=1, learning_rate=1.0)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1.0, 1e300])
def test_numbers_that_are_none(attempt: Attempt, value: float) -> None:
    for field in ("learning_rate", "clip_gradient", "weight_decay", "final_rate"):
        given = {"learning_rate": 1.0, field: value}
        with attempt("damaged recipes"), pytest.raises(InputError, match=field):
            Stage("a", steps=1, batch=1, length=1, **given)


# --- Caches, and weights of others ----------------------------------------------------------------


def caches_made_again(attempt: Attempt, whole: Path, damages: list[tuple[str, Any]]) -> None:
    """A cache holds nothing that the run could not make again, so its damage is no error."""
    go_on(whole, steps=3)
    shard = "cache/b/shard-00000.safetensors"
    made, kept = load_file(whole / shard), whole.with_name("kept")
    shutil.copytree(whole, kept)
    for name, damage in damages:
        shutil.rmtree(whole)
        shutil.copytree(kept, whole)
        damage(whole / name)
        with attempt("damaged caches"):
            go_on(whole, steps=4)
            again = load_file(whole / shard)
            assert set(again) == set(made)
            assert all(torch.equal(again[part], made[part]) for part in made)


SHARD, KEY = "cache/b/shard-00000.safetensors", "cache/b/key.json"
LESS = tensors(lambda content: content.pop("0/queries") is None)


def test_a_damaged_cache_is_made_again(attempt: Attempt, copied: Callable) -> None:
    caches_made_again(attempt, copied(), [(SHARD, cut), (SHARD, LESS), (KEY, raw("[" * 200_000))])


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_every_damaged_cache_is_made_again(attempt: Attempt, copied: Callable) -> None:
    shards = [(SHARD, d) for kind, d in SAFETENSORS.items() if kind not in ("fifo", "folder")]
    keys = [(KEY, damage) for damage in (raw(b"\xff"), raw("null"), gone)]
    caches_made_again(attempt, copied(), [*shards, *keys])


def save_trap(file: Path) -> None:
    torch.save({"model": Trap(), "state_dict": Trap()}, file)


FOREIGN = {
    **SAFETENSORS,
    "trap": save_trap,
    "legacy trap": lambda f: torch.save(Trap(), f, _use_new_zipfile_serialization=False),
    "list": lambda f: torch.save([torch.zeros(1)], f),
    "other names": lambda f: torch.save({"a": torch.zeros(1), 3: None}, f),
    "zip of nothing": raw(b"PK\x03\x04" + b"\0" * 100),
    "legacy of nothing": raw(b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19." + b"K\x01." * 9),
}


@pytest.mark.parametrize("kind", list(FOREIGN))
@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_weights_of_others(
    attempt: Attempt,
    tmp_path: Path,
    clip: torch.nn.Module,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    suffix: str,
) -> None:
    """As --init-from, --clip-weights and export's --checkpoint."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    file = tmp_path / f"weights.{suffix}"
    save_file({"x": torch.zeros(4)}, file)
    FOREIGN[kind](file)
    network = RvosNetwork(RECIPE.model, clip)
    readers: list[Callable[[], Any]] = [
        lambda: build_clip(preset("tiny"), str(file)),
        lambda: load_checkpoint(network, file),
        lambda: make_network(RECIPE, None, file),
    ]
    for read in readers:
        with attempt("weights of others"), pytest.raises(InputError) as caught:
            read()
        assert "\n" not in str(caught.value)
        assert not (tmp_path / "sprung").exists()


def published_at_random(attempt: Attempt, tmp_path: Path, examples: int) -> None:
    sources = []
    for number, options in enumerate(({}, {"_use_new_zipfile_serialization": False})):
        torch.save({"model": {"a.b": torch.arange(6.0)}}, tmp_path / str(number), **options)
        sources.append((tmp_path / str(number)).read_bytes())
    file = tmp_path / "damaged.pth"

    def body(which: bool, place: int, inserted: bytes, removed: int, cut: bool) -> None:
        content = sources[which]
        place %= len(content) + 1
        file.write_bytes(content[:place] + inserted + (b"" if cut else content[place + removed :]))
        with attempt("weights of others, bytes at random"):
            refusal(lambda: read_published(file, "--init-from"))

    flag = st.booleans()
    strategy = (flag, st.integers(0, 10**6), st.binary(max_size=3), st.integers(0, 3), flag)
    settings(max_examples=examples, **COMMON)(given(*strategy)(body))()


def test_a_sample_of_published_files(attempt: Attempt, tmp_path: Path) -> None:
    published_at_random(attempt, tmp_path, 4 * QUICK)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_many_published_files(attempt: Attempt, tmp_path: Path) -> None:
    published_at_random(attempt, tmp_path, 10 * MANY)


@pytest.mark.slow
def test_a_damaged_pretraining_is_refused(attempt: Attempt, tmp_path: Path) -> None:
    """``pretrain-clip`` goes on by itself; what it reads is the same kind of files."""
    recipe = clip_pretraining.PretrainRecipe(steps=1, batch=4, size=32)

    def go(out: Path) -> None:
        clip_pretraining.pretrain_clip(
            preset("tiny"), out, recipe, training_tokenizer(), workers=0, progress=lambda _: None
        )

    go(tmp_path / "whole")
    cases = {
        "state.json": {**{k: STATES[k] for k in ("null", "step is text")}, "far": state(step=5)},
        "weights.safetensors": {k: WEIGHTS[k] for k in ("pickle", "lacks one", "wrong shape")},
        "optimizer.safetensors": {k: MOMENTS[k] for k in ("pickle", "key without a slash")},
    }
    for name, kinds in cases.items():
        for damage in kinds.values():
            shutil.rmtree(tmp_path / "run", ignore_errors=True)
            shutil.copytree(tmp_path / "whole", tmp_path / "run")
            damage(tmp_path / "run" / PLACE / name)
            before = contents(tmp_path / "run")
            with attempt("damaged training runs"), pytest.raises(InputError) as caught:
                go(tmp_path / "run")
            assert "\n" not in str(caught.value)
            assert contents(tmp_path / "run") == before
