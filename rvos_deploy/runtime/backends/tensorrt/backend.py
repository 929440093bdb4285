"""Run the TensorRT engines of a bundle on the GPU that ``build-engine`` tested them on.

Outputs stay on the GPU, where the next graph reads them. All graphs run on one stream, one after
the other. Host arrays are uploaded on a second stream through page-locked buffers.

NOT RUN: it needs a GPU. Recording stand-ins of ``tensorrt`` (ONNX Runtime does the arithmetic),
``pycuda.driver`` and ``cuda.bindings.driver`` test this back end. The real bindings of TensorRT
check every name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from rvos_deploy.bundle.engine_sidecar import EngineError, EngineSidecar, Target, read_sidecar
from rvos_deploy.bundle.folder import Bundle
from rvos_deploy.errors import RvosError
from rvos_deploy.runtime.backends.base import Backend, Session
from rvos_deploy.runtime.backends.cuda.device import acquire_device
from rvos_deploy.runtime.backends.cuda.libraries import import_tensorrt
from rvos_deploy.runtime.backends.device_names import cuda_name
from rvos_deploy.runtime.backends.tensorrt.engine_checks import EngineMachine, no_profile
from rvos_deploy.runtime.backends.tensorrt.engine_loading import load_engine
from rvos_deploy.runtime.backends.tensorrt.graph import Engine
from rvos_deploy.runtime.backends.tensorrt.session import open_engines

if TYPE_CHECKING:
    import tensorrt as trt

MODULES: dict[Target, str] = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}
"""The module that runs the engines of a target. The API of TensorRT-RTX is that of TensorRT."""


class TensorRtBackend(Backend):
    """The engines in a bundle's ``engines/<target>``, on one GPU.

    Args:
        target: the TensorRT that the engines were built by.
        ordinal: the number of the GPU among those that CUDA shows to this process.
        cuda_graphs: capture repeated runs as CUDA graphs; a warning says why where that fails.
        allow_host_code: load version-compatible engines, which hold host code; only for plans that
            you trust.
    """

    def __init__(
        self,
        target: Target = "tensorrt",
        ordinal: int = 0,
        *,
        cuda_graphs: bool = True,
        allow_host_code: bool = False,
    ) -> None:
        """Raises BackendError: TensorRT, a CUDA package, the driver or the GPU is missing."""
        self.name: Target = target
        self._trt, self._libraries = import_tensorrt(MODULES[target])
        self._ordinal = ordinal
        self._cuda_graphs, self._allow_host_code = cuda_graphs, allow_host_code
        self._logger = self._trt.Logger(self._trt.Logger.ERROR)
        device = acquire_device(self._libraries, ordinal)
        self._gpu = f"{device.name} (compute capability {device.compute_capability})"
        device.release()

    def open(self, bundle: Bundle, graphs: Sequence[str] | None = None) -> Session:
        """Open engines of a bundle. Nothing is deserialised before every check has passed.

        Raises:
            EngineError: an engine is missing or does not fit; gives the command that builds it.
            BackendError, BundleError: as ``Backend.open``.
        """
        names = tuple(bundle.graphs if graphs is None else graphs)
        try:
            sidecars = [read_sidecar(bundle.path, self.name, name) for name in names]
            engines = [self._engine(bundle, sidecar) for sidecar in sidecars]
            return open_engines(
                self._trt, self._libraries, engines, self._ordinal, cuda_graphs=self._cuda_graphs
            )
        except EngineError as error:
            raise self._for_this_gpu(error) from error

    def _engine(self, bundle: Bundle, sidecar: EngineSidecar) -> Engine:
        def load(machine: EngineMachine) -> trt.ICudaEngine:
            return load_engine(
                self._trt,
                self._logger,
                bundle,
                sidecar,
                machine,
                allow_host_code=self._allow_host_code,
            )

        def refuse(axes: Mapping[str, int]) -> RvosError:
            return self._for_this_gpu(no_profile(bundle.path, sidecar, axes))

        return Engine(bundle.graphs[sidecar.graph], sidecar.profiles, load, refuse)

    def _for_this_gpu(self, error: EngineError) -> EngineError:
        """Return an error whose command builds on this back end's GPU, not on the first one."""
        if not self._ordinal:
            return error
        command = f"{error.command} --device {cuda_name(self._ordinal)}"
        return EngineError(error.found, error.needed, command)

    def describe(self) -> dict[str, str]:
        """Return the library, its version, the device, the GPU's name, and the driver's package."""
        return {
            "name": self.name,
            "version": str(self._trt.__version__),
            "device": cuda_name(self._ordinal),
            "gpu": self._gpu,
            "cuda": self._libraries.name,
        }
