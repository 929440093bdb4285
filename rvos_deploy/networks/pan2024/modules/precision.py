"""Cast the network to another type, and decide which parts stay in float32.

TensorRT 11 inserts no casts, so every graph computes in the types that PyTorch computes in.
bfloat16 graphs have float32 inputs and outputs (``export_graph.py: Float32Edges``); float16
graphs have float16 ones. These float32 islands are each a few operators wide, and everything else
is in the chosen type:

- pixels before the backbone: float16 does not resolve the difference between 255 and the mean;
- group norms (``cross_modal_encoder.WideGroupNorm``), whose sums run over whole maps (layer norms
  stay one operator, which accumulates in float32: ``stash_type`` 1 of ONNX);
- softmax, in every attention outside CLIP (``attention.softmax``);
- sampling locations, weights and sums of deformable attention (inside the operator);
- positions in space and time, mask positions, hiding in masked attention;
- mask logits and scores;
- slot alignment and the online softmax over time, on the host (``networks/pan2024/slots.py``).

Masked attention stays sensitive for a query that sees few pixels. Its error comes from the rounding
of everything before it, so no island of a few operators removes it. Checks count such queries
(``parity/verification.py: MAXIMUM_UNDECIDED_QUERIES``).
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
    """Cast the network in place; the module's text lists what stays in float32.

    Raises:
        InputError: the precision is unknown, or a weight exceeds the type's range.
    """
    if precision not in DTYPES:
        raise InputError(f"unknown precision '{precision}'; known: {', '.join(DTYPES)}")
    dtype = DTYPES[precision]
    if dtype == torch.float32:
        return network
    for name, weight in network.state_dict().items():
        in_range(name, weight, dtype, "--precision fp32")
    # The pixel statistics stay in float32: bfloat16 would round a mean of 122.77 to 123.
    mean, std = network.clip.mean, network.clip.std
    network.to(dtype)
    network.clip.mean, network.clip.std = mean, std
    return network


def in_range(name: str, weight: Tensor, dtype: torch.dtype, instead: str) -> Tensor:
    """Return a floating-point weight in ``dtype``, and any other weight unchanged.

    Args:
        name: of the weight, for the message.
        weight: of any shape.
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
