"""Serve a bundle over HTTP and WebSocket: ``rvos-deploy serve``."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import Annotated

import typer

from rvos_deploy.console.options import (
    PACKAGED,
    BackendOption,
    DeviceOption,
    PrecisionHintOption,
    SizeOption,
    ThreadsOption,
)
from rvos_deploy.errors import InputError

TOKEN_VARIABLE = "RVOS_SERVE_TOKEN"
_LIMITS, _PLACE, _REPLICAS = "Limits of a replica", "Place", "Replicas"


def serve(
    bundle: Annotated[
        Path,
        typer.Argument(metavar="BUNDLE", help="Bundle from 'export', or name of a packaged one."),
    ] = PACKAGED,
    host: Annotated[
        str,
        typer.Option(
            metavar="ADDRESS",
            rich_help_panel=_PLACE,
            help="Address to listen on. One that other machines reach needs a token.",
        ),
    ] = "127.0.0.1",
    port: Annotated[
        int,
        typer.Option(metavar="N", min=0, max=65535, rich_help_panel=_PLACE, help="0: a free one."),
    ] = 8000,
    token_file: Annotated[
        Path | None,
        typer.Option(
            "--token-file",
            metavar="FILE",
            rich_help_panel=_PLACE,
            help=f"File whose first line is the token. Default: the variable {TOKEN_VARIABLE}.",
        ),
    ] = None,
    grace: Annotated[
        float,
        typer.Option(
            metavar="SECONDS",
            min=0.0,
            rich_help_panel=_PLACE,
            help="Time that open streams get to end after a stop.",
        ),
    ] = 5.0,
    replicas: Annotated[
        int,
        typer.Option(
            metavar="N", min=1, rich_help_panel=_REPLICAS, help="Processes, each with the bundle."
        ),
    ] = 1,
    cpus: Annotated[
        int | None,
        typer.Option(
            "--cpus",
            metavar="N",
            min=1,
            rich_help_panel=_REPLICAS,
            help="CPU cores of a replica. Default: 4, at most all cores.",
        ),
    ] = None,
    gpus: Annotated[
        float | None,
        typer.Option(
            "--gpus",
            metavar="X",
            min=0.0,
            rich_help_panel=_REPLICAS,
            help="GPUs of a replica; 0.5: two share one. Default: 1 for --device cuda and "
            "TensorRT, else 0.",
        ),
    ] = None,
    max_streams: Annotated[
        int,
        typer.Option(metavar="N", min=1, rich_help_panel=_LIMITS, help="Streams at a time."),
    ] = 4,
    max_expressions: Annotated[
        int,
        typer.Option(metavar="N", min=1, rich_help_panel=_LIMITS, help="Expressions of a stream."),
    ] = 16,
    max_upload: Annotated[
        int,
        typer.Option(metavar="MIB", min=1, rich_help_panel=_LIMITS, help="Size of a video."),
    ] = 512,
    max_frames: Annotated[
        int, typer.Option(metavar="N", min=1, rich_help_panel=_LIMITS, help="Frames of a video.")
    ] = 18_000,
    max_offline_frames: Annotated[
        int,
        typer.Option(
            metavar="N",
            min=1,
            rich_help_panel=_LIMITS,
            help="Frames of a video in mode offline, where all wait for the last.",
        ),
    ] = 1000,
    max_pixels: Annotated[
        int,
        typer.Option(metavar="N", min=1, rich_help_panel=_LIMITS, help="Pixels of a frame."),
    ] = 4096 * 2304,
    max_size: Annotated[
        str | None,
        typer.Option(
            "--max-size",
            metavar="HxW",
            rich_help_panel=_LIMITS,
            help="Largest size that a request may choose for the network's input. Default: twice "
            "the sides of --size.",
        ),
    ] = None,
    max_memory: Annotated[
        int,
        typer.Option(
            metavar="N",
            min=1,
            rich_help_panel=_LIMITS,
            help="Frames that a stream may remember for its decisions, anchors included.",
        ),
    ] = 256,
    max_seconds: Annotated[
        float,
        typer.Option(
            metavar="SECONDS",
            min=1.0,
            rich_help_panel=_LIMITS,
            help="Time of a request, from its first byte to its last line.",
        ),
    ] = 3600.0,
    idle_seconds: Annotated[
        float,
        typer.Option(
            metavar="SECONDS",
            min=0.1,
            rich_help_panel=_LIMITS,
            help="Time that a client may take to send or to read the next piece.",
        ),
    ] = 60.0,
    allow_private_urls: Annotated[
        bool,
        typer.Option(
            "--allow-private-urls",
            rich_help_panel=_LIMITS,
            help="Also fetch videos from loopback and private addresses.",
        ),
    ] = False,
    backend: BackendOption = "auto",
    device: DeviceOption = "auto",
    threads: ThreadsOption = None,
    precision_hint: PrecisionHintOption = None,
    size: SizeOption = None,
) -> None:
    """Serve a bundle on Ray Serve: videos in, a line of JSON for every frame out."""
    from rvos_deploy.bundle.folder import open_bundle
    from rvos_deploy.console.extras import needs_extra
    from rvos_deploy.console.options import parse_size
    from rvos_deploy.listening import url_of
    from rvos_deploy.ray_cluster import choose_shares
    from rvos_deploy.runtime.segmenter_options import plan_segmenter
    from rvos_deploy.stream_settings import StreamSettings

    with needs_extra("serve", "serve"):
        import python_multipart  # noqa: F401

        from rvos_deploy.serving.app import ServerOptions
        from rvos_deploy.serving.limits import Limits
        from rvos_deploy.serving.server import Place, print_line, serve_forever
    opened = open_bundle(bundle, check_files=False)
    shares = choose_shares(replicas, cpus, gpus, backend, device)
    settings = StreamSettings(size=parse_size(size))
    segmenter = plan_segmenter(
        opened.path, backend, device, threads or shares.cpus, settings, precision_hint
    )
    height, width = parse_size(max_size) or _twice(settings.size or opened.config.input_size)
    limits = Limits(
        upload_bytes=max_upload * 2**20,
        frames=max_frames,
        offline_frames=max_offline_frames,
        pixels=max_pixels,
        input_pixels=height * width,
        memory=max_memory,
        streams=max_streams,
        expressions=max_expressions,
        seconds=max_seconds,
        idle_seconds=idle_seconds,
    )
    token = _token(token_file)
    options = ServerOptions(segmenter, limits, allow_private_urls, token)

    def ready(port: int) -> None:
        address = url_of(host, port)
        shown = (
            f"${TOKEN_VARIABLE}"
            if token_file is None
            else f"$(head -n 1 {shlex.quote(str(token_file))})"
        )
        admitted = f' -H "Authorization: Bearer {shown}"' if token else ""
        print_line(f"{opened.path.name} is served at {address}; Ctrl-C ends it. For example:")
        print_line(
            f"  curl -N{admitted} -F video=@video.mp4 -F expression='the dog' {address}/v1/segment"
        )

    serve_forever(options, shares, Place(host, port, grace), ready)


def _twice(size: tuple[int, int]) -> tuple[int, int]:
    return 2 * size[0], 2 * size[1]


def _token(file: Path | None) -> str | None:
    """Return the token of the file or the variable, or None. Raises InputError."""
    if file is None:
        text, place = os.environ.get(TOKEN_VARIABLE), TOKEN_VARIABLE
        if text is None:
            return None
    else:
        place = str(file)
        try:
            text = file.read_text(encoding="utf-8").partition("\n")[0]
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or "not text"
            raise InputError(f"--token-file {file} cannot be read ({reason})") from error
    token = text.strip()
    if len(token) < 16 or not token.isascii() or not token.isprintable() or " " in token:
        raise InputError(
            f"the token in {place} must have at least 16 letters and digits; make one: "
            "python -c 'import secrets; print(secrets.token_urlsafe(32))'"
        )
    return token
