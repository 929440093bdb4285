"""Store weights as float16 and compute in float32: half the size, the same graphs otherwise.

The network's weights are rounded first, so PyTorch and the exported files hold equal numbers, and
parity keeps its meaning. Only J&F measures the cost of the rounding.
"""

from __future__ import annotations

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from rvos_deploy.networks.modules.precision import in_range

_WORTH_STORING = 1024  # numbers; for fewer, the Cast node is as large as the saving
_SUFFIX = ".fp16"


@torch.no_grad()
def round_to_half(network: nn.Module) -> None:
    """Round every weight to a float16 number in place; the dtype stays float32.

    Raises:
        InputError: a weight exceeds float16's range.
    """
    for name, weight in network.state_dict().items():
        weight.copy_(in_range(name, weight, torch.float16, "--store fp32"))


def store_as_half(model: onnx.ModelProto) -> None:
    """Store float32 initializers as float16 and cast them back, where that changes no bit.

    Initializers that the exporter computed from weights (a product, for example) may not be float16
    numbers; they stay float32.
    """
    graph, casts = model.graph, []
    for initializer in graph.initializer:
        if initializer.data_type != TensorProto.FLOAT:
            continue
        values = numpy_helper.to_array(initializer)
        if values.size < _WORTH_STORING:
            continue
        with np.errstate(over="ignore"):
            half = values.astype(np.float16)
        if not np.array_equal(half.astype(np.float32), values):
            continue
        name = initializer.name
        initializer.CopyFrom(numpy_helper.from_array(half, name + _SUFFIX))
        casts.append(
            helper.make_node("Cast", [name + _SUFFIX], [name], to=TensorProto.FLOAT, name=name)
        )
    nodes = [*casts, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)
