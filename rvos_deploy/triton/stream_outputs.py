"""Make the outputs of the stream model from results of a stream."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rvos_deploy.errors import InputError
from rvos_deploy.runtime.frame_masks import FrameMasks


def make_outputs(results: Sequence[FrameMasks], wanted: Iterable[str]) -> dict[str, NDArray[Any]]:
    """Return the wanted outputs by name (``config_text.STREAM_OUTPUTS``).

    Nothing is computed for outputs that nobody asked for: neither run lengths nor copies of masks.

    Raises:
        InputError: MASK is wanted of frames of several sizes.
        BackendError: as ``FrameMasks.masks``.
    """
    shown = [result for result in results if result.expressions]
    numbers = [number for result in shown for number in result.expressions]
    makers: Mapping[str, Callable[[], NDArray[Any]]] = {
        "DECIDED": lambda: _whole([result.index for result in results]),
        "INDEX": lambda: _whole([result.index for result in shown for _ in result.expressions]),
        "EXPRESSION": lambda: _whole(numbers),
        "TEXT": lambda: _strings([text for result in shown for text in result.texts]),
        "SCORE": lambda: _joined([result.scores for result in shown], (0,), np.float32),
        "BOX": lambda: _joined([result.boxes for result in shown], (0, 4), np.int32),
        "RLE": lambda: _strings([json.dumps(one) for result in shown for one in result.rle()]),
        "MASK": lambda: _masks(shown),
    }
    return {name: makers[name]() for name in wanted}


def _masks(shown: Sequence[FrameMasks]) -> NDArray[np.bool_]:
    sizes = {result.size for result in shown}
    if len(sizes) > 1:
        raise InputError(
            "frames of several sizes were decided together, which one MASK cannot hold; ask for "
            "RLE, or start a sequence for each size"
        )
    height, width = next(iter(sizes), (0, 0))
    return _joined([result.masks for result in shown], (0, height, width), np.bool_)


def _joined(arrays: Sequence[NDArray[Any]], empty: tuple[int, ...], dtype: Any) -> NDArray[Any]:
    return np.concatenate([np.zeros(empty, dtype), *arrays]).astype(dtype, copy=False)


def _whole(values: Sequence[int]) -> NDArray[np.int64]:
    return np.array(values, dtype=np.int64)


def _strings(values: Sequence[str]) -> NDArray[np.object_]:
    found = np.empty(len(values), dtype=np.object_)
    found[:] = [value.encode() for value in values]
    return found
