"""The network in another type, with the parts that stay in float32: decided here, once.

TensorRT 11 casts nothing by itself, so what PyTorch computes in is what every graph computes in.
bfloat16 graphs take and give float32 (``pan2024/graphs.py: Float32Edges``), float16 ones float16.
These are the float32 islands, each a few operators wide; everything else is in the chosen type:

- pixels before the backbone: 255 and the mean differ by less than float16 resolves;
- group norms (``cross_modal_encoder.WideGroupNorm``), whose sums run over whole maps (layer norms
  stay one operator, which accumulates in float32 by itself: ``stash_type`` 1 of ONNX);
- softmax, in every attention of ours (``attention.softmax``);
- sampling locations, weights and sums of deformable attention (inside the operator);
- positions in space and time, mask positions, hiding in masked attention;
- mask logits and scores;
- slot alignment and the online softmax over time, on the host (``networks/pan2024/slots.py``).

What stays unsteady: masked attention of a query that sees few pixels. Its rounding is not its own
but that of everything before it, so no island of a few operators steadies it; checks count such
queries (``parity/verification.py: MAXIMUM_UNDECIDED_QUERIES``).
"""

from __future__ import annotations

import torch
from torch import Tensor

from rvos_deploy.errors import InputError
from rvos_deploy.graph_io.graph_spec import Precision
from rvos_deploy.networks.pan2024.modules.network import RvosNetwork

DTYPES: dict[Precision, torch.dtype] = {
    "fp32": torch.float32,
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
}


@torch.no_grad()
def set_precision(network: RvosNetwork, precision: Precision | str) -> RvosNetwork:
    """Cast the network in place; see the module for what stays in float32.

    Raises:
        InputError: an unknown precision, or a weight that is beyond the type's range.
    """
    if precision not in DTYPES:
        raise InputError(f"unknown precision '{precision}'; known: {', '.join(DTYPES)}")
    dtype = DTYPES[precision]
    if dtype == torch.float32:
        return network
    for name, weight in network.state_dict().items():
        in_range(name, weight, dtype, "--precision fp32")
    # Not rounded on the way: bfloat16 would move a mean of 122.77 to 123.
    mean, std = network.clip.mean, network.clip.std
    network.to(dtype)
    network.clip.mean, network.clip.std = mean, std
    return network


def in_range(name: str, weight: Tensor, dtype: torch.dtype, instead: str) -> Tensor:
    """A weight in ``dtype``, where that has numbers for it; itself, where it holds no real numbers.

    Args:
        name: for the message.
        weight: any shape.
        dtype: float16 or bfloat16.
        instead: the option that avoids it, for the message.

    Raises:
        InputError: a number became infinite, or was none.
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
