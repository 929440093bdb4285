"""Test PyTorch's use of the CPU kernel: values and gradients against the plain form."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from rvos_deploy.cpu_ops.ms_deform_attn import available
from rvos_deploy.networks.modules.ms_deform_attn import eager_ms_deform_attn, ms_deform_attn
from rvos_deploy.networks.modules.ms_deform_attn_cpu import cpu_kernel, ms_deform_attn_cpu

pytestmark = pytest.mark.skipif(
    not available(), reason="the CPU kernel was not built: there was no C++ compiler"
)


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


@pytest.mark.parametrize("spread", [0.5, 3.0, 1e6])
@pytest.mark.parametrize("shapes", [[(5, 7), (3, 4), (1, 1)], [(1, 9)], [(2, 2), (8, 3)]], ids=str)
def test_the_operator_equals_the_plain_form(shapes: list[tuple[int, int]], spread: float) -> None:
    inputs = make_inputs(shapes, torch.float64, spread=spread)
    # Both in float64; positions are computed in another order.
    torch.testing.assert_close(
        ms_deform_attn_cpu(*inputs), eager_ms_deform_attn(*inputs), atol=1e-9, rtol=0
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_every_type_gives_its_own_type(dtype: torch.dtype) -> None:
    inputs = make_inputs([(6, 5), (3, 3)], dtype)
    found, wanted = ms_deform_attn_cpu(*inputs), eager_ms_deform_attn(*inputs)
    assert found.dtype == dtype
    # Both compute in float32 and round once: they differ by one step of the type at most.
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1.01 * torch.finfo(dtype).eps)
    mixed = [*inputs[:3], inputs[3].float(), inputs[4]]
    torch.testing.assert_close(
        ms_deform_attn_cpu(*mixed), wanted, atol=1e-5, rtol=1.01 * torch.finfo(dtype).eps
    )


def test_gradients_by_finite_differences() -> None:
    inputs = make_inputs([(5, 7), (3, 4), (1, 1)], torch.float64)
    inputs[2] = inputs[2].double()
    for index in (0, 3, 4):
        inputs[index].requires_grad_()
    assert torch.autograd.gradcheck(ms_deform_attn_cpu, inputs)


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


def test_pytorchs_own_checks_of_the_operator_pass() -> None:
    inputs = make_inputs([(4, 4)], torch.float32)
    for index in (0, 3, 4):
        inputs[index].requires_grad_()
    torch.library.opcheck(ms_deform_attn_cpu, inputs)


def test_tensors_that_are_not_contiguous_are_read_right() -> None:
    inputs = make_inputs([(6, 5), (3, 3)], torch.float32)
    turned = [tensor.transpose(0, 1).contiguous().transpose(0, 1) for tensor in inputs]
    assert not turned[0].is_contiguous()
    torch.testing.assert_close(
        ms_deform_attn_cpu(*turned), ms_deform_attn_cpu(*inputs), atol=0, rtol=0
    )


def test_the_operator_is_used_only_within_the_block(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = make_inputs([(4, 4)], torch.float32)
    used: list[Tensor] = []

    def recorded(*given: Tensor) -> Tensor:
        used.append(given[1])
        return ms_deform_attn_cpu(*given)

    monkeypatch.setattr(
        "rvos_deploy.networks.modules.ms_deform_attn_cpu.ms_deform_attn_cpu", recorded
    )
    wanted = ms_deform_attn(*inputs)
    assert not used
    with cpu_kernel():
        for shapes in (inputs[1], [(4, 4)]):
            found = ms_deform_attn(inputs[0], shapes, *inputs[2:])
            torch.testing.assert_close(found, wanted, atol=1e-5, rtol=0)
    assert [shapes.tolist() for shapes in used] == [[[4, 4]], [[4, 4]]]
    ms_deform_attn(*inputs)
    assert len(used) == 2
