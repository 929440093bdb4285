"""Damaged and forged bundles: one line of a RvosError, or they work; never anything else.

Hashes are made right after the damage, as a forger would: so the checks behind them are reached.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable
from io import StringIO
from pathlib import Path
from random import Random
from typing import Any

import pytest
from damage import (
    EDITS,
    FRAGMENTS,
    NO_DIGEST,
    Attempt,
    byte_damage,
    damaged,
    ends_well,
    hollow_bundle,
    json_damage,
    linked,
    many,
    opened_line,
    paths,
    quick,
    signed,
    unsigned_manifest,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from rvos_deploy.bundle.engine_sidecar import (
    EngineError,
    EngineSidecar,
    list_engines,
    plan_file,
    sidecar_file,
)
from rvos_deploy.bundle.folder import (
    MANIFEST,
    PARITY,
    TOKENIZER,
    open_bundle,
)
from rvos_deploy.cli.engine_table import engine_table
from rvos_deploy.errors import BundleError
from rvos_deploy.graph_io.probe import probe_clip
from rvos_deploy.json_file import write_json
from rvos_deploy.networks.pan2024.contract import GRAPHS
from rvos_deploy.runtime.backends.tensorrt.engine_checks import (
    EngineMachine,
    check_loadable,
    no_profile,
)
from rvos_deploy.runtime.segmenter import load


@pytest.fixture(scope="module")
def hollow(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return hollow_bundle(tiny_bundle, tmp_path_factory.mktemp("hollow") / "bundle")


@pytest.fixture(scope="module")
def manifest(hollow: Path) -> dict[str, Any]:
    return unsigned_manifest(hollow)


@pytest.fixture(scope="module")
def opens(hollow: Path) -> Callable[[bytes], str]:
    return lambda content: opened_line(hollow, content)


SMALLEST = {
    "no files": (("files",), "delete", b""),
    "files of another kind": (("files",), "replace", b"[]"),
    "no file": (("files",), "replace", b"{}"),
    "an empty file entry": (("files", TOKENIZER), "replace", b"{}"),
    "a file of -1 bytes": (("files", PARITY, "bytes"), "replace", b"-1"),
    "a file of 4 TB": (("files", PARITY, "bytes"), "replace", b"4398046511104"),
    "no graphs": (("graphs",), "delete", b""),
    "graphs of another kind": (("graphs",), "replace", b'"x"'),
    "one graph missing": (("graphs", "mask_head"), "delete", b""),
    "another graph's contract": (("graphs", "mask_head", "name"), "replace", b'"backbone"'),
    "no model": (("model",), "delete", b""),
    "a model of nulls": (("model", "dim"), "replace", b"null"),
    "a model of truth": (("model", "num_queries"), "replace", b"true"),
    "a width that is no number": (("model", "position_cycles"), "replace", b'"4"'),
    "another width than the contracts'": (("model", "dim"), "replace", b"256"),
    "no precision": (("precision",), "delete", b""),
    "an unknown precision": (("precision",), "replace", b'"fp8"'),
    "no parity": (("parity",), "delete", b""),
    "parity of another kind": (("parity",), "replace", b"[]"),
    "a check without numbers": (("parity", "checks", 0, "max_abs"), "delete", b""),
    "an axis in multiples of 0": (("graphs", "backbone", "axes", 0, "multiple"), "replace", b"0"),
    "an axis from 9 to 8": (("graphs", "mask_head", "axes", 2, "minimum"), "replace", b"257"),
    "an axis too many": (("graphs", "mask_head", "axes"), "grow", b""),
    "an axis too few": (("graphs", "mask_head", "axes"), "cut", b""),
    "an unknown axis": (("graphs", "mask_head", "axes", 0, "name"), "replace", b'"Q"'),
    "shape H/x": (("graphs", "backbone", "inputs", 0, "shape", 1), "replace", b'"H/x"'),
    "shape H/0": (("graphs", "backbone", "inputs", 0, "shape", 1), "replace", b'"H/0"'),
    "shape H/7": (("graphs", "backbone", "outputs", 0, "shape", 2), "replace", b'"H/7"'),
    "a shape of 4 TB": (("graphs", "backbone", "outputs", 0, "shape", 1), "replace", b"1000000"),
    "a type that NumPy pickles": (("graphs", "backbone", "inputs", 0, "dtype"), "replace", b'"O"'),
    "an output missing": (("graphs", "frame_decoder", "outputs", 7), "delete", b""),
    "an input missing": (("graphs", "video_decoder", "inputs", 0), "delete", b""),
    "a tensor twice": (("graphs", "mask_head", "inputs", 0), "double", b""),
    "a tolerance of nothing": (("graphs", "mask_head", "tolerance"), "replace", b"NaN"),
    "an input size beyond the axes": (("model", "input_size"), "replace", b"[8192, 8192]"),
    "another threshold": (("threshold",), "replace", b"0.25"),
    "200,000 brackets": (("versions",), "replace", b"[" * 200_000),
    "200,000 brackets in a new key": (("versions", "python"), "replace", b"[" * 200_000),
    "a number of 5,000 digits": (("parameters",), "replace", b"9" * 5000),
    "1e999": (("threshold",), "replace", b"1e999"),
    "bytes that are not UTF-8": (("created",), "replace", b'"\xff"'),
    "half a surrogate pair": (("created",), "replace", b'"\\ud800"'),
    "a line that clears the terminal": (("created",), "replace", b'"\\u001b[2J"'),
    "nothing": ((), "replace", b""),
    "a list": ((), "replace", b"[]"),
    "brackets": ((), "replace", b"[" * 200_000),
}


@pytest.mark.parametrize("name", SMALLEST)
def test_the_smallest_damage_of_each_kind_is_one_line(
    opens: Callable[[bytes], str], manifest: dict[str, Any], attempt: Attempt, name: str
) -> None:
    path, edit, fragment = SMALLEST[name]
    with attempt("manifests damaged by hand"):
        line = opens(damaged(manifest, path, edit, fragment))
        assert line, "it was not refused"
        assert "export" in line


def test_what_a_later_version_adds_is_passed_over(
    opens: Callable[[bytes], str], manifest: dict[str, Any]
) -> None:
    """Within a schema; its model is another network's where it has a key more."""
    assert not opens(json.dumps({**manifest, "note": {"any": [1]}}, indent=1).encode())
    other = {**manifest, "model": {**manifest["model"], "colour": True}}
    assert "unknown model configuration keys: colour" in opens(json.dumps(other).encode())


