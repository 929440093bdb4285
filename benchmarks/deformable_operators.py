"""Find other implementations of deformable attention: Deformable-DETR's operator, NVIDIA's plugin.

Both take sampling locations and weights after softmax, which are computed here once.

NOT RUN: they need a GPU. The tests run the locations, what is missing, and the stream of a launch.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rvos_deploy.errors import BackendError

MODULE = "MultiScaleDeformableAttention"
PLUGIN = "MultiscaleDeformableAttnPlugin_TRT"
IM2COL_STEP = 64
"""Samples of a batch that the operator takes at once; its own default."""


def sampled(inputs: tuple[Any, ...]) -> tuple[Any, Any, Any]:
    """Return starts of the levels int32 [levels], locations [B,Q,heads,levels,points,2] in 0..1,
    and weights [B,Q,heads,levels,points], in the type of the values.
    """
    value, shapes, references, offsets, logits = inputs
    areas = shapes.prod(1)
    sizes = shapes.flip(1)[None, None, None, :, None]
    locations = references[None, :, None, None, None] + offsets / sizes
    weights = logits.softmax(-1).unflatten(-1, tuple(offsets.shape[3:5]))
    return (
        (areas.cumsum(0) - areas).int(),
        locations.to(value.dtype).contiguous(),
        weights.contiguous(),
    )


def official_operator(
    inputs: tuple[Any, ...],
    levels: Sequence[tuple[int, int]],
    source: Path | None = None,
) -> Callable[[], Any]:
    """Return a launch of Deformable-DETR's own CUDA operator on PyTorch's current stream.

    Args:
        inputs: as ``ms_deform_attn`` takes them.
        levels: (height, width) of every level.
        source: the folder ``models/ops`` of a clone, which is built; None: as it is installed.

    Raises:
        BackendError: the operator is not installed, or the folder is none of Deformable-DETR.
    """
    module = _installed() if source is None else _built(source)
    value, shapes = inputs[0], inputs[1].long()
    starts, locations, weights = sampled(inputs)
    starts = starts.long()

    def run() -> Any:
        return module.ms_deform_attn_forward(value, shapes, starts, locations, weights, IM2COL_STEP)

    return run


def _installed() -> Any:
    try:
        import torch  # noqa: F401  (the operator's library links PyTorch's)

        return importlib.import_module(MODULE)
    except ImportError:
        raise BackendError(
            f"{MODULE} is not installed; clone github.com/fundamentalvision/Deformable-DETR and "
            "give --operator Deformable-DETR/models/ops"
        ) from None


def _built(source: Path) -> Any:
    from torch.utils.cpp_extension import load

    root = source / "src"
    files = [file for pattern in ("*.cpp", "cpu/*.cpp", "cuda/*.cu") for file in root.glob(pattern)]
    if not any(file.suffix == ".cu" for file in files):
        raise BackendError(
            f"{source} holds no src/cuda/*.cu; give the folder models/ops of Deformable-DETR"
        )
    flags = ["-DWITH_CUDA"]
    return load(
        MODULE,
        [str(file) for file in sorted(files)],
        extra_cflags=flags,
        extra_cuda_cflags=flags,
        extra_include_paths=[str(root)],
        with_cuda=True,
    )


def nvidia_plugin(inputs: tuple[Any, ...]) -> Callable[[], Any]:
    """Build an engine of NVIDIA's plugin alone, and return its launch on PyTorch's current stream.

    Raises:
        BackendError: TensorRT or its plugin is missing, or has no kernel of this type.
    """
    import torch

    try:
        import tensorrt as trt
    except (ImportError, OSError):
        raise BackendError("tensorrt is not installed, or cannot be loaded") from None
    value, shapes, _, _, _ = inputs
    if value.dtype == torch.bfloat16:
        raise BackendError(f"{PLUGIN} has no bf16")
    starts, locations, weights = sampled(inputs)
    tensors = {
        "value": value,
        "shapes": shapes,
        "starts": starts,
        "locations": locations,
        "weights": weights,
    }
    engine = _plugin_engine(trt, tensors)
    context = engine.create_execution_context()
    tensors["output"] = torch.empty(
        tuple(engine.get_tensor_shape("output")), dtype=value.dtype, device=value.device
    )
    for name, tensor in tensors.items():
        context.set_tensor_address(name, tensor.data_ptr())
    # The context uses the memory of the engine and of the tensors; the launch keeps both.
    return on_current_stream(torch.cuda, context, (engine, tensors), tensors["output"])


def on_current_stream(cuda: Any, context: Any, owners: object, output: Any) -> Callable[[], Any]:
    """Return a launch of a TensorRT context on PyTorch's current stream, where it can be captured.

    TensorRT synchronises on the default stream, and nothing there can be captured.
    """

    def run() -> Any:
        assert owners is not None
        if not context.execute_async_v3(cuda.current_stream().cuda_stream):
            raise BackendError(f"TensorRT refused to run {PLUGIN}")
        return output

    return run


def _plugin_engine(trt: Any, tensors: dict[str, Any]) -> Any:
    import torch

    logger = trt.Logger(trt.Logger.ERROR)
    trt.init_libnvinfer_plugins(logger, "")
    registry = trt.get_plugin_registry()
    creators = (registry.get_creator(PLUGIN, version, "") for version in "21")
    creator = next((found for found in creators if found is not None), None)
    if creator is None:
        raise BackendError(f"this TensorRT has no {PLUGIN}")
    builder = trt.Builder(logger)
    network = builder.create_network(0)
    kinds = {torch.float32: trt.float32, torch.float16: trt.float16, torch.int32: trt.int32}
    placed = [network.add_input(n, kinds[t.dtype], tuple(t.shape)) for n, t in tensors.items()]
    plugin = creator.create_plugin("nvidia", trt.PluginFieldCollection([]), trt.TensorRTPhase.BUILD)
    layer = network.add_plugin_v3(placed, [], plugin)
    layer.get_output(0).name = "output"
    network.mark_output(layer.get_output(0))
    plan = builder.build_serialized_network(network, builder.create_builder_config())
    if plan is None:
        raise BackendError(f"TensorRT cannot build {PLUGIN}")
    return trt.Runtime(logger).deserialize_cuda_engine(plan)
