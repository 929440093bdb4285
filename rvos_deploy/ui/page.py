"""Lay the page out, and connect it with the sessions."""

from __future__ import annotations

import html
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
from numpy.typing import NDArray

from rvos_deploy.errors import InputError, RvosError
from rvos_deploy.ui.downloads import write_downloads
from rvos_deploy.ui.levels import LEAST_THRESHOLD
from rvos_deploy.ui.video_session import VideoSession, read_expressions
from rvos_deploy.ui.visitors import Visitor, Visitors
from rvos_deploy.video.drawing.palette import colour_of

TITLE = "rvos-deploy"
STREAM_EVERY = 0.1
"""Seconds between two frames of a camera."""
CAMERA = {"video": {"width": {"ideal": 1280}, "height": {"ideal": 720}}}
"""What the page asks of a camera; Gradio itself asks for more pixels than are of use here."""
# Seconds between two pictures of a running video: more than a browser shows costs time only.
_SHOW_EVERY = 0.08
CSS = """
.found table {width: 100%; border-collapse: collapse; border-width: 0 !important}
.found td, .found th {padding: 4px 8px; text-align: left}
.found tr, .found td, .found th {border-width: 0 0 1px 0 !important; border-color: #8884 !important}
.found .number {text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums}
.found .dot {display: inline-block; width: .9em; height: .9em; border-radius: 50%;
  margin-right: .5em; border: 1px solid #0006}
"""
# Every so many seconds, uploads that are older than so many are removed; a session has a copy.
_UPLOADS_LIVE = (60, 900)
Update = Any


def make_page(
    visitors: Visitors, threshold: float, note: str, example: tuple[Path, Sequence[str]] | None
) -> gr.Blocks:
    """Return the page.

    Args:
        visitors: holds the segmenter, and what each visitor does.
        threshold: at first.
        note: what the network knows, in one sentence of Markdown.
        example: a video and sentences that stand there at first.
    """
    actions = _Actions(visitors)
    video, sentences = (str(example[0]), "\n".join(example[1])) if example else (None, "")
    page: gr.Blocks = gr.Blocks(title=TITLE, analytics_enabled=False, delete_cache=_UPLOADS_LIVE)
    with page:
        gr.Markdown(f"# {TITLE}\nFind in a video what a sentence says. {note}")
        with gr.Row():
            with gr.Column(min_width=320):
                with gr.Tab("Video"):
                    source = gr.Video(
                        value=video, sources=["upload"], label="Video", height=260, buttons=[]
                    )
                    with gr.Row():
                        run = gr.Button("Segment", variant="primary")
                        stop = gr.Button("Stop", interactive=False)
                with gr.Tab("Camera"):
                    camera = gr.Image(
                        sources=["webcam"],
                        streaming=True,
                        label="Camera",
                        height=260,
                        # Not mirrored: left is where it is for run, too.
                        webcam_options=gr.WebcamOptions(mirror=False, constraints=CAMERA),
                    )
                    camera_line = gr.Markdown("Start the camera above. The newest frame wins.")
                texts = gr.Textbox(
                    value=sentences,
                    label="Sentences, one a line",
                    lines=4,
                    placeholder="the small red star\neverything that moves",
                )
                slider = gr.Slider(
                    LEAST_THRESHOLD,
                    0.95,
                    value=threshold,
                    step=0.01,
                    label="Threshold: the score that an object must pass",
                )
            with gr.Column(min_width=320):
                shown = gr.Image(
                    label="Masks",
                    show_label=False,  # it would cover the legend
                    interactive=False,
                    format="jpeg",
                    buttons=["fullscreen"],
                )
                line = gr.Markdown("", elem_id="progress")
                place = gr.Slider(0, 1, value=0, step=1, label="Frame", visible=False)
                table = gr.HTML("", elem_classes="found")
                make = gr.Button("Make files to download", visible=False)
                files = gr.File(label="Results", file_count="multiple", visible=False)
        run.click(
            actions.segment,
            [source, texts, slider],
            [shown, line, table, place, run, stop, make, files],
            concurrency_limit=None,
            show_progress="hidden",
        )
        stop.click(actions.stop, concurrency_limit=None, queue=False)
        again = [shown, table]
        slider.input(
            actions.redraw,
            [place, slider],
            again,
            concurrency_limit=None,
            show_progress="hidden",
            trigger_mode="always_last",
        )
        place.input(
            actions.redraw,
            [place, slider],
            again,
            concurrency_limit=None,
            show_progress="hidden",
            trigger_mode="always_last",
        )
        make.click(actions.download, [slider], [files, line], concurrency_limit=2)
        camera.stream(
            actions.camera,
            [camera, texts, slider],
            [shown, camera_line, table],
            stream_every=STREAM_EVERY,
            concurrency_limit=None,
            show_progress="hidden",
        )
        page.unload(actions.leave)
    return page


