"""``rvos-deploy verify``: does a bundle still give what PyTorch gave?"""

from __future__ import annotations

import warnings

import typer

from rvos_deploy.console.options import (
    BackendName,
    BackendOption,
    BundleArgument,
    Device,
    DeviceOption,
    JsonOption,
    ThreadsOption,
    check_outputs,
)


def verify(
    bundle: BundleArgument,
    backend: BackendOption = BackendName.auto,
    device: DeviceOption = Device.auto,
    threads: ThreadsOption = None,
    json: JsonOption = None,
) -> None:
    """Check a bundle's hashes, graphs and masks on this machine; exit 1 when one fails.

    The reference is what PyTorch gave at export: it is in the bundle, PyTorch is not needed.
    """
    from rvos_deploy.bundle.folder import bundle_files, find_bundle, open_bundle
    from rvos_deploy.cli.parity_table import notes, parity_table
    from rvos_deploy.console.output import result_console, step_progress
    from rvos_deploy.environment import machine, versions
    from rvos_deploy.json_file import write_json
    from rvos_deploy.parity import verification
    from rvos_deploy.runtime.backends.registry import make_backend

    check_outputs([json], bundle_files(find_bundle(bundle)))
    opened = open_bundle(bundle)
    if opened.manifest.revision < 1:
        warnings.warn(
            f"{bundle} does not say where its weights came from (an older export): verify shows "
            "that it gives what PyTorch gave, not that the right network was exported; export it "
            "again",
            stacklevel=2,
        )
    engine = make_backend(backend.value, device.value, threads)
    left_out: list[str] = []
    with step_progress() as progress:
        verdicts = verification.verify(opened, engine, progress, left_out.append)
    checks = [verdict.as_dict() for verdict in verdicts]
    passed = all(verdict.passed for verdict in verdicts)
    console = result_console()
    console.print(parity_table(checks, console.width))
    for line in notes(checks):
        typer.echo(line)
    if left_out:
        typer.echo(f"left out, outside the engines' profiles: {'; '.join(left_out)}")
    failed = sum(not verdict.passed for verdict in verdicts)
    what = engine.describe()
    name = f"{what['name']} {what['version']} on {what['device']}"
    typer.echo(
        f"{bundle}: {len(verdicts)} checks passed with {name}"
        if passed
        else f"{bundle}: {failed} of {len(verdicts)} checks FAILED with {name}"
    )
    if json is not None:
        write_json(
            json,
            {
                "schema": "rvos-deploy/verify/1",
                "command": "verify",
                "bundle": str(bundle),
                "passed": passed,
                "checks": checks,
                "left_out": left_out,
                "versions": {**versions(), "backend": what},
                "machine": machine(),
            },
        )
    if not passed:
        raise typer.Exit(1)
