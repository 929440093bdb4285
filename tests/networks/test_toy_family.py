"""The seam of a network family: one that the package does not know exports, verifies and runs."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))
import toy_family

import rvos_deploy as rvos
from rvos_deploy.bundle.folder import open_bundle
from rvos_deploy.errors import BundleError
from rvos_deploy.export.bundle_export import export_network
from rvos_deploy.graph_io.probe import probe_clip
from rvos_deploy.networks.registry import FAMILIES
from rvos_deploy.parity.verification import verify
from rvos_deploy.runtime.backends.registry import make_backend


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(FAMILIES, "toy", toy_family.make)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("toy") / "bundle"
    FAMILIES["toy"] = toy_family.make
    try:
        report = export_network(toy_family.load, out)
    finally:
        del FAMILIES["toy"]
    assert all(result.passed for result in report.results)
    assert len(report.results) == 5
    return out


@pytest.mark.usefixtures("registered")
def test_it_verifies_and_a_wrong_graph_is_seen(bundle: Path) -> None:
    opened = open_bundle(bundle)
    assert opened.manifest.family == "toy"
    assert list(opened.graphs) == ["toy_encoder", "toy_head"]
    results = verify(opened, make_backend())
    assert [result.passed for result in results] == [True] * 5
    assert results[-1].name == "masks of a clip, 6 frames, 2 expressions"


@pytest.mark.usefixtures("registered")
@pytest.mark.parametrize("mode", ["online", "offline"])
def test_it_streams(bundle: Path, mode: str) -> None:
    clip = probe_clip(4)
    settings = rvos.StreamSettings(mode=mode)
    with rvos.load(bundle) as segmenter, segmenter.stream(["red"], settings) as stream:
        results = [result for frame in clip[:2] for result in stream.push(frame)]
        blue = stream.add_expression("blue")
        results += [result for frame in clip[2:] for result in stream.push(frame)]
        results += list(stream.flush())
    assert [result.expressions for result in results] == [(0,), (0,), (0, blue), (0, blue)]
    for t, result in enumerate(results):
        square = np.zeros(clip.shape[1:3], np.bool_)
        square[20:48, 10 + 18 * t : 38 + 18 * t] = True
        found = result.masks[0]
        assert (found & square).sum() / (found | square).sum() > 0.8
    disc = results[-1].masks[1]
    assert 400 < disc.sum() < 900
    assert not (disc & results[-1].masks[0]).any()


@pytest.mark.usefixtures("registered")
def test_the_commands_take_it(
    rvos: Callable, make_video: Callable, bundle: Path, tmp_path: Path
) -> None:
    video = make_video(tmp_path / "video.mp4", frames=3)
    result = rvos("run", video, "red", "blue", "--bundle", bundle, "--out", tmp_path / "out")
    assert result.code == 0
    assert len(list((tmp_path / "out").glob("masks/*/*.png"))) == 6
    assert len(json.loads((tmp_path / "out" / "result.json").read_text())["frames"]) == 3
    assert rvos("verify", bundle).code == 0
    shown = rvos("inspect", bundle)
    assert shown.code == 0
    assert "toy_head" in shown.stdout


def test_without_its_line_it_is_refused_in_one(bundle: Path) -> None:
    with pytest.raises(BundleError, match="unknown family 'toy', known: pan2024"):
        open_bundle(bundle)
