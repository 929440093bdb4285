"""Compute deformable attention in C++ for training on a CPU, much faster than ``grid_sample``.

``torch.utils.cpp_extension`` builds the operator on first use; ``missing_to_build`` lists what the
build needs. Export and runtime do not use it.
"""

from __future__ import annotations

import functools
import os
import shutil
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from rvos_deploy.errors import BackendError
from rvos_deploy.networks.modules import ms_deform_attn as deformable_attention

_FLAGS = ["-O3", "-march=native", "-ffast-math", "-fno-finite-math-only"]


def missing_to_build() -> str | None:
    """Return what the build needs and this machine lacks, or None."""
    compiler = os.environ.get("CXX", "c++")
    if shutil.which(compiler) is None:
        return f"the C++ compiler '{compiler}' (Debian: apt-get install g++)"
    if not Path(sysconfig.get_path("include"), "Python.h").is_file():
        return "Python's headers (Debian: apt-get install python3-dev)"
    if shutil.which("ninja") is None:
        return "'ninja' on the PATH (pip install ninja)"
    return None


@functools.cache
def _extension() -> Any:
    from torch.utils import cpp_extension

    if missing := missing_to_build():
        raise BackendError(
            f"training on a CPU compiles deformable attention and lacks {missing}; install it, or "
            "train with --no-cpp-ops"
        )
    try:
        return cpp_extension.load(
            name="rvos_deploy_ms_deform_attn",
            sources=[str(Path(__file__).with_name("ms_deform_attn.cpp"))],
            extra_cflags=_FLAGS,
        )
    except (RuntimeError, OSError) as error:
        raise BackendError(
            "the C++ deformable attention could not be built "
            f"({str(error).strip().splitlines()[0]}); train with --no-cpp-ops, or build it as "
            "torch.utils.cpp_extension needs"
        ) from error


class _DeformableAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        value: Tensor,
        level_shapes: Tensor,
        reference: Tensor,
        offsets: Tensor,
        weights: Tensor,
    ) -> Tensor:
        ctx.save_for_backward(value, level_shapes, reference, offsets, weights)
        result: Tensor = _extension().forward(value, level_shapes, reference, offsets, weights)
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        inputs = ctx.saved_tensors
        to_value, to_offsets, to_weights = _extension().backward(*inputs, grad.contiguous())
        return to_value, None, None, to_offsets, to_weights


def ms_deform_attn_cpu(
    value: Tensor,
    level_shapes: Tensor,
    reference_points: Tensor,
    sampling_offsets: Tensor,
    attention_logits: Tensor,
) -> Tensor:
    """Compute ``networks/modules/ms_deform_attn.py: ms_deform_attn``, with the same arguments.

    The computation is in float32 (float64 where ``value`` is); narrower inputs are converted.

    Raises:
        BackendError: the operator cannot be built on this machine.
    """
    kind = torch.promote_types(value.dtype, torch.float32)
    levels = sampling_offsets.shape[3]
    weights = torch.softmax(attention_logits.to(kind), dim=-1).unflatten(-1, (levels, -1))
    output = _DeformableAttention.apply(
        value.to(kind).contiguous(),
        level_shapes,
        reference_points.to(kind).contiguous(),
        sampling_offsets.to(kind).contiguous(),
        weights.contiguous(),
    )
    return output.to(value.dtype)


@contextmanager
def cpp_ops() -> Iterator[None]:
    """Make the network use the C++ operator within this block."""
    _extension()
    plain = deformable_attention.eager_ms_deform_attn
    deformable_attention.eager_ms_deform_attn = ms_deform_attn_cpu
    try:
        yield
    finally:
        deformable_attention.eager_ms_deform_attn = plain
