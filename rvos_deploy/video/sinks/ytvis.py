"""Write masks as tracks, ``ytvis.json``: the annotation format of YouTube-VIS."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence

from rvos_deploy.rle import encode
from rvos_deploy.video.frames import VideoInfo
from rvos_deploy.video.mask_box import mask_box
from rvos_deploy.video.sinks.base import FrameResult, Sink, SinkRequest
from rvos_deploy.video.sinks.growing_file import GrowingFile
from rvos_deploy.video.sinks.mask_record import annotations_head, to_json

YTVIS = "ytvis.json"
"""Name of a run's YouTube-VIS file."""
SCHEMA = "rvos-deploy/ytvis/1"
_KEYS = ("segmentations", "bboxes", "areas")


class YtvisSink(Sink):
    """Write one video, a category an expression, and a track an expression that was ever seen.

    A track lists all frames, so it can be written only at the end. Until then, masks lie in a
    temporary file, and memory holds a few numbers for each. Methods raise InputError if a file
    cannot be written.
    """

    needs_images = False

    def __init__(self, request: SinkRequest) -> None:
        self._names = request.names
        self._file = GrowingFile(request.out / YTVIS)
        self._masks = GrowingFile(request.out / YTVIS)
        self._file_names: list[str] = []
        self._name = ""
        self._rows: dict[int, str] = {}
        self._score: dict[int, float] = {}
        self._stored = False
        self._places: list[array[int]] = []
        self._scores: list[array[float]] = []

    def open(self, info: VideoInfo, expressions: Sequence[str]) -> None:
        """Begin the files under temporary names."""
        self._size = {"width": info.width, "height": info.height}
        self._places = [array("q") for _ in expressions]
        self._scores = [array("d") for _ in expressions]
        self._file.open(annotations_head(SCHEMA, info, expressions))
        self._masks.open()

    def write(self, result: FrameResult) -> None:
        """Describe one frame."""
        frame = result.frame
        self._name = frame.name or f"{self._names.of(frame)}.png"
        self._rows, self._score, self._stored = {}, {}, False
        for expression, mask, score in zip(
            result.expressions, result.masks, result.scores, strict=True
        ):
            if box := mask_box(mask):
                entry = (encode(mask), list(box), int(mask.sum()))
                self._rows[expression] = "\n".join(map(to_json, entry))
                self._score[expression] = float(score)

    def commit(self) -> None:
        """Store the frame's masks."""
        places = {row: (self._masks.append(text), len(text)) for row, text in self._rows.items()}
        for expression, place in places.items():
            self._places[expression].extend((len(self._file_names), *place))
            self._scores[expression].append(self._score[expression])
        self._file_names.append(self._name)
        self._stored = True

    def rollback(self) -> None:
        """Forget the frame's masks."""
        if self._stored:
            self._stored = False
            self._file_names.pop()
            for expression in self._rows:
                del self._places[expression][-3:]
                self._scores[expression].pop()

    def finish(self) -> None:
        """Write a track for each expression, complete the file, and rename it into place."""
        tracks = [number for number, places in enumerate(self._places) if places]
        for count, expression in enumerate(tracks):
            self._file.append(",\n" if count else "\n")
            for text in self._track(expression, count + 1):
                self._file.append(text)
        video = {
            "id": 1,
            **self._size,
            "length": len(self._file_names),
            "file_names": self._file_names,
        }
        self._file.append(f'\n],\n"videos": [{to_json(video)}]}}\n')
        self._masks.abort()
        self._file.complete()

    def abort(self) -> None:
        """Remove the unfinished files; do nothing after :meth:`finish`. Raises nothing."""
        self._masks.abort()
        self._file.abort()

    def describe(self) -> dict[str, object]:
        """Return the name of the file."""
        return {"ytvis": {"files": YTVIS}}

    def _track(self, expression: int, number: int) -> Iterator[str]:
        """Yield the pieces of one annotation: a list over all frames for each key."""
        head = {
            "id": number,
            "video_id": 1,
            "category_id": expression + 1,
            "iscrowd": 0,
            "score": round(max(self._scores[expression]), 6),
            **self._size,
            "length": len(self._file_names),
        }
        yield to_json(head)[:-1]
        places = self._places[expression]
        for part, key in enumerate(_KEYS):
            yield f', "{key}": ['
            at = 0
            for frame in range(len(self._file_names)):
                text = "null"
                if at < len(places) and places[at] == frame:
                    text = self._masks.read(places[at + 1], places[at + 2]).split("\n")[part]
                    at += 3
                yield (", " if frame else "") + text
            yield "]"
        yield "}"


def make(request: SinkRequest) -> YtvisSink:
    """Make the sink of a run."""
    return YtvisSink(request)