@pytest.mark.parametrize("how", [quick, pytest.param(many, marks=pytest.mark.slow)])
def test_damaged_manifests(
    opens: Callable[[bytes], str], manifest: dict[str, Any], attempt: Attempt, how: settings
) -> None:
    @how
    @given(st.one_of(json_damage(manifest), byte_damage(json.dumps(manifest, indent=1).encode())))
    def run(content: bytes) -> None:
        with attempt("damaged manifests"):
            opens(content)

    run()


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_every_place_of_a_manifest(
    opens: Callable[[bytes], str], manifest: dict[str, Any], attempt: Attempt
) -> None:
    """Every edit at every place; of the fragments a fifth at each, in turn."""
    for number, path in enumerate(paths(manifest)):
        for fragment in FRAGMENTS[number % 5 :: 5]:
            with attempt("manifests, every place"):
                opens(damaged(manifest, path, "replace", fragment))
        for edit in EDITS[1:]:
            with attempt("manifests, every place"):
                opens(damaged(manifest, path, edit))


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_what_opens_also_runs(tiny_bundle: Path, tmp_path: Path, attempt: Attempt) -> None:
    """Damage with which a bundle opens: one frame is segmented, or one line says why not."""
    folder = linked(tiny_bundle, tmp_path / "bundle", MANIFEST)
    content = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    content["manifest_sha256"] = NO_DIGEST.decode()
    places = [p for p in paths(content) if p and p[0] in ("model", "graphs", "precision")]
    Random(5).shuffle(places)
    edits = [(place, part) for place in places for part in (b"1", b"2", b"64", b"0.5", b'"fp16"')]
    opened = 0
    for place, fragment in edits:
        (folder / MANIFEST).write_bytes(signed(damaged(content, place, "replace", fragment)))
        if opened == 60 or ends_well(lambda: open_bundle(folder, check_files=False)):
            continue
        opened += 1
        with attempt("manifests that open, then one frame"):
            ends_well(lambda: segment(folder))
    assert opened == 60


def segment(folder: Path) -> None:
    with load(folder, threads=1) as segmenter, segmenter.stream(["the disc"]) as stream:
        for frame in probe_clip(2):
            for result in stream.push(frame):
                assert result.masks.shape == (1, 90, 157)


@pytest.mark.parametrize("name", [*(f"{name}.onnx" for name in GRAPHS), TOKENIZER, PARITY])
def test_a_required_file_must_be_listed(
    opens: Callable[[bytes], str], manifest: dict[str, Any], attempt: Attempt, name: str
) -> None:
    with attempt("forged file lists"):
        line = opens(damaged(manifest, ("files", name), "delete"))
        assert f"does not list {name}" in line


