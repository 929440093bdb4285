"""Run OpenVINO on the CPU in float32, with the kernel of deformable attention if it was built."""

from __future__ import annotations

import queue
import threading
import warnings
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from rvos_deploy.bundle.onnx_file import OnnxFile, whole_model
from rvos_deploy.cpu_ops import ms_deform_attn as kernel
from rvos_deploy.environment import usable_cores
from rvos_deploy.errors import BackendError, RvosError, one_line
from rvos_deploy.graph_io.graph_spec import GraphSpec
from rvos_deploy.graph_io.tensors import HostArray, Tensor
from rvos_deploy.runtime.backends.base import Graph, OnnxBackend
from rvos_deploy.runtime.backends.host_ops import HostOps
from rvos_deploy.runtime.backends.openvino.operator import add_operator

if TYPE_CHECKING:
    from types import ModuleType

    from openvino import CompiledModel, InferRequest, Model

Result = TypeVar("Result")

REPEATS = 3
"""Runs at the same sizes after which a graph is compiled for these sizes.

Fixed sizes are faster, but compiling takes about a second, and the first mask must not wait. Which
run compiles depends on the sizes alone, so equal input gives equal masks.
"""
COMPILED = 4
"""Compiled models that a graph keeps: the last used sizes, and any size."""
EXPRESSIONS = "E"
"""Axis that stays open where a graph with every size fixed computes something else."""


@dataclass(frozen=True)
class OpenVinoBackend(OnnxBackend):
    """OpenVINO on the CPU.

    Args:
        threads: for the arithmetic of one graph; None uses every core that the process may use.
    """

    threads: int | None = None
    name = "openvino"

    def __post_init__(self) -> None:
        _import()

    def _graph(self, spec: GraphSpec, file: OnnxFile) -> Graph:
        return OpenVinoGraph(spec, file, self.threads or usable_cores())

    def _ops(self) -> HostOps:
        return HostOps()

    def describe(self) -> dict[str, str]:
        """Return the library, its version, the device, and how deformable attention runs."""
        attention = kernel.instructions() if kernel.available() else "function body"
        return {
            "name": self.name,
            "version": _version(),
            "device": "cpu",
            "deformable_attention": attention,
        }


