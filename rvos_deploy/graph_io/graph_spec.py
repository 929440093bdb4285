"""Define the contract of a graph: names, types, shapes and tolerances.

Exporter, parity checks, engine profiles and runtimes read the same contract. Shapes hold numbers
and axis expressions. An axis expression is a name (``"E"``) or a name divided by a number
(``"H/8"``), so a few named axes determine all sizes of a graph.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated, Literal

import msgspec
from msgspec import Meta

from rvos_deploy.errors import BackendError, BundleError, InputError

if TYPE_CHECKING:
    from rvos_deploy.graph_io.tensors import Tensor

# Bounds hold for decoded contracts, so that no forged size is allocated.
Name = Annotated[str, Meta(pattern=r"\A[A-Za-z_][A-Za-z0-9_]{0,63}\Z")]
Size = Annotated[int, Meta(ge=1, le=1 << 20)]
Dim = Size | Annotated[str, Meta(pattern=r"\A[A-Za-z]{1,16}(/[1-9][0-9]{0,3})?\Z")]
Dtype = Annotated[str, Meta(pattern=r"\A(bool|uint8|int32|int64|float16|float32)\Z")]
ROWS = "E"
"""The axis of expressions. It comes first in a tensor, and its rows do not depend on each other."""
Precision = Literal["fp32", "fp16", "bf16", "int8"]
"""The number format that graphs compute in. In an int8 bundle, only the backbone is int8."""
TOLERANCES: Mapping[Precision, float] = {"fp32": 1e-4, "fp16": 1e-2, "bf16": 0.13}
"""Largest difference between PyTorch and the file for the same inputs, on normalised scales.

