"""Check output files before the work begins, and write JSON records in one form."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from rvos_deploy.errors import InputError


def check_outputs(outputs: Iterable[Path | None], inputs: Iterable[Path] = ()) -> None:
    """Refuse output files that cannot be written or that are inputs, before hours of work.

    Args:
        outputs: output files of the command line; None: not requested.
        inputs: input files, and folders whose files may be read.

    Raises:
        InputError: an output cannot be written, is named twice, or is an input.
    """
    from rvos_deploy.files import check_output_file
    from rvos_deploy.overlap import refuse_overlap

    named: list[Path] = []
    for path in outputs:
        if path is None:
            continue
        check_output_file(path)
        if path in named:
            raise InputError(f"{path} is named for two outputs; give each its own file")
        named.append(path)
    refuse_overlap(inputs, named)


def write_record(
    file: Path | None, command: str, content: Mapping[str, Any], versions: Mapping[str, Any]
) -> None:
    """Write a command's result with schema, versions and machine.

    Args:
        file: the file of ``--json``; None: write nothing.
        command: name of the command, and of the schema.
        content: the result, ready for JSON.
        versions: versions of Python and of the packages that did the work.

    Raises:
        InputError: the file cannot be written.
    """
    if file is None:
        return
    from rvos_deploy.environment import machine
    from rvos_deploy.json_file import write_json

    head = {"schema": f"rvos-deploy/{command}/1", "command": command}
    write_json(file, {**head, **content, "versions": {**versions}, "machine": machine()})
