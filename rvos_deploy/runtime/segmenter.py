"""Load a bundle, and open streams on it."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path

from rvos_deploy.bundle.folder import TOKENIZER, Bundle, open_bundle
from rvos_deploy.closeable import Closeable
from rvos_deploy.errors import BundleError, InputError
from rvos_deploy.graph_io.frame_geometry import FrameGeometry
from rvos_deploy.graph_io.graph_spec import fixed_box
from rvos_deploy.graph_io.precision_hint import PrecisionHint
from rvos_deploy.graph_io.tokenizer import Tokenizer, check_text
from rvos_deploy.networks.steps import EncodedText
from rvos_deploy.runtime.backends.base import Backend, Session
from rvos_deploy.runtime.backends.choice import Choice, choose
from rvos_deploy.runtime.backends.registry import make_backend
from rvos_deploy.runtime.decided_frame import Render
from rvos_deploy.runtime.graph_calls import SessionCalls, StageCallback
from rvos_deploy.runtime.limits import check_geometry, check_limits
from rvos_deploy.runtime.stream import Stream, StreamNetwork, add_expressions
from rvos_deploy.runtime.streams_in_step import FrameResults, SharedCalls, StreamsInStep
from rvos_deploy.stream_settings import StreamSettings, described, whole_number
from rvos_deploy.worker_threads import worker_threads

_CACHED_TEXTS = 1024


class Segmenter(Closeable):
    """Hold the graphs of one bundle on one back end. Threads may share it, but not its streams."""

    def __init__(self, bundle: Bundle, backend: Backend, choice: Choice | None = None) -> None:
        """Open the graphs. ``choice``: how the back end was chosen; None: by the caller."""
        self.bundle = bundle
        self.backend = backend
        self._choice = choice or Choice(backend.name)
        self._texts: OrderedDict[str, EncodedText] = OrderedDict()
        self._lock = threading.Lock()
        self._closed = False
        self._session, self._tokenizer = _open(bundle, backend)
        self._calls = SessionCalls(self._session)

    def stream(
        self,
        expressions: Sequence[str] = (),
        settings: StreamSettings | None = None,
        *,
        on_stage: StageCallback | None = None,
        render: Render | None = None,
        keep_images: bool = False,
    ) -> Stream:
        """Start a stream over one video; use it in a ``with`` block.

        Args:
            expressions: a list of sentences.
            settings: None: the defaults.
            on_stage: called after every stage.
            render: makes the masks of a decided frame, for evaluations. None: the settings'
                threshold makes them.
            keep_images: keep the image in each result's frame. Waiting images count towards
                ``mask_budget``. Do not write into an array after you have pushed it.

        Raises:
            InputError: ``expressions`` is not a list of sentences, holds an empty one, or more than
                the graphs accept; ``settings`` has another type, or the back end does not support
                them; or the segmenter is closed.
        """
        self._require_open()
        if on_stage is not None and not callable(on_stage):
            raise InputError(
                f"on_stage must be a function of a name and seconds, found {described(on_stage)}; "
                "leave it out"
            )
        calls = SessionCalls(self._session, on_stage)
        return self._open_stream(calls, expressions, settings, render, keep_images=keep_images)

    def streams_in_step(
        self,
        expressions: Sequence[str],
        settings: Sequence[StreamSettings],
        renders: Sequence[Render] | None = None,
    ) -> StreamsInStep:
        """Start one stream for each of several settings over the same frames and expressions.

        Graphs that read only the frame run once for all streams. Use it in a ``with`` block.

        Args:
            expressions: a list of sentences.
            settings: one or more, of one ``size`` or ``short_side``.
            renders: one for each stream, as in :meth:`stream`.

        Raises:
            InputError: as in :meth:`stream`, or the sizes differ.
        """
        self._require_open()
        sized = [self.with_size(one) for one in settings]
        if len(sizes := {one.size or one.short_side for one in sized}) != 1:
            raise InputError(
                f"streams in step need settings of one size, found {described(sizes)}; frames of "
                "another size need another pass"
            )
        results, shared = FrameResults(), self.bundle.network.frame_graphs
        makers: Sequence[Render | None] = renders or [None] * len(settings)
        with ExitStack() as undo:
            streams = [
                undo.enter_context(
                    self._open_stream(
                        SharedCalls(self._session, shared, results), expressions, one, render
                    )
                )
                for one, render in zip(settings, makers, strict=True)
            ]
            undo.pop_all()
        return StreamsInStep(tuple(streams), results)

    def _open_stream(
        self,
        calls: SessionCalls,
        expressions: Sequence[str],
        settings: StreamSettings | None,
        render: Render | None,
        *,
        keep_images: bool = False,
    ) -> Stream:
        settings = self.with_size(_checked(settings))
        if isinstance(expressions, Sequence) and not isinstance(expressions, str):
            check_limits(self.bundle.graphs, settings, len(expressions))
        if settings.threshold is None:
            settings = replace(settings, threshold=self.bundle.threshold(settings.mode))
        network = StreamNetwork(
            self.bundle.network.steps(calls, settings),
            self.encode_text,
            partial(self.geometry, settings=settings),
        )
        stream = Stream(network, calls, settings, render=render, keep_images=keep_images)
        try:
            add_expressions(stream, expressions)
        except BaseException:
            stream.close()
            raise
        return stream

    def with_size(self, settings: StreamSettings) -> StreamSettings:
        """Return the settings with the bundle's size where they name neither box nor short side."""
        return self.bundle.network.with_size(settings, fixed_box(self.bundle.graphs))

    def geometry(self, display: tuple[int, int], settings: StreamSettings) -> FrameGeometry:
        """Return how a frame of this (height, width) fits the network's input.

        Raises InputError: the graphs do not take what the frame becomes.
        """
        graphs = self.bundle.graphs
        geometry = self.bundle.network.geometry(display, settings, fixed_box(graphs))
        check_geometry(graphs, geometry)
        return geometry

    def describe_backend(self) -> dict[str, str]:
        """Return the back end for records of results; ``auto`` says why it was chosen."""
        return self._choice.described(self.backend)

    def encode_text(self, text: str) -> EncodedText:
        """Encode an expression; the last 1,024 encoded expressions are cached.

        Raises:
            InputError: ``text`` is not a string or is empty, or the segmenter is closed.
            BackendError: the back end failed, or an output holds NaN or infinity.
        """
        self._require_open()
        check_text(text)
        with self._lock:
            if text in self._texts:
                self._texts.move_to_end(text)
                return self._texts[text]
        encoded = self.bundle.network.encode_text(self._calls, self._tokenizer, text)
        with self._lock:
            self._texts[text] = encoded
            if len(self._texts) > _CACHED_TEXTS:
                self._texts.popitem(last=False)
        return encoded

    def close(self) -> None:
        """Free the graphs. Streams of this segmenter can only be closed afterwards."""
        self._closed = True
        self._session.close()

    def _require_open(self) -> None:
        if self._closed:
            raise InputError(
                "this segmenter is closed; load the bundle again with rvos_deploy.load(...)"
            )


