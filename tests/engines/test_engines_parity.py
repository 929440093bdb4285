"""Test the checks that engines must pass, with ONNX Runtime in the engine's place."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from rvos_deploy.bundle.folder import Bundle, open_bundle
from rvos_deploy.engines.build_plan import BuildJob, BuiltPlan
from rvos_deploy.engines.engine_parity import (
    PartialEngines,
    compare_graph,
    compare_masks,
    fitting_clip,
    require_all,
)
from rvos_deploy.engines.parity_checks import check_parity, untestable_reason
from rvos_deploy.engines.profiles import (
    bundle_axes,
    check_streamable,
    graph_profile,
    read_profiles,
)
from rvos_deploy.engines.settings import BuildSettings
from rvos_deploy.errors import InputError, ParityError
from rvos_deploy.graph_io.tensors import Tensor
from rvos_deploy.runtime.backends.base import Graph, Session
from rvos_deploy.runtime.backends.gpu import Gpu
from rvos_deploy.runtime.backends.host_ops import HostOps
from rvos_deploy.runtime.backends.onnxruntime.backend import OnnxRuntimeBackend

SMALL = "H=32:64:96,W=32:96:160,E=1:2:3,L=2:5:20,M=1:3:8"


@pytest.fixture(scope="module")
def bundle(tiny_bundle: Path) -> Bundle:
    return open_bundle(tiny_bundle)


class Miscompiled(Graph):
    """Stands in for an engine that is wrong where the batch is above one (NVIDIA/TensorRT#4853)."""

    def __init__(self, inner: Graph) -> None:
        super().__init__(inner.spec)
        self.inner = inner

    def _run(self, inputs: Mapping[str, Tensor], axes: Mapping[str, int]) -> dict[str, Tensor]:
        outputs = self.inner.run(inputs)
        if axes["E"] > 1:
            first = self.spec.outputs[0].name
            outputs[first] = np.asarray(outputs[first]) + np.float32(0.01)
        return outputs

    def _close(self) -> None:
        self.inner.close()


def test_every_output_is_compared_at_every_corner(bundle: Bundle) -> None:
    backend, spec = OnnxRuntimeBackend(), bundle.graphs["video_decoder"]
    profiles = [graph_profile(spec, profile) for profile in read_profiles([SMALL], bundle)]
    with backend.open(bundle, [spec.name]) as engine, backend.open(bundle, [spec.name]) as other:
        checks = compare_graph(spec.name, engine, other, bundle.network, profiles)
    corners = 1 + 2**3
    assert len(checks) == corners * len(spec.outputs)
    assert len({check.name for check in checks}) == len(checks)
    assert all(check.passed and check.comparison.max_abs == 0 for check in checks)
    assert {check.tolerance for check in checks} == {spec.tolerance}
    require_all(checks, "tensorrt")


def test_an_engine_that_is_wrong_at_one_corner_fails(bundle: Bundle) -> None:
    backend, spec = OnnxRuntimeBackend(), bundle.graphs["mask_head"]
    profiles = [graph_profile(spec, profile) for profile in read_profiles([SMALL], bundle)]
    with backend.open(bundle, [spec.name]) as right:
        engine = Session({spec.name: Miscompiled(right.graphs[spec.name])}, HostOps())
        checks = compare_graph(spec.name, engine, right, bundle.network, profiles)
    failed = [check.name for check in checks if not check.passed]
    assert failed
    assert all(" E1 " not in name for name in failed)
    with pytest.raises(ParityError) as error:
        require_all(checks, "tensorrt")
    assert f"{len(failed)} of {len(checks)} parity checks of the tensorrt engines failed" in str(
        error.value
    )
    assert failed[0] in str(error.value)
    assert error.value.exit_code == 1


def test_masks_are_compared_over_a_clip(bundle: Bundle) -> None:
    backend = OnnxRuntimeBackend()
    profiles = read_profiles([SMALL], bundle)
    with backend.open(bundle, ["mask_head"]) as engines:
        partly = PartialEngines(engines, backend)
        result = compare_masks(bundle, partly, backend, profiles)
        # Engines are opened once, and closed by whoever opened them.
        assert not engines.closed
    assert result.passed
    assert result.j_and_f == 1.0
    assert "in 64x96" in result.name
    assert partly.describe()["name"] == "onnxruntime"


def test_the_clip_is_turned_for_portrait_and_must_fit(bundle: Bundle) -> None:
    clip, box = fitting_clip(bundle.network, read_profiles(["H=32:224:224,W=32:128:128"], bundle))
    assert box == (224, 128)
    assert clip.shape[1:3] == (157, 90)
    with pytest.raises(InputError, match="no profile supports the probe clip"):
        fitting_clip(bundle.network, read_profiles(["H=512,W=544"], bundle))


def test_a_fixed_bundle_is_compared_at_its_size(static_bundle: Path) -> None:
    """The clip is letterboxed, and the expressions are padded, as in a stream."""
    fixed = open_bundle(static_bundle)
    backend, profiles = OnnxRuntimeBackend(), read_profiles([], fixed)
    check_streamable(profiles, bundle_axes(fixed))
    spec = fixed.graphs["mask_head"]
    with backend.open(fixed, [spec.name]) as engines:
        result = compare_masks(fixed, PartialEngines(engines, backend), backend, profiles)
        own = [graph_profile(spec, profiles[0])]
        (check,) = compare_graph(spec.name, engines, engines, fixed.network, own)
    assert result.passed
    assert "6 frames, 2 expressions, in 64x96" in result.name
    assert check.name == "mask_head H64 W96 E2 mask_logits"


def test_plans_that_cannot_run_here_get_a_reason(bundle: Bundle, tmp_path: Path) -> None:
    plan = BuiltPlan("mask_head", tmp_path, (), ("8.9", "12.0"), {}, 0, 0.0)
    assert (
        untestable_reason(None, [plan])
        == "built on a machine without a GPU, where it cannot be run"
    )
    assert untestable_reason(Gpu("NVIDIA L4", "8.9"), [plan]) is None
    hopper = Gpu("NVIDIA H100", "9.0")
    reason = untestable_reason(hopper, [plan])
    assert reason is not None
    assert "built for compute capability 8.9, 12.0" in reason
    assert "NVIDIA H100, has 9.0" in reason
    said: list[str] = []
    job = BuildJob(None, hopper, bundle, BuildSettings("tensorrt-rtx"))
    report = check_parity(job, None, [plan], [], lambda graph, *_: said.append(graph))
    assert (report.reason, report.checks, report.layers, said) == (reason, {}, {}, [])
