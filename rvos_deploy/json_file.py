"""Write all JSON files, so that a reader never finds half a file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rvos_deploy.files import write_text


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write ``content``, complete or not at all (see ``files.writing``).

    Raises:
        InputError: the file cannot be written there.
    """
    write_text(path, json.dumps(content, indent=1, allow_nan=False) + "\n")