class OpenVinoGraph(Graph):
    """One graph, compiled for any size, and for the sizes that repeat."""

    def __init__(self, spec: GraphSpec, file: OnnxFile, threads: int) -> None:
        """Read and compile the graph.

        Raises:
            BackendError, BundleError: as ``Backend.open``.
        """
        super().__init__(spec)
        if spec.precision == "bf16":
            raise BackendError(
                f"{spec.name} is a bfloat16 graph, whose inputs openvino does not take; export "
                "with --precision fp32, or check it slowly with --backend bf16-reference"
            )
        openvino = _import()
        self._lock = threading.Lock()
        self._core = openvino.Core()
        self._settings = {
            # Without the hint OpenVINO multiplies in bfloat16 where the CPU can.
            "INFERENCE_PRECISION_HINT": "f32",
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": threads,
        }
        if kernel.available():
            add_operator(self._core, threads)
        self._model: Model = self._guarded("load", lambda: self._core.read_model(_content(file)))
        self._compiled: OrderedDict[tuple[int, ...] | None, _Requests] = OrderedDict()
        self._last: tuple[int, ...] | None = None
        self._repeats = 0
        self._any_size()

    def _run(self, inputs: Mapping[str, Tensor], axes: Mapping[str, int]) -> dict[str, Tensor]:
        arrays = {name: np.ascontiguousarray(value) for name, value in inputs.items()}
        with self._lock:
            self._require_open()
            requests = self._requests(tuple(axes.values()), arrays)
        return self._guarded("run", lambda: requests.run(arrays, self.spec))

    def _requests(self, sizes: tuple[int, ...], arrays: Mapping[str, HostArray]) -> _Requests:
        """Return the compiled model for these sizes; compile it when they have repeated."""
        self._repeats = self._repeats + 1 if sizes == self._last else 1
        self._last = sizes
        if sizes in self._compiled:
            self._compiled.move_to_end(sizes)
            return self._compiled[sizes]
        if self._repeats < REPEATS:
            return self._any_size()
        return self._fixed_sizes(sizes, arrays)

    def _fixed_sizes(self, sizes: tuple[int, ...], arrays: Mapping[str, HostArray]) -> _Requests:
        """Compile for these sizes, and keep what computes the same as the graph for any size.

        OpenVINO 2026.4 computes wrong mask logits in OnlineRefer's decoder once every size is
        fixed, with two expressions and more. With their number left open it is right.
        """
        wanted = self._any_size().run(arrays, self.spec)
        for open_axis in (None, EXPRESSIONS):
            compiled = self._guarded("compile", partial(self._compile_fixed, arrays, open_axis))
            found = _Requests(compiled).run(arrays, self.spec)
            if self._agree(found, wanted):
                return self._keep(sizes, compiled)
        warnings.warn(
            f"openvino computes other numbers in {self.spec.name} when sizes are fixed; it goes on "
            "for any size, more slowly",
            RuntimeWarning,
            stacklevel=2,
        )
        return self._keep(sizes, self._any_size().compiled)

    def _compile_fixed(
        self, arrays: Mapping[str, HostArray], open_axis: str | None
    ) -> CompiledModel:
        openvino = _import()
        model = self._model.clone()
        model.reshape(
            {
                tensor.name: openvino.PartialShape(
                    [
                        openvino.Dimension(-1 if axis == open_axis else side)
                        for axis, side in zip(tensor.shape, arrays[tensor.name].shape, strict=True)
                    ]
                )
                for tensor in self.spec.inputs
            }
        )
        return self._core.compile_model(model, "CPU", self._settings)

    def _agree(self, found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> bool:
        """Tell whether outputs agree within the graph's tolerance, relative to the largest."""
        for name, value in wanted.items():
            one, other = (np.asarray(array, np.float64) for array in (value, found[name]))
            scale = max(1.0, float(np.abs(one).max(initial=0.0)))
            if not np.allclose(one, other, rtol=0, atol=self.spec.tolerance * scale):
                return False
        return True

    def _any_size(self) -> _Requests:
        if None in self._compiled:
            self._compiled.move_to_end(None)
            return self._compiled[None]
        return self._keep(
            None,
            self._guarded(
                "compile", lambda: self._core.compile_model(self._model, "CPU", self._settings)
            ),
        )

    def _keep(self, sizes: tuple[int, ...] | None, compiled: CompiledModel) -> _Requests:
        self._compiled[sizes] = _Requests(compiled)
        while len(self._compiled) > COMPILED:
            self._compiled.popitem(last=False)
        return self._compiled[sizes]

    def _guarded(self, doing: str, call: Callable[[], Result]) -> Result:
        try:
            return call()
        except (RvosError, MemoryError):
            raise
        except Exception as error:
            lines = [line.strip() for line in str(error).splitlines() if line.strip()]
            reason = lines[-1] if lines else type(error).__name__
            raise BackendError(
                f"openvino {_version()} cannot {doing} {self.spec.name}: {one_line(reason, 500)}"
            ) from error

    def _close(self) -> None:
        with self._lock:
            self._compiled.clear()
            self._model = None


class _Requests:
    """Inference requests of one compiled model: threads that share it take one each."""

    def __init__(self, compiled: CompiledModel) -> None:
        self.compiled = compiled
        self._idle: queue.SimpleQueue[InferRequest] = queue.SimpleQueue()

    def run(self, arrays: Mapping[str, HostArray], spec: GraphSpec) -> dict[str, Tensor]:
        try:
            request = self._idle.get_nowait()
        except queue.Empty:
            request = self.compiled.create_infer_request()
        found = request.infer(arrays, share_inputs=True, share_outputs=False)
        outputs = {tensor.name: found[tensor.name] for tensor in spec.outputs}
        self._idle.put(request)
        return outputs


def _content(file: OnnxFile) -> bytes:
    """Return the serialised model with its weights, without the function if it has a kernel."""
    content = file.read()
    if not content.external and kernel.available():
        return content.model
    try:
        import onnx.inliner
    except ImportError:
        raise BackendError(
            f"openvino needs the package onnx to read {file.path.name}; "
            "pip install 'rvos-deploy[openvino]'"
        ) from None
    model = whole_model(onnx, content)
    if not kernel.available():
        model = onnx.inliner.inline_local_functions(model)
    serialised: bytes = model.SerializeToString()
    return serialised


def _version() -> str:
    return str(_import().__version__).split("-")[0]


def _import() -> ModuleType:
    try:
        import openvino
    except (ImportError, OSError):
        raise BackendError(
            "openvino is not installed; pip install 'rvos-deploy[openvino]'"
        ) from None
    module: ModuleType = openvino
    return module
