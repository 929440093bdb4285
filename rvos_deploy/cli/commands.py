"""Register every command with the Typer app; each command is a file of its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import typer

from rvos_deploy.cli import batch as batch_command
from rvos_deploy.cli import benchmark as benchmark_command
from rvos_deploy.cli import (
    build_engine,
    choose_backend,
    demo,
    doctor,
    evaluate,
    export,
    export_triton,
    inspect,
    make_data,
    pretrain_clip,
    run,
    serve,
    set_threshold,
    train,
    ui,
    verify,
)
from rvos_deploy.cli.examples import epilog

app = typer.Typer(
    name="rvos-deploy",
    help="Referring video object segmentation, from PyTorch to production.",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(value: bool) -> None:
    if value:
        from rvos_deploy.environment import versions

        found = versions("onnxruntime", "onnxruntime-gpu", "openvino", "tensorrt", "torch")
        own = found.pop("rvos-deploy")
        others = ", ".join(f"{name} {version}" for name, version in found.items())
        typer.echo(f"rvos-deploy {own} ({others})")
        raise typer.Exit


@app.callback()
def _options(
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks of errors.")] = False,
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Show the versions."),
    ] = False,
) -> None:
    pass


COMMANDS: dict[str, tuple[str, Callable[..., None]]] = {
    "demo": ("Use a bundle", demo.demo),
    "run": ("Use a bundle", run.run),
    "batch": ("Use a bundle", batch_command.batch),
    "serve": ("Use a bundle", serve.serve),
    "ui": ("Use a bundle", ui.ui),
    "evaluate": ("Use a bundle", evaluate.evaluate),
    "benchmark": ("Use a bundle", benchmark_command.benchmark),
    "choose-backend": ("Use a bundle", choose_backend.choose_backend),
    "export": ("Make and check a bundle", export.export),
    "export-triton": ("Make and check a bundle", export_triton.export_triton),
    "build-engine": ("Make and check a bundle", build_engine.build_engine),
    "verify": ("Make and check a bundle", verify.verify),
    "inspect": ("Make and check a bundle", inspect.inspect),
    "set-threshold": ("Make and check a bundle", set_threshold.set_threshold),
    "train": ("Train", train.train),
    "make-data": ("Train", make_data.make_data),
    "pretrain-clip": ("Train", pretrain_clip.pretrain_clip),
    "doctor": ("Installation", doctor.doctor),
}
"""By name, the group in the help, and the function."""

for _name, (_group, _function) in COMMANDS.items():
    app.command(_name, rich_help_panel=_group, epilog=epilog(_name))(_function)
