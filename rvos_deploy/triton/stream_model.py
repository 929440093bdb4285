"""The stream as a sequence model of Triton's Python back end.

Triton imports this module through ``model.py`` of a repository. A sequence is one video: each of
its requests brings the next frame, and its first one may set the stream's settings.

A request gets one response, so the model is not decoupled: a frame decides at most one frame, and
the end of a sequence those that waited, which are as many as ``lookahead``. A client that waits for
each response therefore never has more than one request under way.
"""

from __future__ import annotations

import json
import threading
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import triton_python_backend_utils as pb_utils
from numpy.typing import NDArray

from rvos_deploy.bundle.folder import open_contracts
from rvos_deploy.environment import usable_cores
from rvos_deploy.errors import InputError, RvosError, one_line
from rvos_deploy.runtime.frame_masks import FrameMasks
from rvos_deploy.runtime.segmenter import Segmenter, load
from rvos_deploy.runtime.stream import Stream
from rvos_deploy.stream_settings import Fallback, StreamSettings
from rvos_deploy.triton.config_text import CORRELATION, END, EXPRESSIONS, FRAME, SETTINGS, START
from rvos_deploy.triton.graph_requests import GraphRequests
from rvos_deploy.triton.plans import within_profiles
from rvos_deploy.triton.repository import BUNDLE, FORM
from rvos_deploy.triton.stream_outputs import make_outputs
from rvos_deploy.video.frames import check_image

