"""Choose the form of the graph files for other runtimes: opset, fixed sizes."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rvos_deploy.errors import InputError
from rvos_deploy.graph_io.graph_spec import AxisSpec, GraphSpec
from rvos_deploy.networks.contract import MAXIMUM_ELEMENTS

OPSETS: dict[str, range] = {
    "fp32": range(17, 26),
    "fp16": range(17, 26),
    "bf16": range(22, 26),
    "int8": range(17, 21),
}
"""Possible opsets by precision. LayerNormalization exists from opset 17 on, and Conv allows
bfloat16 from 22 on. onnxscript's converter reaches 25. From 21 on, ONNX Runtime 1.32 cannot load an
int8 convolution before a transpose (its optimiser writes pairs of two types)."""
_LIMITS: dict[str, str] = {
    "bf16": "Conv takes bfloat16 from 22 on, the converter reaches 25",
    "int8": "LayerNormalization came with 17, ONNX Runtime 1.32 fails on int8 from 21 on",
}
"""What limits the opsets; in other precisions, LayerNormalization and the converter."""

DEFAULT_OPSET: dict[str, int] = {"fp32": 18, "fp16": 18, "bf16": 22, "int8": 18}
"""Opset that the exporter writes without a conversion; for bfloat16, the first that Conv allows."""

_STATIC = re.compile(r"(\d+)[xX](\d+),(\d+),(\d+)(?:,(\d+))?")
STATIC_EXAMPLE = "256x448,4,16"


@dataclass(frozen=True)
class StaticShapes:
    """Hold the sizes that graphs are fixed to.

    Args:
        height: of the network's input in pixels, a multiple of 32.
        width: of the network's input in pixels, a multiple of 32.
        expressions: in one run of a graph.
        tokens: of a sentence, including start and end.
        memory: frames that the video decoder reads; None: dynamic.
    """

    height: int
    width: int
    expressions: int
    tokens: int
    memory: int | None = None

    def axes(self) -> dict[str, int]:
        """Return the fixed sizes by the axis's name."""
        sizes = {"H": self.height, "W": self.width, "E": self.expressions, "L": self.tokens}
        return sizes if self.memory is None else {**sizes, "M": self.memory}


@dataclass(frozen=True)
class GraphForm:
    """Choose the form of the exported graphs.

    Args:
        opset: of the files; None: the precision's default.
        static: fixed sizes; None: all sizes are dynamic.
        size: (height, width) in pixels of the bundle's box; None: the fixed size, or the
            configuration's.
    """

    opset: int | None = None
    static: StaticShapes | None = None
    size: tuple[int, int] | None = None

    def box(self) -> tuple[int, int] | None:
        """Return the (height, width) that was requested, by ``size`` or ``static``.

        Raises:
            InputError: the two differ.
        """
        if self.static is None:
            return self.size
        fixed = (self.static.height, self.static.width)
        if self.size is not None and self.size != fixed:
            raise InputError(
                f"--size {self.size[0]}x{self.size[1]} and --static-shapes "
                f"{fixed[0]}x{fixed[1]},... name two sizes; leave --size out"
            )
        return fixed


def read_static_shapes(text: str) -> StaticShapes:
    """Parse ``HxW,E,L`` or ``HxW,E,L,M``.

    Raises:
        InputError: the text has another form, or no sentence fits.
    """
    match = _STATIC.fullmatch(text.replace(" ", ""))
    if match is None:
        raise InputError(
            f"--static-shapes '{text}' is not HxW,E,L or HxW,E,L,M (height, width, expressions, "
            f"tokens, remembered frames); for example {STATIC_EXAMPLE}"
        )
    shapes = StaticShapes(*(int(part) for part in match.groups() if part is not None))
    if shapes.tokens < 3:
        raise InputError(
            f"--static-shapes '{text}': {shapes.tokens} tokens are start and end of a sentence, "
            "and no word; give at least 3, better 16"
        )
    return shapes


def check_static(shapes: StaticShapes | None, axes: Sequence[AxisSpec]) -> None:
    """Check that the graphs of a network can be fixed to these sizes.

    Args:
        shapes: None: nothing is fixed.
        axes: of the network's graphs.

    Raises InputError: an axis cannot have its size, or is not an axis of the network.
    """
    known = {axis.name: axis for axis in axes}
    for name, size in ({} if shapes is None else shapes.axes()).items():
        if name not in known:
            raise InputError(
                f"--static-shapes: this network has no axis {name}, only {', '.join(known)}; leave "
                "its size out"
            )
        try:
            known[name].check(size)
        except InputError as error:
            raise InputError(f"--static-shapes: {error}") from None


def check_elements(contracts: Mapping[str, GraphSpec]) -> None:
    """Refuse fixed sizes whose tensors exceed a bundle's limit, before the work of an export."""
    for spec in contracts.values():
        if len(spec.fixed) < len(spec.axes):
            continue
        for tensor in (*spec.inputs, *spec.outputs):
            sizes = tensor.sizes(spec.fixed)
            if math.prod(sizes) > MAXIMUM_ELEMENTS:
                raise InputError(
                    f"--static-shapes gives {spec.name} {tensor.name} as {list(sizes)}, needed: at "
                    f"most {MAXIMUM_ELEMENTS} elements; give smaller sizes"
                )


def choose_opset(opset: int | None, precision: str) -> int:
    """Return the opset of the graph files; None selects the precision's default.

    Raises:
        InputError: the opset cannot be written and checked; the message says which can, and why.
    """
    allowed = OPSETS[precision]
    if opset is None:
        return DEFAULT_OPSET[precision]
    if opset not in allowed:
        limits = _LIMITS.get(
            precision, f"LayerNormalization came with 17, the converter reaches {allowed[-1]}"
        )
        raise InputError(
            f"--opset {opset} cannot be written in {precision}: needs {allowed[0]} to "
            f"{allowed[-1]} ({limits})"
        )
    return opset
