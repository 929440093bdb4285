"""Check that a bundle still reproduces PyTorch's results: ``rvos-deploy verify``."""

from __future__ import annotations

import warnings

import typer

from rvos_deploy.console.options import (
    BackendOption,
    BundleArgument,
    DeviceOption,
    JsonOption,
    PrecisionHintOption,
    ThreadsOption,
)
from rvos_deploy.console.output_files import check_outputs, write_record


def verify(
    bundle: BundleArgument,
    backend: BackendOption = "auto",
    device: DeviceOption = "auto",
    threads: ThreadsOption = None,
    precision_hint: PrecisionHintOption = None,
    json: JsonOption = None,
) -> None:
    """Check a bundle's hashes, graphs and masks on this machine; exit with 1 if a check fails.

    The bundle holds PyTorch's results from the export as the reference, so PyTorch is not needed.
    """
    from rvos_deploy.bundle.folder import bundle_files, find_bundle, open_bundle
    from rvos_deploy.cli.parity_table import notes, parity_table
    from rvos_deploy.console.output import (
        choice_lines,
        in_precision,
        note_precision_hint,
        result_console,
        step_progress,
    )
    from rvos_deploy.environment import versions
    from rvos_deploy.parity import verification
    from rvos_deploy.runtime.backends.choice import choose
    from rvos_deploy.runtime.backends.registry import make_backend
    from rvos_deploy.stream_settings import StreamSettings

    check_outputs([json], bundle_files(find_bundle(bundle)))
    opened = open_bundle(bundle)
    if opened.manifest.revision < 1:
        warnings.warn(
            f"{bundle} does not say where its weights came from (an older export): verify shows "
            "that the bundle reproduces PyTorch's results, not that the right network was "
            "exported; export it again",
            stacklevel=2,
        )
    choice = choose(
        backend,
        opened,
        StreamSettings(),
        device=device,
        threads=threads,
        precision_hint=precision_hint,
    )
    engine = make_backend(choice.name, device, threads, precision_hint)
    note_precision_hint(precision_hint, bundle)
    left_out: list[str] = []
    with step_progress() as progress:
        results = verification.verify(opened, engine, progress, left_out.append)
    checks = [result.as_dict() for result in results]
    passed = all(result.passed for result in results)
    console = result_console()
    console.print(parity_table(checks, console.width))
    for line in notes(checks):
        typer.echo(line)
    if left_out:
        typer.echo(f"left out, outside the engines' profiles: {'; '.join(left_out)}")
    failed = sum(not result.passed for result in results)
    described = choice.described(engine)
    for line in choice_lines(described):
        typer.echo(line)
    name = f"{described['name']} {described['version']} on {described['device']}"
    name += in_precision(described)
    typer.echo(
        f"{bundle}: {len(results)} checks passed with {name}"
        if passed
        else f"{bundle}: {failed} of {len(results)} checks FAILED with {name}"
    )
    content = {"bundle": str(bundle), "passed": passed, "checks": checks, "left_out": left_out}
    write_record(json, "verify", content, {**versions(), "backend": described})
    if not passed:
        raise typer.Exit(1)
