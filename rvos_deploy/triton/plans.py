"""Decide which TensorRT plans Triton may get, and give their sizes to the stream.

The plans need no plugin library: they carry the machine code of deformable attention
(``engines/plugins/ms_deform_attn/plugin.py``). Triton's TensorRT back end checks neither hashes nor
parity, so both are checked when a repository is written.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from rvos_deploy.bundle.engine_sidecar import (
    EngineError,
    EngineSidecar,
    Profile,
    plan_file,
    read_sidecar,
    rebuild_command,
)
from rvos_deploy.bundle.folder import Bundle
from rvos_deploy.errors import BundleError
from rvos_deploy.graph_io.graph_spec import AxisSpec, GraphSpec
from rvos_deploy.runtime.backends.tensorrt.engine_checks import check_plan, require_parity

TARGET = "tensorrt"
"""Triton's back end runs plans of TensorRT; it has none for TensorRT-RTX."""


def servable_plans(bundle: Bundle) -> dict[str, EngineSidecar]:
    """Return the sidecars of a bundle's plans, one for each graph, after every check.

    Raises:
        EngineError: a plan is missing, was changed, was built from another graph, has not passed
            parity, or lacks its weights.
        BundleError: the plans need different versions of TensorRT.
    """
    sidecars = {name: read_sidecar(bundle.path, TARGET, name) for name in bundle.graphs}
    for name, sidecar in sidecars.items():
        check_plan(bundle, sidecar)
        require_parity(bundle, sidecar)
        if sidecar.stripped:
            command = rebuild_command(bundle.path, TARGET, sidecar.options)
            raise EngineError(
                f"{plan_file(bundle.path, TARGET, name)} lacks its weights (--strip-weights)",
                "a complete plan, because Triton does not read weights from ONNX",
                command.replace(" --strip-weights", ""),
            )
    built = sorted({sidecar.tensorrt_version for sidecar in sidecars.values()})
    if len(built) > 1:
        raise BundleError(
            f"the plans of {bundle.path} were built with TensorRT {' and '.join(built)}, and a "
            f"server has one; run: {rebuild_command(bundle.path, TARGET)}"
        )
    return sidecars


def server_needs(sidecars: Mapping[str, EngineSidecar]) -> str:
    """Return in one line what a server must have to load these plans."""
    first = next(iter(sidecars.values()))
    version = f"TensorRT {first.tensorrt_version}"
    if any(sidecar.version_compatible for sidecar in sidecars.values()):
        version += ", or a later one of that major version with --backend-config=tensorrt,"
        version += "version-compatible=true"
    gpus = sorted({sidecar.gpu or "an unknown GPU" for sidecar in sidecars.values()})
    gpu = " and ".join(gpus)
    if all(sidecar.hardware_compatible for sidecar in sidecars.values()):
        gpu = "a GPU from Ampere on"
    return f"the plans need {version}, and {gpu}"


def within_profiles(bundle: Bundle) -> Bundle:
    """Return the bundle with graphs whose axes are those of its plans, from the sidecars alone.

    So a stream refuses sizes that no profile supports, and pads to the least size of a profile.

    Raises:
        EngineError: a sidecar is missing or damaged.
    """
    graphs = {
        name: _narrowed(spec, read_sidecar(bundle.path, TARGET, name).profiles)
        for name, spec in bundle.graphs.items()
    }
    return replace(bundle, graphs=graphs)


def _narrowed(spec: GraphSpec, profiles: Sequence[Profile]) -> GraphSpec:
    """Return the contract with the sizes from the least to the greatest of all profiles."""
    return replace(spec, axes=tuple(_narrowed_axis(axis, profiles) for axis in spec.axes))


def _narrowed_axis(axis: AxisSpec, profiles: Sequence[Profile]) -> AxisSpec:
    ranges = [profile[axis.name] for profile in profiles if axis.name in profile]
    if not ranges:
        return axis
    least, greatest = min(low for low, _, _ in ranges), max(high for _, _, high in ranges)
    return replace(axis, minimum=max(axis.minimum, least), maximum=min(axis.maximum, greatest))
