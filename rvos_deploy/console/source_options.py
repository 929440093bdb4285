"""Define the options of commands that read a video."""

from __future__ import annotations

from typing import Annotated

import typer

from rvos_deploy.video.sources.options import Policy

_PANEL = "Source"

StartOption = Annotated[
    str | None,
    typer.Option(
        "--start",
        metavar="PLACE",
        rich_help_panel=_PANEL,
        help="First frame: a time (12.5s, 1:30) or a number of frames (300f).",
    ),
]
EndOption = Annotated[
    str | None,
    typer.Option(
        "--end",
        metavar="PLACE",
        rich_help_panel=_PANEL,
        help="End before this time or frame.",
    ),
]
StrideOption = Annotated[
    str | None,
    typer.Option(
        "--stride",
        metavar="STEP",
        rich_help_panel=_PANEL,
        help="Distance between frames: 5f takes every fifth, 0.5s two a second. Default: all.",
    ),
]
MaxFramesOption = Annotated[
    int | None,
    typer.Option(
        "--max-frames", metavar="N", min=1, rich_help_panel=_PANEL, help="Stop after N frames."
    ),
]
VideoStreamOption = Annotated[
    int | None,
    typer.Option(
        "--video-stream",
        metavar="N",
        min=0,
        rich_help_panel=_PANEL,
        help="Which of several video streams, from 0. Default: the one that players show.",
    ),
]
RawOption = Annotated[
    str | None,
    typer.Option(
        "--raw",
        metavar="WxH@FPS",
        rich_help_panel=_PANEL,
        help="VIDEO has no header: its frames are RGB, 8 bits a channel, for example 640x480@25.",
    ),
]
PolicyOption = Annotated[
    Policy,
    typer.Option(
        "--policy",
        rich_help_panel=_PANEL,
        help="For live sources. every: segment every frame, however late; latest: drop frames that "
        "are stale, and count them.",
    ),
]
MaxLatencyOption = Annotated[
    float | None,
    typer.Option(
        "--max-latency",
        metavar="SECONDS",
        min=0,
        rich_help_panel=_PANEL,
        help="With --policy latest: how long a frame may wait. Default: 0, only the newest frame.",
    ),
]
ReconnectOption = Annotated[
    float,
    typer.Option(
        "--reconnect",
        metavar="SECONDS",
        min=0,
        rich_help_panel=_PANEL,
        help="How long to try again when a network source was lost; 0: never.",
    ),
]
AllowPlaylistsOption = Annotated[
    bool,
    typer.Option(
        "--allow-playlists",
        rich_help_panel=_PANEL,
        help="Let playlists (HLS, concat, SDP) open the files and addresses that they name.",
    ),
]
