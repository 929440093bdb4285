"""What every inference library must offer: runners of graphs behind one template method."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from rvos_deploy.bundle.onnx_file import OnnxFile
from rvos_deploy.errors import BackendError, InputError
from rvos_deploy.graph_io.frame_geometry import FrameGeometry, display_masks, resize_frame
from rvos_deploy.graph_io.graph_spec import GraphSpec

HostArray = NDArray[Any]

Value = Any
"""A tensor where the back end keeps it: a NumPy array, or one on a device. Has ``shape``, ``dtype``
(NumPy's name of it) and ``nbytes``. Pass it on to another graph, or ask :meth:`Runner.to_host`."""


_ON_THE_HOST = (
    "masks='device' needs a back end whose tensors stay on the GPU (backend='tensorrt'); this one "
    "gives NumPy arrays: leave masks out"
)


class Fetching(Protocol):
    """Values on their way to the host."""

    def arrays(self) -> list[HostArray]:
        """NumPy arrays of them, in order; waits. Once only."""


@dataclass(frozen=True)
class Fetched:
    """Values that are where they are wanted already."""

    values: list[Value]

    def arrays(self) -> list[Value]:
        """They."""
        return self.values


class Runner(ABC):
    """One graph, ready to run. A back end overrides only the ``*_impl`` methods and, where its
    values stay on a device, what is done to them around the graphs (``fit``, ``fetch``, ``gather``,
    ``stack``, ``show``, ``finite_maps``, ``take``); here that is done on the host.

    Use as a context manager, or call :meth:`activate` and :meth:`deactivate`.
    """

    def __init__(self, spec: GraphSpec) -> None:
        self.spec = spec
        self.last_seconds = 0.0
        self._active = False

    @property
    def active(self) -> bool:
        """Whether :meth:`infer` can be called."""
        return self._active

    def activate(self) -> None:
        """Load the graph; needed once before :meth:`infer`.

        Raises:
            BackendError: when the library cannot take the graph.
        """
        if not self._active:
            self.activate_impl()
            self._active = True

    def infer(self, inputs: Mapping[str, Value]) -> dict[str, Value]:
        """Run the graph once.

        Args:
            inputs: values by name, as the graph's contract says; host arrays are taken too.

        Returns:
            Values by name, where the back end keeps them.

        Raises:
            InputError: inputs that break the contract.
            BackendError: the runner is not active, the library failed, or its outputs break the
                contract.
        """
        if not self._active:
            raise BackendError(f"runner of {self.spec.name} is not active; call activate() first")
        axes = self.spec.bind(inputs)
        started = time.perf_counter()
        outputs = self.infer_impl(inputs)
        self.last_seconds = time.perf_counter() - started
        self.spec.check_outputs(outputs, axes)
        return outputs

    def deactivate(self) -> None:
        """Free what :meth:`activate` took; harmless when not active."""
        if self._active:
            self._active = False
            self.deactivate_impl()

    def takes(self, axes: Mapping[str, int]) -> bool:
        """Whether these sizes, which the graph's contract allows, can be run here, too."""
        return True

    def to_host(self, value: Value) -> HostArray:
        """A NumPy array of the value (itself, where it is one)."""
        return np.asarray(value)

    def fit(self, frame: Value, geometry: FrameGeometry) -> Value:
        """Network input uint8 [1,h,w,3] of a frame uint8 [H,W,3], as ``geometry.resize_frame``."""
        return resize_frame(self.to_host(frame), geometry)

    def fetch(self, values: Sequence[Value]) -> Fetching:
        """Begin to bring values to the host; other work may be queued meanwhile."""
        return Fetched([self.to_host(value) for value in values])

    def gather(self, value: Value, index: NDArray[np.integer]) -> Value:
        """Rows of a value in another order, where the back end keeps it.

        Args:
            value: [R,...], or [E,N,...].
            index: [K] gives ``value[index]``, [E,N] gives ``value[e][index[e]]`` for every e.
        """
        if index.ndim == 1 and np.array_equal(index, np.arange(value.shape[0])):
            return value
        rows = self.to_host(value)
        return rows[index] if index.ndim == 1 else rows[np.arange(len(index))[:, None], index]

    def stack(self, rows: Sequence[Sequence[Value | None]]) -> Value:
        """Values of equal shape and type as one, [rows, columns, ...]; None stands for zeros."""
        first = next(piece for row in rows for piece in row if piece is not None)
        whole = np.zeros((len(rows), len(rows[0]), *first.shape), dtype=first.dtype)
        for target, row in zip(whole, rows, strict=True):
            for column, piece in enumerate(row):
                if piece is not None:
                    target[column] = self.to_host(piece)
        return whole

    def show(self, logits: Value, geometry: FrameGeometry) -> Fetching:
        """Masks of a frame at its displayed size, on their way to the host.

        Args:
            logits: float32 [E, padded height/4, padded width/4].
            geometry: of the frame.

        Returns:
            What gives one array, bool [E,H,W] (see ``geometry.display_masks``).
        """
        return Fetched([display_masks(self.to_host(logits), geometry)])

    def finite_maps(self, logits: Value) -> Fetching:
        """Which maps of mask logits hold numbers, on the way to the host.

        Args:
            logits: float32 [E,h,w].

        Returns:
            What gives one array, bool [E]: False where a map holds NaN or infinity. Minus infinity
            passes: a pixel that is hidden for certain.
        """
        return Fetched([self.to_host(logits).max(axis=(1, 2), initial=-np.inf) < np.inf])

    def require_device_masks(self) -> None:
        """Make sure that :meth:`show_on_device` can be called.

        Raises:
            InputError: this back end's results are on the host.
            BackendError: something is not installed.
        """
        raise InputError(_ON_THE_HOST)

    def show_on_device(self, logits: Value, geometry: FrameGeometry) -> Value:
        """The masks of :meth:`show` as a tensor bool [E,H,W] on the device; nothing is waited for.

        Raises:
            InputError, BackendError: as :meth:`require_device_masks`.
        """
        raise InputError(_ON_THE_HOST)

    def take(self, value: Any) -> Value:
        """Another library's array as this back end's, without a copy where both allow it.

        Args:
            value: has ``__dlpack__`` or ``__cuda_array_interface__``.

        Raises:
            InputError: it cannot be read from here; says how to pass it instead.
        """
        try:
            return np.from_dlpack(value)
        except (AttributeError, BufferError, RuntimeError, TypeError, ValueError):
            raise InputError(
                f"a {type(value).__name__} cannot be read on the host, where this back end takes "
                "its inputs; pass a NumPy array (PyTorch: frame.cpu().numpy(), CuPy: frame.get()), "
                "or use --backend tensorrt for frames on the GPU"
            ) from None

    @abstractmethod
    def activate_impl(self) -> None:
        """Load the graph."""

    @abstractmethod
    def infer_impl(self, inputs: Mapping[str, Value]) -> dict[str, Value]:
        """Run the graph on inputs that fit its contract."""

    @abstractmethod
    def deactivate_impl(self) -> None:
        """Free the graph."""

    def __enter__(self) -> Runner:
        self.activate()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.deactivate()


class Backend(ABC):
    """An inference library on a device: makes runners, and says what it is."""

    name: str

    @abstractmethod
    def runner(self, spec: GraphSpec, file: OnnxFile) -> Runner:
        """A runner, not yet active, of the graph in this file."""

    @abstractmethod
    def describe(self) -> dict[str, str]:
        """Library, version and device, for results that people keep."""
