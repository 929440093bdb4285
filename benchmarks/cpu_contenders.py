"""Name the back ends that the CPU benchmark compares, and open them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Literal

from rvos_deploy.bundle.folder import Bundle
from rvos_deploy.errors import BackendError, InputError
from rvos_deploy.graph_io.precision_hint import PrecisionHint
from rvos_deploy.runtime.backends.base import Backend
from rvos_deploy.runtime.backends.registry import make_backend

if TYPE_CHECKING:
    from rvos_deploy.benchmarks.torch_backend import TorchBackend

Arithmetic = Literal["fp32", "bf16", "int8"]

REFERENCE = "pytorch"
"""The contender that all others are compared with."""


@dataclass(frozen=True)
class Contender:
    """Describe a back end of the comparison.

    Args:
        title: name for readers.
        arithmetic: number format of its products.
        package: the package that it needs.
        make: returns the back end for a bundle and a number of threads.
        hint: the precision hint that it needs.
        own_bundle: whether it runs another bundle than the others: that with int8 weights.
    """

    title: str
    arithmetic: Arithmetic
    package: str
    make: Callable[[Bundle, int], Backend]
    hint: PrecisionHint | None = None
    own_bundle: bool = False


def _library(name: str, hint: PrecisionHint | None = None) -> Callable[[Bundle, int], Backend]:
    def make(bundle: Bundle, threads: int) -> Backend:
        return make_backend(name, "cpu", threads, hint)

    return make


_modules: dict[tuple[str, int], TorchBackend] = {}
"""PyTorch's modules by bundle and threads: eager and autocast share them."""


def _pytorch(bundle: Bundle, threads: int) -> Backend:
    from rvos_deploy.benchmarks.torch_backend import TorchBackend

    key = (bundle.manifest.manifest_sha256, threads)
    if key not in _modules:
        _modules.clear()
        _modules[key] = TorchBackend(bundle, threads)
    return _modules[key]


def _autocast(bundle: Bundle, threads: int) -> Backend:
    _pytorch(bundle, threads)
    return _modules[bundle.manifest.manifest_sha256, threads].with_autocast()


CONTENDERS: Mapping[str, Contender] = {
    "pytorch": Contender("PyTorch eager", "fp32", "torch", _pytorch),
    "pytorch-bf16": Contender("PyTorch eager, bf16 autocast", "bf16", "torch", _autocast),
    "onnxruntime": Contender("ONNX Runtime", "fp32", "onnxruntime", _library("onnxruntime")),
    "openvino": Contender("OpenVINO", "fp32", "openvino", _library("openvino")),
    "openvino-bf16": Contender(
        "OpenVINO, bf16", "bf16", "openvino", _library("openvino", "bf16"), hint="bf16"
    ),
    "onnxruntime-int8": Contender(
        "ONNX Runtime, int8", "int8", "onnxruntime", _library("onnxruntime"), own_bundle=True
    ),
    "openvino-int8": Contender(
        "OpenVINO, int8", "int8", "openvino", _library("openvino"), own_bundle=True
    ),
}
"""All contenders, in the order of tables and plots.

ONNX Runtime runs deformable attention as the function in the file. An operator of its own would
need a C header that no wheel carries, so there is no contender "ONNX Runtime with the kernel".
"""


def missing(name: str) -> str | None:
    """Return why a contender cannot run here; None if it can."""
    contender = CONTENDERS[name]
    if find_spec(contender.package) is None:
        return f"{contender.package} is not installed"
    if contender.hint is not None:
        try:
            make_backend(contender.package, "cpu", 1, contender.hint)
        except BackendError as error:
            return str(error)
    return None


def choose_contenders(names: tuple[str, ...]) -> dict[str, str | None]:
    """Return the chosen contenders, or all of them, each with the reason why it cannot run.

    Raises:
        InputError: a name is unknown.
    """
    if unknown := [name for name in names if name not in CONTENDERS]:
        raise InputError(f"unknown contender '{unknown[0]}'; choose among {', '.join(CONTENDERS)}")
    return {name: missing(name) for name in CONTENDERS if not names or name in names}
