"""Record golden vectors: what a stream does with a small clip, step by step.

Whoever writes a runtime in another language compares it with them (docs/graphs.md). They are an
example of the loop between the graphs. The reference of parity is PyTorch's, in ``parity.npz``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rvos_deploy.bundle.folder import GOLDEN, TOKENIZER, Bundle
from rvos_deploy.bundle.parity_file import read_arrays
from rvos_deploy.errors import BundleError
from rvos_deploy.graph_io.frame_geometry import FrameGeometry
from rvos_deploy.graph_io.probe import PROBE_EXPRESSIONS, probe_clip
from rvos_deploy.graph_io.tensors import Tensor
from rvos_deploy.graph_io.tokenizer import Tokenizer
from rvos_deploy.networks.clip_probe import clip_probe
from rvos_deploy.runtime.backends.base import Backend, Session
from rvos_deploy.runtime.graph_calls import SessionCalls
from rvos_deploy.runtime.stream import Stream, StreamNetwork, add_expressions
from rvos_deploy.stream_settings import StreamSettings

FRAMES = 5
MEMORY, ANCHORS = 3, 1
"""Remembered frames. Five frames then fill the window, keep an anchor and forget a frame."""

Golden = dict[str, NDArray[Any]]


def golden_vectors(bundle: Bundle, backend: Backend) -> Golden:
    """Segment the first frames of the probe clip online, and return every step by name.

    docs/graphs.md lists the arrays. The fallback is ``top1``, so no mask is empty by its score.

    Args:
        bundle: an open bundle.
        backend: a back end whose tensors are NumPy arrays.

    Raises:
        BackendError: the back end failed, or an output holds NaN or infinity.
    """
    probe, network = clip_probe(bundle.network, bundle.graphs), bundle.network
    settings, frames = _settings(bundle, probe.box), probe_clip(FRAMES)
    tokenizer = network.tokenizer(bundle.path / TOKENIZER, bundle.read(TOKENIZER), bundle.graphs)
    with backend.open(bundle) as session:
        calls = _RecordedCalls(session, network.golden_tensors)
        part = StreamNetwork(
            network.steps(calls, settings),
            partial(network.encode_text, calls, tokenizer),
            lambda display: probe.geometry,
        )
        with Stream(part, calls, settings) as stream:
            add_expressions(stream, PROBE_EXPRESSIONS)
            choices = stream.record_choices()
            steps = [_step(stream, calls, frame) for frame in frames]
        orders = choices.orders()
    return {
        "frames": frames,
        **_texts(tokenizer),
        "window": np.array(settings.memory),
        "anchors": np.array(settings.anchors),
        "choices": orders.swapaxes(0, 1),
        **{name: np.stack([step[name] for step in steps]) for name in steps[0]},
    }


@dataclass(frozen=True, eq=False)
class GoldenClip:
    """Hold the golden clip of a bundle.

    Args:
        frames: uint8 [T,H,W,3].
        texts: [E].
        masks: bool [T,E,H,W], of the bundle's stream.
        settings: of that stream, ready for JSON.
    """

    frames: NDArray[np.uint8]
    texts: list[str]
    masks: NDArray[np.bool_]
    settings: dict[str, Any]


def read_golden_clip(bundle: Bundle) -> GoldenClip:
    """Return the clip that a bundle brings. Raises BundleError: it brings none."""
    if GOLDEN not in bundle.manifest.files:
        raise BundleError(f"{bundle.path} has no {GOLDEN}; export it again")
    arrays = read_arrays(bundle.read(GOLDEN), bundle.path / GOLDEN)
    settings = _settings(bundle, clip_probe(bundle.network, bundle.graphs).box)
    return GoldenClip(
        arrays["frames"],
        [bytes(arrays[f"sentence_{row}"]).decode() for row in range(arrays["masks"].shape[1])],
        arrays["masks"],
        {
            "memory": settings.memory,
            "anchors": settings.anchors,
            "fallback": settings.fallback,
            "size": settings.size,
            "threshold": settings.threshold,
        },
    )


def _settings(bundle: Bundle, box: tuple[int, int]) -> StreamSettings:
    """Return the settings, with as little memory as the graphs may be fixed to."""
    axes = [axis for spec in bundle.graphs.values() if (axis := spec.axis("M")) is not None]
    most = min([MEMORY + ANCHORS, *(axis.maximum for axis in axes)])
    anchors = min(ANCHORS, most - 1)
    return StreamSettings(
        memory=most - anchors,
        anchors=anchors,
        fallback="top1",
        size=box,
        threshold=bundle.config.threshold,
    )


def _texts(tokenizer: Tokenizer) -> Golden:
    """Return each sentence in UTF-8, and its token ids."""
    texts: Golden = {}
    for row, text in enumerate(PROBE_EXPRESSIONS):
        texts[f"sentence_{row}"] = np.frombuffer(text.encode(), np.uint8)
        texts[f"token_ids_{row}"] = tokenizer(text)
    return texts


def _step(stream: Stream, calls: _RecordedCalls, frame: NDArray[np.uint8]) -> Golden:
    (result,) = stream.push(frame)
    return {**calls.recorded, "masks": result.masks}


class _RecordedCalls(SessionCalls):
    """Keep the newest tensors of some names, and the newest network input."""

    def __init__(self, session: Session, names: tuple[str, ...]) -> None:
        super().__init__(session)
        self._names = names
        self.recorded: Golden = {}

    def preprocess(self, frame: Tensor, geometry: FrameGeometry) -> Tensor:
        """Resize a frame, and keep the result."""
        image = super().preprocess(frame, geometry)
        self.recorded["network_frames"] = np.array(image)[0]
        return image

    def run(self, graph: str, inputs: Mapping[str, Tensor], occasion: str) -> dict[str, Tensor]:
        """Run a graph, and keep the tensors."""
        outputs = super().run(graph, inputs, occasion)
        for name, tensor in {**inputs, **outputs}.items():
            if name in self._names:
                self.recorded[name] = np.array(tensor)
        return outputs
