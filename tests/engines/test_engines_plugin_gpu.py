"""Test the PTX on a real GPU: ``pytest -m gpu``. NOT RUN: the development machine has no GPU."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from deformable_attention import SCENARIOS, exact, half_ulp, make_case, reference, slack

from rvos_deploy.bundle.folder import open_bundle
from rvos_deploy.engines.build import build_engines
from rvos_deploy.engines.plugins.ms_deform_attn.host import host_ms_deform_attn
from rvos_deploy.engines.plugins.ms_deform_attn.launch import primary_context, run_on_device
from rvos_deploy.engines.plugins.ms_deform_attn.spec import TACTICS, TYPES, DType, tactics_for
from rvos_deploy.engines.settings import BuildSettings
from rvos_deploy.graph_io.probe import probe_inputs
from rvos_deploy.runtime.backends.cuda.device import acquire_device
from rvos_deploy.runtime.backends.cuda.driver_calls import call
from rvos_deploy.runtime.backends.cuda.libraries import import_cuda
from rvos_deploy.runtime.backends.tensorrt.backend import TensorRtBackend

pytestmark = pytest.mark.gpu


@pytest.fixture
def context() -> Iterator[None]:
    pytest.importorskip("cuda.bindings.driver")
    with primary_context():
        yield


@pytest.mark.usefixtures("context")
@pytest.mark.parametrize("types", TYPES, ids="-".join)
def test_the_gpu_meets_the_error_bound_of_the_host(types: tuple[DType, DType, DType]) -> None:
    random = np.random.default_rng(11)
    for scenario in SCENARIOS:
        case = make_case(random, types, scenario)
        for number in tactics_for(types[0], case.value.shape[-1]):
            tactic = TACTICS[number]
            output = exact(run_on_device(types, case.arrays, tactic))
            wanted, allowed = reference(case), slack(case)
            bound = half_ulp(np.abs(wanted) + allowed, types[0]) + allowed
            assert (np.abs(output - wanted) <= bound).all(), (scenario, tactic)


@pytest.mark.usefixtures("context")
def test_gpu_and_host_differ_by_the_exponential_alone() -> None:
    """Everything else rounds alike: one logit, so a weight of exactly 1, gives the same bits."""
    random = np.random.default_rng(12)
    for types in TYPES:
        case = make_case(random, types)
        one = (
            case.value[:, : int(case.level_shapes[0].prod())],
            case.level_shapes[:1],
            case.reference_points,
            case.sampling_offsets[:, :, :, :1, :1],
            case.attention_logits[..., :1],
        )
        output = run_on_device(types, one, TACTICS[1])
        assert (output == host_ms_deform_attn(*one)).all()


def test_alternating_sizes_take_no_more_memory(tiny_bundle: Path, tmp_path: Path) -> None:
    """NVIDIA/TensorRT#4849: a context's change of shapes leaks a CUDA module of the plugin.

    Each size has an execution context of its own after its second run, so nothing changes.
    """
    pytest.importorskip("tensorrt")
    driver = pytest.importorskip("cuda.bindings.driver")
    folder = tmp_path / "bundle"
    folder.mkdir()
    for file in tiny_bundle.iterdir():
        if file.is_file():
            (folder / file.name).symlink_to(file)
    bundle = open_bundle(folder)
    settings = BuildSettings("tensorrt", ("H=32:64:64,W=32:64:96,E=1:2:4",))
    build_engines(bundle, settings, graphs=["frame_decoder"])
    spec = bundle.graphs["frame_decoder"]
    cases = [
        {axis.name: {"H": 64, "W": width, "E": rows, "L": 8}[axis.name] for axis in spec.axes}
        for width, rows in ((64, 1), (64, 2), (96, 2))
    ]
    inputs = [probe_inputs(spec, case, 0, bundle.network.probe_makers) for case in cases]
    device = acquire_device(import_cuda())
    with TensorRtBackend().open(bundle, ["frame_decoder"]) as session:

        def free_bytes(rounds: int) -> int:
            for number in range(rounds):
                session.graphs["frame_decoder"].run(inputs[number % len(inputs)])
            with device.current():
                device.compute.synchronize()
                return int(call(driver, "cuMemGetInfo"))

        before = free_bytes(3 * len(inputs))
        after = free_bytes(1000)
    device.release()
    assert before - after < 2**21, f"{(before - after) / 1000:.0f} bytes a change of shape"


@pytest.mark.usefixtures("context")
def test_the_benchmark_runs() -> None:
    from rvos_deploy.benchmarks.gpu_kernels import TACTICS, time_kinds

    case = time_kinds(("fp16",))["fp16"]
    timed = {row["name"]: row for row in case["timings"]}
    assert {f"tactic {number}: {tactic}" for number, tactic in TACTICS.items()} <= set(timed)
    for row in timed.values():
        assert row["milliseconds"]["p50"] > 0
        print(row)
    print(case["missing"], case["clocks"])
