"""Register ``rvos::MSDeformAttn`` with TensorRT, 10.9 and newer, as a plugin that needs no library.

While TensorRT builds, it asks for one PTX per node and tactic. The engine carries the PTX of the
fastest tactic, so it needs neither Python nor a shared object to run. Heads, head width, levels and
points are constants of the PTX; batch, pixels and queries may be dynamic.

The plugin has no attributes. TensorRT's ONNX parser itself reads ``plugin_namespace``,
``plugin_version`` and ``aot`` of the node, and passes on only fields that a creator declares. Level
shapes are a device tensor, because quickly deployable plugins have no shape inputs. All other sizes
follow from the inputs' shapes.

TensorRT reads the annotations of the functions below as classes, so this module must not postpone
them
(``from __future__ import annotations``).
"""

# mypy: disable-error-code="valid-type,attr-defined,untyped-decorator"

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

from rvos_deploy.engines.plugins.ms_deform_attn.compile import compile_ptx, device_arch
from rvos_deploy.engines.plugins.ms_deform_attn.spec import (
    KERNEL_NAME,
    PLUGIN_ID,
    TACTICS,
    DType,
    KernelSpec,
    LayerSizes,
    PluginError,
    block_shape,
    check_types,
    check_value_bytes,
    tactics_for,
)
from rvos_deploy.errors import RvosError
from rvos_deploy.runtime.backends.cuda.libraries import INSTALL
from rvos_deploy.runtime.backends.imports import import_library

_INPUT_RANKS = {
    "value": 4,
    "level_shapes": 2,
    "reference_points": 2,
    "sampling_offsets": 6,
    "attention_logits": 4,
}
_TRIAL = LayerSizes(heads=1, head_width=32, levels=1, points=1)
_target: dict[str, int] = {}  # TensorRT's callbacks have no argument for the architecture
_failures: list[RvosError] = []


def register_plugin(arch: int | None = None, kind: DType = "fp16") -> None:
    """Register ``rvos::MSDeformAttn`` with TensorRT; call this before the ONNX is parsed.

    The plugin is registered once per process. A later call only sets ``arch`` for the builds that
    follow. One kernel is compiled here, because TensorRT prints what goes wrong in its callbacks
    and loses it.

    Args:
        arch: the virtual architecture of the PTX, for example 80 for engines for Ampere and later.
            None uses that of the GPU that builds.
        kind: the type of values that is tried here: the bundle's precision.

    Raises:
        PluginError: TensorRT is missing, or too old for ahead-of-time plugins, or the CUDA headers
            or the GPU are missing.
        BackendError: NVRTC is missing, or cannot compile for the architecture.
    """
    trtp = _tensorrt_plugin()
    _target["arch"] = device_arch() if arch is None else arch
    compile_ptx(KernelSpec(_target["arch"], kind, kind, kind, _TRIAL, TACTICS[1]))
    _failures.clear()
    if not is_registered():
        _register(trtp)


def raise_plugin_failure() -> None:
    """Raise the first error that a callback raised since :func:`register_plugin`, if there is one.

    TensorRT then only says that the plugin failed.
    """
    if _failures:
        raise _failures[0]


@contextmanager
def _kept() -> Iterator[None]:
    try:
        yield
    except RvosError as error:
        _failures.append(error)
        raise


def is_registered() -> bool:
    """Tell whether this process has registered the plugin.

    Raises:
        PluginError: TensorRT is missing, or too old for ahead-of-time plugins.
    """
    namespace, name = PLUGIN_ID.split("::")
    return hasattr(getattr(_tensorrt_plugin().op, namespace, None), name)


def _register(trtp: Any) -> None:
    """Give TensorRT the three functions; it checks their signatures and raises ValueError."""
    desc, one = trtp.TensorDesc, tuple[trtp.TensorDesc]
    kernel = tuple[str, str, trtp.KernelLaunchParams, trtp.SymIntExprs]

    @trtp.register(PLUGIN_ID)
    def describe(
        value: desc,
        level_shapes: desc,
        reference_points: desc,
        sampling_offsets: desc,
        attention_logits: desc,
    ) -> one:
        inputs = (value, level_shapes, reference_points, sampling_offsets, attention_logits)
        with _kept():
            _check_ranks(inputs)
        batch, queries = sampling_offsets.shape_expr[0], sampling_offsets.shape_expr[1]
        channels = value.shape_expr[2] * value.shape_expr[3]
        return (trtp.from_shape_expr((batch, queries, channels), value.dtype),)

    @trtp.autotune(PLUGIN_ID)
    def choose(
        value: desc,
        level_shapes: desc,
        reference_points: desc,
        sampling_offsets: desc,
        attention_logits: desc,
        outputs: one,
    ) -> list[trtp.AutoTuneCombination]:
        with _kept():
            kinds = _kinds(
                value, level_shapes, reference_points, sampling_offsets, attention_logits
            )
            sizes = _layer_sizes(value, sampling_offsets)
            check_value_bytes(kinds[0], _greatest(value, 1), sizes)
            tactics = tactics_for(kinds[0], sizes.head_width)
        real, offsets, logits = (kind.upper() for kind in kinds)
        types = f"{real}, INT32, FP32, {offsets}, {logits}, {real}"
        return [trtp.AutoTuneCombination(types, "LINEAR", tactics)]

    @trtp.aot_impl(PLUGIN_ID)
    def implement(
        value: desc,
        level_shapes: desc,
        reference_points: desc,
        sampling_offsets: desc,
        attention_logits: desc,
        outputs: one,
        tactic: int,
    ) -> kernel:
        with _kept():
            kinds = _kinds(
                value, level_shapes, reference_points, sampling_offsets, attention_logits
            )
            sizes = _layer_sizes(value, sampling_offsets)
            # TensorRT passes 0 where it made no choice; all tactics compute the same.
            chosen = TACTICS[tactic or tactics_for(kinds[0], sizes.head_width)[0]]
            ptx = compile_ptx(KernelSpec(_target["arch"], *kinds, sizes, chosen))
            block = block_shape(kinds[0], sizes.head_width, chosen)
        return KERNEL_NAME, ptx, *_launch(trtp, value, sampling_offsets, block)


