"""Stand in for ``tensorrt``: engines whose arithmetic ONNX Runtime does on the host.

A plan is the path of an ONNX file. ``execute_async_v3`` queues work on the stand-in stream: it
reads the inputs' bytes at the given addresses, runs the graph, and writes the outputs' bytes. So
the result of a run depends on the order of the streams, as on a GPU. Everything else keeps
TensorRT's names and rules: sizes and addresses must be set, a workspace given, and refusals are
return values.
"""

from __future__ import annotations

import enum
import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from recording_cuda import Machine

from rvos_deploy.graph_io.graph_spec import GraphSpec

WORKSPACE = 4096
TYPES = {
    "float32": "FLOAT",
    "float16": "HALF",
    "int32": "INT32",
    "int64": "INT64",
    "bool": "BOOL",
    "uint8": "UINT8",
}
"""Names of ``DataType`` by NumPy's names."""


class DataType(enum.Enum):
    FLOAT = "float32"
    HALF = "float16"
    INT32 = "int32"
    INT64 = "int64"
    BOOL = "bool"
    UINT8 = "uint8"


class TensorIOMode(enum.Enum):
    INPUT = 1
    OUTPUT = 2


class TensorLocation(enum.Enum):
    DEVICE = 0
    HOST = 1


class ExecutionContextAllocationStrategy(enum.Enum):
    STATIC = 0
    USER_MANAGED = 2


class LayerInformationFormat(enum.Enum):
    ONELINE = 0
    JSON = 1


class Logger:
    ERROR = 1

    def __init__(self, severity: int) -> None:
        self.severity = severity


_sessions: dict[Path, onnxruntime.InferenceSession] = {}


def open_session(path: str) -> onnxruntime.InferenceSession:
    """Return ONNX Runtime's session of a graph, opened once for all tests."""
    file = Path(path).resolve()
    if file not in _sessions:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        _sessions[file] = onnxruntime.InferenceSession(
            file,
            options,
            providers=["CPUExecutionProvider"],
            # This pass ends the process in float16 (see the back end).
            disabled_optimizers=["FuseFp16InitializerToFp32NodeTransformer"],
        )
    return _sessions[file]


class FakeTensorRt:
    """Stands in for the module ``tensorrt``."""

    __name__ = "tensorrt"
    __version__ = "11.4.0.106"
    DataType, TensorIOMode, TensorLocation = DataType, TensorIOMode, TensorLocation
    ExecutionContextAllocationStrategy = ExecutionContextAllocationStrategy
    LayerInformationFormat = LayerInformationFormat
    Logger = Logger

    def __init__(self, machine: Machine, specs: dict[str, GraphSpec]) -> None:
        """Set up the module.

        ``workspaces`` says how many bytes the engines of some graphs need, and
        ``workspace_addresses`` holds those that contexts were given. ``shapes`` holds the shapes of
        every run that was queued, and ``shape_changes`` counts, for each graph, runs of a context
        at other shapes than its run before.

        ``specs``: contracts by graph; plans hold the paths of their ONNX files. Set ``error`` to
        add an error to the engines' numbers.
        """
        self.machine, self.specs = machine, specs
        self.deserialised: list[str] = []
        self.contexts = 0
        self.workspaces: dict[str, int] = {}
        self.workspace_addresses: set[int] = set()
        self.shapes: list[tuple[str, dict[str, tuple[int, ...]]]] = []
        self.shape_changes: Counter[str] = Counter()
        self.refusing: set[str] = set()
        self.layer_types = ["Float"]
        self.error = 0.0

    def path_of(self, plan: bytes) -> str:
        """Return the ONNX file of a plan."""
        return plan.decode()

    def Runtime(self, logger: Logger) -> Runtime:  # noqa: N802
        return Runtime(self)


class DynamicShapesKernelSpecializationStrategy(enum.Enum):
    LAZY = 0
    EAGER = 1
    NONE = 2


class FakeTensorRtRtx(FakeTensorRt):
    """Stands in for the module ``tensorrt_rtx``, as far as it differs."""

    __name__ = "tensorrt_rtx"
    __version__ = "1.7.1.116"
    DynamicShapesKernelSpecializationStrategy = DynamicShapesKernelSpecializationStrategy


class Runtime:
    engine_host_code_allowed = False

    def __init__(self, trt: FakeTensorRt) -> None:
        self._trt = trt

    def deserialize_cuda_engine(self, plan: bytes) -> Engine | None:
        self._trt.machine.need_context("deserialize_cuda_engine")
        path = self._trt.path_of(plan)
        self._trt.deserialised.append(path)
        return None if "deserialize" in self._trt.refusing else Engine(self._trt, path)


