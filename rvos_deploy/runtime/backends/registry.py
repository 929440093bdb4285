"""Find a back end by name. Imports no NumPy: the command line asks for the names."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from typing import TYPE_CHECKING, Literal, get_args

from rvos_deploy.errors import BackendError, one_line
from rvos_deploy.graph_io.precision_hint import PRECISION_HINTS, PrecisionHint
from rvos_deploy.runtime.backends.device_names import cuda_ordinal, plain_device

if TYPE_CHECKING:
    from rvos_deploy.bundle.engine_sidecar import Target
    from rvos_deploy.runtime.backends.base import Backend

BackendName = Literal[
    "auto", "onnxruntime", "openvino", "tensorrt", "tensorrt-rtx", "bf16-reference"
]
BACKEND_NAMES: tuple[str, ...] = get_args(BackendName)

CPU_BACKENDS = ("onnxruntime", "openvino")
"""What ``auto`` chooses from on the CPU; without a trial, the first that is installed."""


def _onnxruntime(device: str, threads: int | None) -> Backend:
    from rvos_deploy.runtime.backends.onnxruntime.backend import OnnxRuntimeBackend

    return OnnxRuntimeBackend(device, threads)


def _openvino(device: str, threads: int | None) -> Backend:
    from rvos_deploy.runtime.backends.openvino.backend import OpenVinoBackend

    if device != "cpu":
        raise BackendError(
            f"openvino has no device '{device}' here; known: cpu (leave --device out, or choose "
            "--backend onnxruntime)"
        )
    return OpenVinoBackend(threads)


def _engines(target: Target, device: str, threads: int | None) -> Backend:
    from rvos_deploy.runtime.backends.tensorrt.backend import TensorRtBackend

    ordinal = cuda_ordinal(device)
    if ordinal is None:
        raise BackendError(
            f"{target} has no device '{device}'; known: cuda, cuda:N, GPU-UUID (leave "
            "--device out, or choose --backend onnxruntime)"
        )
    return TensorRtBackend(target, ordinal)


def _bf16_reference(device: str, threads: int | None) -> Backend:
    from rvos_deploy.runtime.backends.onnxruntime.bf16_reference import Bf16ReferenceBackend

    if device != "cpu":
        raise BackendError(
            f"bf16-reference has no device '{device}'; known: cpu (leave --device out, or choose "
            "--backend onnxruntime)"
        )
    return Bf16ReferenceBackend(threads=threads)


@dataclass(frozen=True)
class KnownBackend:
    """How a back end is made, and the device that it uses by default."""

    make: Callable[[str, int | None], Backend]
    device: str


BACKENDS: dict[str, KnownBackend] = {
    "onnxruntime": KnownBackend(_onnxruntime, "cpu"),
    "openvino": KnownBackend(_openvino, "cpu"),
    "tensorrt": KnownBackend(partial(_engines, "tensorrt"), "cuda"),
    "tensorrt-rtx": KnownBackend(partial(_engines, "tensorrt-rtx"), "cuda"),
    "bf16-reference": KnownBackend(_bf16_reference, "cpu"),
}
"""Add your own back end before a bundle is loaded: ``BACKENDS["mine"] = KnownBackend(...)``."""


def installed_cpu_backends() -> tuple[str, ...]:
    """Return those of ``CPU_BACKENDS`` whose library is installed; none is imported."""
    return tuple(name for name in CPU_BACKENDS if find_spec(name) is not None)


def default_backend(device: str = "auto") -> str:
    """Return what ``auto`` means without a trial: the first installed library.

    It is onnxruntime for a GPU, and where nothing is installed: its error says how to install.
    """
    installed = installed_cpu_backends() if cuda_ordinal(device) is None else ()
    return next(iter(installed), "onnxruntime")


def make_backend(
    name: str = "auto",
    device: str = "auto",
    threads: int | None = None,
    precision_hint: PrecisionHint | None = None,
) -> Backend:
    """Make a back end by name.

    Args:
        name: one of ``BACKEND_NAMES``. ``auto`` is the default back end here; ``choice.choose``
            knows a bundle's trial.
        device: ``cpu``, ``cuda`` (the first GPU that CUDA shows), ``cuda:N``, the UUID of a GPU or
            of a MIG instance, or ``auto``: the first GPU for engines, the CPU for the others.
        threads: for the arithmetic of one graph on the CPU; None uses every core of the process.
        precision_hint: see ``Backend.with_precision_hint``; None: the bundle's own precision.

    Raises:
        BackendError: the name is unknown, the library is not installed, or the device is not
            available, or the back end or this machine cannot follow the hint.
        InputError: CUDA shows no GPU of this UUID.
    """
    device = plain_device(device)
    chosen = default_backend(device) if name == "auto" else name
    if chosen not in BACKENDS:
        raise BackendError(f"unknown back end '{name}'; known: {', '.join(('auto', *BACKENDS))}")
    known = BACKENDS[chosen]
    backend = known.make(known.device if device == "auto" else device, threads)
    if precision_hint is None:
        return backend
    if precision_hint not in PRECISION_HINTS:
        raise BackendError(
            f"unknown precision hint '{one_line(precision_hint)}'; known: "
            f"{', '.join(PRECISION_HINTS)}"
        )
    if name == "auto":
        raise BackendError(
            f"--precision-hint {precision_hint} asks for other numbers, which --backend auto never "
            "chooses; add --backend openvino"
        )
    return backend.with_precision_hint(precision_hint)
