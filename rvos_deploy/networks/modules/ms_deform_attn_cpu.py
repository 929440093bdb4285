"""Give PyTorch the CPU kernel of deformable attention: ``torch.ops.rvos.ms_deform_attn_cpu``.

Training on a CPU uses it. Export compares against PyTorch's own operators, so that one kernel never
proves itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rvos_deploy.cpu_ops import ms_deform_attn as kernel
from rvos_deploy.networks.modules import ms_deform_attn as deformable_attention
from rvos_deploy.networks.modules.ms_deform_attn import LevelShapes, shapes_tensor


@torch.library.custom_op("rvos::ms_deform_attn_cpu", mutates_args=(), device_types="cpu")
def ms_deform_attn_cpu(
    value: Tensor,
    level_shapes: Tensor,
    reference_points: Tensor,
    sampling_offsets: Tensor,
    attention_logits: Tensor,
) -> Tensor:
    """Compute ``ms_deform_attn``, with the same arguments and result; differentiable.

    Raises:
        BackendError: the kernel was not built.
    """
    arrays = _arrays(value, level_shapes, reference_points, sampling_offsets, attention_logits)
    output = kernel.ms_deform_attn(arrays, threads=torch.get_num_threads())
    return _tensor(output, value.dtype)


@ms_deform_attn_cpu.register_fake
def _(
    value: Tensor,
    level_shapes: Tensor,
    reference_points: Tensor,
    sampling_offsets: Tensor,
    attention_logits: Tensor,
) -> Tensor:
    batch, _, heads, channels = value.shape
    return value.new_empty(batch, sampling_offsets.shape[1], heads * channels)


@torch.library.custom_op("rvos::ms_deform_attn_cpu_backward", mutates_args=(), device_types="cpu")
def _gradients(
    value: Tensor,
    level_shapes: Tensor,
    reference_points: Tensor,
    sampling_offsets: Tensor,
    attention_logits: Tensor,
    grad: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    compute = torch.promote_types(value.dtype, torch.float32)
    given = (value, sampling_offsets, attention_logits)
    wide = [tensor.to(compute) for tensor in given]
    arrays = _arrays(wide[0], level_shapes, reference_points, wide[1], wide[2])
    found = kernel.ms_deform_attn_backward(
        arrays, _array(grad.to(compute)), threads=torch.get_num_threads()
    )
    gradients = [_tensor(one, tensor.dtype) for one, tensor in zip(found, given, strict=True)]
    return gradients[0], gradients[1], gradients[2]


@_gradients.register_fake
def _(
    value: Tensor,
    level_shapes: Tensor,
    reference_points: Tensor,
    sampling_offsets: Tensor,
    attention_logits: Tensor,
    grad: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    given = (value, sampling_offsets, attention_logits)
    gradients = [torch.empty_like(t, memory_format=torch.contiguous_format) for t in given]
    return gradients[0], gradients[1], gradients[2]


def _save_inputs(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    to_value, to_offsets, to_logits = _gradients(*ctx.saved_tensors, grad)
    return to_value, None, None, to_offsets, to_logits


ms_deform_attn_cpu.register_autograd(_backward, setup_context=_save_inputs)


def _arrays(
    value: Tensor,
    level_shapes: Tensor,
    reference_points: Tensor,
    sampling_offsets: Tensor,
    attention_logits: Tensor,
) -> kernel.Inputs:
    """Return the arguments as the kernel takes them, without a copy where types fit."""
    compute = torch.promote_types(value.dtype, torch.float32)
    same = sampling_offsets.dtype == attention_logits.dtype == value.dtype
    points = value.dtype if same else compute
    return kernel.Inputs(
        _array(value),
        level_shapes.to(torch.int32).numpy(),
        _array(reference_points.to(compute)),
        _array(sampling_offsets.to(points)),
        _array(attention_logits.to(points)),
    )


def _array(tensor: Tensor) -> NDArray[Any]:
    tensor = tensor.detach().contiguous()
    return (tensor.view(torch.uint16) if tensor.dtype == torch.bfloat16 else tensor).numpy()


def _tensor(array: NDArray[Any], dtype: torch.dtype) -> Tensor:
    tensor = torch.from_numpy(array)
    return tensor.view(torch.bfloat16) if array.dtype == np.uint16 else tensor.to(dtype)


def _of_any_shapes(
    value: Tensor,
    level_shapes: LevelShapes,
    reference_points: Tensor,
    sampling_offsets: Tensor,
    attention_logits: Tensor,
) -> Tensor:
    """Call the operator, which takes tensors only."""
    if not isinstance(level_shapes, Tensor):
        level_shapes = shapes_tensor(level_shapes, value.device)
    return ms_deform_attn_cpu(
        value, level_shapes, reference_points, sampling_offsets, attention_logits
    )


@contextmanager
def cpu_kernel() -> Iterator[None]:
    """Make eager networks use the kernel within this block."""
    plain = deformable_attention.eager_ms_deform_attn
    deformable_attention.eager_ms_deform_attn = _of_any_shapes
    try:
        yield
    finally:
        deformable_attention.eager_ms_deform_attn = plain