MOST_LOOKAHEAD = 256
"""Frames that may wait for their decision. They would fill a disk otherwise."""
MOST_LETTERS = 500
"""Of an expression; a tokenizer keeps fewer."""
_DEVICES = {"auto": "auto", "cpu": "cpu", "gpu": "cuda"}


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
        """Load the bundle's contracts, and its graphs if they run in process.

        Raises:
            RvosError: the repository was written for another version, the bundle is damaged, or
                its graphs cannot be loaded. Triton then refuses the model, and shows the text.
        """
        require_arrays()
        config = json.loads(args["model_config"])
        parameters = {key: one["string_value"] for key, one in config["parameters"].items()}
        if parameters.get("schema") != FORM:
            raise InputError(
                f"this repository has schema {parameters.get('schema')}, and the server's "
                f"rvos-deploy reads {FORM}; run export-triton of the same version"
            )
        folder = Path(args["model_repository"], args["model_version"], BUNDLE)
        self._segmenter = _open(folder, parameters)
        self._most = int(parameters["streams"])
        self._most_expressions = int(parameters["expressions"])
        self._idle_seconds = float(parameters["idle_seconds"])
        self._sequences: dict[int, _Sequence] = {}
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._sweeper = threading.Thread(target=self._sweep, daemon=True, name="idle sequences")
        self._sweeper.start()

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Answer each request by itself: an error is the answer to its own request only."""
        with self._lock:
            return [self._answer(request) for request in requests]

    def finalize(self) -> None:
        """Free everything."""
        self._stop.set()
        self._sweeper.join()
        for correlation in list(self._sequences):
            self._end(correlation)
        self._segmenter.close()

    def _answer(self, request: Any) -> Any:
        correlation = int(_control(request, CORRELATION))
        try:
            results = self._step(request, correlation)
            outputs = make_outputs(results, request.requested_output_names())
            tensors = [pb_utils.Tensor(name, array) for name, array in outputs.items()]
            return pb_utils.InferenceResponse(tensors)
        except InputError as error:
            # Nothing has changed, so the client can go on with another frame or sentence.
            return _refusal(str(error))
        except RvosError as error:
            self._end(correlation)
            return _refusal(f"{error}; the sequence is over")
        except Exception as error:
            # A fault of this code. Triton would give the error to all requests of the batch.
            pb_utils.Logger.log_error(traceback.format_exc())
            self._end(correlation)
            return _refusal(
                f"unexpected {type(error).__name__}: {one_line(error)}; the sequence is over, and "
                "the server's log has the traceback"
            )
        finally:
            if _control(request, END):
                self._end(correlation)

    def _step(self, request: Any, correlation: int) -> list[FrameMasks]:
        settings, starts = _input(request, SETTINGS.name), _control(request, START)
        frame, texts = _input(request, FRAME.name), _sentences(request)
        if frame is not None:
            check_image(frame)
        if starts:
            self._end(correlation)
            self._begin(correlation, settings)
        try:
            one = self._sequence(correlation)
            if settings is not None and not starts:
                raise InputError("SETTINGS belong into the first request of a sequence")
            if texts is not None:
                self._follow(one, texts)
            results = [] if frame is None else one.stream.push(frame)
            if _control(request, END):
                results += one.stream.flush()
        except InputError:
            if starts:
                self._end(correlation)
            raise
        one.used = time.monotonic()
        return results

    def _sequence(self, correlation: int) -> _Sequence:
        if (one := self._sequences.get(correlation)) is None:
            raise InputError(
                f"sequence {correlation} is not open: it never began, failed, or was idle for "
                f"{self._idle_seconds:g} s; send a request with sequence_start"
            )
        return one

    def _begin(self, correlation: int, given: NDArray[Any] | None) -> None:
        self._make_place()
        stream = self._segmenter.stream((), _settings(given))
        self._sequences[correlation] = _Sequence(stream, time.monotonic())

    def _make_place(self) -> None:
        """Free the sequence that was idle the longest, if there are as many as Triton admits.

        Triton lets further sequences wait until one ends or is idle, so then it has forgotten one.

        Raises:
            InputError: every sequence was used a short time ago.
        """
        if len(self._sequences) < self._most:
            return
        correlation = min(self._sequences, key=lambda number: self._sequences[number].used)
        if self._idle(correlation) < self._idle_seconds / 2:
            raise InputError(f"{self._most} streams are open, the most; end one, or try later")
        self._free(correlation)

    def _idle(self, correlation: int) -> float:
        return time.monotonic() - self._sequences[correlation].used

    def _free(self, correlation: int) -> None:
        self._end(correlation)
        pb_utils.Logger.log_info(f"freed sequence {correlation}, which was idle")

    def _follow(self, one: _Sequence, texts: Sequence[str]) -> None:
        """Follow exactly these expressions from the next frame on, or change nothing."""
        if len(set(texts)) > self._most_expressions:
            raise InputError(
                f"found {len(set(texts))} expressions, at most {self._most_expressions} are "
                "followed; split them into several sequences"
            )
        for text in texts:
            if len(text) > MOST_LETTERS:
                raise InputError(
                    f"an expression has {len(text)} letters, at most {MOST_LETTERS} are accepted"
                )
            # Encoded expressions are cached, and this refuses what cannot be encoded.
            self._segmenter.encode_text(text)
        for text in [text for text in one.numbers if text not in texts]:
            one.stream.remove_expression(one.numbers.pop(text))
        for text in texts:
            if text not in one.numbers:
                one.numbers[text] = one.stream.add_expression(text)

    def _end(self, correlation: int) -> None:
        if (one := self._sequences.pop(correlation, None)) is not None:
            one.stream.close()

    def _sweep(self) -> None:
        """Free idle sequences. Triton forgets them without telling the model."""
        period = min(self._idle_seconds / 4, 5.0)
        while not self._stop.wait(period):
            with self._lock:
                # Triton measures from the arrival of a request. A period later, none can wait.
                patience = self._idle_seconds + period
                for correlation in [n for n in self._sequences if self._idle(n) > patience]:
                    self._free(correlation)


def _open(folder: Path, parameters: Mapping[str, str]) -> Segmenter:
    """Open the graphs in this process, or as models of the server."""
    if parameters["graphs"] == "in-process":
        instances = int(parameters["instances"])
        threads = None if instances == 1 else max(1, usable_cores() // instances)
        device = _DEVICES[parameters["device"]]
        return load(folder, backend=parameters["backend"], device=device, threads=threads)
    bundle = open_contracts(folder)
    if parameters["graphs"] == "plans":
        bundle = within_profiles(bundle)
    return Segmenter(bundle, GraphRequests(pb_utils, parameters["prefix"]))


def require_arrays() -> None:
    """Check that Triton's Python back end passes arrays of this NumPy.

    Those before release 24.11 know only NumPy 1. With NumPy 2, they read wrong numbers, and the
    process dies at the first string.

    Raises:
        InputError: they are not passed.
    """
    if int(np.__version__.split(".")[0]) < 2:
        return
    sent = np.arange(1, 7, dtype=np.int32)
    try:
        found = pb_utils.Tensor.from_dlpack("numbers", sent).as_numpy()
    except Exception:  # it cannot be tried, which says nothing
        return
    if not np.array_equal(found, sent):
        raise InputError(
            f"this server's Python back end cannot pass arrays of NumPy {np.__version__}; "
            "pip install 'numpy<2' for it, or use Triton 24.11 or newer"
        )


def _settings(given: NDArray[Any] | None) -> StreamSettings:
    """Return the settings of a stream. Raises InputError: they are wrong."""
    text = "{}" if given is None or not given.size else _text(given.reshape(-1)[0], SETTINGS.name)
    try:
        settings = msgspec.json.decode(text, type=Settings)
    except (msgspec.DecodeError, RecursionError) as error:
        raise InputError(f"SETTINGS is wrong: {one_line(error)}; see docs/triton.md") from error
    if settings.lookahead > MOST_LOOKAHEAD:
        raise InputError(f"lookahead must be at most {MOST_LOOKAHEAD}, found {settings.lookahead}")
    return StreamSettings(**msgspec.structs.asdict(settings))


def _sentences(request: Any) -> list[str] | None:
    given = _input(request, EXPRESSIONS.name)
    return None if given is None else [_text(one, EXPRESSIONS.name) for one in given.reshape(-1)]


def _text(value: object, name: str) -> str:
    if not isinstance(value, bytes):
        return str(value)
    try:
        return value.decode()
    except UnicodeDecodeError:
        raise InputError(f"{name} holds bytes that are not UTF-8") from None


def _input(request: Any, name: str) -> NDArray[Any] | None:
    tensor = pb_utils.get_input_tensor_by_name(request, name)
    return None if tensor is None else tensor.as_numpy()


def _control(request: Any, name: str) -> int:
    value = _input(request, name)
    return 0 if value is None else int(value.reshape(-1)[0])


def _refusal(text: str) -> Any:
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(text))