class Engine:
    def __init__(self, trt: FakeTensorRt, path: str) -> None:
        self.trt, self.path = trt, path
        graph = path.rsplit("/", 1)[1].removesuffix(".onnx")
        self.spec = trt.specs[graph]
        self.device_memory_size_v2 = trt.workspaces.get(graph, WORKSPACE)
        self.tensors = {t.name: t for t in (*self.spec.inputs, *self.spec.outputs)}
        self.num_io_tensors = len(self.tensors)

    def get_tensor_name(self, index: int) -> str:
        return list(self.tensors)[index]

    def get_tensor_mode(self, name: str) -> TensorIOMode:
        inputs = [tensor.name for tensor in self.spec.inputs]
        modes = self.trt.TensorIOMode
        return modes.INPUT if name in inputs else modes.OUTPUT

    def get_tensor_dtype(self, name: str) -> DataType:
        if "types" in self.trt.refusing:
            return self.trt.DataType.INT32
        return getattr(self.trt.DataType, TYPES[self.tensors[name].dtype])

    def get_tensor_location(self, name: str) -> TensorLocation:
        return self.trt.TensorLocation.DEVICE

    def create_execution_context(
        self, how: ExecutionContextAllocationStrategy | RuntimeConfig
    ) -> Context | None:
        self.trt.machine.need_context("create_execution_context")
        if "context" in self.trt.refusing:
            return None
        specialization = getattr(self.trt, "DynamicShapesKernelSpecializationStrategy", None)
        strategy = how.strategy if isinstance(how, RuntimeConfig) else how
        assert strategy == self.trt.ExecutionContextAllocationStrategy.USER_MANAGED
        if specialization is not None:
            assert isinstance(how, RuntimeConfig)
            found = how.dynamic_shapes_kernel_specialization_strategy
            assert found == specialization.EAGER, "numbers would depend on the background"
        return Context(self)

    def create_runtime_config(self) -> RuntimeConfig:
        return RuntimeConfig()

    def create_engine_inspector(self) -> Inspector:
        return Inspector(self)

    def __del__(self) -> None:
        if not self.trt.machine.stack:
            self.trt.machine.record("leak", "an engine was freed without a context")


class RuntimeConfig:
    """Of TensorRT-RTX alone."""

    strategy: Any = None
    dynamic_shapes_kernel_specialization_strategy: Any = None

    def set_execution_context_allocation_strategy(self, strategy: Any) -> None:
        self.strategy = strategy


class Inspector:
    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.execution_context: Context | None = None

    def get_engine_information(self, layout: LayerInformationFormat) -> str:
        assert layout.name == "JSON"
        context, inputs = self.execution_context, self._engine.spec.inputs
        assert context is not None, "types of dynamic layers would be unknown"
        assert context.shapes.keys() == {tensor.name for tensor in inputs}
        layers = [
            {"Name": f"layer {index}", "Outputs": [{"Name": "y", "DataType": name}]}
            for index, name in enumerate(self._engine.trt.layer_types)
        ]
        return json.dumps({"Layers": layers})


class Context:
    def __init__(self, engine: Engine) -> None:
        self._engine, self._trt = engine, engine.trt
        self._trt.contexts += 1
        self.shapes: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}
        self._workspace = 0
        self._warm: dict[str, tuple[int, ...]] | None = None

    def set_device_memory(self, memory: int, size: int) -> None:
        assert size >= self._engine.device_memory_size_v2
        self._trt.machine.bytes_at(memory, size)
        self._trt.workspace_addresses.add(memory)
        self._workspace = memory

    def set_optimization_profile_async(self, index: int, stream: int) -> bool:
        assert stream in self._trt.machine.streams
        return "profile" not in self._trt.refusing

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.shapes[name] = tuple(shape)
        return "shape" not in self._trt.refusing

    def set_tensor_address(self, name: str, address: int) -> bool:
        self._addresses[name] = address
        return True

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        if "output shape" in self._trt.refusing:
            return (7,)
        axes: dict[str, int] = {}
        for tensor in self._engine.spec.inputs:
            for dim, size in zip(tensor.shape, self.shapes[tensor.name], strict=True):
                if isinstance(dim, str):
                    axis, _, divisor = dim.partition("/")
                    axes[axis] = size * int(divisor or 1)
        return self._engine.tensors[name].sizes(axes)

    def execute_async_v3(self, stream: int) -> bool:
        trt, machine, spec = self._trt, self._trt.machine, self._engine.spec
        machine.need_context("execute_async_v3")
        fake = machine.streams[stream]
        capturing = fake.captured is not None
        if "enqueue" in self._trt.refusing or (capturing and "capture" in self._trt.refusing):
            return False
        if capturing:
            assert self._warm == self.shapes, "captured without a warm-up at these sizes"
        if self._warm != self.shapes:
            trt.shape_changes[spec.name] += 1
        trt.shapes.append((spec.name, dict(self.shapes)))
        self._warm = dict(self.shapes)
        assert self._workspace, "no workspace was given"
        assert set(self._addresses) == set(self._engine.tensors), "addresses are missing"
        addresses, shapes = dict(self._addresses), dict(self.shapes)
        session = open_session(self._engine.path)
        machine.record("enqueued", spec.name, fake.number)

        def view(name: str, shape: tuple[int, ...]) -> np.ndarray:
            dtype = np.dtype(self._engine.tensors[name].dtype)
            count = math.prod(shape) * dtype.itemsize
            return machine.bytes_at(addresses[name], count).view(dtype).reshape(shape)

        def work() -> None:
            machine.bytes_at(self._workspace, WORKSPACE)
            inputs = {tensor.name: view(tensor.name, shapes[tensor.name]) for tensor in spec.inputs}
            names = [tensor.name for tensor in spec.outputs]
            for name, value in zip(names, session.run(names, inputs), strict=True):
                wrong = trt.error if value.dtype.kind == "f" else 0
                view(name, value.shape)[...] = value + value.dtype.type(wrong)

        work.__name__ = spec.name
        fake.put(work)
        return True

    def __del__(self) -> None:
        if not self._trt.machine.stack:
            self._trt.machine.record("leak", "an execution context was freed without a context")

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"the stand-in context has no {name}")
