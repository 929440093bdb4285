"""The form of the graphs' files, for runtimes that want another one: their opset, fixed sizes."""

from __future__ import annotations

import re
from dataclasses import dataclass

from rvos_deploy.errors import InputError
from rvos_deploy.networks.pan2024.graphs import EXPRESSIONS, HEIGHT, MEMORY, TOKENS, WIDTH

OPSETS: dict[str, range] = {
    "fp32": range(17, 26),
    "fp16": range(17, 26),
    "bf16": range(22, 26),
}
"""What can be asked for, by precision. LayerNormalization came with opset 17, and Conv took
bfloat16 from 22 on. onnxscript's converter reaches 25."""

DEFAULT_OPSET: dict[str, int] = {"fp32": 18, "fp16": 18, "bf16": 22}
"""What the exporter writes without a conversion; in bfloat16, the first that Conv allows."""

_STATIC = re.compile(r"(\d+)[xX](\d+),(\d+),(\d+)(?:,(\d+))?")
STATIC_EXAMPLE = "256x448,4,16"


@dataclass(frozen=True)
class StaticShapes:
    """Sizes that the graphs are fixed to.

    Args:
        height: of the network's input, a multiple of 32.
        width: likewise.
        expressions: that one run of a graph takes.
        tokens: of a sentence, start and end included.
        memory: frames that the video decoder reads; None leaves their number dynamic.
    """

    height: int
    width: int
    expressions: int
    tokens: int
    memory: int | None = None

    def axes(self) -> dict[str, int]:
        """Fixed sizes by the axis's name."""
        sizes = {"H": self.height, "W": self.width, "E": self.expressions, "L": self.tokens}
        return sizes if self.memory is None else {**sizes, "M": self.memory}


@dataclass(frozen=True)
class GraphForm:
    """What form graphs are written in: the opset (None: the precision's default), and sizes (None:
    all dynamic).
    """

    opset: int | None = None
    static: StaticShapes | None = None


def read_static_shapes(text: str) -> StaticShapes:
    """Sizes of ``HxW,E,L`` or ``HxW,E,L,M``.

    Raises:
        InputError: another form, or sizes that the graphs cannot have.
    """
    match = _STATIC.fullmatch(text.replace(" ", ""))
    if match is None:
        raise InputError(
            f"--static-shapes '{text}' is not HxW,E,L or HxW,E,L,M (height, width, expressions, "
            f"tokens, remembered frames); for example {STATIC_EXAMPLE}"
        )
    sizes = [int(part) for part in match.groups() if part is not None]
    for axis, size in zip((HEIGHT, WIDTH, EXPRESSIONS, TOKENS, MEMORY), sizes, strict=False):
        try:
            axis.check(size)
        except InputError as error:
            raise InputError(f"--static-shapes '{text}': {error}") from None
    shapes = StaticShapes(*sizes)
    if shapes.tokens < 3:
        raise InputError(
            f"--static-shapes '{text}': {shapes.tokens} tokens are start and end of a sentence, "
            "and no word; give at least 3, better 16"
        )
    return shapes


def choose_opset(opset: int | None, precision: str) -> int:
    """The opset of the graphs' files.

    Raises:
        InputError: not one that can be written and checked; says which can, and why.
    """
    allowed = OPSETS[precision]
    if opset is None:
        return DEFAULT_OPSET[precision]
    if opset not in allowed:
        first = (
            "Conv takes bfloat16 from 22 on"
            if precision == "bf16"
            else "LayerNormalization came with 17"
        )
        raise InputError(
            f"--opset {opset} cannot be written in {precision}: needs {allowed[0]} to "
            f"{allowed[-1]} ({first}, the converter reaches {allowed[-1]})"
        )
    return opset
