"""Cast the network to another type, and decide which parts stay in float32.

TensorRT 11 inserts no casts, so every graph computes in the same types as PyTorch.
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

Masked attention remains sensitive for a query that sees few pixels. That error comes from all
rounding before it, so no island of a few operators removes it. Checks count such queries
(``parity/verification.py: MAXIMUM_UNDECIDED_QUERIES``).
"""

from __future__ import annotations

from rvos_deploy.graph_io.graph_spec import Precision
from rvos_deploy.networks.modules.precision import cast_network
from rvos_deploy.networks.pan2024.modules.network import RvosNetwork


def set_precision(network: RvosNetwork, precision: Precision | str) -> RvosNetwork:
    """Cast the network in place; the module's docstring lists the parts that stay in float32.

    Raises:
        InputError: the precision is unknown, or a weight exceeds the type's range.
    """
    # The pixel statistics stay in float32: bfloat16 would round a mean of 122.77 to 123.
    cast_network(network, precision, (network.clip.mean, network.clip.std))
    return network
