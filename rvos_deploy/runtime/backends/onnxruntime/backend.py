"""Run ONNX Runtime on the CPU or through CUDA, and never on a provider that was not asked for."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import io
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np

from rvos_deploy.bundle.onnx_file import OnnxContent, OnnxFile, has_functions
from rvos_deploy.environment import processor_fingerprint, usable_cores
from rvos_deploy.errors import BackendError, one_line
from rvos_deploy.graph_io.graph_spec import GraphSpec
from rvos_deploy.graph_io.tensors import Tensor
from rvos_deploy.runtime.backends.base import Graph, OnnxBackend
from rvos_deploy.runtime.backends.device_names import cuda_ordinal
from rvos_deploy.runtime.backends.host_ops import HostOps
from rvos_deploy.runtime.backends.imports import import_library
from rvos_deploy.runtime.backends.onnxruntime.binding import run_bound
from rvos_deploy.runtime.backends.onnxruntime.device_arrays import CudaArrayOps
from rvos_deploy.runtime.backends.onnxruntime.optimised_models import (
    MAXIMUM_MODEL_BYTES,
    OptimisedModel,
)

CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"


@dataclass(frozen=True)
class Place:
    """Where a session runs: an execution provider, and the number of its GPU."""

    provider: str
    ordinal: int = 0


@dataclass(frozen=True)
class OnnxRuntimeBackend(OnnxBackend):
    """ONNX Runtime with one execution provider.

    The CUDA provider is NOT RUN: the development machine has no GPU.

    Args:
        device: ``cpu``, ``cuda`` or ``cuda:N``.
        threads: for the arithmetic of one graph; None uses every core that the process may use.
    """

    device: str = "cpu"
    threads: int | None = None
    name = "onnxruntime"

    def __post_init__(self) -> None:
        if self.device != "cpu" and self._ordinal is None:
            raise BackendError(
                f"onnxruntime has no device '{self.device}'; known: cpu, cuda, cuda:N, GPU-UUID"
            )
        available, provider = _import().get_available_providers(), self._place.provider
        if provider not in available:
            raise BackendError(
                f"this onnxruntime offers {', '.join(available)}, not {provider}; "
                "pip uninstall -y onnxruntime && pip install 'rvos-deploy[gpu]' "
                "(the two packages shadow each other)"
            )
        if self._ordinal is not None:
            _load_cuda_libraries()

    def _graph(self, spec: GraphSpec, file: OnnxFile) -> Graph:
        return OnnxRuntimeGraph(spec, file, self._place, self.threads or usable_cores())

    def _ops(self) -> HostOps:
        return HostOps() if self._ordinal is None else CudaArrayOps(self._ordinal)

    @property
    def _ordinal(self) -> int | None:
        return cuda_ordinal(self.device)

    @property
    def _place(self) -> Place:
        return Place(CPU) if self._ordinal is None else Place(CUDA, self._ordinal)

    def describe(self) -> dict[str, str]:
        """Return the library, its version and the device."""
        return {"name": self.name, "version": _import().__version__, "device": self.device}


class OnnxRuntimeGraph(Graph):
    """One graph in an ONNX Runtime session."""

    def __init__(self, spec: GraphSpec, file: OnnxFile, place: Place, threads: int) -> None:
        """Open an ONNX Runtime session, and check that it uses the provider that was asked for.

        Raises:
            BackendError, BundleError: as ``Backend.open``.
        """
        super().__init__(spec)
        self._file, self._place, self._threads = file, place, threads
        self._outputs = [tensor.name for tensor in spec.outputs]
        self._check_precision()
        ort = _import()
        content = self._content()
        session = self._reopen(ort, content) or self._open(ort, content)
        # ONNX Runtime only logs a failed provider, and goes on without it.
        if session.get_providers()[0] != place.provider:
            missing = _load_cuda_libraries()
            raise BackendError(
                f"onnxruntime could not start {place.provider} and fell back to "
                f"{session.get_providers()[0]}{f' ({missing})' if missing else ''}; "
                "pip install --upgrade 'rvos-deploy[gpu]' brings CUDA's libraries; check the "
                "driver with nvidia-smi, or use --device cpu"
            )
        # The session keeps the model's bytes to open it with other providers, which we never do.
        session._model_bytes = None
        self._session: Any = session

    def _reopen(self, ort: Any, content: OnnxContent) -> Any:
        """Open the model that an earlier process optimised, or keep it for the next process.

        Returns:
            An ``onnxruntime.InferenceSession``; None: the model must be opened as it is.
        """
        if not self._keeps_optimised(content):
            return None
        kept = OptimisedModel(
            hashlib.sha256(content.model).hexdigest(),
            ort.__version__,
            processor_fingerprint(),
            *self._harmful_optimizers(),
        )
        if (model := kept.read()) is not None:
            options = self._session_options(ort)
            # Its nodes are optimised, and its functions are inlined.
            options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
            with suppress(Exception):  # of ONNX Runtime, which has many kinds
                return self._session_of(ort, model, options)
            kept.remove()
        with suppress(Exception), kept.keeping() as file:  # _open tries again, and reports
            if file is not None:
                options = self._session_options(ort)
                options.optimized_model_filepath = str(file)
                return self._session_of(ort, content.model, options)
        return None

    def _keeps_optimised(self, content: OnnxContent) -> bool:
        """Tell whether the model is opened often, and much faster in its optimised form.

        A bundle's model comes back, the file of an export that is checked does not. ONNX Runtime
        needs long for models with functions only (README.md of the back ends has the times).
        """
        return (
            self._place.provider == CPU
            and self._file.read_checked is not None
            and not content.external
            and len(content.model) <= MAXIMUM_MODEL_BYTES
            and has_functions(content.model)
        )

    def _open(self, ort: Any, content: OnnxContent) -> Any:
        """Open the model as it is. Raises BackendError: ONNX Runtime refuses it."""
        options = self._session_options(ort)
        _add_external(ort, options, content)
        try:
            return self._session_of(ort, content.model, options)
        except Exception as error:
            raise BackendError(
                f"onnxruntime {ort.__version__} cannot load {self._file.path.name}: "
                f"{_first_line(error)}"
            ) from error

    def _session_of(self, ort: Any, model: bytes, options: Any) -> Any:
        return ort.InferenceSession(
            model,
            options,
            providers=[(self._place.provider, self._provider_options())],
            disabled_optimizers=self._harmful_optimizers(),
            # The fallback would try other providers, and print that to stdout.
            enable_fallback=0,
        )

    def _session_options(self, ort: Any) -> Any:
        options = ort.SessionOptions()
        options.intra_op_num_threads = self._threads
        # Failures are raised too, and become one line; so only fatal messages are logged.
        options.log_severity_level = 4
        # Spinning threads take cores from decoding and writing, which run beside inference. On two
        # cores spinning halved the frames per second of ``run``.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        # A pattern reserves one block for all tensors of a run, for each set of sizes. With eight
        # expressions that was a third of the process's peak memory, and no faster.
        options.enable_mem_pattern = self._place.provider != CPU
        # Otherwise a file with the magic bytes of ONNX Runtime's own format is read as that.
        options.add_session_config_entry("session.load_model_format", "ONNX")
        return options

    def _content(self) -> OnnxContent:
        """Return the model that the session is opened from; it is freed afterwards."""
        return self._file.read()

    def _check_precision(self) -> None:
        """Refuse a precision without kernels here, in words that help more than ONNX Runtime's."""
        if self.spec.precision == "bf16" and self._place.provider == CPU:
            raise BackendError(
                f"{self.spec.name} computes in bfloat16, for which onnxruntime has no kernels on "
                "the CPU; build engines for a GPU (rvos-deploy build-engine BUNDLE), export with "
                "--precision fp32 or fp16, or check it slowly with --backend bf16-reference"
            )

    def _provider_options(self) -> dict[str, str]:
        """Choose the GPU, and turn TF32 off for float32 bundles on CUDA.

        CUDA multiplies float32 in TF32 by default, with ten bits of mantissa, but float32 bundles
        were exported and checked in float32. Bundles of half precision hold little float32 and keep
        TF32.
        """
        if self._place.provider != CUDA:
            return {}
        tf32 = {} if self._computes_in_half() else {"use_tf32": "0"}
        return {"device_id": str(self._place.ordinal), **tf32}

    def _harmful_optimizers(self) -> list[str]:
        """Name the optimiser pass that crashes on float16 (ONNX Runtime 1.32, CPU, the text
        encoder).

        Without the pass, the CPU casts float16 weights in every run.
        """
        return ["FuseFp16InitializerToFp32NodeTransformer"] if self._computes_in_half() else []

    def _computes_in_half(self) -> bool:
        return any(tensor.dtype == "float16" for tensor in (*self.spec.inputs, *self.spec.outputs))

    def _run(self, inputs: Mapping[str, Tensor], axes: Mapping[str, int]) -> dict[str, Tensor]:
        """Run the session; on a GPU the outputs stay there for the next graph."""
        # This reference keeps the session open, because another thread may close the graph.
        session = self._session
        self._require_open()
        try:
            if self._place.provider == CUDA:
                place = ("cuda", self._place.ordinal)
                return run_bound(session, place, inputs, self.spec.outputs)
            arrays = {name: np.asarray(value) for name, value in inputs.items()}
            outputs = session.run(self._outputs, arrays)
        except Exception as error:
            raise BackendError(
                f"onnxruntime failed in {self.spec.name}: {_first_line(error)}"
            ) from error
        return dict(zip(self._outputs, outputs, strict=True))

    def _close(self) -> None:
        """Drop the session."""
        self._session = None


