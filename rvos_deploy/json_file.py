"""Write JSON so that a reader never meets half a file; the one place that does."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

from rvos_deploy.errors import InputError


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write ``content``, complete or not at all.

    Raises:
        InputError: when the file cannot be written there.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(
            json.dumps(content, indent=1, allow_nan=False) + "\n", encoding="utf-8"
        )
        temporary.replace(path)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise InputError(f"cannot write {path}: {error.strerror}; choose another file") from error
