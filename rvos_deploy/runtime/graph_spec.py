"""The contract of a graph: names, types, shapes and tolerances, written once and read by everyone.

Shapes hold numbers and axis expressions. An axis expression is a name (``"E"``) or a name over a
number (``"H/8"``), so that a graph's sizes follow from a few named axes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from rvos_deploy.errors import BundleError, InputError

Dim = int | str


@dataclass(frozen=True)
class AxisSpec:
    """A dynamic axis: its least and greatest size, and what it must be a multiple of."""

    name: str
    minimum: int
    maximum: int
    multiple: int = 1

    def check(self, size: int) -> None:
        """Raise InputError when the axis cannot have this size."""
        if not self.minimum <= size <= self.maximum or size % self.multiple:
            raise InputError(
                f"axis {self.name} cannot be {size}: needs {self.minimum} to {self.maximum}"
                + (f" in multiples of {self.multiple}" if self.multiple > 1 else "")
            )


@dataclass(frozen=True)
class TensorSpec:
    """A graph's input or output."""

    name: str
    dtype: str
    shape: tuple[Dim, ...]

    def sizes(self, axes: Mapping[str, int]) -> tuple[int, ...]:
        """Shape in numbers for the given axis sizes."""
        return tuple(_size(dim, axes) for dim in self.shape)


@dataclass(frozen=True)
class GraphSpec:
    """A graph's inputs, outputs and axes, and how far its numbers may be from the reference's.

    ``tolerance`` is absolute, on outputs divided by their reference's largest magnitude where that
    exceeds 1 (see ``rvos_deploy.runtime.comparison``). ``precision`` is what the graph computes in
    (fp32, fp16, bf16). Inputs and outputs of bf16 graphs are float32, since NumPy has no bfloat16.
    """

    name: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    axes: tuple[AxisSpec, ...]
    tolerance: float
    precision: str = "fp32"

    def bind(self, arrays: Mapping[str, Any]) -> dict[str, int]:
        """Axis sizes of these inputs.

        Args:
            arrays: anything with ``shape`` and NumPy-style ``dtype`` by input name.

        Raises:
            InputError: a name, type or shape that the contract does not allow; says which.
        """
        self._check_names(arrays)
        axes: dict[str, int] = {}
        for spec in self.inputs:
            array = arrays[spec.name]
            if str(array.dtype) != spec.dtype:
                raise InputError(
                    f"{self.name}: input {spec.name} must be {spec.dtype}, found {array.dtype}"
                )
            self._bind_shape(spec, tuple(array.shape), axes)
        for axis in self.axes:
            if axis.name in axes:
                axis.check(axes[axis.name])
        return axes

    def _check_names(self, arrays: Iterable[str]) -> None:
        needed, found = {spec.name for spec in self.inputs}, set(arrays)
        if needed != found:
            raise InputError(
                f"{self.name}: inputs must be {', '.join(sorted(needed))}; "
                f"found {', '.join(sorted(found)) or 'none'}"
            )

    def _bind_shape(self, spec: TensorSpec, shape: tuple[int, ...], axes: dict[str, int]) -> None:
        def refuse() -> InputError:
            needed = ", ".join(str(dim) for dim in spec.shape)
            known = ", ".join(f"{name}={size}" for name, size in axes.items())
            return InputError(
                f"{self.name}: input {spec.name} must be [{needed}]"
                + (f" with {known}" if known else "")
                + f", found {list(shape)}"
            )

        if len(shape) != len(spec.shape):
            raise refuse()
        for dim, size in zip(spec.shape, shape, strict=True):
            if isinstance(dim, str):
                name, divisor = _parse(dim)
                if axes.setdefault(name, size * divisor) != size * divisor:
                    raise refuse()
            elif dim != size:
                raise refuse()

    def as_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return asdict(self)

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> GraphSpec:
        """Inverse of :meth:`as_dict`, also after a trip through JSON.

        Raises:
            BundleError: when a key is missing or of the wrong kind.
        """
        try:
            return GraphSpec(
                name=str(values["name"]),
                inputs=tuple(_tensor(v) for v in values["inputs"]),
                outputs=tuple(_tensor(v) for v in values["outputs"]),
                axes=tuple(AxisSpec(**v) for v in values["axes"]),
                tolerance=float(values["tolerance"]),
                # Bundles made before there was bf16 do not say; fp32 and fp16 run alike.
                precision=str(values.get("precision", "fp32")),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise BundleError(
                f"a graph contract in the manifest is malformed ({error}); export the bundle again"
            ) from None


def _tensor(values: Mapping[str, Any]) -> TensorSpec:
    np.dtype(values["dtype"])
    return TensorSpec(str(values["name"]), str(values["dtype"]), tuple(values["shape"]))


def _parse(dim: str) -> tuple[str, int]:
    name, _, divisor = dim.partition("/")
    return name, int(divisor or 1)


def _size(dim: Dim, axes: Mapping[str, int]) -> int:
    if isinstance(dim, int):
        return dim
    name, divisor = _parse(dim)
    return axes[name] // divisor
