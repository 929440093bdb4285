"""The network in another type, with the parts that stay in float32: decided here, once.

TensorRT 11 casts nothing by itself, so what PyTorch computes in is what every graph computes in.
These are the float32 islands, each a few operators wide; everything else is in the chosen type:

- pixels before the backbone: 255 and the mean differ by less than float16 resolves;
- group norms (``cross_modal_encoder.WideGroupNorm``), whose sums run over whole maps (layer norms
  stay one operator, which accumulates in float32 by itself: ``stash_type`` 1 of ONNX);
- softmax, in every attention of ours (``attention.softmax``);
- sampling locations, weights and sums of deformable attention (inside the operator);
- positions in space and time, mask positions, hiding in masked attention;
- mask logits and scores;
- slot alignment and the online softmax over time, on the host (``runtime/slots.py``).
"""

from __future__ import annotations

from typing import Literal

import torch

from rvos_deploy.errors import InputError
from rvos_deploy.model.network import RvosNetwork

Precision = Literal["fp32", "fp16"]
DTYPES: dict[str, torch.dtype] = {"fp32": torch.float32, "fp16": torch.float16}


@torch.no_grad()
def set_precision(network: RvosNetwork, precision: Precision) -> RvosNetwork:
    """Cast the network in place; see the module for what stays in float32.

    Raises:
        InputError: a weight that is beyond float16's range.
    """
    dtype = DTYPES[precision]
    if dtype == torch.float32:
        return network
    if dtype == torch.float16:
        _check_range(network)
    network.to(dtype)
    network.clip.mean, network.clip.std = network.clip.mean.float(), network.clip.std.float()
    return network


def _check_range(network: RvosNetwork) -> None:
    limit = torch.finfo(torch.float16).max
    for name, weight in network.state_dict().items():
        if weight.is_floating_point() and float(weight.abs().max()) > limit:
            raise InputError(
                f"{name} holds {weight.abs().max():.3g}, which float16 cannot; export with "
                "--precision fp32"
            )