@pytest.mark.parametrize(
    "name", ["../x", "/etc/passwd", "a/b", "a\\b", "..", ".", "", MANIFEST, "C:x", ".hidden", "é"]
)
def test_only_plain_names_may_be_listed(
    opens: Callable[[bytes], str], manifest: dict[str, Any], attempt: Attempt, name: str
) -> None:
    entry = {"sha256": "0" * 64, "bytes": 0}
    forged = {**manifest, "files": {**manifest["files"], name: entry}}
    with attempt("forged file lists"):
        assert "outside the bundle" in opens(json.dumps(forged).encode())


@pytest.fixture(scope="module")
def sidecar(hollow: Path, manifest: dict[str, Any]) -> tuple[Path, dict[str, Any]]:
    """An engine's sidecar in the hollow bundle, and its content."""
    (hollow / MANIFEST).write_bytes(signed(json.dumps(manifest, indent=1).encode()))
    bundle = open_bundle(hollow)
    plan = plan_file(hollow, "tensorrt", "mask_head")
    plan.parent.mkdir(parents=True)
    plan.write_bytes(b"plan")
    whole = EngineSidecar(
        graph="mask_head",
        target="tensorrt",
        precision="fp32",
        created="2026-11-24T12:00:00Z",
        plan_sha256="0" * 64,
        plan_bytes=4,
        onnx_sha256={n: e.sha256 for n, e in bundle.onnx_entries("mask_head").items()},
        tensorrt_version="11.4.0.106",
        compute_capabilities=("8.9",),
        gpu="NVIDIA GeForce RTX 4090",
        version_compatible=False,
        hardware_compatible=False,
        stripped=False,
        profiles=({"H": (32, 128, 128), "W": (32, 224, 224), "E": (1, 2, 8)},),
        options=("--workspace", "512"),
        settings={"workspace_mib": 512},
        layers={"network": {"all": {"float32": 3}}},
        plugin_layers=0,
        build_seconds=1.5,
        versions={"tensorrt": "11.4"},
        parity=({"name": "masks", "passed": True, "j_and_f": 1.0},),
        parity_reason=None,
    )
    file = sidecar_file(plan)
    write_json(file, whole.as_dict())
    assert list_engines(hollow) == [whole]
    return file, json.loads(file.read_text(encoding="utf-8"))


@pytest.mark.parametrize("how", [quick, pytest.param(many, marks=pytest.mark.slow)])
def test_damaged_sidecars(
    hollow: Path,
    manifest: dict[str, Any],
    sidecar: tuple[Path, dict[str, Any]],
    attempt: Attempt,
    how: settings,
) -> None:
    file, tree = sidecar
    (hollow / MANIFEST).write_bytes(signed(json.dumps(manifest, indent=1).encode()))
    bundle = open_bundle(hollow)

    def use() -> None:
        engines = list_engines(hollow)
        Console(file=StringIO()).print(engine_table(bundle, engines))
        for engine in engines:
            if isinstance(engine, EngineError):
                raise engine
            json.dumps(engine.as_dict(), allow_nan=False)
            assert "run: " in str(no_profile(hollow, engine, {"H": 64, "W": 64, "E": 1}))
            check_loadable(bundle, engine, EngineMachine("11.4.0.106", "8.9", "stand-in"))

    @how
    @given(st.one_of(json_damage(tree), byte_damage(json.dumps(tree).encode())))
    def run(content: bytes) -> None:
        file.write_bytes(content)
        with attempt("damaged sidecars"):
            ends_well(use)

    run()


@pytest.mark.parametrize("name", [MANIFEST, "mask_head.onnx", TOKENIZER, PARITY])
@pytest.mark.parametrize("kind", ["fifo", "folder", "socket", "loop", "dangling", "device"])
def test_files_that_are_no_files(
    tiny_bundle: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    attempt: Attempt,
    name: str,
    kind: str,
) -> None:
    folder = linked(tiny_bundle, tmp_path / "bundle")
    file = folder / name
    file.unlink()
    if kind == "fifo":
        os.mkfifo(file)
    elif kind == "folder":
        file.mkdir()
    elif kind == "socket":
        monkeypatch.chdir(folder)  # a socket's path has 108 bytes at most
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind(name)  # the file stays
    else:
        file.symlink_to({"loop": file, "dangling": "nowhere", "device": "/dev/zero"}[kind])
    with attempt("files that are no files"):
        assert ends_well(lambda: open_bundle(folder))


def test_names_that_no_file_can_have(attempt: Attempt) -> None:
    for name in ("x" * 5000, "a\0b", "", "/dev/null", "/proc/self/mem", "\x1b[2J"):
        with attempt("files that are no files"), pytest.raises(BundleError):
            open_bundle(name)
