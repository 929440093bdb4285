"""Write JSON so that a reader never meets half a file; the one place that does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rvos_deploy.errors import InputError
from rvos_deploy.files import replacing


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write ``content``, complete or not at all.

    Raises:
        InputError: when the file cannot be written there.
    """
    text = json.dumps(content, indent=1, allow_nan=False) + "\n"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}; choose another file") from error
