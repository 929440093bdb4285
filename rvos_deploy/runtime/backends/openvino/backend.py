"""Run OpenVINO on the CPU, with the kernel of deformable attention if it was built.

Graphs compute in float32, or by request with products in bfloat16 (``bf16_products.py``).
"""

from __future__ import annotations

import queue
import threading
import warnings
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from rvos_deploy.bundle.onnx_file import OnnxFile, whole_model
from rvos_deploy.cpu_ops import ms_deform_attn as kernel
from rvos_deploy.environment import usable_cores
from rvos_deploy.errors import BackendError, RvosError, one_line
from rvos_deploy.graph_io.graph_spec import TOLERANCES, GraphSpec
from rvos_deploy.graph_io.precision_hint import PrecisionHint
from rvos_deploy.graph_io.tensors import HostArray, Tensor
from rvos_deploy.runtime.backends.base import Graph, OnnxBackend
from rvos_deploy.runtime.backends.host_ops import HostOps
from rvos_deploy.runtime.backends.imports import import_library
from rvos_deploy.runtime.backends.openvino.bf16_products import rounded_products
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
ROUNDED = ("backbone", "frame_decoder", "video_decoder")
"""Graphs whose products the hint ``bf16`` rounds: those with many rows, of pixels or of memory. The
others are small, and their embeddings and mask logits decide; bfloat16 was not tried there."""
EXPRESSIONS = "E"
"""Axis that stays open where a graph with every size fixed computes something else."""


@dataclass(frozen=True)
class OpenVinoBackend(OnnxBackend):
    """OpenVINO on the CPU.

    Args:
        threads: for the arithmetic of one graph; None uses every core that the process may use.
        precision_hint: None: float32. ``bf16``: products over pixels and over the memory are
            bfloat16; what stays in float32 is named in ``bf16_products.py``.

    Raises:
        BackendError: OpenVINO is not installed, or this machine cannot follow the hint.
    """

    threads: int | None = None
    precision_hint: PrecisionHint | None = None
    name = "openvino"

    def __post_init__(self) -> None:
        _import()
        if self.precision_hint is not None:
            _require_bf16()

    def with_precision_hint(self, hint: PrecisionHint) -> OpenVinoBackend:
        """Return this back end with products in lower precision (see ``Backend``)."""
        return replace(self, precision_hint=hint)

    def _graph(self, spec: GraphSpec, file: OnnxFile) -> Graph:
        return OpenVinoGraph(spec, file, self.threads or usable_cores(), self.precision_hint)

    def _ops(self) -> HostOps:
        return HostOps()

    def describe(self) -> dict[str, str]:
        """Return the library, its version, the device, the precision, and how deformable attention
        runs.
        """
        attention = kernel.instructions() if kernel.available() else "function body"
        described = {
            "name": self.name,
            "version": _version(),
            "device": "cpu",
            "precision": self.precision_hint or "fp32",
            "deformable_attention": attention,
        }
        if self.precision_hint is not None:
            described["bfloat16"] = "products of maps with weights; the rest is float32"
        return described


