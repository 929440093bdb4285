"""Write masks as a COCO file, ``coco.json``, for annotation tools."""

from __future__ import annotations

from collections.abc import Sequence

from rvos_deploy.rle import encode
from rvos_deploy.video.frames import VideoInfo
from rvos_deploy.video.mask_box import mask_box
from rvos_deploy.video.sinks.base import FrameResult, Sink, SinkRequest
from rvos_deploy.video.sinks.growing_file import GrowingFile
from rvos_deploy.video.sinks.mask_record import annotations_head, to_json

COCO = "coco.json"
"""Name of a run's COCO file."""
SCHEMA = "rvos-deploy/coco/1"


class CocoSink(Sink):
    """Write an image a frame, a category an expression, and an annotation a mask that is not empty.

    Category e + 1 is expression e, and so is the annotation's ``track_id``. Annotations grow in the
    file and images beside it, so a long video needs no memory. Methods raise InputError if a file
    cannot be written.
    """

    needs_images = False

    def __init__(self, request: SinkRequest) -> None:
        self._names = request.names
        self._file = GrowingFile(request.out / COCO)
        self._images = GrowingFile(request.out / COCO)
        self._entries: list[str] = []
        self._image = ""
        self._image_count = self._annotation_count = 0

    def open(self, info: VideoInfo, expressions: Sequence[str]) -> None:
        """Begin the files under temporary names."""
        self._file.open(annotations_head(SCHEMA, info, expressions))
        self._images.open()

    def write(self, result: FrameResult) -> None:
        """Describe one frame."""
        frame = result.frame
        image = {
            "id": self._image_count + 1,
            "file_name": frame.name or f"{self._names.of(frame)}.png",
            "width": frame.width,
            "height": frame.height,
            "frame_index": frame.index,
            "pts": frame.pts,
        }
        self._image = to_json(image)
        self._entries = []
        for expression, mask, score in zip(
            result.expressions, result.masks, result.scores, strict=True
        ):
            if box := mask_box(mask):
                entry = {
                    "id": self._annotation_count + len(self._entries) + 1,
                    "image_id": image["id"],
                    "category_id": expression + 1,
                    "track_id": expression + 1,
                    "segmentation": encode(mask),
                    "bbox": list(box),
                    "area": int(mask.sum()),
                    "iscrowd": 0,
                    "score": round(float(score), 6),
                }
                self._entries.append(to_json(entry))
        self._file.mark()
        self._images.mark()

    def commit(self) -> None:
        """Append the frame."""
        for entry in self._entries:
            self._file.append(("," if self._annotation_count else "") + "\n" + entry)
            self._annotation_count += 1
        self._images.append(("," if self._image_count else "") + "\n" + self._image)
        self._image_count += 1

    def rollback(self) -> None:
        """Cut the frame off again."""
        self._file.withdraw()
        self._images.withdraw()

    def finish(self) -> None:
        """Complete the file, and rename it into place."""
        self._file.append('\n],\n"images": [')
        self._file.append_all(self._images)
        self._file.append("\n]}\n")
        self._images.abort()
        self._file.complete()

    def abort(self) -> None:
        """Remove the unfinished files; do nothing after :meth:`finish`. Raises nothing."""
        self._images.abort()
        self._file.abort()

    def describe(self) -> dict[str, object]:
        """Return the name of the file."""
        return {"coco": {"files": COCO}}


def make(request: SinkRequest) -> CocoSink:
    """Make the sink of a run."""
    return CocoSink(request)
