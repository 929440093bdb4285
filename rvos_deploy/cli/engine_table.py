"""Make a table of a bundle's engines from their sidecars, without deserialising plans."""

from __future__ import annotations

from collections.abc import Sequence

from rich.markup import escape
from rich.table import Table

from rvos_deploy.bundle.engine_sidecar import EngineError, EngineSidecar, format_profile
from rvos_deploy.bundle.folder import Bundle
from rvos_deploy.console.output import mebibytes
from rvos_deploy.runtime.backends.tensorrt.engine_checks import check_plan


def engine_table(bundle: Bundle, engines: Sequence[EngineSidecar | EngineError]) -> Table:
    """Make a block for each engine: its build, sizes and parity, or why it is refused."""
    table = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
    table.add_column(no_wrap=True)
    # Long paths and commands are wrapped instead of cut, because people copy them.
    table.add_column(overflow="fold")
    for engine in engines:
        if isinstance(engine, EngineError):
            table.add_row("[bold]engine[/]", _refused(engine))
            continue
        table.add_row(f"[bold]{engine.graph}[/]", escape(_build(engine)))
        for profile in engine.profiles:
            table.add_row("", format_profile(profile))
        table.add_row("", _parity(engine))
        try:
            check_plan(bundle, engine)
        except EngineError as error:
            table.add_row("", _refused(error))
    return table


def _build(engine: EngineSidecar) -> str:
    notes = [
        note
        for note, holds in (
            ("version-compatible: holds host code", engine.version_compatible),
            ("hardware-compatible", engine.hardware_compatible),
            ("without weights", engine.stripped),
        )
        if holds
    ]
    built = f"{engine.target} {engine.tensorrt_version}, {engine.precision}, "
    capabilities = f"compute capability {', '.join(engine.compute_capabilities)}"
    gpu = f" ({engine.gpu})" if engine.gpu else ""
    return ", ".join([f"{mebibytes(engine.plan_bytes)}, {built}{capabilities}{gpu}", *notes])


def _parity(engine: EngineSidecar) -> str:
    if not engine.parity:
        reason = escape(engine.parity_reason or "no reason recorded")
        return f"[bold red]refused when loaded[/]: no parity ({reason})"
    failed = sum(check.get("passed") is not True for check in engine.parity)
    if failed:
        return f"[bold red]refused when loaded[/]: {failed} of {len(engine.parity)} checks failed"
    masks = [check["j_and_f"] for check in engine.parity if "j_and_f" in check]
    shown = f", J&F of the masks {min(masks):.4f}" if masks else ""
    return f"[green]{len(engine.parity)} parity checks passed[/]{shown}"


def _refused(error: EngineError) -> str:
    return f"[bold red]refused when loaded[/]: {escape(str(error))}"
