"""``rvos-deploy run``: masks for a video."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from rvos_deploy.console.options import (
    PACKAGED,
    BackendName,
    BackendOption,
    BundleOption,
    Device,
    DeviceOption,
    SizeOption,
    ThreadsOption,
    parse_size,
)


class ModeName(str, Enum):
    """Modes by name."""

    online = "online"
    offline = "offline"


class FallbackName(str, Enum):
    """What to give when no query passes."""

    none = "none"
    top1 = "top1"


def run(
    video: Annotated[
        str,
        typer.Argument(
            metavar="VIDEO",
            help="File, folder of frames, URL or device that FFmpeg opens, or -.",
        ),
    ],
    expressions: Annotated[
        list[str],
        typer.Argument(
            metavar="EXPRESSION",
            help="What to segment; one or more, each in quotes. Names of files, URLs and options "
            "are refused; where such words are meant, put a space before them: ' dog.png'.",
        ),
    ],
    bundle: BundleOption = PACKAGED,
    out: Annotated[
        Path,
        typer.Option(
            "--out", "-o", metavar="DIR", help="Folder for masks/, overlay.mp4, result.json."
        ),
    ] = Path("out"),
    backend: BackendOption = BackendName.auto,
    device: DeviceOption = Device.auto,
    threads: ThreadsOption = None,
    mode: Annotated[
        ModeName | None,
        typer.Option(
            "--mode",
            help="online: each frame from what was seen so far; offline: from the whole clip. "
            "Default: offline for files and folders, online for streams.",
        ),
    ] = None,
    lookahead: Annotated[
        int,
        typer.Option(
            "--lookahead", metavar="N", min=0, help="Online: frames to wait before deciding."
        ),
    ] = 0,
    memory: Annotated[
        int | None,
        typer.Option(
            "--memory",
            metavar="N",
            min=1,
            help="Frames remembered. Default: 64 online, all offline.",
        ),
    ] = None,
    anchors: Annotated[
        int,
        typer.Option(
            "--anchors", metavar="N", min=0, help="Older frames remembered, spread evenly."
        ),
    ] = 0,
    size: SizeOption = None,
    threshold: Annotated[
        float | None,
        typer.Option(
            "--threshold",
            metavar="SCORE",
            help="Score a query must pass, 0 to 1. Default: the model's own.",
        ),
    ] = None,
    fallback: Annotated[
        FallbackName, typer.Option("--fallback", help="When no query passes: empty, or the best.")
    ] = FallbackName.none,
    max_frames: Annotated[
        int | None,
        typer.Option("--max-frames", metavar="N", min=1, help="Stop after so many."),
    ] = None,
    mask_budget: Annotated[
        int | None,
        typer.Option(
            "--mask-budget",
            metavar="MIB",
            min=0,
            help="Memory for all that waits for the end (features and images); more goes to disk. "
            "Default: an eighth of the memory that this process may use, at most 1024. Offline, "
            "tokens stay in memory beyond it: queries x width x 4 bytes a frame and expression, "
            "10 KiB for tiny (2 bytes in fp16), unless --memory says how many frames are "
            "remembered.",
        ),
    ] = None,
    allow_playlists: Annotated[
        bool,
        typer.Option(
            "--allow-playlists",
            help="Let a file that names other files or addresses (HLS, concat, SDP) open them.",
        ),
    ] = False,
) -> None:
    """Segment a video: one mask for every frame and expression."""
    from rvos_deploy import stopping
    from rvos_deploy.bundle.folder import find_bundle
    from rvos_deploy.cli.expressions import check_expressions
    from rvos_deploy.console.output import counted, frame_progress
    from rvos_deploy.redaction import redact, redact_command
    from rvos_deploy.runtime.run import RunOptions
    from rvos_deploy.runtime.run import run as run_video
    from rvos_deploy.runtime.segmenter import load
    from rvos_deploy.spill_store import default_mask_budget
    from rvos_deploy.stream_settings import StreamSettings
    from rvos_deploy.video.sources.registry import has_end

    check_expressions(expressions)
    if find_bundle(bundle) != bundle:
        typer.echo(
            "note: the packaged bundle knows the world of Moving Sprites only; for other videos "
            "pass your own --bundle",
            err=True,
        )
    settings = StreamSettings(
        mode=mode.value if mode else "offline" if has_end(video) else "online",
        lookahead=lookahead,
        memory=memory,
        anchors=anchors,
        threshold=threshold,
        fallback=fallback.value,
        size=parse_size(size),
        mask_budget=default_mask_budget() if mask_budget is None else mask_budget * 2**20,
    )
    with (
        load(bundle, backend=backend.value, device=device.value, threads=threads) as segmenter,
        frame_progress() as progress,
    ):
        options = RunOptions(
            settings,
            max_frames=max_frames,
            allow_playlists=allow_playlists,
            command=redact_command(),
            progress=progress,
        )
        report = run_video(segmenter, video, expressions, out, options=options)
    typer.echo(
        f"{counted(report.frames, 'frame')}, {counted(len(expressions), 'expression')}, "
        f"{settings.mode}: "
        f"{report.seconds:.1f} s, {report.frames_per_second:.1f} fps -> {out}"
    )
    if report.stopped:
        stopping.say(f"warning: {report.stopped}; {report.frames} frames are complete in {out}")
        raise typer.Exit(stopping.exit_code_of(report.stopped))
    if report.damage:
        typer.echo(
            f"warning: {redact(video)} is damaged ({report.damage}); the {report.frames} frames "
            f"before that are complete in {out}",
            err=True,
        )
        raise typer.Exit(1)
