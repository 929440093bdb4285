"""Start the page, wait for a stop, and end everything."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

# Before Gradio is imported: it sends no statistics, and asks for no newer version.
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

import gradio as gr
from starlette.middleware import Middleware
from starlette.responses import PlainTextResponse
from starlette.types import Scope

from rvos_deploy import stopping
from rvos_deploy.admission import Admission
from rvos_deploy.datasets.moving_sprites import Kind, sample_video
from rvos_deploy.errors import BackendError, InputError, one_line
from rvos_deploy.files import temporary_folder
from rvos_deploy.listening import foreign, free_port, is_loopback, url_of
from rvos_deploy.runtime.segmenter import Segmenter
from rvos_deploy.ui.page import CSS, make_page
from rvos_deploy.ui.video_session import Limits
from rvos_deploy.ui.visitors import Visitors

EXAMPLE_SEED = 2024
EXAMPLE_KINDS: tuple[Kind, ...] = ("motion", "appearance", "plural")
EXAMPLE_FRAMES = 48
PACKAGED_NOTE = (
    "The packaged network knows **only rendered videos of moving shapes**, such as this one; on "
    "real videos its masks mean nothing."
)
_FOREIGN = {
    "other_site": "refused: the request comes from a page of another site",
    "other_name": "refused: without --auth-file this page answers under names of this machine "
    "only; use 127.0.0.1",
}
OWN_NOTE = "This page shows your bundle, **{}**."


@dataclass(frozen=True)
class PageOptions:
    """Hold the options of a page.

    Args:
        host: address to listen on.
        port: 0 takes a free one.
        auth: name and password; None: everybody who reaches the page.
        share: let Gradio's servers make the page public.
        open_browser: open it in a browser here.
        limits: of a visitor.
        most_visitors: that are busy at a time.
        upload_bytes: of a video.
    """

    host: str = "127.0.0.1"
    port: int = 7860
    auth: tuple[str, str] | None = None
    share: bool = False
    open_browser: bool = True
    limits: Limits = field(default_factory=Limits)
    most_visitors: int = 4
    upload_bytes: int = 256 * 2**20


def show_forever(
    segmenter: Segmenter, options: PageOptions, packaged: bool, on_ready: Callable[[str], None]
) -> None:
    """Show the page until a stop.

    Args:
        segmenter: loaded.
        options: of the page.
        packaged: whether the bundle is the packaged one, which gets an example.
        on_ready: called with the page's address.

    Raises:
        InputError: the place is taken, or others reach it and there is no password.
        BackendError: the page cannot be started.
    """
    if not is_loopback(options.host) and options.auth is None:
        raise InputError(
            f"--host {options.host} lets other machines in, so a password is needed; pass "
            "--auth-file FILE with 'name:password'"
        )
    port = free_port(options.host, options.port)
    threshold = segmenter.bundle.threshold("online")
    note = PACKAGED_NOTE if packaged else OWN_NOTE.format(segmenter.bundle.path.name)
    with temporary_folder("rvos-ui") as folder, stopping.deferred():
        served = folder / "served"
        served.mkdir()
        _set_environment(served)
        visitors = Visitors(segmenter, options.limits, options.most_visitors, folder, served)
        example = _example(folder) if packaged else None
        page = make_page(visitors, threshold, note, example)
        try:
            _launch(page, options, port)
            on_ready(page.local_url or url_of(options.host, port))
            while True:
                stopping.check()
                visitors.sweep()
                time.sleep(0.2)
        finally:
            visitors.close()
            page.close(verbose=False)


def _set_environment(served: Path) -> None:
    """Let no variable widen what the page serves, and no proxy stand before it."""
    for name in [name for name in os.environ if name.startswith("GRADIO_")]:
        del os.environ[name]
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["GRADIO_TEMP_DIR"] = str(served)
    for name in ("no_proxy", "NO_PROXY"):  # Gradio asks its own server whether it answers
        known = filter(None, (os.environ.get(name), "127.0.0.1", "localhost", "::1"))
        os.environ[name] = ",".join(known)


def _launch(page: gr.Blocks, options: PageOptions, port: int) -> None:
    middleware = []
    if not options.share:  # a shared page is for other sites' names; it has a password
        refuse = partial(_refusal, any_name=options.auth is not None)
        middleware = [Middleware(Admission, refusal=refuse)]
    stdout, sys.stdout = sys.stdout, sys.stderr  # Gradio prints lines of its own
    try:
        page.launch(
            server_name=options.host,
            server_port=port,
            auth=options.auth,
            share=options.share,
            inbrowser=options.open_browser,
            prevent_thread_lock=True,
            quiet=not options.share,
            show_error=True,
            max_file_size=options.upload_bytes,
            allowed_paths=[],
            app_kwargs={"middleware": middleware},
            theme=gr.themes.Default(
                font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]
            ),
            css=CSS,
            footer_links=[],
            ssr_mode=False,
            pwa=False,
            mcp_server=False,
            enable_monitoring=False,
        )
    except Exception as error:  # Gradio raises all kinds
        raise BackendError(f"the page does not start: {one_line(error)}; see --debug") from error
    finally:
        sys.stdout = stdout


def _refusal(scope: Scope, any_name: bool) -> PlainTextResponse | None:
    """Return the answer to what a page of another site sends; Gradio itself allows most of it."""
    reason = foreign(scope["headers"], any_name=any_name)
    return None if reason is None else PlainTextResponse(_FOREIGN[reason], 403)


def _example(folder: Path) -> tuple[Path, list[str]]:
    path = folder / "example.mp4"
    sample = sample_video(
        path, seed=EXAMPLE_SEED, size=(256, 448), frames=EXAMPLE_FRAMES, kinds=EXAMPLE_KINDS
    )
    texts = [expression.text for expression in sample.expressions]
    return path, texts[:3]
