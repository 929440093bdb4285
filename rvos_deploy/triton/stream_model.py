"""The stream as a sequence model of Triton's Python back end.

Triton imports this module through ``model.py`` of a repository. A sequence is one video: each of
its requests brings the next frame, and its first one may set the stream's settings.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import triton_python_backend_utils as pb_utils
from numpy.typing import NDArray

from rvos_deploy.bundle.folder import open_contracts
from rvos_deploy.errors import InputError, RvosError
from rvos_deploy.runtime.frame_masks import FrameMasks
from rvos_deploy.runtime.segmenter import Segmenter, load
from rvos_deploy.runtime.stream import Stream
from rvos_deploy.stream_settings import Fallback, StreamSettings
from rvos_deploy.triton.config_text import (
    CORRELATION,
    END,
    EXPRESSIONS,
    FRAME,
    SETTINGS,
    START,
)
from rvos_deploy.triton.graph_requests import GraphRequests
from rvos_deploy.triton.repository import BUNDLE


class Settings(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """Hold what SETTINGS may say, as JSON; see ``StreamSettings``."""

    lookahead: int = 0
    memory: int | None = None
    anchors: int = 0
    threshold: float | None = None
    fallback: Fallback = "none"
    size: tuple[int, int] | None = None
    short_side: int | None = None


@dataclass
class _Sequence:
    stream: Stream
    used: float
    numbers: dict[str, int] = field(default_factory=dict)


class TritonPythonModel:
    """Answer requests; Triton calls the methods by their names, from one thread."""

    def initialize(self, args: Mapping[str, str]) -> None:
        """Load the bundle's contracts, and its graphs if they run in process."""
        config = json.loads(args["model_config"])
        parameters = {key: one["string_value"] for key, one in config["parameters"].items()}
        folder = Path(args["model_repository"], args["model_version"], BUNDLE)
        if parameters["graphs"] == "in-process":
            self._segmenter = load(folder, backend=parameters["backend"])
        else:
            bundle = open_contracts(folder)
            self._segmenter = Segmenter(bundle, GraphRequests(pb_utils, parameters["prefix"]))
        self._most = int(parameters["streams"])
        self._idle_seconds = float(parameters["idle_seconds"])
        self._sequences: dict[int, _Sequence] = {}

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Answer each request by itself; an error ends its own sequence only."""
        self._drop_idle()
        return [self._answer(request) for request in requests]

    def finalize(self) -> None:
        """Free everything."""
        for one in self._sequences.values():
            one.stream.close()
        self._sequences.clear()
        self._segmenter.close()

    def _answer(self, request: Any) -> Any:
        correlation = int(_control(request, CORRELATION))
        try:
            results = self._step(request, correlation)
            return pb_utils.InferenceResponse(_outputs(results, request.requested_output_names()))
        except RvosError as error:
            self._end(correlation)
            return pb_utils.InferenceResponse(error=pb_utils.TritonError(str(error)))
        finally:
            if _control(request, END):
                self._end(correlation)

    def _step(self, request: Any, correlation: int) -> list[FrameMasks]:
        if _control(request, START):
            self._end(correlation)
            self._begin(correlation, _input(request, SETTINGS.name))
        one = self._sequences.get(correlation)
        if one is None:
            raise InputError(
                f"sequence {correlation} is not open: it never began, failed, or was idle for "
                f"{self._idle_seconds:g} s; send a request with sequence_start"
            )
        one.used = time.monotonic()
        if (texts := _input(request, EXPRESSIONS.name)) is not None:
            _follow(one, [_text(text) for text in texts.reshape(-1)])
        results: list[FrameMasks] = []
        if (frame := _input(request, FRAME.name)) is not None:
            results += one.stream.push(frame)
        if _control(request, END):
            results += one.stream.flush()
        return results

    def _begin(self, correlation: int, given: NDArray[Any] | None) -> None:
        if len(self._sequences) >= self._most:
            raise InputError(f"{self._most} streams are open, the most; end one, or try later")
        text = "{}" if given is None else _text(given.reshape(-1)[0])
        try:
            settings = msgspec.json.decode(text, type=Settings)
        except msgspec.DecodeError as error:
            raise InputError(f"SETTINGS is wrong: {error}; see docs/triton.md") from error
        stream = self._segmenter.stream((), StreamSettings(**msgspec.structs.asdict(settings)))
        self._sequences[correlation] = _Sequence(stream, time.monotonic())

    def _end(self, correlation: int) -> None:
        if (one := self._sequences.pop(correlation, None)) is not None:
            one.stream.close()

    def _drop_idle(self) -> None:
        # Triton forgets an idle sequence without a word to its model.
        before = time.monotonic() - self._idle_seconds
        for correlation in [c for c, one in self._sequences.items() if one.used < before]:
            self._end(correlation)


def _follow(one: _Sequence, texts: Sequence[str]) -> None:
    """Follow exactly these expressions from the next frame on."""
    for text in [text for text in one.numbers if text not in texts]:
        one.stream.remove_expression(one.numbers.pop(text))
    for text in texts:
        if text not in one.numbers:
            one.numbers[text] = one.stream.add_expression(text)


def _outputs(results: Sequence[FrameMasks], wanted: Sequence[str]) -> list[Any]:
    """Return the wanted outputs; masks are not made into arrays that nobody asked for."""
    sizes = {result.size for result in results if result.expressions}
    if "MASK" in wanted and len(sizes) > 1:
        raise InputError("frames of several sizes were decided together; ask for RLE, not MASK")
    height, width = next(iter(sizes), (0, 0))
    numbers = [number for result in results for number in result.expressions]
    makers: Mapping[str, Callable[[], NDArray[Any]]] = {
        "DECIDED": lambda: _whole([result.index for result in results]),
        "INDEX": lambda: _whole([r.index for r in results for _ in r.expressions]),
        "EXPRESSION": lambda: _whole(numbers),
        "TEXT": lambda: _strings([text for result in results for text in result.texts]),
        "SCORE": lambda: _joined([result.scores for result in results], (0,), np.float32),
        "BOX": lambda: _joined([result.boxes for result in results], (0, 4), np.int32),
        "RLE": lambda: _strings([json.dumps(one) for result in results for one in result.rle()]),
        "MASK": lambda: _joined(
            [result.masks for result in results if result.expressions],
            (0, height, width),
            np.bool_,
        ),
    }
    return [pb_utils.Tensor(name, makers[name]()) for name in wanted]


def _joined(arrays: Sequence[NDArray[Any]], empty: tuple[int, ...], dtype: Any) -> NDArray[Any]:
    return np.concatenate([np.zeros(empty, dtype), *arrays]).astype(dtype, copy=False)


def _whole(values: Sequence[int]) -> NDArray[np.int64]:
    return np.array(values, dtype=np.int64)


def _strings(values: Sequence[str]) -> NDArray[np.object_]:
    found = np.empty(len(values), dtype=np.object_)
    found[:] = [value.encode() for value in values]
    return found


def _input(request: Any, name: str) -> NDArray[Any] | None:
    tensor = pb_utils.get_input_tensor_by_name(request, name)
    return None if tensor is None else tensor.as_numpy()


def _control(request: Any, name: str) -> int:
    value = _input(request, name)
    return 0 if value is None else int(value.reshape(-1)[0])


def _text(value: object) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)
