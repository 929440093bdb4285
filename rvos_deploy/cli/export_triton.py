"""Write a model repository for Triton Inference Server: ``rvos-deploy export-triton``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from rvos_deploy.console.options import BundleArgument, OverwriteOption
from rvos_deploy.runtime.backends.registry import BackendName

Graphs = Literal["onnx", "plans", "in-process"]
Device = Literal["auto", "cpu", "gpu"]


def export_triton(
    bundle: BundleArgument,
    out: Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="Model repository.")],
    graphs: Annotated[
        Graphs,
        typer.Option(
            help="onnx: each graph is a model of Triton's ONNX Runtime back end; plans: of its "
            "TensorRT back end, from 'build-engine'; in-process: the Python back end runs them, "
            "for servers without the other two.",
        ),
    ] = "onnx",
    device: Annotated[
        Device, typer.Option(help="Where Triton runs the graphs. auto: as Triton decides.")
    ] = "auto",
    name: Annotated[
        str, typer.Option(metavar="NAME", help="Beginning of the models' names.")
    ] = "rvos",
    streams: Annotated[
        int, typer.Option(metavar="N", min=1, max=1024, help="Videos at the same time.")
    ] = 16,
    idle_seconds: Annotated[
        float,
        typer.Option(metavar="SECONDS", min=0.1, help="After which a silent stream is freed."),
    ] = 60.0,
    backend: Annotated[
        BackendName, typer.Option(metavar="NAME", help="Of graphs in process.")
    ] = "auto",
    overwrite: OverwriteOption = False,
) -> None:
    """Write a Triton model repository: the graphs, and the stream as a sequence model."""
    from rvos_deploy.triton.repository import RepositoryOptions, export_repository

    options = RepositoryOptions(graphs, name, device, streams, idle_seconds, backend, overwrite)
    models = export_repository(bundle, out, options)
    typer.echo(f"{out}: {len(models)} models: {', '.join(models)}")
    typer.echo(
        "the server needs rvos-deploy in the Python of its Python back end (docs/triton.md). "
        "Parity of the bundle says nothing about the server, so ask it, once it runs: "
        f"python -m rvos_deploy.triton.check {bundle} localhost:8001 --name {name}"
    )
