"""The script that measures published weights: every step, with weights and data made here."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import replace
from hashlib import sha256
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import typer
from PIL import Image
from typer.testing import CliRunner, Result

from rvos_deploy.benchmarks import published_weights
from rvos_deploy.bundle.folder import open_bundle
from rvos_deploy.export import published
from rvos_deploy.export.published import (
    MERGES,
    PUBLISHED,
    VOCABULARY,
    PublishedFile,
    published_j_and_f,
)
from rvos_deploy.graph_io.probe import probe_clip
from rvos_deploy.networks.online_refer.config import preset
from rvos_deploy.networks.online_refer.modules.checkpoint import random_network
from rvos_deploy.networks.online_refer.tokenizer_file import small_vocabulary
from rvos_deploy.runtime.segmenter import load
from rvos_deploy.stream_settings import StreamSettings

PRESET, FIGURE = "onlinerefer-tiny", 0.593
TEXTS = ("the square moving to the right", "the disc")


@pytest.fixture
def measure(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Call the script as ``python -m`` does."""
    app = typer.Typer()
    app.command()(published_weights.main)
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")

    def call(*arguments: object) -> Result:
        return CliRunner().invoke(app, [str(argument) for argument in arguments])

    return call


@pytest.fixture(scope="module")
def checkpoint() -> bytes:
    """A file as the authors publish theirs, of the small configuration."""
    file = BytesIO()
    model = random_network(preset(PRESET), seed=3).state_dict()
    model["text_encoder.embeddings.position_ids"] = torch.arange(130)[None]
    args = argparse.Namespace(lr=1e-4, dataset_file="ytvos", masks=True)
    torch.save({"model": model, "optimizer": {"state": {}}, "epoch": 5, "args": args}, file)
    return file.getvalue()


@pytest.fixture(scope="module")
def vocabulary() -> dict[str, bytes]:
    """RoBERTa's two files, of single bytes."""
    small = small_vocabulary(preset(PRESET).text_vocabulary)
    return {
        VOCABULARY: json.dumps(small.ids).encode(),
        MERGES: b"#version: 0.2\n" + b"".join(f"{a} {b}\n".encode() for a, b in small.merges),
    }


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A folder of Ref-DAVIS17 with one video of two objects, each described twice."""
    valid = tmp_path / "davis" / "valid"
    images, annotations = valid / "JPEGImages" / "clip", valid / "Annotations" / "clip"
    images.mkdir(parents=True)
    annotations.mkdir(parents=True)
    frames = probe_clip(3)
    names = [f"{index:05d}" for index in range(len(frames))]
    objects = np.zeros(frames.shape[1:3], np.uint8)
    objects[20:60, 10:60], objects[30:80, 80:140] = 1, 2
    for name, frame in zip(names, frames, strict=True):
        Image.fromarray(frame).save(images / f"{name}.jpg")
        Image.fromarray(objects, "P").save(annotations / f"{name}.png")
    texts = {str(k): {"exp": TEXTS[k % 2], "obj_id": str(1 + k // 2)} for k in range(4)}
    meta = tmp_path / "davis" / "meta_expressions" / "valid" / "meta_expressions.json"
    meta.parent.mkdir(parents=True)
    videos = {"clip": {"expressions": texts, "frames": names}}
    meta.write_text(json.dumps({"videos": videos}))
    return valid


def publish(
    monkeypatch: pytest.MonkeyPatch, file_server: Any, checkpoint: bytes, files: dict[str, bytes]
) -> None:
    """Let the table's addresses for the small preset lead to a server here."""
    weights = PublishedFile(file_server.serve("/v1.0/tiny-checkpoint.pth", checkpoint))
    vocabulary = tuple(
        PublishedFile(file_server.serve(f"/roberta/{name}", content), sha256(content).hexdigest())
        for name, content in files.items()
    )
    large = PUBLISHED["onlinerefer-r50"]
    entry = replace(
        large,
        checkpoint=replace(large.checkpoint, files=(weights,)),
        tokenizer=replace(large.tokenizer, files=vocabulary),
        j_and_f={"ref-davis": FIGURE},
    )
    monkeypatch.setitem(PUBLISHED, PRESET, entry)
    known = {file.url: file.sha256 for file in (weights, *vocabulary)}
    monkeypatch.setattr(published, "_SHA256", known)


