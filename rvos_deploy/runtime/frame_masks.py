"""Hold the result of a frame."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from rvos_deploy.errors import InputError
from rvos_deploy.graph_io.tensors import Tensor
from rvos_deploy.rle import Rle, encode
from rvos_deploy.runtime.pending_masks import PendingMasks
from rvos_deploy.video.frames import Frame, Image
from rvos_deploy.video.mask_box import mask_box

if TYPE_CHECKING:
    import supervision as sv


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

    @property
    def boxes(self) -> NDArray[np.int32]:
        """Return the boxes int32 [E,4] around the masks: left, top, width, height in pixels.

        The box of an empty mask is zeros. Waits as :attr:`masks`.
        """
        boxes = [mask_box(mask) or (0, 0, 0, 0) for mask in self.masks]
        return np.array(boxes, dtype=np.int32).reshape(-1, 4)

    def rle(self) -> list[Rle]:
        """Return the masks [E] as compressed COCO run lengths, which pycocotools decodes.

        Waits as :attr:`masks`.
        """
        return [encode(mask) for mask in self.masks]

    def overlay(self, image: Image | None = None) -> Image:
        """Return the image with tinted and outlined masks and a legend: uint8 [H,W,3], RGB.

        Args:
            image: the frame's pixels, uint8 [H,W,3], RGB. None: those of the frame, which a stream
                with ``keep_images=True`` keeps.

        Raises:
            InputError: the frame has no image, or ``image`` has another size.
        """
        # Pillow's fonts are slow to import, and few streams draw.
        from rvos_deploy.video.drawing.overlay import draw_overlay

        pixels = self.frame.host_image() if image is None else image
        return draw_overlay(pixels, self.masks, self.texts, self.scores, self.expressions)

    def to_supervision(self) -> sv.Detections:
        """Return ``supervision.Detections``: one row for each expression that has a mask.

        ``tracker_id`` and ``class_id`` are the expression's number, ``confidence`` its score, and
        ``data["class_name"]`` its text. Needs the extra ``supervision``.

        Raises:
            InputError: ``supervision`` is not installed.
        """
        try:
            import supervision
        except ImportError as error:
            raise InputError(
                f"to_supervision() needs '{error.name}', which is not installed; "
                "pip install 'rvos-deploy[supervision]'"
            ) from error
        masks, boxes = self.masks, self.boxes
        rows = np.flatnonzero(boxes[:, 2])
        numbers = np.array(self.expressions, dtype=np.int64)[rows]
        corners = boxes[rows].astype(np.float32)
        corners[:, 2:] += corners[:, :2]
        return supervision.Detections(
            xyxy=corners,
            mask=masks[rows],
            confidence=self.scores[rows],
            class_id=numbers,
            tracker_id=numbers,
            data={"class_name": np.array([self.texts[row] for row in rows], dtype=np.str_)},
        )

    def __repr__(self) -> str:
        count = len(self.expressions)
        return (
            f"FrameMasks(index={self.index}, pts={self.pts:.3f}, "
            f"masks=bool{[count, *self.size]}, scores=float32[{count}], "
            f"expressions={list(self.expressions)})"
        )
