"""Make seeded inputs for the graphs, equal on every machine and with every NumPy.

``RandomState`` is NumPy's frozen generator, whose streams never change. So the recorded outputs of
a bundle can be checked years later without storing the inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from rvos_deploy.graph_io.graph_spec import GraphSpec
from rvos_deploy.graph_io.tensors import HostArray

START_OF_TEXT, END_OF_TEXT = 49406, 49407

Probe = HostArray
Makers = Mapping[str, Callable[[tuple[int, ...], np.random.RandomState], Probe]]
"""Makers of one probe input by its tensor's name. Arguments: shape, random numbers."""


def probe_inputs(
    spec: GraphSpec, axes: Mapping[str, int], seed: int, makers: Makers | None = None
) -> dict[str, Probe]:
    """Return one array for every input of the graph.

    Most numbers are standard normal. Inputs with a meaning get sensible values: token ids form
    sentences of different lengths, padding covers their ends, memories hold empty frames.

    Args:
        spec: contract of the graph.
        axes: size of every axis.
        seed: seed of the numbers.
        makers: a family's own makers, which replace the common ones.
    """
    random, known = np.random.RandomState(seed), {**_MAKERS, **(makers or {})}
    return {
        tensor.name: known.get(tensor.name, _normal)(tensor.sizes(axes), random).astype(
            tensor.dtype
        )
        for tensor in spec.inputs
    }


def _normal(shape: tuple[int, ...], random: np.random.RandomState) -> Probe:
    return random.standard_normal(shape)


def _frame(shape: tuple[int, ...], random: np.random.RandomState) -> Probe:
    return random.randint(0, 256, shape)


def _token_ids(shape: tuple[int, ...], random: np.random.RandomState) -> Probe:
    ids = random.randint(1, START_OF_TEXT, shape)
    ids[:, 0] = START_OF_TEXT
    for row, end in zip(ids, sentence_ends(shape, random), strict=True):
        row[end] = END_OF_TEXT
        row[end + 1 :] = 0
    return ids


def _padding(shape: tuple[int, ...], random: np.random.RandomState) -> Probe:
    return np.arange(shape[1])[None, :] > np.array(sentence_ends(shape, random))[:, None]


def sentence_ends(shape: tuple[int, ...], random: np.random.RandomState) -> list[int]:
    """Return where each of [E,L] sentences ends; the first is as long as the axis."""
    count, length = shape
    shorter = random.randint(1, length, count - 1).tolist() if count > 1 else []
    return [length - 1, *shorter]


def _ages(shape: tuple[int, ...], random: np.random.RandomState) -> Probe:
    return np.tile(np.arange(shape[1])[::-1], (shape[0], 1))


def _empty(shape: tuple[int, ...], random: np.random.RandomState) -> Probe:
    """Mark the oldest frames of some expressions as missing; the newest frame never is."""
    missing = random.randint(0, shape[1], shape[0])
    return np.arange(shape[1])[None, :] < missing[:, None]


def _scores(shape: tuple[int, ...], random: np.random.RandomState) -> Probe:
    return random.uniform(0.0, 1.0, shape)


def _threshold(shape: tuple[int, ...], random: np.random.RandomState) -> Probe:
    return np.full(shape, 0.5)


_MAKERS: Makers = {
    "frame": _frame,
    "token_ids": _token_ids,
    "text_padding": _padding,
    "memory_ages": _ages,
    "memory_empty": _empty,
    "scores": _scores,
    "threshold": _threshold,
}


PROBE_EXPRESSIONS = ("the square moving to the right", "the disc")
PROBE_BOX = (96, 160)
PROBE_FRAMES = 6


def probe_clip(frames: int = PROBE_FRAMES) -> NDArray[np.uint8]:
    """Draw a small moving scene for end-to-end checks: uint8 [T,90,157,3].

    A bright square moves to the right over a textured background, and a disc sinks. The sides of
    the frame are no multiples of 32, so the frames are resized and padded.
    """
    height, width = 90, 157
    random = np.random.RandomState(7)
    ground = random.randint(40, 120, (height // 6 + 1, width // 6 + 1, 3))
    ground = np.repeat(np.repeat(ground, 6, axis=0), 6, axis=1)[:height, :width]
    y, x = np.mgrid[:height, :width]
    clip = np.repeat(ground[None].astype(np.uint8), frames, axis=0)
    for t in range(frames):
        left = 10 + 18 * t
        clip[t, 20:48, left : left + 28] = (230, 60, 40)
        clip[t, (y - 30 - 7 * t) ** 2 + (x - 118) ** 2 < 15**2] = (60, 90, 240)
    return clip
