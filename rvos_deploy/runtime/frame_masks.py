"""The result of a frame."""

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
    """What a stream says of one frame.

    Two results are equal when they are one and the same object, and they can be keys of a dict:
    masks may still be on their way, so that comparing them would wait. Compare what you mean, for
    example ``(a.masks == b.masks).all()``.

    Args:
        frame: the frame, with its index and times. Its image is there only where the stream keeps
            images (``Segmenter.stream(..., keep_images=True)``): asking for another raises
            InputError.
        size: (height, width) of the masks: the displayed size.
        scores: float32 [E]: the probability that the expression refers to what was found.
        expressions: [E] numbers of the expressions, as ``Stream.add_expression`` gave them.
        texts: [E] their sentences, which stay here when an expression is removed.
        pending: the masks, which a GPU may still be computing or sending.
    """

    frame: Frame
    size: tuple[int, int]
    scores: NDArray[np.float32]
    expressions: tuple[int, ...]
    texts: tuple[str, ...]
    pending: PendingMasks | Tensor

    @property
    def index(self) -> int:
        """The frame's number, from 0."""
        return self.frame.index

    @property
    def pts(self) -> float:
        """The frame's presentation time in seconds."""
        return self.frame.pts

    @property
    def masks(self) -> NDArray[np.bool_]:
        """Masks bool [E,H,W], a NumPy array.

        The first reader waits where the masks are still on their way from a GPU. What is done
        before, as pushing the next frame, happens meanwhile. The masks reach the host at the
        stream's next step at the latest, and outlive the stream. With
        ``StreamSettings(masks="device")`` every call copies them to the host; see
        :attr:`device_masks`.

        Raises BackendError: the device failed, or a graph gave NaN or infinity.
        """
        pending = self.pending
        array = pending.get() if isinstance(pending, PendingMasks) else np.asarray(pending)
        return array.astype(np.bool_, copy=False)

    @property
    def device_masks(self) -> Tensor:
        """Masks bool [E,H,W] on the GPU, with ``StreamSettings(masks="device")``.

        Other libraries read the tensor through DLPack or the CUDA array interface
        (``torch.from_dlpack``, ``cupy.asarray``). Nothing waits here: the reader's stream does.
        Keep the result until its reader is done, since the buffer is recycled once nothing
        references it. The tensor ends with its segmenter.

        Raises InputError: the stream gives masks on the host.
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
