"""Write a model repository for Triton Inference Server: ``rvos-deploy export-triton``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from rvos_deploy.console.options import BundleArgument, OverwriteOption
from rvos_deploy.runtime.backends.registry import BackendName

Graphs = Literal["onnx", "plans", "in-process"]
Device = Literal["auto", "cpu", "gpu"]
_GRAPHS, _STREAM = "Graphs", "Stream"


def export_triton(
    bundle: BundleArgument,
    out: Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="Model repository.")],
    name: Annotated[
        str, typer.Option(metavar="NAME", help="Beginning of the models' names.")
    ] = "rvos",
    overwrite: OverwriteOption = False,
    graphs: Annotated[
        Graphs,
        typer.Option(
            rich_help_panel=_GRAPHS,
            help="onnx: each graph is a model of Triton's ONNX Runtime back end; plans: of its "
            "TensorRT back end, from 'build-engine'; in-process: the Python back end runs them, "
            "for servers without the other two.",
        ),
    ] = "onnx",
    device: Annotated[
        Device,
        typer.Option(
            rich_help_panel=_GRAPHS, help="Where they run. auto: as Triton, or --backend, decides."
        ),
    ] = "auto",
    backend: Annotated[
        BackendName,
        typer.Option(metavar="NAME", rich_help_panel=_GRAPHS, help="Runs graphs in process."),
    ] = "auto",
    instances: Annotated[
        int,
        typer.Option(
            metavar="N",
            min=1,
            max=64,
            rich_help_panel=_STREAM,
            help="Processes of the stream model. Each serves its streams in turn.",
        ),
    ] = 1,
    streams: Annotated[
        int,
        typer.Option(
            metavar="N",
            min=1,
            max=1024,
            rich_help_panel=_STREAM,
            help="Videos of a process at the same time.",
        ),
    ] = 16,
    max_expressions: Annotated[
        int,
        typer.Option(
            metavar="N", min=1, max=256, rich_help_panel=_STREAM, help="Expressions of a video."
        ),
    ] = 16,
    idle_seconds: Annotated[
        float,
        typer.Option(
            metavar="SECONDS",
            min=0.1,
            max=1e6,
            rich_help_panel=_STREAM,
            help="After which a silent video is freed.",
        ),
    ] = 60.0,
    packages: Annotated[
        list[str] | None,
        typer.Option(
            metavar="DIR",
            rich_help_panel=_STREAM,
            help="Folder on the server with rvos-deploy ('pip install --target DIR'); may be "
            "repeated. Default: the server's Python has it.",
        ),
    ] = None,
) -> None:
    """Write a Triton model repository: the graphs, and the stream as a sequence model.

    Parity of the bundle does not prove the server. The last line names the command that does.
    """
    from rvos_deploy.triton.repository import RepositoryOptions, export_repository

    options = RepositoryOptions(
        graphs=graphs,
        prefix=name,
        device=device,
        streams=streams,
        instances=instances,
        expressions=max_expressions,
        idle_seconds=idle_seconds,
        backend=backend,
        packages=tuple(packages or ()),
        overwrite=overwrite,
    )
    written = export_repository(bundle, out, options)
    typer.echo(f"{out}: {len(written.models)} models: {', '.join(written.models)}")
    for line in written.needs:
        typer.echo(line)
    typer.echo(
        "parity of the bundle does not prove the server; once it runs, this does: "
        f"python -m rvos_deploy.triton.check {bundle} localhost:8001 --name {name}"
    )
