"""Give OpenVINO the CPU kernel of deformable attention as an operator.

The ONNX file stays as it is: an extension converts its node ``rvos::MSDeformAttn`` before OpenVINO
would read the function of that name.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from rvos_deploy.cpu_ops import ms_deform_attn as kernel

if TYPE_CHECKING:
    from openvino import Core, Output, Tensor
    from openvino.frontend import NodeContext


OPERATOR = "MSDeformAttn"
"""Type of the node, in the file and in OpenVINO's model."""


def add_operator(core: Core, threads: int) -> None:
    """Make an ``openvino.Core`` read the node as an operator that calls the kernel.

    Args:
        core: an ``openvino.Core``.
        threads: of one call.
    """
    import openvino
    from openvino.frontend.onnx import ConversionExtension

    class MSDeformAttn(openvino.Op):  # type: ignore[misc]
        """The operator; OpenVINO calls its methods."""

        def __init__(self, inputs: list[Output] | None = None) -> None:
            super().__init__(self, inputs)

        def validate_and_infer_types(self) -> None:
            value, offsets = (self.get_input_partial_shape(index) for index in (0, 3))
            heads, channels = value[2], value[3]
            known = heads.is_static and channels.is_static
            width = heads.get_length() * channels.get_length() if known else -1
            shape = openvino.PartialShape([offsets[0], offsets[1], openvino.Dimension(width)])
            self.set_output_type(0, self.get_input_element_type(0), shape)

        def clone_with_new_inputs(self, new_inputs: list[Output]) -> MSDeformAttn:
            return MSDeformAttn(new_inputs)

        def has_evaluate(self) -> bool:
            return True

        def evaluate(self, outputs: list[Tensor], inputs: list[Tensor]) -> bool:
            value, shapes, places, offsets, logits = (tensor.data for tensor in inputs)
            kind = value.dtype if offsets.dtype == logits.dtype == value.dtype else np.float32
            given = kernel.Inputs(
                value,
                # OpenVINO may hold integers and half precision in wider types.
                shapes.astype(np.int32, copy=False),
                places.astype(np.float32, copy=False),
                offsets.astype(kind, copy=False),
                logits.astype(kind, copy=False),
            )
            kernel.ms_deform_attn(given, outputs[0].data, threads)
            return True

    def convert(node: NodeContext) -> list[Output]:
        outputs: list[Output] = MSDeformAttn([node.get_input(i) for i in range(5)]).outputs()
        return outputs

    core.add_extension(MSDeformAttn)
    core.add_extension(ConversionExtension(OPERATOR, "rvos", convert))
