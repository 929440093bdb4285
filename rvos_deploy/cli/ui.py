"""Show a page to try a bundle: ``rvos-deploy ui``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rvos_deploy.console.options import (
    PACKAGED,
    BackendOption,
    DeviceOption,
    PrecisionHintOption,
    ThreadsOption,
)
from rvos_deploy.errors import InputError

_LIMITS, _PLACE = "Limits of a visitor", "Place"


def ui(
    bundle: Annotated[
        Path,
        typer.Argument(metavar="BUNDLE", help="Bundle from 'export', or name of a packaged one."),
    ] = PACKAGED,
    host: Annotated[
        str,
        typer.Option(
            metavar="ADDRESS",
            rich_help_panel=_PLACE,
            help="Address to listen on. One that other machines reach needs a password.",
        ),
    ] = "127.0.0.1",
    port: Annotated[
        int,
        typer.Option(metavar="N", min=0, max=65535, rich_help_panel=_PLACE, help="0: a free one."),
    ] = 7860,
    auth_file: Annotated[
        Path | None,
        typer.Option(
            "--auth-file",
            metavar="FILE",
            rich_help_panel=_PLACE,
            help="File whose first line is name:password.",
        ),
    ] = None,
    share: Annotated[
        bool,
        typer.Option(
            "--share",
            rich_help_panel=_PLACE,
            help="Make the page public through Gradio's servers; needs --auth-file.",
        ),
    ] = False,
    browser: Annotated[
        bool,
        typer.Option(
            "--browser/--no-browser", rich_help_panel=_PLACE, help="Open the page in a browser."
        ),
    ] = True,
    max_visitors: Annotated[
        int,
        typer.Option(
            metavar="N", min=1, rich_help_panel=_LIMITS, help="Visitors that are busy at a time."
        ),
    ] = 4,
    max_upload: Annotated[
        int, typer.Option(metavar="MIB", min=1, rich_help_panel=_LIMITS, help="Size of a video.")
    ] = 256,
    max_frames: Annotated[
        int, typer.Option(metavar="N", min=1, rich_help_panel=_LIMITS, help="Frames of a video.")
    ] = 2000,
    max_expressions: Annotated[
        int, typer.Option(metavar="N", min=1, rich_help_panel=_LIMITS, help="Sentences at a time.")
    ] = 8,
    backend: BackendOption = "auto",
    device: DeviceOption = "auto",
    threads: ThreadsOption = None,
    precision_hint: PrecisionHintOption = None,
) -> None:
    """Show a page: drop a video or use the camera, type sentences, and see the masks."""
    from rvos_deploy.bundle.folder import find_bundle
    from rvos_deploy.console.extras import needs_extra
    from rvos_deploy.runtime.segmenter import load

    auth = None if auth_file is None else _read_auth(auth_file)
    if share and auth is None:
        raise InputError(
            "--share lets everybody in, so a password is needed; pass --auth-file FILE with "
            "'name:password'"
        )
    with needs_extra("the page", "ui"):
        from rvos_deploy.ui.server import PageOptions, show_forever
        from rvos_deploy.ui.video_session import Limits
    options = PageOptions(
        host,
        port,
        auth,
        share,
        browser,
        Limits(frames=max_frames, expressions=max_expressions),
        max_visitors,
        max_upload * 2**20,
    )
    if share:
        typer.echo("warning: videos of this page go through Gradio's servers", err=True)
    with load(
        bundle, backend=backend, device=device, threads=threads, precision_hint=precision_hint
    ) as segmenter:
        show_forever(
            segmenter,
            options,
            find_bundle(bundle) != bundle,
            lambda address: typer.echo(f"the page is at {address}; Ctrl-C ends it"),
        )


def _read_auth(file: Path) -> tuple[str, str]:
    """Return name and password. Raises InputError."""
    try:
        text = file.read_text(encoding="utf-8").partition("\n")[0]
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "not text"
        raise InputError(f"--auth-file {file} cannot be read ({reason})") from error
    name, colon, password = text.strip().partition(":")
    if not colon or not name or len(password) < 8:
        raise InputError(
            f"the first line of {file} must be name:password, with a password of 8 letters or more"
        )
    return name, password
