"""Test C++ deformable attention against the plain form, and its gradients."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from rvos_deploy.errors import BackendError
from rvos_deploy.networks.modules import ms_deform_attn as deformable_attention
from rvos_deploy.networks.modules.ms_deform_attn import eager_ms_deform_attn, ms_deform_attn
from rvos_deploy.training.cpu_ops import ms_deform_attn as operator
from rvos_deploy.training.cpu_ops.ms_deform_attn import (
    cpp_ops,
    missing_to_build,
    ms_deform_attn_cpu,
)

needs_build = pytest.mark.skipif(
    missing_to_build() is not None, reason=f"the operator cannot be built: {missing_to_build()}"
)


def test_the_error_without_a_compiler_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    operator._extension.cache_clear()
    with (
        pytest.raises(BackendError, match=r"lacks the C\+\+ compiler 'c\+\+'.*--no-cpp-ops"),
        cpp_ops(),
    ):
        pass
    compiler = tmp_path / "c++"
    compiler.touch(mode=0o755)
    # With a compiler the next thing is told, and not what torch prints of a failed build.
    assert "ninja" in str(missing_to_build()) or "headers" in str(missing_to_build())


def make_inputs(
    shapes: list[tuple[int, int]], dtype: torch.dtype, *, spread: float = 2.0
) -> list[Tensor]:
    torch.manual_seed(len(shapes))
    pixels = sum(h * w for h, w in shapes)
    return [
        torch.randn(2, pixels, 2, 3, dtype=dtype),
        torch.tensor(shapes, dtype=torch.int32),
        torch.rand(5, 2, dtype=torch.float32),
        torch.randn(2, 5, 2, len(shapes), 2, 2, dtype=dtype) * spread,
        torch.randn(2, 5, 2, len(shapes) * 2, dtype=dtype),
    ]


@needs_build
@pytest.mark.parametrize("spread", [0.5, 3.0, 1e6])
@pytest.mark.parametrize("shapes", [[(5, 7), (3, 4), (1, 1)], [(1, 9)], [(2, 2), (8, 3)]], ids=str)
def test_the_operator_equals_the_plain_form(shapes: list[tuple[int, int]], spread: float) -> None:
    inputs = make_inputs(shapes, torch.float64, spread=spread)
    # Both in float64; positions are computed in another order.
    torch.testing.assert_close(
        ms_deform_attn_cpu(*inputs), eager_ms_deform_attn(*inputs), atol=1e-9, rtol=0
    )


@needs_build
def test_gradients_by_finite_differences() -> None:
    inputs = make_inputs([(5, 7), (3, 4), (1, 1)], torch.float64)
    inputs[2] = inputs[2].double()
    for index in (0, 3, 4):
        inputs[index].requires_grad_()
    assert torch.autograd.gradcheck(ms_deform_attn_cpu, inputs)


@needs_build
def test_float32_gradients_equal_the_plain_forms() -> None:
    found, expected = (make_inputs([(6, 5), (3, 3)], torch.float32) for _ in range(2))
    for inputs, form in ((found, ms_deform_attn_cpu), (expected, eager_ms_deform_attn)):
        for index in (0, 3, 4):
            inputs[index].requires_grad_()
        form(*inputs).square().sum().backward()
    for index in (0, 3, 4):
        torch.testing.assert_close(
            found[index].grad, expected[index].grad, atol=2e-5, rtol=1e-4
        )  # float32 sums over all queries, in another order


@needs_build
def test_the_operator_is_used_only_within_the_block() -> None:
    inputs = make_inputs([(4, 4)], torch.float32)
    with cpp_ops():
        assert deformable_attention.eager_ms_deform_attn is ms_deform_attn_cpu
        ms_deform_attn(*inputs)
    assert deformable_attention.eager_ms_deform_attn is not ms_deform_attn_cpu


@needs_build
def test_half_precision_inputs_give_half_precision_outputs() -> None:
    assert ms_deform_attn_cpu(*make_inputs([(4, 4)], torch.bfloat16)).dtype == torch.bfloat16