class OpenVinoGraph(Graph):
    """One graph, compiled for any size, and for the sizes that repeat."""

    def __init__(
        self, spec: GraphSpec, file: OnnxFile, threads: int, hint: PrecisionHint | None = None
    ) -> None:
        """Read and compile the graph. Where products are rounded, ``spec`` says so afterwards.

        Raises:
            BackendError, BundleError: as ``Backend.open``.
        """
        super().__init__(spec)
        if spec.precision == "bf16":
            raise BackendError(
                f"{spec.name} is a bfloat16 graph, whose inputs openvino does not take; export "
                "with --precision fp32, or check it slowly with --backend bf16-reference"
            )
        if hint is not None and "float16" in {one.dtype for one in (*spec.inputs, *spec.outputs)}:
            raise BackendError(
                f"{spec.name} is a float16 graph, and --precision-hint {hint} is for fp32 bundles; "
                "leave the hint out, or export with --precision fp32"
            )
        openvino = _import()
        self._lock = threading.Lock()
        self._core = openvino.Core()
        self._settings = {
            # Without it OpenVINO rounds to bfloat16 what it likes, where the CPU has products.
            "INFERENCE_PRECISION_HINT": "f32",
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": threads,
        }
        if kernel.available():
            add_operator(self._core, threads)
        self._model: Model = self._guarded("load", lambda: self._core.read_model(_content(file)))
        self._tolerance = spec.tolerance
        self._rounded: Model | None = None
        if hint is not None and spec.name in ROUNDED and spec.precision == "fp32":
            self._rounded = self._guarded("round", lambda: rounded_products(self._model))
            self.spec = replace(spec, precision=hint, tolerance=TOLERANCES[hint])
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
        fixed, with two expressions and more. With their number left open it is right. Float32
        decides: in bfloat16 a query may move by rounding alone.
        """
        any_size = self._any_size()
        if self._rounded is not None:
            any_size = _Requests(self._compile(self._model))
        wanted = any_size.run(arrays, self.spec)
        for open_axis in (None, EXPRESSIONS):
            compiled = self._compile_fixed(self._model, arrays, open_axis)
            if self._agree(_Requests(compiled).run(arrays, self.spec), wanted):
                if self._rounded is not None:
                    compiled = self._compile_fixed(self._rounded, arrays, open_axis)
                return self._keep(sizes, compiled)
        warnings.warn(
            f"openvino computes other numbers in {self.spec.name} when sizes are fixed; it goes on "
            "for any size, more slowly",
            RuntimeWarning,
            stacklevel=2,
        )
        return self._keep(sizes, self._any_size().compiled)

    def _compile_fixed(
        self, model: Model, arrays: Mapping[str, HostArray], open_axis: str | None
    ) -> CompiledModel:
        openvino = _import()
        shapes = {
            tensor.name: openvino.PartialShape(
                [
                    openvino.Dimension(-1 if axis == open_axis else side)
                    for axis, side in zip(tensor.shape, arrays[tensor.name].shape, strict=True)
                ]
            )
            for tensor in self.spec.inputs
        }
        fixed = model.clone()
        self._guarded("reshape", lambda: fixed.reshape(shapes))
        return self._compile(fixed)

    def _compile(self, model: Model) -> CompiledModel:
        return self._guarded(
            "compile", lambda: self._core.compile_model(model, "CPU", self._settings)
        )

    def _agree(self, found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> bool:
        """Tell whether outputs agree within the file's tolerance, relative to the largest."""
        for name, value in wanted.items():
            one, other = (np.asarray(array, np.float64) for array in (value, found[name]))
            scale = max(1.0, float(np.abs(one).max(initial=0.0)))
            if not np.allclose(one, other, rtol=0, atol=self._tolerance * scale):
                return False
        return True

    def _any_size(self) -> _Requests:
        if None in self._compiled:
            self._compiled.move_to_end(None)
            return self._compiled[None]
        return self._keep(None, self._compile(self._rounded or self._model))

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
            self._model = self._rounded = None


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
    onnx = import_library("onnx", "onnx")
    if onnx is None or import_library("onnx.inliner", "onnx") is None:
        raise BackendError(
            f"openvino needs the package onnx to read {file.path.name}; "
            "pip install 'rvos-deploy[openvino]'"
        )
    model = whole_model(onnx, content)
    if not kernel.available():
        model = onnx.inliner.inline_local_functions(model)
    serialised: bytes = model.SerializeToString()
    return serialised


def _require_bf16() -> None:
    """Raise BackendError unless this machine can follow the hint ``bf16``."""
    found = _capabilities()
    if "BF16" not in found:
        raise BackendError(
            f"--precision-hint bf16 needs a CPU with bfloat16 products (AVX-512 BF16 or AMX), "
            f"openvino found {', '.join(sorted(found))}; leave the hint out"
        )
    if not kernel.available():
        raise BackendError(f"--precision-hint bf16 needs a kernel: {kernel.NOT_BUILT}")


def _capabilities() -> list[str]:
    """Return the number formats and instructions that OpenVINO finds on this CPU."""
    found: list[str] = _import().Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    return found


def _version() -> str:
    return str(_import().__version__).split("-")[0]


def _import() -> ModuleType:
    openvino = import_library("openvino", "openvino")
    if openvino is None:
        raise BackendError("openvino is not installed; pip install 'rvos-deploy[openvino]'")
    return openvino