def _launch(trtp: Any, value: Any, offsets: Any, block: tuple[int, int]) -> tuple[Any, Any]:
    """Return the launch parameters and the scalar arguments of the kernel."""
    batch, queries, heads = (offsets.shape_expr[axis] for axis in range(3))
    block_x, block_y = block
    launch = trtp.KernelLaunchParams(
        grid_x=trtp.cdiv(queries, block_y),
        grid_y=heads,
        grid_z=batch,
        block_x=block_x,
        block_y=block_y,
    )
    scalars = (value.shape_expr[1], queries)
    # TensorRT refuses plain expressions, and passes nothing wider than SymInt32.
    return launch, trtp.SymIntExprs.from_tuple(tuple(map(trtp.SymInt32, scalars)))


def _tensorrt_plugin() -> Any:
    trt = import_library("tensorrt", "tensorrt")
    if trt is None:
        raise PluginError(f"tensorrt is not installed; {INSTALL}")
    if not hasattr(trt, "QuickPluginCreationRequest"):
        raise PluginError(
            f"TensorRT {trt.__version__} knows no ahead-of-time plugins, which need 10.9 at least; "
            "pip install 'tensorrt>=10.9,<12'"
        )
    import tensorrt.plugin as trtp

    return trtp


def _check_ranks(inputs: tuple[Any, ...]) -> None:
    for (name, rank), tensor in zip(_INPUT_RANKS.items(), inputs, strict=True):
        if tensor.ndim != rank:
            raise PluginError(
                f"{PLUGIN_ID} got {name} of rank {tensor.ndim}; it needs {rank}: export again with "
                "this version of rvos-deploy"
            )


def _kinds(
    value: Any, level_shapes: Any, reference_points: Any, sampling_offsets: Any, logits: Any
) -> tuple[DType, DType, DType]:
    """Return the types of values, offsets and logits; the other inputs have one type each."""
    import tensorrt as trt

    if (level_shapes.dtype, reference_points.dtype) != (trt.int32, trt.float32):
        raise PluginError(
            f"{PLUGIN_ID} got level shapes in {level_shapes.dtype} and reference points in "
            f"{reference_points.dtype}; it needs int32 and float32: export again with this version "
            "of rvos-deploy"
        )
    names = {trt.float32: "fp32", trt.float16: "fp16", trt.bfloat16: "bf16"}
    kinds = [names.get(t.dtype, str(t.dtype)) for t in (value, sampling_offsets, logits)]
    check_types(*kinds)
    return cast(tuple[DType, DType, DType], tuple(kinds))


def _layer_sizes(value: Any, offsets: Any) -> LayerSizes:
    """Return the sizes that the kernel is compiled for."""
    return LayerSizes(
        heads=_constant("heads", offsets, 2),
        head_width=_constant("head width", value, 3),
        levels=_constant("levels", offsets, 3),
        points=_constant("points", offsets, 4),
    )


def _constant(name: str, tensor: Any, axis: int) -> int:
    """Return the length of an axis that must be known during the build."""
    length: int = tensor.shape[axis]
    if length == -1 and tensor.shape.min[axis] == tensor.shape.max[axis]:
        length = tensor.shape.max[axis]
    if length == -1:
        raise PluginError(
            f"{PLUGIN_ID} got a dynamic axis of {name}; it needs a constant: export again with "
            "this version of rvos-deploy"
        )
    return length


def _greatest(tensor: Any, axis: int) -> int:
    """Return the length of an axis, where it is dynamic the greatest of the profile."""
    length: int = tensor.shape[axis]
    return length if length != -1 else int(tensor.shape.max[axis])
