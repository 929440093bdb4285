"""Cast a network to another type, except weights that its family keeps in float32."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from rvos_deploy.errors import InputError
from rvos_deploy.graph_io.graph_spec import Precision

DTYPES: dict[Precision, torch.dtype] = {
    "fp32": torch.float32,
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
    # The network stays in float32; export/int8.py quantizes the exported backbone.
    "int8": torch.float32,
}


@torch.no_grad()
def cast_network(network: nn.Module, precision: Precision | str, kept: Iterable[Tensor]) -> None:
    """Cast weights and buffers in place, all of them or none.

    Buffers that are not part of the weights, such as attention masks, may hold infinities.

    Args:
        network: a network in float32.
        precision: the new precision.
        kept: weights and buffers that stay in float32.

    Raises:
        InputError: the precision is unknown, or a weight exceeds the type's range.
    """
    if precision not in DTYPES:
        raise InputError(f"unknown precision '{precision}'; known: {', '.join(DTYPES)}")
    dtype = DTYPES[precision]
    if dtype == torch.float32:
        return
    stay = {id(tensor) for tensor in kept}
    weights = network.state_dict()
    cast = []
    for name, tensor in (*network.named_parameters(), *network.named_buffers()):
        if id(tensor) in stay or not tensor.is_floating_point():
            continue
        checked = name in weights
        narrow = in_range(name, tensor, dtype, "--precision fp32") if checked else tensor.to(dtype)
        cast.append((tensor, narrow))
    for tensor, narrow in cast:
        tensor.data = narrow


def in_range(name: str, weight: Tensor, dtype: torch.dtype, instead: str) -> Tensor:
    """Return a floating-point weight in ``dtype``, and any other weight unchanged.

    Args:
        name: name of the weight, for the message.
        weight: any shape.
        dtype: float16 or bfloat16.
        instead: the option that avoids the cast, for the message.

    Raises:
        InputError: a number becomes infinite, or is NaN.
    """
    if not weight.is_floating_point():
        return weight
    narrow = weight.to(dtype)
    if not bool(torch.isfinite(narrow).all()):
        raise InputError(
            f"{name} holds {weight.abs().max():.3g}, which {str(dtype).removeprefix('torch.')} "
            f"cannot; export with {instead}"
        )
    return narrow
