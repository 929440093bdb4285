"""Find the bundles that the CPU benchmark runs, and export those that are missing."""

from __future__ import annotations

import shlex
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import get_args

from rvos_deploy.benchmarks.cpu_contenders import CONTENDERS
from rvos_deploy.bundle.folder import MANIFEST, Bundle, find_bundle, open_bundle
from rvos_deploy.errors import InputError, RvosError, one_line
from rvos_deploy.graph_io.graph_spec import Precision
from rvos_deploy.progress import StepProgress

CHECKPOINTS = Path(__file__).parent / "checkpoints"
"""Weights of the packaged network; a clone of the repository has them, a wheel has not."""

INT8 = (
    *("--precision", "int8", "--calibration-frames", "16"),
    # What int8 loses is seen beside its speed; random weights lose more than trained ones.
    *("--minimum-j-and-f", "0", "--maximum-slot-excess", "1000"),
)
"""Options of ``export`` for int8 weights."""

_EXPORT = "from rvos_deploy.cli.app import main; main()"


@dataclass(frozen=True)
class Model:
    """Name a network of the benchmark, and the size that frames are fitted to.

    Args:
        preset: what ``export`` calls it.
        size: (height, width) of the box in pixels.
        packaged: whether the package holds its bundle; others get random weights, which take as
            long as trained ones.
    """

    preset: str
    size: tuple[int, int]
    packaged: bool = False

    def weights(self) -> list[str] | None:
        """Return the options of ``export`` for its weights; None: they are not here."""
        if not self.packaged:
            return ["--random-weights"]
        network, clip = CHECKPOINTS / "tiny.safetensors", CHECKPOINTS / "tiny_clip.safetensors"
        if not network.is_file():
            return None
        return [
            *("--checkpoint", str(network), "--clip-weights", str(clip)),
            *("--store", "fp16", "--threshold", "0.6"),
        ]


MODELS: Mapping[str, Model] = {
    "tiny": Model("tiny", (128, 224), packaged=True),
    "base": Model("base", (352, 640)),
    "onlinerefer-r50": Model("onlinerefer-r50", (384, 640)),
    "large": Model("large", (448, 800)),
}


@dataclass(frozen=True)
class Bundles:
    """Find bundles by model.

    Args:
        cache: folder where exported bundles are kept.
        given: bundles of the user, by model.
        int8: bundles with int8 weights, by model.
    """

    cache: Path
    given: Mapping[str, Path] = field(default_factory=dict)
    int8: Mapping[str, Path] = field(default_factory=dict)

    def path(self, model: str) -> Path:
        """Return the folder of a model's bundle, which may not exist yet."""
        if model in self.given:
            return find_bundle(self.given[model])
        return find_bundle(model) if MODELS[model].packaged else self.cache / model

    def prepare(self, model: str, progress: StepProgress) -> Path:
        """Return the folder of a model's bundle; export it first if it is missing.

        Raises:
            InputError: it is missing, and cannot be exported here.
        """
        path = self.path(model)
        if not (path / MANIFEST).is_file():
            progress(f"export {model} with random weights, once, to {path}")
            _export(model, path)
        return path

    def prepare_int8(self, model: str, video: str, progress: StepProgress) -> Path:
        """Return the folder of a model's bundle with int8 weights; export it first if missing.

        Args:
            model: its name.
            video: for the calibration.
            progress: called with the name of each step of an export.

        Raises:
            InputError: it is missing, and cannot be exported here.
        """
        if model in self.int8:
            return self.int8[model]
        path = self.cache / f"{model}-int8"
        if not (path / MANIFEST).is_file():
            if "int8" not in get_args(Precision):
                raise InputError("this version exports no int8 weights")
            progress(f"export {model} with int8 weights, once, to {path}")
            _export(model, path, *INT8, "--calibration", video)
        return path

    def open_for(
        self, contenders: tuple[str, ...], model: str, video: str, progress: StepProgress
    ) -> tuple[dict[str, Bundle], dict[str, str]]:
        """Return the bundle of each contender, and why contenders have none.

        ``video`` calibrates int8 weights where they are exported.
        """
        bundle = open_bundle(self.prepare(model, progress))
        found = {name: bundle for name in contenders if not CONTENDERS[name].own_bundle}
        missing: dict[str, str] = {}
        own = [name for name in contenders if CONTENDERS[name].own_bundle]
        if own:
            try:
                quantized = open_bundle(self.prepare_int8(model, video, progress))
                found |= dict.fromkeys(own, quantized)
            except RvosError as error:
                missing = dict.fromkeys(own, str(error))
        return {name: found[name] for name in contenders if name in found}, missing


def _export(model: str, path: Path, *options: str) -> None:
    """Export in a process of its own, whose memory does not count.

    Raises:
        InputError: torch or the weights are not here, or the export failed.
    """
    weights = MODELS[model].weights()
    if find_spec("torch") is None or weights is None:
        lacks = "torch is not installed" if weights else "its checkpoints are not"
        raise InputError(
            f"there is no such bundle of {model} here, and {lacks} to export one; pass it with "
            f"--bundle or --int8 {model}=DIR, or leave it out by --only or --contender"
        )
    command = ["export", MODELS[model].preset, *weights, *options, "--out", str(path)]
    path.parent.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(
        [sys.executable, "-c", _EXPORT, *command], capture_output=True, text=True, check=False
    )
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:] or [f"exit code {done.returncode}"]
        raise InputError(f"'rvos-deploy {shlex.join(command)}' failed: {one_line(last[0])}")