def _open(bundle: Bundle, backend: Backend) -> tuple[Session, Tokenizer]:
    """Open a bundle's graphs, and read its tokenizer meanwhile."""
    with worker_threads(1) as executor, ExitStack() as undo:
        tokenizer = executor.submit(_read_tokenizer, bundle)
        session = undo.enter_context(backend.open(bundle))
        read = tokenizer.result()
        undo.pop_all()
        return session, read


def _read_tokenizer(bundle: Bundle) -> Tokenizer:
    content = bundle.read(TOKENIZER)
    return bundle.network.tokenizer(bundle.path / TOKENIZER, content, bundle.graphs)


def _checked(settings: StreamSettings | None) -> StreamSettings:
    """Return the settings, or the defaults for None. Raises InputError: they are something else."""
    if settings is not None and not isinstance(settings, StreamSettings):
        raise InputError(
            f"settings must be StreamSettings, found {type(settings).__name__}; write "
            "rvos_deploy.StreamSettings(mode='online')"
            + (", or StreamSettings(**settings)" if isinstance(settings, dict) else "")
        )
    return settings or StreamSettings()


def load(
    bundle: str | Path,
    *,
    backend: str = "auto",
    device: str = "auto",
    threads: int | None = None,
    settings: StreamSettings | None = None,
    precision_hint: PrecisionHint | None = None,
) -> Segmenter:
    """Check a bundle's hashes and load its graphs.

    Args:
        bundle: a folder (string or path), or the name of a packaged bundle.
        backend: the name of a back end. ``auto``: what ``rvos-deploy choose-backend`` recorded for
            this machine, bundle and size; without a record, the first that is installed of
            onnxruntime and openvino.
        device: ``cpu``, ``cuda`` (the first GPU that CUDA shows) or ``cuda:N``; no other device is
            used. ``auto``: the CPU for onnxruntime, the first GPU for tensorrt.
        threads: number of CPU threads of a graph, at least 1. None: all cores that affinity and the
            container's quota allow this process.
        settings: of the streams to come; only their size counts, and only for ``auto``. None: the
            bundle's size.
        precision_hint: ``bf16``: openvino multiplies maps with weights in bfloat16, and computes
            the rest in float32. None: the bundle's own precision.

    Raises:
        InputError: an argument has another type.
        BundleError: the bundle cannot be read, is damaged, or has another schema.
        BackendError: the back end is not installed, cannot run on this device, or cannot follow the
            hint.
    """
    if not isinstance(bundle, (str, os.PathLike)):
        raise InputError(
            f"bundle must be the path of a folder or the name of a packaged bundle, found "
            f"{described(bundle)}; write rvos_deploy.load('tiny')"
        )
    for name, value in (("backend", backend), ("device", device)):
        if not isinstance(value, str):
            raise InputError(f"{name} must be a name, found {described(value)}; write 'auto'")
    if precision_hint is not None and not isinstance(precision_hint, str):
        raise InputError(
            f"precision_hint must be a name or None, found {described(precision_hint)}; write "
            "'bf16'"
        )
    threads = None if threads is None else whole_number("threads", threads, 1)
    settings = _checked(settings)
    try:
        opened = open_bundle(bundle, check_files=False)
    except OSError as error:
        raise BundleError(
            f"the bundle cannot be read ({error.strerror}); check the path and its permissions"
        ) from error
    choice = choose(
        backend,
        opened,
        settings,
        device=device,
        threads=threads,
        precision_hint=precision_hint,
    )
    made = make_backend(choice.name, device, threads, precision_hint)
    segmenter = Segmenter(opened, made, choice)
    try:
        # The back end has hashed the files that it read; this hashes the others, so none twice.
        opened.check_files()
    except BaseException:
        segmenter.close()
        raise
    return segmenter
