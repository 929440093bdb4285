"""Map high dynamic range (PQ, HLG; BT.2020) to standard range (BT.709 primaries, sRGB curve).

Signals become linear light, in units of SDR white (203 nits in PQ, 75 % in HLG: ITU-R BT.2408).
Primaries are converted, highlights compressed, and light is encoded again. Both ends are tables.

HLG describes the light of the scene, as BT.709 does, so HLG's system gamma, which belongs to the
display, is left out on both sides.
"""

from __future__ import annotations

from functools import cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Transfer = Literal["PQ", "HLG"]

# FFmpeg's AVCOL_TRC_SMPTE2084 and AVCOL_TRC_ARIB_STD_B67.
HDR_TRANSFERS: dict[int, Transfer] = {16: "PQ", 18: "HLG"}

# Signals have 10 or 12 bits, so 4096 entries lose nothing.
_BITS = 12
_ENTRIES = 1 << _BITS

_WHITE_NITS = 203.0
_PEAK_NITS = 1000.0
# Light up to here is kept. From here to the peak, it is compressed into what is left.
_KNEE = 0.8
# Rows for each step: the temporary arrays of a step stay in the cache of a core.
_ROWS = 8

# BT.2020 to BT.709 primaries (ITU-R BT.2087).
_TO_BT709 = np.array(
    [[1.6605, -0.5876, -0.0728], [-0.1246, 1.1329, -0.0083], [-0.0182, -0.1006, 1.1187]],
    np.float32,
)


def tone_map(signal: NDArray[np.uint16], transfer: Transfer) -> NDArray[np.uint8]:
    """Map a picture to standard range.

    Args:
        signal: uint16 [H, W, 3], the RGB signal (BT.2020) over all 16 bits.
        transfer: its transfer function.

    Returns:
        uint8 [H, W, 3], RGB.
    """
    to_light, to_signal = _light_table(transfer), _signal_table()
    peak = float(to_light[-1]) if transfer == "HLG" else _PEAK_NITS / _WHITE_NITS
    mapped = np.empty(signal.shape, np.uint8)
    for row in range(0, len(signal), _ROWS):
        part = signal[row : row + _ROWS]
        light = to_light.take(part.reshape(-1, 3) >> (16 - _BITS)) @ _TO_BT709.T
        _compress_highlights(light, peak)
        light *= _ENTRIES - 1
        light += 0.5
        to_signal.take(light.astype(np.uint16), out=mapped[row : row + _ROWS].reshape(-1, 3))
    return mapped


def _compress_highlights(light: NDArray[np.float32], peak: float) -> None:
    """Scale pixels [N, 3] so that none exceeds 1, in place; ratios of channels stay.

    Negative light (colours outside of BT.709) becomes 0.

    Above the knee, the largest channel follows Reinhard's extended curve, whose slope is 1 at the
    knee and whose value is 1 at the peak.
    """
    np.maximum(light, 0, out=light)
    largest = np.maximum(np.maximum(light[:, 0], light[:, 1]), light[:, 2])
    bright = largest > _KNEE
    if not bright.any():
        return
    before = largest[bright]
    above = (before - _KNEE) / (1 - _KNEE)
    whitest = (peak - _KNEE) / (1 - _KNEE)
    after = _KNEE + (1 - _KNEE) * above * (1 + above / whitest**2) / (1 + above)
    light[bright] *= (np.minimum(after, 1) / before)[:, None]


@cache
def _light_table(transfer: Transfer) -> NDArray[np.float32]:
    """Return the linear light of every signal, 1 at SDR white: float32 [4096]."""
    signal = np.linspace(0, 1, _ENTRIES)
    light = pq_to_nits(signal) / _WHITE_NITS if transfer == "PQ" else hlg_to_light(signal)
    return light.astype(np.float32)


@cache
def _signal_table() -> NDArray[np.uint8]:
    """Return the sRGB signal of every linear light from 0 to 1: uint8 [4096]."""
    light = np.linspace(0, 1, _ENTRIES)
    low, high = 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055
    return np.round(255 * np.where(light <= 0.0031308, low, high)).astype(np.uint8)


def pq_to_nits(signal: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the light in cd/m2 of a PQ signal from 0 to 1 (SMPTE ST 2084)."""
    m1, m2 = 2610 / 16384, 2523 / 4096 * 128
    c1, c2, c3 = 3424 / 4096, 2413 / 4096 * 32, 2392 / 4096 * 32
    power = signal ** (1 / m2)
    return 10_000 * (np.maximum(power - c1, 0) / (c2 - c3 * power)) ** (1 / m1)


def hlg_to_light(signal: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the scene light of an HLG signal from 0 to 1, 1 at 75 % (ITU-R BT.2100)."""
    a, b, c = 0.17883277, 0.28466892, 0.55991073

    def scene(value: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.where(value <= 0.5, value**2 / 3, (np.exp((value - c) / a) + b) / 12)

    return scene(signal) / scene(np.array(0.75))
