"""Coverage-guided fuzzing of the readers: ``python fuzz_readers.py TARGET -max_total_time=30``.

Needs atheris (``pip install atheris``), which is no dependency of the tests. A target that raises
anything but an RvosError ends the program with the input that did it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["rvos_deploy"]):
    from rvos_deploy import rle
    from rvos_deploy.bundle.manifest import Manifest, decode
    from rvos_deploy.bundle.onnx_file import external_locations
    from rvos_deploy.bundle.parity_file import read_arrays
    from rvos_deploy.errors import RvosError
    from rvos_deploy.networks.pan2024.tokenizer import clean_text
    from rvos_deploy.redaction import redact_text
    from rvos_deploy.training.recipe_file import parse_recipe
    from rvos_deploy.video.sources.address import kind_of, name_of

FILE = Path("file")


def _source(data: bytes) -> None:
    name = data.decode("utf-8", "replace")
    kind_of(name)
    name_of(name)
    redact_text(name)


def _recipe(data: bytes) -> None:
    import tomllib

    try:
        content = tomllib.loads(data.decode("utf-8", "replace"))
    except (tomllib.TOMLDecodeError, RecursionError):
        return
    parse_recipe({"model": "tiny", "data": "sprites", **content})


TARGETS: dict[str, Callable[[bytes], object]] = {
    "manifest": lambda data: decode(data, Manifest, FILE),
    "parity": lambda data: read_arrays(data, FILE),
    "onnx": lambda data: external_locations(data, FILE),
    "run-lengths": lambda data: rle.decode({"size": [13, 17], "counts": data}),
    "expression": lambda data: clean_text(data.decode("utf-8", "replace")),
    "source": _source,
    "recipe": _recipe,
}


def main() -> None:
    target = TARGETS[sys.argv[1]]

    def run(data: bytes) -> None:
        with suppress(RvosError):
            target(data)

    atheris.Setup([sys.argv[0], *sys.argv[2:]], run)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
