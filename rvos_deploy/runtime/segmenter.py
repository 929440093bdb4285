"""A bundle, loaded and ready: the one object that an application keeps."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

from rvos_deploy.closing import Closing
from rvos_deploy.runtime.backends.base import Backend
from rvos_deploy.runtime.backends.registry import make_backend
from rvos_deploy.runtime.bundle import TOKENIZER, Bundle, open_bundle
from rvos_deploy.runtime.expression import EncodedText
from rvos_deploy.runtime.limits import check_limits
from rvos_deploy.runtime.settings import StreamSettings
from rvos_deploy.runtime.stream import StageCallback, Stream, add_expressions
from rvos_deploy.runtime.tokenizer import Tokenizer

_CACHED_TEXTS = 1024


class Segmenter(Closing):
    """The graphs of one bundle on one back end. May be shared by threads, each with its streams."""

    def __init__(self, bundle: Bundle, backend: Backend) -> None:
        self.bundle = bundle
        self.backend = backend
        self._tokenizer = Tokenizer(bundle.path / TOKENIZER, bundle.read(TOKENIZER))
        self._texts: OrderedDict[str, EncodedText] = OrderedDict()
        self._lock = threading.Lock()
        self._runners = {
            name: backend.runner(spec, bundle.graph_file(name))
            for name, spec in bundle.graphs.items()
        }
        try:
            for runner in self._runners.values():
                runner.activate()
        except BaseException:
            self.close()
            raise

    def stream(
        self,
        expressions: Sequence[str] = (),
        settings: StreamSettings | None = None,
        *,
        on_stage: StageCallback | None = None,
    ) -> Stream:
        """Start a stream over one video; use it in a ``with`` block.

        Raises:
            InputError: an empty expression, more than the graphs take, or settings that the back
                end does not have.
        """
        settings = settings or StreamSettings()
        if not isinstance(expressions, str):
            box = settings.size or self.bundle.config.input_size
            check_limits(self.bundle.graphs, settings, box, len(expressions))
        stream = Stream(self.bundle.config, self._runners, self.encode_text, settings, on_stage)
        add_expressions(stream, expressions)
        return stream

    def encode_text(self, text: str) -> EncodedText:
        """Encode an expression; the last 1,024 are remembered."""
        with self._lock:
            if text in self._texts:
                self._texts.move_to_end(text)
                return self._texts[text]
        ids = self._tokenizer(text)
        runner = self._runners["text_encoder"]
        outputs = runner.infer({"token_ids": ids[None]})
        encoded = EncodedText(
            text,
            tokens=runner.to_host(outputs["text_tokens"])[0],
            sentence=runner.to_host(outputs["sentence"])[0],
        )
        with self._lock:
            self._texts[text] = encoded
            if len(self._texts) > _CACHED_TEXTS:
                self._texts.popitem(last=False)
        return encoded

    def close(self) -> None:
        """Free the graphs."""
        for runner in self._runners.values():
            runner.deactivate()


def load(
    bundle: str | Path, *, backend: str = "auto", device: str = "auto", threads: int | None = None
) -> Segmenter:
    """Check a bundle's hashes and load its graphs.

    Args:
        bundle: the folder, or the name of a packaged bundle.
        backend: ``auto`` or a back end's name.
        device: ``cpu`` or ``cuda``; never another than the one named. ``auto``: the back end's
            own, the CPU for onnxruntime and the GPU for tensorrt.
        threads: for a graph's arithmetic on the CPU; None takes every core.

    Raises:
        BundleError: the bundle is damaged or of another schema.
        BackendError: the back end is not installed or cannot run there.
    """
    opened = open_bundle(bundle, check_files=False)
    segmenter = Segmenter(opened, make_backend(backend, device, threads))
    try:
        # What no back end read: each file is hashed, and none twice.
        opened.check_files()
    except BaseException:
        segmenter.close()
        raise
    return segmenter
