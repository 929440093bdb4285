"""Time the kernel on this GPU: ``python -m`` this module.

NOT RUN: the development machine has no GPU, so this project has no figures from it. The benchmark
compares on the same tensors and the same GPU: our kernel with every tactic, ``grid_sample`` in
PyTorch, NVIDIA's ``MultiscaleDeformableAttnPlugin_TRT`` where TensorRT is installed, and a device
copy, whose bandwidth is the ceiling. NVIDIA's plugin leaves softmax and locations to its caller, so
its time excludes them. Bytes are those that must move at least once: each input and the output. The
caches serve most reads of the four pixels of each sample.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from rvos_deploy.engines.plugins.ms_deform_attn.launch import Sizes, launch, primary_context
from rvos_deploy.engines.plugins.ms_deform_attn.spec import TACTICS, DType, LayerSizes

# The encoder of the large network at 480 x 864: strides 32, 16 and 8, one query a pixel.
LEVELS = ((15, 27), (30, 54), (60, 108))
HEADS, HEAD_WIDTH, POINTS = 8, 32, 4
_RUNS = 50


@dataclass(frozen=True)
class Timing:
    """One row of the result.

    Args:
        name: what ran.
        milliseconds: the median of 50 runs, by CUDA events.
        gigabytes_per_second: the bytes that must move, over that time.
    """

    name: str
    milliseconds: float
    gigabytes_per_second: float


def benchmark(kind: DType = "fp16", batch: int = 1) -> list[Timing]:
    """Time every kernel that is available here. NOT RUN.

    Args:
        kind: type of values, offsets and logits.
        batch: number of expressions.
    """
    import torch

    with torch.inference_mode(), primary_context():
        inputs = _random_inputs(kind, batch)
        output = torch.empty(
            batch, inputs[3].shape[1], HEADS * HEAD_WIDTH, dtype=inputs[0].dtype, device="cuda"
        )
        moved = sum(t.numel() * t.element_size() for t in (*inputs, output))
        layer = LayerSizes(HEADS, HEAD_WIDTH, len(LEVELS), POINTS)
        sizes = Sizes(batch, inputs[0].shape[1], inputs[3].shape[1], layer)
        pointers = tuple(tensor.data_ptr() for tensor in inputs)
        address = output.data_ptr()
        types = (kind, kind, kind)
        rows = [
            _time(
                f"tactic {number}: {tactic}",
                partial(launch, types, sizes, pointers, address, tactic),
                moved,
            )
            for number, tactic in TACTICS.items()
        ]
        rows.append(_time("grid_sample", _grid_sample(inputs), moved))
        if (nvidia := _nvidia_plugin(inputs)) is not None:
            rows.append(_time("MultiscaleDeformableAttnPlugin_TRT", nvidia, moved))
        source = torch.empty(2**28, dtype=torch.uint8, device="cuda")
        target = torch.empty_like(source)
        rows.append(_time("device copy", lambda: target.copy_(source), 2 * source.numel()))
    return rows


def _random_inputs(kind: DType, batch: int) -> tuple[Any, ...]:
    import torch

    dtype = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[kind]
    pixels = sum(height * width for height, width in LEVELS)
    generator = torch.Generator("cuda").manual_seed(0)

    def normal(*shape: int) -> Any:
        return torch.randn(shape, generator=generator, device="cuda").to(dtype)

    centres = [
        torch.stack(torch.meshgrid(torch.arange(w) + 0.5, torch.arange(h) + 0.5, indexing="xy"), -1)
        .div(torch.tensor([w, h]))
        .flatten(0, 1)
        for h, w in LEVELS
    ]
    return (
        normal(batch, pixels, HEADS, HEAD_WIDTH),
        torch.tensor(LEVELS, dtype=torch.int32, device="cuda"),
        torch.cat(centres).cuda(),
        3 * normal(batch, pixels, HEADS, len(LEVELS), POINTS, 2),
        normal(batch, pixels, HEADS, len(LEVELS) * POINTS),
    )


def _time(name: str, run: Callable[[], object], moved: int) -> Timing:
    import torch

    for _ in range(5):
        run()
    event: Any = torch.cuda.Event
    events = [[event(enable_timing=True) for _ in range(2)] for _ in range(_RUNS)]
    for start, end in events:
        start.record()
        run()
        end.record()
    torch.cuda.synchronize()
    median = statistics.median(start.elapsed_time(end) for start, end in events)
    return Timing(name, median, moved / median / 1e6)


def _grid_sample(inputs: tuple[Any, ...]) -> Callable[[], object]:
    from rvos_deploy.networks.modules.ms_deform_attn import _grid_sample_ms_deform_attn

    return lambda: _grid_sample_ms_deform_attn(*inputs)


def _nvidia_plugin(inputs: tuple[Any, ...]) -> Callable[[], object] | None:
    """Build an engine of NVIDIA's plugin alone, and return its run; None without the plugin."""
    import torch

    try:
        import tensorrt as trt
    except (ImportError, OSError):
        return None
    value, shapes, references, offsets, logits = inputs
    if value.dtype == torch.bfloat16:
        return None  # NVIDIA's plugin has no bf16
    logger = trt.Logger(trt.Logger.ERROR)
    trt.init_libnvinfer_plugins(logger, "")
    registry = trt.get_plugin_registry()
    creators = (registry.get_creator("MultiscaleDeformableAttnPlugin_TRT", v, "") for v in "21")
    creator = next((found for found in creators if found is not None), None)
    if creator is None:
        return None
    areas = shapes.prod(1)
    sizes = shapes.flip(1)[None, None, None, :, None]
    locations = references[None, :, None, None, None] + offsets / sizes
    tensors = {
        "value": value,
        "shapes": shapes,
        "starts": (areas.cumsum(0) - areas).int(),
        "locations": locations.to(value.dtype).contiguous(),
        "weights": logits.softmax(-1).unflatten(-1, offsets.shape[3:5]).contiguous(),
    }
    builder = trt.Builder(logger)
    network = builder.create_network(0)
    kinds = {
        torch.float32: trt.float32,
        torch.float16: trt.float16,
        torch.int32: trt.int32,
    }
    placed = [network.add_input(n, kinds[t.dtype], tuple(t.shape)) for n, t in tensors.items()]
    plugin = creator.create_plugin("nvidia", trt.PluginFieldCollection([]), trt.TensorRTPhase.BUILD)
    layer = network.add_plugin_v3(placed, [], plugin)
    layer.get_output(0).name = "output"
    network.mark_output(layer.get_output(0))
    plan = builder.build_serialized_network(network, builder.create_builder_config())
    engine = trt.Runtime(logger).deserialize_cuda_engine(plan)
    context = engine.create_execution_context()
    tensors["output"] = torch.empty(
        tuple(engine.get_tensor_shape("output")), dtype=value.dtype, device="cuda"
    )
    for name, tensor in tensors.items():
        context.set_tensor_address(name, tensor.data_ptr())

    def run() -> None:
        # The context uses the memory of the engine and of the tensors; this closure keeps both.
        if not engine or not tensors or not context.execute_async_v3(0):
            raise RuntimeError("TensorRT refused to run MultiscaleDeformableAttnPlugin_TRT")

    return run


def main() -> None:
    """Print the rows for fp32, fp16 and bf16."""
    kinds: tuple[DType, ...] = ("fp32", "fp16", "bf16")
    for kind in kinds:
        for row in benchmark(kind):
            print(kind, *asdict(row).values(), sep="\t")


if __name__ == "__main__":
    main()
