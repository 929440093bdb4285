"""Define deformable attention as an ONNX function, for runtimes without the plugin.

The network exports one node ``rvos::MSDeformAttn`` with the attribute ``plugin_namespace``; its
inputs are those of ``networks/modules/ms_deform_attn.py: ms_deform_attn``. TensorRT uses the plugin
of that name. Every other runtime uses this model-local function of standard operators.

The function avoids GridSample, because TensorRT 10 and 11 miscompile deformable attention with it
(NVIDIA/TensorRT#4813). On a CPU (2,352 queries, two cores), gathering rows of channels took 25 ms
and GridSample 18 ms at a head width of 16; at a width of 32 they took 24 ms and 32 ms.
"""

from __future__ import annotations

import onnx
import onnx.parser

DOMAIN = "rvos"
NODE = "MSDeformAttn"

# Tensors over sampling points are [B, Q, heads*levels*points], with x and y in separate tensors. A
# trailing axis of 2 would make broadcasting several times slower than the arithmetic.
# Coordinates, softmax and sums are float32, whatever the type of the values.
_BODY = """
<opset_import: ["" : OPSET], domain: "rvos">
MSDeformAttn <plugin_namespace, plugin_version, aot>
    (value, level_shapes, reference_points, sampling_offsets, attention_logits) => (output)
{
    zero = Constant<value = int64 {0}>()
    one = Constant<value = int64 {1}>()
    axis_0 = Constant<value_ints = [0]>()
    axis_1 = Constant<value_ints = [1]>()
    axis_2 = Constant<value_ints = [2]>()
    axis_last = Constant<value_ints = [-1]>()
    half = Constant<value_float = 0.5>()
    zero_f = Constant<value_float = 0.0>()
    one_f = Constant<value_float = 1.0>()

    pixels = Shape<start = 1, end = 2>(value)
    heads = Shape<start = 2, end = 3>(value)
    channels = Shape<start = 3, end = 4>(value)
    batch_queries = Shape<start = 0, end = 2>(sampling_offsets)
    points_shape = Shape<start = 2, end = 5>(sampling_offsets)

    one_each = Constant<value_ints = [1, 1]>()
    shapes_f = Cast<to = 1>(level_shapes)
    heights, widths = Split<axis = 1>(shapes_f, one_each)
    areas = Mul(heights, widths)
    starts = CumSum<exclusive = 1>(areas, zero)
    height_points = Expand(heights, points_shape)
    width_points = Expand(widths, points_shape)
    start_points = Expand(starts, points_shape)
    height = Reshape(height_points, axis_last)
    width = Reshape(width_points, axis_last)
    start = Reshape(start_points, axis_last)
    bottom = Sub(height, one_f)
    right = Sub(width, one_f)

    flat_2_shape = Concat<axis = 0>(batch_queries, axis_last, axis_2)
    offsets = Reshape(sampling_offsets, flat_2_shape)
    offsets_f = Cast<to = 1>(offsets)
    offset_x_1, offset_y_1 = Split<axis = 3>(offsets_f, one_each)
    offset_x = Squeeze(offset_x_1, axis_last)
    offset_y = Squeeze(offset_y_1, axis_last)
    reference_f = Cast<to = 1>(reference_points)
    reference_x, reference_y = Split<axis = 1>(reference_f, one_each)
    origin_x_edge = Mul(reference_x, width)
    origin_y_edge = Mul(reference_y, height)
    origin_x = Sub(origin_x_edge, half)
    origin_y = Sub(origin_y_edge, half)
    x = Add(offset_x, origin_x)
    y = Add(offset_y, origin_y)

    x0 = Floor(x)
    y0 = Floor(y)
    x1 = Add(x0, one_f)
    y1 = Add(y0, one_f)
    share_x1 = Sub(x, x0)
    share_y1 = Sub(y, y0)
    share_x0 = Sub(one_f, share_x1)
    share_y0 = Sub(one_f, share_y1)
    x0_low = Max(x0, zero_f)
    x1_low = Max(x1, zero_f)
    y0_low = Max(y0, zero_f)
    y1_low = Max(y1, zero_f)
    x0_in = Min(x0_low, right)
    x1_in = Min(x1_low, right)
    y0_in = Min(y0_low, bottom)
    y1_in = Min(y1_low, bottom)
    x0_inside = Equal(x0, x0_in)
    x1_inside = Equal(x1, x1_in)
    y0_inside = Equal(y0, y0_in)
    y1_inside = Equal(y1, y1_in)
    wx0 = Where(x0_inside, share_x0, zero_f)
    wx1 = Where(x1_inside, share_x1, zero_f)
    wy0_raw = Where(y0_inside, share_y0, zero_f)
    wy1_raw = Where(y1_inside, share_y1, zero_f)

    logits_f = Cast<to = 1>(attention_logits)
    attention = Softmax<axis = -1>(logits_f)
    flat_shape = Concat<axis = 0>(batch_queries, axis_last)
    attention_flat = Reshape(attention, flat_shape)
    wy0 = Mul(wy0_raw, attention_flat)
    wy1 = Mul(wy1_raw, attention_flat)
    w00 = Mul(wy0, wx0)
    w01 = Mul(wy0, wx1)
    w10 = Mul(wy1, wx0)
    w11 = Mul(wy1, wx1)

    row0_offset = Mul(y0_in, width)
    row1_offset = Mul(y1_in, width)
    row0 = Add(row0_offset, start)
    row1 = Add(row1_offset, start)
    p00_f = Add(row0, x0_in)
    p01_f = Add(row0, x1_in)
    p10_f = Add(row1, x0_in)
    p11_f = Add(row1, x1_in)

    per_head_shape = Concat<axis = 0>(batch_queries, heads, axis_last)
    p00 = Reshape(p00_f, per_head_shape)
    p01 = Reshape(p01_f, per_head_shape)
    p10 = Reshape(p10_f, per_head_shape)
    p11 = Reshape(p11_f, per_head_shape)
    v00 = Reshape(w00, per_head_shape)
    v01 = Reshape(w01, per_head_shape)
    v10 = Reshape(w10, per_head_shape)
    v11 = Reshape(w11, per_head_shape)
    pixel_f = Concat<axis = 3>(p00, p01, p10, p11)
    weight = Concat<axis = 3>(v00, v01, v10, v11)

    pixel = Cast<to = 7>(pixel_f)
    pixel_rows = Mul(pixel, heads)
    heads_scalar = Squeeze(heads, axis_0)
    head_row = Range(zero, heads_scalar, one)
    head_column = Unsqueeze(head_row, axis_1)
    head_pixel_rows = Add(pixel_rows, head_column)
    batch = Shape<start = 0, end = 1>(value)
    batch_scalar = Squeeze(batch, axis_0)
    batch_row = Range(zero, batch_scalar, one)
    map_rows = Mul(pixels, heads)
    batch_start = Mul(batch_row, map_rows)
    batch_start_shape = Constant<value_ints = [-1, 1, 1, 1]>()
    batch_start_4d = Reshape(batch_start, batch_start_shape)
    row_index = Add(head_pixel_rows, batch_start_4d)

    rows_shape = Concat<axis = 0>(axis_last, channels)
    rows = Reshape(value, rows_shape)
    samples_raw = Gather<axis = 0>(rows, row_index)
    samples = Cast<to = 1>(samples_raw)
    weight_axis = Constant<value_ints = [3]>()
    weight_row = Unsqueeze(weight, weight_axis)
    sums = MatMul(weight_row, samples)
    sums_flat = Reshape(sums, flat_shape)
    output = CastLike(sums_flat, value)
}
"""


def ms_deform_attn_function(opset: int) -> onnx.FunctionProto:
    """Return the function proto, which declares the attributes that nodes carry.

    Args:
        opset: of the model. With another one, checkers would treat the operators as different.
    """
    return onnx.parser.parse_function(_BODY.replace(": OPSET]", f": {opset}]"))


def attach_function(model: onnx.ModelProto) -> int:
    """Add the function to a model with such nodes, and return the number of the nodes."""
    nodes = [n for n in model.graph.node if n.domain == DOMAIN and n.op_type == NODE]
    if not nodes:
        return 0
    if all(entry.domain != DOMAIN for entry in model.opset_import):
        model.opset_import.append(onnx.helper.make_opsetid(DOMAIN, 1))
    opset = next(entry.version for entry in model.opset_import if not entry.domain)
    model.functions.append(ms_deform_attn_function(opset))
    return len(nodes)
