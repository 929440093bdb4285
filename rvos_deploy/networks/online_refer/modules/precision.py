"""Cast the network to another type, and decide which parts stay in float32.

The rules are those of every family (``networks/modules/float32_islands.py``): group norms, softmax
outside RoBERTa, and the inside of deformable attention compute in float32; layer norms accumulate
in float32; bfloat16 graphs have float32 inputs and outputs. This family adds:

- pixels before the trunk, and scale and shift of frozen batch norms (``resnet.py``): half precision
  does not resolve the range of the statistics, and the two results are rounded once;
- all locations: boxes, their refinement (``bbox_embed``), reference points, and the decoder's
  sampling locations. They differ by expression and query, so the operator reads them as pixel
  locations, and bfloat16 would round 300.4 to 300;
- positions, computed in float32 and rounded once;
- class logits and scores, which choose the query that is tracked from then on;
- the controller and the dynamic convolutions, except their product with the mask features: they
  multiply coordinates of hundreds of pixels. Mask logits are float32.

The track's content and position have the network's type. The float32 weights belong to heads for a
few queries per expression, less than 1 % of the network.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from rvos_deploy.graph_io.graph_spec import Precision
from rvos_deploy.networks.modules.precision import cast_network
from rvos_deploy.networks.online_refer.modules.network import OnlineRefer
from rvos_deploy.networks.online_refer.modules.resnet import FrozenBatchNorm, NormalisedTrunk


def set_precision(network: OnlineRefer, precision: Precision | str) -> OnlineRefer:
    """Cast the network in place; the module's docstring lists the parts that stay in float32.

    Raises:
        InputError: the precision is unknown, or a weight exceeds the type's range.
    """
    cast_network(network, precision, _float32_weights(network))
    return network


def _float32_weights(network: OnlineRefer) -> Iterator[Tensor]:
    for head in (
        network.bbox_embed,
        network.class_embed,
        network.controller,
        network.query_embed,
        network.transformer.reference_points,
    ):
        yield from head.parameters()
    for module in network.modules():
        if isinstance(module, (FrozenBatchNorm, NormalisedTrunk)):
            yield from module.buffers(recurse=False)
