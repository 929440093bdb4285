"""From the start of a process to the first mask: what is imported, and what runs at once."""

from __future__ import annotations

import importlib.machinery
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment

import rvos_deploy.runtime.backends.base as base
import rvos_deploy.video as video
from rvos_deploy.bundle.folder import TOKENIZER, open_bundle
from rvos_deploy.bundle.onnx_file import OnnxFile
from rvos_deploy.errors import BundleError
from rvos_deploy.graph_io.graph_spec import GraphSpec
from rvos_deploy.networks.pan2024.assignment import load_solver
from rvos_deploy.runtime.backends.base import Graph, OnnxBackend
from rvos_deploy.runtime.backends.onnxruntime.backend import OnnxRuntimeBackend
from rvos_deploy.runtime.segmenter import load

FIRST_MASK = """
import sys
import numpy as np
import rvos_deploy as rvos
with rvos.load("tiny", backend="onnxruntime") as segmenter, segmenter.stream(["a star"]) as stream:
    (result,) = stream.push(np.zeros((128, 224, 3), np.uint8))
    assert result.masks.shape == (1, 128, 224)
print(*sorted({name.split(".")[0] for name in sys.modules}), "scipy.optimize" in sys.modules)
"""


def test_the_first_mask_imports_no_library_that_it_does_not_use() -> None:
    """SciPy's optimisers and PyAV alone took longer to import than the bundle takes to open."""
    run = subprocess.run(
        [sys.executable, "-c", FIRST_MASK], capture_output=True, text=True, check=True
    )
    imported = set(run.stdout.split())
    assert {"numpy", "onnxruntime", "tokenizers"} <= imported
    unused = {"av", "onnx", "openvino", "rich", "torch", "typer", "True"}
    assert imported & unused == set()


def test_the_solver_is_scipys() -> None:
    costs = np.random.RandomState(0).rand(30, 20, 20)
    solve = load_solver()
    for cost in costs:
        np.testing.assert_array_equal(solve(cost), linear_sum_assignment(cost))


def test_the_solver_is_found_where_scipy_has_moved_its_file(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delitem(sys.modules, "scipy.optimize._lsap")
    monkeypatch.setattr(importlib.machinery.PathFinder, "find_spec", lambda *_: None)
    assert load_solver() is linear_sum_assignment


def test_every_name_of_the_video_package_is_there() -> None:
    assert all(callable(getattr(video, name)) for name in video.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'mp4'"):
        video.mp4  # noqa: B018


def test_graphs_are_opened_at_the_same_time(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first graph waits until another thread opens the second."""
    monkeypatch.setattr(base, "usable_cores", lambda: 2)
    together = threading.Barrier(2, timeout=60)

    class Waiting(OnnxRuntimeBackend):
        def _graph(self, spec: GraphSpec, file: OnnxFile) -> Graph:
            together.wait()
            return super()._graph(spec, file)

    bundle = open_bundle(tiny_bundle)
    with Waiting(threads=1).open(bundle, ["mask_head", "video_decoder"]) as session:
        assert list(session.graphs) == ["mask_head", "video_decoder"]


@pytest.mark.parametrize("broken", [0, 1, 2])
def test_after_an_error_no_graph_stays_open(
    broken: int, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(base, "usable_cores", lambda: 2)
    bundle = open_bundle(tiny_bundle)
    names = ["backbone", "video_decoder", "mask_head"]
    open_now: set[str] = set()

    class Recorded(Graph):
        def __init__(self, spec: GraphSpec) -> None:
            if spec.name == names[broken]:
                raise BundleError(f"{spec.name} is damaged")
            super().__init__(spec)
            open_now.add(spec.name)

        def _run(self, inputs: object, axes: object) -> dict[str, object]:
            return {}

        def _close(self) -> None:
            open_now.remove(self.spec.name)

    class Backend(OnnxRuntimeBackend):
        def _graph(self, spec: GraphSpec, file: OnnxFile) -> Graph:
            return Recorded(spec)

    with pytest.raises(BundleError, match=f"{names[broken]} is damaged"):
        Backend().open(bundle, names)
    assert not open_now


def test_a_damaged_tokenizer_closes_the_graphs(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = shutil.copytree(tiny_bundle, tmp_path / "copy")
    content = bytearray((copy / TOKENIZER).read_bytes())
    content[-2] ^= 1
    (copy / TOKENIZER).write_bytes(content)
    sessions = []

    def opened(self: OnnxBackend, *arguments: object) -> object:
        sessions.append(real(self, *arguments))
        return sessions[-1]

    real = OnnxBackend.open
    monkeypatch.setattr(OnnxBackend, "open", opened)
    with pytest.raises(BundleError, match=r"tokenizer\.json was changed since the export"):
        load(copy, backend="onnxruntime")
    assert [session.closed for session in sessions] == [True]