fp32: only the order of summation differs, by about 1e-6 per layer. 1e-4 covers tens of layers, but
no wrong operator. fp16: PyTorch and the file round after different operators, by 5e-4 each and
about 3e-3 after tens of layers; J&F measures the effect. Queries that the last bit decides differ
more (``verification.MAXIMUM_UNDECIDED_QUERIES``). bf16: an operator rounds by 4e-3, and 36 layers
by 2.3e-2. The largest of ten thousand numbers errs by four times that, and the difference of two
such results by another factor of 1.4. That cannot prove an operator, so the file is also compared
without its rounding (``export/parity.py``)."""
Tensors = Annotated[tuple["TensorSpec", ...], Meta(max_length=64)]


@dataclass(frozen=True)
class AxisSpec:
    """Define a named axis: its least and greatest size, and the divisor of all sizes.

    An axis is fixed where both sizes are equal; the graph's file then holds a number
    (``export --static-shapes``).
    """

    name: Name
    minimum: Size
    maximum: Size
    multiple: Size = 1

    def __post_init__(self) -> None:
        if self.minimum > self.maximum // self.multiple * self.multiple:
            raise ValueError(
                f"axis {self.name} has no size: {self.minimum} to {self.maximum} in multiples of "
                f"{self.multiple}"
            )

    @property
    def fixed(self) -> bool:
        """Tell whether the axis has one size only."""
        return self.minimum == self.maximum

    def nearest(self, size: int) -> int:
        """Return the allowed size that is nearest to this one."""
        rounded = (size + self.multiple // 2) // self.multiple * self.multiple
        return min(max(rounded, self.minimum), self.maximum)

    def check(self, size: int) -> None:
        """Raise InputError when the axis cannot have this size."""
        if self.fixed and size != self.maximum:
            raise InputError(f"axis {self.name} cannot be {size}: it is fixed at {self.maximum}")
        if not self.minimum <= size <= self.maximum or size % self.multiple:
            raise InputError(
                f"axis {self.name} cannot be {size}: needs {self.minimum} to {self.maximum}"
                + (f" in multiples of {self.multiple}" if self.multiple > 1 else "")
            )


@dataclass(frozen=True)
class TensorSpec:
    """Define an input or output of a graph."""

    name: Name
    dtype: Dtype
    shape: Annotated[tuple[Dim, ...], Meta(max_length=8)]

    @property
    def axes(self) -> dict[str, int]:
        """Return the named axes of the shape, with the least common multiple of their divisors."""
        named = [_parse(dim) for dim in self.shape if isinstance(dim, str)]
        return {
            name: math.lcm(*(divisor for other, divisor in named if other == name))
            for name, _ in named
        }

    def fixed_shape(self, fixed: Mapping[str, int]) -> tuple[Dim, ...]:
        """Return the shape with numbers for the fixed axes."""
        return tuple(
            _size(dim, fixed) if isinstance(dim, str) and _parse(dim)[0] in fixed else dim
            for dim in self.shape
        )

    def sizes(self, axes: Mapping[str, int]) -> tuple[int, ...]:
        """Return the shape in numbers for these axis sizes."""
        return tuple(_size(dim, axes) for dim in self.shape)


@dataclass(frozen=True)
class GraphSpec:
    """Define a graph's inputs, outputs and axes, and the tolerance of its outputs.

    ``tolerance`` is absolute. It holds for outputs divided by the largest magnitude of their
    reference where that exceeds 1 (``rvos_deploy/parity/comparison.py``). ``precision`` is the
    number format that the graph computes in. Inputs and outputs of bf16 graphs are float32, because
    NumPy has no bfloat16.
    """

    name: Name
    inputs: Tensors
    outputs: Tensors
    axes: Annotated[tuple[AxisSpec, ...], Meta(max_length=16)]
    tolerance: Annotated[float, Meta(gt=0, le=1e3)]
    # Bundles from before bf16 do not record the precision; fp32 and fp16 run alike.
    precision: Precision = "fp32"

    def axis(self, name: str) -> AxisSpec | None:
        """Return the axis of this name; None where the graph has no such axis."""
        return next((axis for axis in self.axes if axis.name == name), None)

    def minimum_size(self, name: str) -> int:
        """Return the least size of an axis; shorter tensors must be padded to it."""
        axis = self.axis(name)
        return 1 if axis is None else axis.minimum

    @property
    def fixed(self) -> dict[str, int]:
        """Return the sizes of the fixed axes by name."""
        return {axis.name: axis.maximum for axis in self.axes if axis.fixed}

    def axis_sizes(self, case: Mapping[str, int]) -> dict[str, int]:
        """Return the case's sizes of the graph's axes; fixed axes keep their own size."""
        return {axis.name: case[axis.name] for axis in self.axes} | self.fixed

    def bind(self, arrays: Mapping[str, Tensor]) -> dict[str, int]:
        """Return the axis sizes of these inputs.

        Args:
            arrays: tensors by input name.

        Raises:
            InputError: the contract does not allow a name, type or shape. The message says which.
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

    def check_outputs(self, arrays: Mapping[str, Tensor], axes: Mapping[str, int]) -> None:
        """Check that a library's outputs fulfil the contract.

        Args:
            arrays: tensors by output name.
            axes: axis sizes from :meth:`bind`.

        Raises:
            BackendError: an output has another type or shape. The message says which.
        """
        for spec in self.outputs:
            found, needed = arrays[spec.name], spec.sizes(axes)
            if str(found.dtype) != spec.dtype or tuple(found.shape) != needed:
                raise BackendError(
                    f"{self.name}: output {spec.name} is {found.dtype} {list(found.shape)}, its "
                    f"contract says {spec.dtype} {list(needed)}; export the bundle again"
                )

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

    def as_dict(self) -> dict[str, object]:
        """Return plain values, ready for JSON."""
        return asdict(self)

    @staticmethod
    def from_dict(values: Mapping[str, object]) -> GraphSpec:
        """Read a contract from :meth:`as_dict` or from its JSON.

        Raises:
            BundleError: a key is missing, or a value has another type.
        """
        try:
            return msgspec.convert(values, GraphSpec)
        except msgspec.ValidationError as error:
            raise BundleError(
                f"a graph contract in the manifest is malformed ({error}); export the bundle again"
            ) from None


def fixed_box(graphs: Mapping[str, GraphSpec]) -> tuple[int, int] | None:
    """Return the (height, width) that graphs are fixed to; None where they accept several."""
    fixed = {name: size for spec in graphs.values() for name, size in spec.fixed.items()}
    return (fixed["H"], fixed["W"]) if {"H", "W"} <= fixed.keys() else None


def _parse(dim: str) -> tuple[str, int]:
    name, _, divisor = dim.partition("/")
    return name, int(divisor or 1)


def _size(dim: Dim, axes: Mapping[str, int]) -> int:
    if isinstance(dim, int):
        return dim
    name, divisor = _parse(dim)
    return axes[name] // divisor