class _Actions:
    """Do what the page's events ask for. Gradio calls the methods in threads."""

    def __init__(self, visitors: Visitors) -> None:
        self._visitors = visitors

    def segment(
        self, source: str | None, texts: str, threshold: float, request: gr.Request
    ) -> Iterator[tuple[Update, ...]]:
        visitor = self._visitors.of(request.session_hash)
        visitor.threshold = threshold
        with _errors_on_the_page():
            session = visitor.start_video(source, texts)
        hidden, off, on = gr.update(visible=False), _active(False), _active(True)
        yield gr.update(), session.progress(), "", hidden, off, on, hidden, hidden
        count, last = 0, 0.0
        while (count := session.wait_beyond(count)) and not session.ended:
            if (left := last + _SHOW_EVERY - time.monotonic()) > 0:
                time.sleep(left)
            last, number = time.monotonic(), session.count - 1
            now = visitor.threshold
            yield (
                _drawn(visitor, session, number, now),
                session.progress(),
                _table(session, number, now),
                *(gr.update() for _ in range(5)),
            )
        if not session.count:
            message = session.error or "no frame could be read"
            yield gr.update(), f"**{message}**", "", hidden, on, off, hidden, hidden
            return
        now, number = visitor.threshold, session.count - 1
        yield (
            _drawn(visitor, session, number, now),
            session.progress(),
            _table(session, number, now),
            gr.update(maximum=max(number, 1), value=number, visible=number > 0),
            on,
            off,
            gr.update(visible=True),
            hidden,
        )

    def stop(self, request: gr.Request) -> None:
        if (session := self._visitors.of(request.session_hash).video) is not None:
            session.stop()

    def redraw(self, place: float, threshold: float, request: gr.Request) -> tuple[Update, ...]:
        visitor = self._visitors.of(request.session_hash)
        visitor.threshold = threshold
        session = visitor.video
        if session is None or not session.count or not session.ended:
            return gr.update(), gr.update()  # the running video takes the threshold itself
        number = min(int(place), session.count - 1)
        picture = _drawn(visitor, session, number, threshold)
        return picture, _table(session, number, threshold)

    def download(self, threshold: float, request: gr.Request) -> tuple[Update, ...]:
        visitor = self._visitors.of(request.session_hash)
        if visitor.video is None:
            return gr.update(), gr.update()
        with _errors_on_the_page():
            files = write_downloads(visitor.video, threshold, visitor.new_folder())
        return gr.update(value=[str(file) for file in files], visible=True), gr.update()

    def camera(
        self,
        image: NDArray[np.uint8] | None,
        texts: str,
        threshold: float,
        request: gr.Request,
    ) -> tuple[Update, ...]:
        visitor = self._visitors.of(request.session_hash)
        if image is None:
            visitor.close_camera()
            return gr.update(), "The camera has stopped.", ""
        try:
            expressions = read_expressions(texts, self._visitors.limits)
            session = visitor.open_camera()
            found = session.segment(image, expressions, threshold)
            picture = gr.update() if found is None else visitor.show(found.picture)
        except InputError as error:
            return gr.update(), f"**{error}**", ""
        except Exception as error:
            visitor.close_camera()  # the next frame opens another stream
            text = str(error) if isinstance(error, RvosError) else type(error).__name__
            return gr.update(), f"**{text}**", ""
        if found is None:
            return gr.update(), gr.update(), gr.update()
        skipped = max(0, round(session.seconds / STREAM_EVERY) - session.frames)
        line = f"{session.rate:.1f} frames a second, about {skipped} skipped: the newest frame wins"
        rows = [(text, score, None) for text, score in zip(found.texts, found.scores, strict=True)]
        return picture, line, _rows(rows)

    def leave(self, request: gr.Request) -> None:
        self._visitors.leave(request.session_hash)


@contextmanager
def _errors_on_the_page() -> Iterator[None]:
    try:
        yield
    except RvosError as error:
        raise gr.Error(str(error), duration=None, print_exception=False) from error


def _drawn(visitor: Visitor, session: VideoSession, number: int, threshold: float) -> str:
    """Return a picture of a frame. Raises gr.Error: the visitor left meanwhile."""
    try:
        return visitor.show(session.overlay(number, threshold))
    except (InputError, FileNotFoundError) as error:
        raise gr.Error("This page was closed; reload it", print_exception=False) from error


def _active(value: bool) -> Update:
    return gr.update(interactive=value)


def _table(session: VideoSession, number: int, threshold: float) -> str:
    areas = session.masks(number, threshold).sum(axis=(1, 2))
    scores = session.scores(number)
    return _rows(list(zip(session.expressions, map(float, scores), map(int, areas), strict=True)))


def _rows(rows: Sequence[tuple[str, float, int | None]]) -> str:
    body = "".join(
        "<tr><td><span class='dot' style='background: rgb{}'></span>{}</td>"
        "<td class='number'>{:.2f}</td><td class='number'>{}</td></tr>".format(
            colour_of(number), html.escape(text), score, "" if area is None else f"{area:,} px"
        )
        for number, (text, score, area) in enumerate(rows)
    )
    head = "<tr><th>Sentence</th><th class='number'>Score</th><th class='number'>Mask</th></tr>"
    return f"<table>{head}{body}</table>"
