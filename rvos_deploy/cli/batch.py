"""Write masks for many videos: ``rvos-deploy batch``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rvos_deploy.console.options import (
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
    StartOption,
    StrideOption,
    VideoStreamOption,
)
from rvos_deploy.console.stream_options import StreamOptions

if TYPE_CHECKING:
    from rvos_deploy.batch.run_batch import BatchReport

_MOST_LINES = 20


def batch(
    expressions: Annotated[
        Path,
        typer.Option(
            "--expressions",
            "-e",
            metavar="FILE",
            help="CSV or Parquet with the columns 'video' and 'expression', JSON that maps videos "
            "to lists of texts, or a MeViS meta_expressions.json. Without videos in FILE, every "
            "expression belongs to every video.",
        ),
    ],
    out: Annotated[
        Path,
        typer.Option(
            "--out", "-o", metavar="DIR", help="Folder for one folder a video, and batch.json."
        ),
    ],
    videos: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="VIDEO",
            help="Files and folders of frames. Default: all videos that FILE names.",
            show_default=False,
        ),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(
            "--workers",
            "-w",
            metavar="N",
            min=1,
            help="Videos at the same time. Default: as many as fit the machines.",
        ),
    ] = None,
    cpus: Annotated[
        int | None,
        typer.Option(
            "--cpus",
            metavar="N",
            min=1,
            help="CPU cores of a worker. Default: 4, at most all cores.",
        ),
    ] = None,
    gpus: Annotated[
        float | None,
        typer.Option(
            "--gpus",
            metavar="X",
            min=0.0,
            help="GPUs of a worker; 0.5: two workers share one. Default: 1 for --device cuda and "
            "TensorRT, else 0.",
        ),
    ] = None,
    retries: Annotated[
        int,
        typer.Option(
            "--retries",
            metavar="N",
            min=0,
            help="New attempts for a video whose worker died or that failed for a reason that may "
            "pass.",
        ),
    ] = 2,
    address: Annotated[
        str | None,
        typer.Option(
            "--address",
            metavar="HOST:PORT",
            help="Ray cluster to run on; it must see the same files. Default: this machine alone.",
        ),
    ] = None,
    bundle: BundleOption = PACKAGED,
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
    allow_playlists: AllowPlaylistsOption = False,
) -> None:
    """Segment many videos on Ray; given again, it goes on where it stopped."""
    from rvos_deploy.batch.expressions_file import read_expressions
    from rvos_deploy.batch.jobs import make_jobs
    from rvos_deploy.batch.run_batch import BatchOptions, run_batch
    from rvos_deploy.batch.sinks import batch_sinks
    from rvos_deploy.batch.worker import VideoOptions
    from rvos_deploy.bundle.folder import open_bundle
    from rvos_deploy.console.output import counted, note_precision_hint
    from rvos_deploy.ray_cluster import choose_shares
    from rvos_deploy.redaction import redact_command
    from rvos_deploy.runtime.segmenter_options import plan_segmenter
    from rvos_deploy.video.sources.options import SourceOptions

    chosen = StreamOptions(mode, lookahead, memory, anchors, threshold, fallback, size, short_side)
    read_and_written = VideoOptions(
        SourceOptions(
            allow_playlists=allow_playlists,
            start=start,
            end=end,
            stride=stride,
            video_stream=video_stream,
        ),
        max_frames,
        batch_sinks(parse_save(save).sinks),
        redact_command(),
        str(Path.cwd()),
    )
    chosen.settings("offline")  # refuses wrong settings before anything is read
    found = make_jobs(videos or (), read_expressions(expressions))
    if found.unused:
        typer.echo(
            f"note: {expressions} also names {counted(found.unused, 'video')} not given", err=True
        )
    opened = open_bundle(bundle, check_files=False)
    settings = chosen.settings(opened.network.default_mode)
    for note in opened.network.notes(settings):
        typer.echo(f"note: {note}", err=True)
    note_precision_hint(precision_hint, bundle)
    shares = choose_shares(workers, cpus, gpus, backend, device)
    segmenter = plan_segmenter(
        opened.path, backend, device, threads or shares.cpus, settings, precision_hint
    )
    options = BatchOptions(segmenter, read_and_written, shares, retries, address, [expressions])
    report = run_batch(found.jobs, out, options)
    _print_report(report, out)


def _print_report(report: BatchReport, out: Path) -> None:
    from rvos_deploy.batch.table import count_line, failure_line

    already = f" ({report.already} before)" if report.already else ""
    typer.echo(f"{count_line(list(report.videos.values()))}{already} -> {out}")
    failed = report.having("damaged", "failed")
    for video in list(failed.values())[:_MOST_LINES]:
        typer.echo(f"warning: {failure_line(video)}", err=True)
    if (more := len(failed) - _MOST_LINES) > 0:
        typer.echo(f"warning: {more} more; see {out / 'batch.json'}", err=True)
    if failed:
        raise typer.Exit(1)
