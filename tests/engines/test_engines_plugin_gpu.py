"""Test the PTX on a real GPU: ``pytest -m gpu``. NOT RUN: the development machine has no GPU."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from deformable_attention import SCENARIOS, exact, half_ulp, make_case, reference, slack

from rvos_deploy.engines.plugins.ms_deform_attn.host import host_ms_deform_attn
from rvos_deploy.engines.plugins.ms_deform_attn.launch import primary_context, run_on_device
from rvos_deploy.engines.plugins.ms_deform_attn.spec import TACTICS, TYPES, DType

pytestmark = pytest.mark.gpu


@pytest.fixture
def context() -> Iterator[None]:
    pytest.importorskip("pycuda.driver")
    with primary_context():
        yield


@pytest.mark.usefixtures("context")
@pytest.mark.parametrize("types", TYPES, ids="-".join)
def test_the_gpu_meets_the_error_bound_of_the_host(types: tuple[DType, DType, DType]) -> None:
    random = np.random.default_rng(11)
    for scenario in SCENARIOS:
        for tactic in TACTICS.values():
            case = make_case(random, types, scenario)
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


@pytest.mark.usefixtures("context")
def test_the_benchmark_runs() -> None:
    from rvos_deploy.engines.plugins.ms_deform_attn.benchmark import benchmark

    rows = benchmark("fp16")
    assert all(row.milliseconds > 0 for row in rows)
    print(*rows, sep="\n")
