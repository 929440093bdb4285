"""Fetches a file while the disk is full from the n-th operation on, for n = 1, 2, ...

Run with failing_writes.so preloaded: ``ADDRESS SHA256 FOLDER STICKY``. Prints a JSON list with an
entry for each n: the error's line (null where nothing failed), the files that are there then, and
the sha256 that a second try gives. One fork for each n, as what was counted must start anew.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
from pathlib import Path

from rvos_deploy.errors import RvosError
from rvos_deploy.export.download import fetch


def _try(url: str, sha256: str, cache: Path, fail_at: int, sticky: bool) -> dict[str, object]:
    library, error = ctypes.CDLL(None), None
    library.fail_writes(os.fsencode(cache), ctypes.c_long(fail_at), sticky)
    try:
        fetch(url, cache)
    except RvosError as raised:
        error = str(raised)
    library.fail_writes(b"", ctypes.c_long(0), 0)
    left = sorted(path.name for path in cache.rglob("*") if path.is_file())
    return {"error": error, "left": left, "again": fetch(url, cache).sha256}


def main() -> None:
    url, sha256, folder, sticky = sys.argv[1:]
    results: list[dict[str, object]] = []
    while not results or results[-1]["error"] is not None:
        reading, writing = os.pipe()
        number = len(results) + 1
        if os.fork() == 0:
            found = _try(url, sha256, Path(folder) / str(number), number, sticky == "sticky")
            os.write(writing, json.dumps(found).encode())
            os._exit(0)
        os.close(writing)
        with os.fdopen(reading) as answer:
            results.append(json.load(answer))
        os.wait()
    print(json.dumps(results))


main()
