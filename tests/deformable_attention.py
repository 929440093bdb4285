"""Compute deformable attention in float64 from its definition, and make random inputs for it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rvos_deploy.engines.plugins.ms_deform_attn.host import from_bf16, to_bf16
from rvos_deploy.engines.plugins.ms_deform_attn.spec import DType

Float64 = NDArray[np.float64]

# bits after the leading one, and the exponent of the smallest normal number
_MANTISSA: dict[DType, tuple[int, int]] = {"fp32": (23, -126), "fp16": (10, -14), "bf16": (7, -126)}


@dataclass(frozen=True)
class Case:
    """Inputs as the kernel takes them; bf16 as uint16."""

    value: NDArray[Any]
    level_shapes: NDArray[np.int32]
    reference_points: NDArray[np.float32]
    sampling_offsets: NDArray[Any]
    attention_logits: NDArray[Any]

    @property
    def arrays(self) -> tuple[NDArray[Any], ...]:
        return tuple(vars(self).values())


def stored(numbers: NDArray[Any], kind: DType) -> NDArray[Any]:
    """Rounded to a storage type."""
    if kind == "bf16":
        return to_bf16(numbers)
    return numbers.astype({"fp32": np.float32, "fp16": np.float16}[kind])


def exact(array: NDArray[Any]) -> Float64:
    """What the stored numbers are."""
    return (from_bf16(array) if array.dtype == np.uint16 else array).astype(np.float64)


def reference(case: Case) -> Float64:
    """[B,Q,heads*D]: every pixel of a level, weighted by its distance to the location.

    A pixel counts by max(0, 1 - |distance|) on each axis: no rounding down, no corners, no borders
    to get wrong, since pixels outside are simply not there.
    """
    value, references, offsets, logits = (
        exact(case.value),
        exact(case.reference_points),
        exact(case.sampling_offsets),
        exact(case.attention_logits),
    )
    batch, queries, heads = offsets.shape[:3]
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    weights = (weights / weights.sum(-1, keepdims=True)).reshape(offsets.shape[:-1])
    output = np.zeros((batch, queries, heads, value.shape[-1]))
    start = 0
    for level, (height, width) in enumerate(case.level_shapes.tolist()):
        size = np.array([width, height])
        location = references[None, :, None, None] * size + offsets[:, :, :, level] - 0.5
        near_x, near_y = (
            np.maximum(0, 1 - np.abs(location[..., axis, None] - np.arange(length)))
            for axis, length in enumerate((width, height))
        )
        image = value[:, start : start + height * width].reshape(batch, height, width, heads, -1)
        near_y = near_y * weights[:, :, :, level, :, None]
        for b, h in np.ndindex(batch, heads):
            share = np.einsum("qpy,qpx->qyx", near_y[b, :, h], near_x[b, :, h])
            pixels = image[b, :, :, h].reshape(height * width, -1)
            output[b, :, h] += share.reshape(queries, -1) @ pixels
        start += height * width
    return output.reshape(batch, queries, -1)


def half_ulp(numbers: Float64, kind: DType) -> Float64:
    """Half the distance between neighbours of the type, at these magnitudes."""
    bits, smallest = _MANTISSA[kind]
    _, exponent = np.frexp(np.abs(numbers))
    return np.ldexp(0.5, np.maximum(exponent - 1, smallest) - bits)


def slack(case: Case) -> float:
    """What fp32 arithmetic may add to one rounding of the output: (5 K + 40) ulps of the values.

    With u = 2^-24, K samples and values up to m: 4 K products are summed (4 K u) and K weights
    (K u); a location is off by at most 2.5 u pixels on each axis, times a slope of 2 m (10 u); the
    shares are products of a difference and two factors (4 u); exp2f is good to 2 ulp, 4 u, once
    above and once below the bar, and its argument to 2.5 u |x|, whose weighted mean is at most log
    K, below 4 for K up to 48 (20 u); 2 u for the final scale.
    """
    samples = case.attention_logits.shape[-1]
    return (5 * samples + 40) * 2.0**-24 * float(np.abs(exact(case.value)).max())


def make_case(
    random: np.random.Generator,
    kinds: tuple[DType, DType, DType],
    scenario: str = "plain",
    *,
    widest: int = 12,
) -> Case:
    """Random sizes and numbers; the scenario says what is extreme about them."""
    batch, heads, points = random.integers(1, 3), random.integers(1, 4), random.integers(1, 6)
    levels, queries = random.integers(1, 5), random.integers(1, 9)
    head_width = 8 * random.integers(1, 6)
    shapes = random.integers(1, [widest // 2 + 1, widest + 1], (levels, 2))
    if scenario == "one pixel":
        shapes[:] = 1
    if scenario == "wide":
        shapes = np.stack([random.integers(1, 4, levels), random.integers(400, 513, levels)], 1)
    offsets = 2 * random.standard_normal((batch, queries, heads, levels, points, 2))
    logits = random.standard_normal((batch, queries, heads, levels * points))
    places = random.random((queries, 2))
    if scenario == "far outside":
        offsets *= 10.0 ** random.integers(1, 5)
    if scenario == "huge logits":
        logits *= 10.0 ** random.integers(2, 5)
    if scenario in {"borders", "pixel centres"}:
        grid = 2 * 2 ** random.integers(0, 3, (levels, 2))  # so that halves of pixels are exact
        shapes = grid
        step = 2 * grid.max()
        places = random.integers(0, step + 1, (queries, 2)) / step
        if scenario == "borders":
            places = np.round(places)
        offsets = np.round(offsets) + (0.5 if scenario == "pixel centres" else 0.0)
        offsets += 0.5 * random.integers(0, 2, offsets.shape)
    value = random.standard_normal((batch, int(shapes.prod(1).sum()), heads, head_width))
    return Case(
        stored(value, kinds[0]),
        shapes.astype(np.int32),
        places.astype(np.float32),
        stored(np.clip(offsets, -65000, 65000), kinds[1]),
        stored(np.clip(logits, -65000, 65000), kinds[2]),
    )


def surrounded(case: Case, number: float) -> Case:
    """The first batch entry, whose values lie in memory between values of ``number``."""
    pixels = case.value.shape[1]
    around = np.full((3 * pixels, *case.value.shape[2:]), number, case.value.dtype)
    around[pixels : 2 * pixels] = case.value[0]
    alone = replace(
        case,
        value=around[None, pixels : 2 * pixels],
        sampling_offsets=case.sampling_offsets[:1],
        attention_logits=case.attention_logits[:1],
    )
    assert np.shares_memory(alone.value, around)
    return alone


SCENARIOS = (
    "plain",
    "one pixel",
    "far outside",
    "borders",
    "pixel centres",
    "huge logits",
    "wide",
)
