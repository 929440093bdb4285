"""Files that commands write: refused early where they cannot be written, JSON in one form."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from rvos_deploy.errors import InputError


def check_outputs(outputs: Iterable[Path | None], inputs: Iterable[Path] = ()) -> None:
    """Refuse output files that cannot be written or that are inputs, before hours of work.

    Args:
        outputs: as given on the command line; None where nothing was asked for.
        inputs: files, and folders of which any file may be read.

    Raises:
        InputError: says what to name instead.
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
    """Write what a command found, with schema, versions and machine; None writes nothing.

    Args:
        file: of ``--json``.
        command: its name, which the schema is named after.
        content: what it found, ready for JSON.
        versions: of Python and of the packages that did the work.

    Raises:
        InputError: the file cannot be written.
    """
    if file is None:
        return
    from rvos_deploy.environment import machine
    from rvos_deploy.json_file import write_json

    head = {"schema": f"rvos-deploy/{command}/1", "command": command}
    write_json(file, {**head, **content, "versions": {**versions}, "machine": machine()})
