"""Register every command with the Typer app; each command is a file of its own."""

from __future__ import annotations

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
    inspect,
    make_data,
    pretrain_clip,
    run,
    set_threshold,
    train,
    verify,
)

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


app.command("demo")(demo.demo)
app.command("run")(run.run)
app.command("batch")(batch_command.batch)
app.command("export")(export.export)
app.command("build-engine")(build_engine.build_engine)
app.command("verify")(verify.verify)
app.command("inspect")(inspect.inspect)
app.command("evaluate")(evaluate.evaluate)
app.command("set-threshold")(set_threshold.set_threshold)
app.command("benchmark")(benchmark_command.benchmark)
app.command("choose-backend")(choose_backend.choose_backend)
app.command("doctor")(doctor.doctor)
app.command("make-data")(make_data.make_data)
app.command("pretrain-clip")(pretrain_clip.pretrain_clip)
app.command("train")(train.train)
