"""Find the user's cache folder, for files that can be downloaded or computed again."""

from __future__ import annotations

import os
import sys
from pathlib import Path

VARIABLE = "RVOS_DEPLOY_CACHE"
"""Environment variable that names another folder."""


def cache_folder() -> Path:
    """Return ``RVOS_DEPLOY_CACHE``, or else a folder in the operating system's cache folder.

    The folder may not exist.
    """
    if chosen := os.environ.get(VARIABLE):
        return Path(chosen)
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    elif os.environ.get("XDG_CACHE_HOME"):
        base = Path(os.environ["XDG_CACHE_HOME"])
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = Path.home() / ".cache"
    return base / "rvos-deploy"
