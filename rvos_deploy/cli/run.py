"""Write masks for a video: ``rvos-deploy run``."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from rvos_deploy.console.options import (
    OUTPUT_PANEL,
    PACKAGED,
    AnchorsOption,
    BackendOption,
    BundleOption,
    DeviceOption,
    FallbackOption,
    LookaheadOption,
    MemoryOption,
    ModeOption,
    PrecisionHintOption,
    ShortSideOption,
    SizeOption,
    ThreadsOption,
    ThresholdOption,
)
from rvos_deploy.console.save_option import SaveOption, parse_save
from rvos_deploy.console.source_options import (
    AllowPlaylistsOption,
    EndOption,
    MaxFramesOption,
    MaxLatencyOption,
    PolicyOption,
    RawOption,
    ReconnectOption,
    StartOption,
    StrideOption,
    VideoStreamOption,
)
from rvos_deploy.console.stream_options import StreamOptions
from rvos_deploy.video.sources.options import RECONNECT


def run(
    video: Annotated[
        str,
        typer.Argument(
            metavar="VIDEO",
            help="File, folder or 'pattern' of images, URL or device that FFmpeg opens, number of "
            "a camera, or - for standard input.",
        ),
    ],
    expressions: Annotated[
        list[str],
        typer.Argument(
            metavar="EXPRESSION",
            help="Sentence that names the objects to segment, in quotes; one or more. Names of "
            "files, URLs and options are refused; if you mean such words, put a space before "
            "them: ' dog.png'.",
        ),
    ],
    bundle: BundleOption = PACKAGED,
    out: Annotated[
        Path,
        typer.Option(
            "--out",
            "-o",
            metavar="DIR",
            help="Folder for what --save names.",
            rich_help_panel=OUTPUT_PANEL,
        ),
    ] = Path("out"),
    save: SaveOption = None,
    backend: BackendOption = "auto",
    device: DeviceOption = "auto",
    threads: ThreadsOption = None,
    precision_hint: PrecisionHintOption = None,
    mode: ModeOption = None,
    lookahead: LookaheadOption = None,
    memory: MemoryOption = None,
    anchors: AnchorsOption = None,
    size: SizeOption = None,
    short_side: ShortSideOption = None,
    threshold: ThresholdOption = None,
    fallback: FallbackOption = None,
    start: StartOption = None,
    end: EndOption = None,
    stride: StrideOption = None,
    max_frames: MaxFramesOption = None,
    video_stream: VideoStreamOption = None,
    raw: RawOption = None,
    policy: PolicyOption = "every",
    max_latency: MaxLatencyOption = None,
    reconnect: ReconnectOption = RECONNECT,
    allow_playlists: AllowPlaylistsOption = False,
    mask_budget: Annotated[
        int | None,
        typer.Option(
            "--mask-budget",
            metavar="MIB",
            min=0,
            rich_help_panel=OUTPUT_PANEL,
            help="Memory for data that waits for a decision or for writing; excess data goes to "
            "disk. Default: an eighth of the memory that this process may use, at most 1024. Frame "
            "tokens are not counted: offline, each frame and expression takes queries x width x 4 "
            "bytes (2 in fp16), 10 KiB for tiny, unless --memory limits the frames.",
        ),
    ] = None,
) -> None:
    """Segment a video: write one mask for every frame and expression."""
    from rvos_deploy import stopping
    from rvos_deploy.bundle.folder import find_bundle
    from rvos_deploy.cli.expressions import check_expressions
    from rvos_deploy.console.output import (
        choice_lines,
        counted,
        frame_progress,
        live_lines,
        note_precision_hint,
    )
    from rvos_deploy.redaction import redact, redact_command
    from rvos_deploy.runtime.run import RunOptions
    from rvos_deploy.runtime.run import run as run_video
    from rvos_deploy.runtime.segmenter import load
    from rvos_deploy.video.sources.options import SourceOptions
    from rvos_deploy.video.sources.registry import has_end, kind_for

    check_expressions(expressions)
    saved = parse_save(save)
    if find_bundle(bundle) != bundle:
        typer.echo(
            "note: the packaged bundle knows only the world of Moving Sprites; for other videos, "
            "pass your own --bundle",
            err=True,
        )
    reading = SourceOptions(
        allow_playlists=allow_playlists,
        start=start,
        end=end,
        stride=stride,
        video_stream=video_stream,
        raw=raw,
        policy=policy,
        max_latency=max_latency,
        reconnect=reconnect,
    )
    kind_for(video, reading)  # refuses wrong options before the bundle is loaded
    chosen = StreamOptions(
        mode, lookahead, memory, anchors, threshold, fallback, size, short_side, mask_budget
    )
    note_precision_hint(precision_hint, bundle)
    early = chosen.settings("online")  # refuses wrong settings before the bundle is loaded
    with (
        load(
            bundle,
            backend=backend,
            device=device,
            threads=threads,
            settings=early,
            precision_hint=precision_hint,
        ) as segmenter,
        frame_progress() as progress,
    ):
        network = segmenter.bundle.network
        settings = chosen.settings(network.default_mode if has_end(video) else "online")
        for note in network.notes(settings):
            typer.echo(f"note: {note}", err=True)
        options = RunOptions(
            settings,
            max_frames=max_frames,
            reading=reading,
            command=redact_command(),
            progress=progress,
        )
        report = run_video(segmenter, video, expressions, out, sinks=saved.sinks, options=options)
    echo = partial(typer.echo, err=saved.on_standard_output)
    echo(
        f"{counted(report.frames, 'frame')}, {counted(len(expressions), 'expression')}, "
        f"{settings.mode}: "
        f"{report.seconds:.1f} s, {report.frames_per_second:.1f} fps"
        + (f" -> {out}" if report.place else "")
    )
    for line in (*live_lines(report.live), *choice_lines(segmenter.describe_backend())):
        echo(line)
    if report.stopped:
        stopping.print_last_line(
            f"warning: {report.stopped}; {report.frames} frames are complete{report.place}"
        )
        raise typer.Exit(stopping.exit_code_of(report.stopped))
    if report.damage:
        typer.echo(
            f"warning: {redact(video)} is damaged ({report.damage}); the {report.frames} frames "
            f"before the damage are complete{report.place}",
            err=True,
        )
        raise typer.Exit(1)