def _add_external(ort: Any, options: Any, content: OnnxContent) -> None:
    """Give ONNX Runtime the hashed external data; otherwise it would open the files itself."""
    if not content.external:
        return
    if not hasattr(options, "add_external_initializers_from_files_in_memory"):
        raise BackendError(
            f"onnxruntime {ort.__version__} cannot load the external data of {content.path.name} "
            "from memory; pip install --upgrade 'onnxruntime>=1.24'"
        )
    names, buffers = list(content.external), list(content.external.values())
    options.add_external_initializers_from_files_in_memory(names, buffers, list(map(len, buffers)))


def _first_line(error: Exception) -> str:
    return one_line((str(error).strip() or type(error).__name__).splitlines()[0], 500)


def _import() -> Any:
    # The wheels carry Microsoft's telemetry, which writes into TMPDIR on import.
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    onnxruntime = import_library("onnxruntime", "onnxruntime")
    if onnxruntime is None:
        raise BackendError(
            "onnxruntime is not installed; pip install 'rvos-deploy[cpu]' "
            "(or 'rvos-deploy[gpu]' for CUDA, never both)"
        )
    return onnxruntime


@functools.cache
def _load_cuda_libraries() -> str:
    """Load the CUDA libraries that the provider needs from NVIDIA's wheels, once a process.

    The provider has no path to them: without this, it starts only where another library, such as
    PyTorch, has loaded them before. NOT RUN: it needs a GPU.

    Returns:
        What could not be loaded, for the message of a provider that cannot start.
    """
    preload = getattr(_import(), "preload_dlls", None)  # of 1.21 and newer
    said = io.StringIO()
    if preload is not None:
        with contextlib.redirect_stdout(said):
            preload()
    return one_line(said.getvalue(), 500)
