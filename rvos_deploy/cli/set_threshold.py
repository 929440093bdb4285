"""Set the scores that a bundle's queries must pass: ``rvos-deploy set-threshold``."""

from __future__ import annotations

from typing import Annotated

import typer

from rvos_deploy.console.options import BundleArgument


def set_threshold(
    bundle: BundleArgument,
    offline: Annotated[
        float | None,
        typer.Option("--offline", metavar="SCORE", help="Threshold of offline runs, 0 to 1."),
    ] = None,
    online: Annotated[
        float | None,
        typer.Option("--online", metavar="SCORE", help="Threshold of online runs, 0 to 1."),
    ] = None,
) -> None:
    """Write a bundle's own thresholds into its manifest; graphs and parity do not change.

    Measure first: 'rvos-deploy evaluate BUNDLE --data DIR --mode online --threshold SCORE'.
    """
    from rvos_deploy.bundle import folder as bundles

    changed = bundles.set_threshold(bundle, offline=offline, online=online)
    typer.echo(
        f"{bundle}: threshold {changed.threshold('offline')} offline, "
        f"{changed.threshold('online')} online"
    )