def test_the_figure_is_the_papers() -> None:
    assert published_j_and_f("onlinerefer-r50", published_weights.PROTOCOL) == FIGURE
    assert published_j_and_f("onlinerefer-r50", "mevis") is None
    assert published_j_and_f(PRESET, published_weights.PROTOCOL) is None


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_whole_way(
    measure: Callable,
    monkeypatch: pytest.MonkeyPatch,
    file_server: Any,
    checkpoint: bytes,
    vocabulary: dict[str, bytes],
    data: Path,
    tmp_path: Path,
) -> None:
    """Fetch, export, evaluate, print. The server is not the publishers'."""
    publish(monkeypatch, file_server, checkpoint, vocabulary)
    out = tmp_path / "out"
    done = measure(PRESET, "--data", data, "--out", out, "--cache", tmp_path / "cache")
    assert done.exit_code == 0, done.output
    digest = sha256(checkpoint).hexdigest()
    assert f"checkpoint: {file_server.url('/v1.0/tiny-checkpoint.pth')}" in done.output
    assert f"sha256: {digest}, recorded now, at its first use" in done.output
    scores = json.loads((out / "scores.json").read_text())
    # Two objects; the two annotators of each are averaged.
    assert (scores["frames"], scores["count"]) == (3, 2)
    *_, comparison, heading, first, second, third = done.output.splitlines()
    assert comparison == (
        f"{PRESET} on ref-davis, 3 frames: J&F {scores['j_and_f']:.4f}, J {scores['j']:.4f}, "
        f"F {scores['f']:.4f}; published {FIGURE:.3f}"
    )
    assert heading == "record in export/published.py:"
    assert first == f"  checkpoint tiny-checkpoint.pth: sha256 {digest}"
    assert (
        second == f"  vocabulary {VOCABULARY}: sha256 {sha256(vocabulary[VOCABULARY]).hexdigest()}"
    )
    assert third == f"  vocabulary {MERGES}: sha256 {sha256(vocabulary[MERGES]).hexdigest()}"

    weights = open_bundle(out / "bundle").manifest.weights
    assert not weights.random
    assert weights.origin.network.license == "Apache-2.0"
    assert weights.origin.tokenizer.license == "MIT"
    with load(out / "bundle") as segmenter:
        assert any(mask.any() for mask in masks(segmenter))


def masks(segmenter: Any) -> list[np.ndarray]:
    with segmenter.stream(TEXTS, StreamSettings()) as stream:
        return [result.masks for frame in probe_clip(3) for result in stream.push(frame)]


def test_what_is_missing_is_said_before_anything_is_fetched(
    measure: Callable,
    monkeypatch: pytest.MonkeyPatch,
    file_server: Any,
    data: Path,
    tmp_path: Path,
) -> None:
    publish(monkeypatch, file_server, b"", {VOCABULARY: b"{}", MERGES: b""})
    out = ("--out", tmp_path / "out", "--cache", tmp_path / "cache")
    for arguments in (
        (PRESET, "--data", tmp_path / "absent", *out),
        ("onlinerefer-r5", "--data", data, *out),
        (PRESET, "--data", data, *out, "--offline"),
        (PRESET, "--data", data, *out, "--checkpoint", tmp_path / "absent.pth", "--offline"),
    ):
        refused = measure(*arguments)
        assert refused.exit_code == 2
        (line,) = refused.stderr.splitlines()
        assert line.startswith("error: ")
    assert not file_server.asked
    assert not (tmp_path / "out").exists()
