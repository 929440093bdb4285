"""Hold the result of a frame."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rvos_deploy.errors import InputError
from rvos_deploy.graph_io.tensors import Tensor
from rvos_deploy.runtime.pending_masks import PendingMasks
from rvos_deploy.video.frames import Frame


@dataclass(frozen=True, eq=False)
class FrameMasks:
    """Hold the masks and scores of one frame.

    Results are compared by identity and can be keys of a dict, because comparing masks would wait
    for a device. Compare the masks themselves, for example ``(a.masks == b.masks).all()``.

    Args:
        frame: the frame, with its index and times. It has an image only if the stream keeps images
            (``Segmenter.stream(..., keep_images=True)``); otherwise reading the image raises
            InputError.
        size: (height, width) of the masks, which is the displayed size.
        scores: float32 [E], the probability that the expression refers to the segmented object.
        expressions: [E] numbers of the expressions, from ``Stream.add_expression``.
        texts: [E] sentences of the expressions. A sentence stays here when its expression is
            removed from the stream.
        pending: the masks, which a GPU may still be computing or copying.
    """

    frame: Frame
    size: tuple[int, int]
    scores: NDArray[np.float32]
    expressions: tuple[int, ...]
    texts: tuple[str, ...]
    pending: PendingMasks | Tensor

    @property
    def index(self) -> int:
        """Return the frame's number, from 0."""
        return self.frame.index

    @property
    def pts(self) -> float:
        """Return the frame's presentation time in seconds."""
        return self.frame.pts

    @property
    def masks(self) -> NDArray[np.bool_]:
        """Return the masks bool [E,H,W] as a NumPy array.

        The first call waits until a GPU has copied the masks to the host; until then the stream can
        go on. The stream's next step waits for the masks too. The masks outlive the stream. With
        ``StreamSettings(masks="device")`` every call copies the masks to the host; see
        :attr:`device_masks`.

        Raises BackendError: the device failed, or an output of a graph holds NaN or infinity.
        """
        pending = self.pending
        array = pending.get() if isinstance(pending, PendingMasks) else np.asarray(pending)
        return array.astype(np.bool_, copy=False)

    @property
    def device_masks(self) -> Tensor:
        """Return the masks bool [E,H,W] on the GPU, with ``StreamSettings(masks="device")``.

        Other libraries read the tensor through DLPack or the CUDA array interface
        (``torch.from_dlpack``, ``cupy.asarray``). This call does not wait; the reader's stream
        does. Keep the result until its reader has finished, because the buffer is recycled once
        nothing references it. The tensor is freed with its segmenter.

        Raises InputError: the stream copies masks to the host.
        """
        if isinstance(self.pending, PendingMasks):
            raise InputError(
                "these masks are on the host; open the stream with StreamSettings(masks='device')"
            )
        return self.pending

    def __repr__(self) -> str:
        return (
            f"FrameMasks(index={self.index}, pts={self.pts:.3f}, "
            f"masks=bool{[len(self.expressions), *self.size]}, "
            f"expressions={list(self.expressions)})"
        )
