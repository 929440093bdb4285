"""Keep the results of trials: which back ends were equal to the reference here, and how fast.

A record is a small JSON file in the user's cache folder. It holds numbers and names, nothing that
is executed: at worst, a forged one makes ``auto`` choose another back end that is installed.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from rvos_deploy.bundle.folder import Bundle
from rvos_deploy.bundle.manifest import Line
from rvos_deploy.cache_folder import VARIABLE, cache_folder
from rvos_deploy.cpu_ops import ms_deform_attn as kernel
from rvos_deploy.environment import machine, processor_fingerprint, usable_cores, versions
from rvos_deploy.errors import InputError
from rvos_deploy.files import read_regular_file, write_text
from rvos_deploy.graph_io.graph_spec import fixed_box
from rvos_deploy.stream_settings import StreamSettings

MAXIMUM_BYTES = 64 << 10
ADVANTAGE = 1.05
"""Another back end must be so many times as fast as the first one to be chosen: noise alone told
two equal ones 2 % apart, and a choice should last."""


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """Hold a back end's result.

    ``milliseconds`` is the median of a frame; None: it was not measured. ``failure`` says why the
    back end may not be chosen; "" if its numbers and masks are equal to the reference.
    """

    backend: Line
    milliseconds: Annotated[float, Meta(gt=0)] | None = None
    failure: Line = ""


class Trial(msgspec.Struct, frozen=True, kw_only=True):
    """Hold a trial: its key (see ``trial_key``), its day, and a result for each back end.

    Results are in the order of ``CPU_BACKENDS``.
    """

    key: dict[Line, Line]
    date: Line
    results: tuple[Result, ...]
    schema: Literal["rvos-deploy/backend-trial/1"] = "rvos-deploy/backend-trial/1"

    def winner(self) -> Result | None:
        """Return the fastest that is equal to the reference; None if none is.

        Later ones must be faster by ``ADVANTAGE``.
        """
        best: tuple[float, Result] | None = None
        for result in self.results:
            if result.failure or result.milliseconds is None:
                continue
            if best is None or result.milliseconds * ADVANTAGE <= best[0]:
                best = result.milliseconds, result
        return None if best is None else best[1]


def trial_key(bundle: Bundle, settings: StreamSettings, threads: int | None) -> dict[str, str]:
    """Return everything that a trial depends on; a trial of another key says nothing.

    Args:
        bundle: an opened bundle; its graphs count, its thresholds do not.
        settings: of a stream; its size counts.
        threads: as in ``make_backend``.
    """
    graphs = hashlib.sha256()
    for name in bundle.graphs:
        for file, entry in bundle.onnx_entries(name).items():
            graphs.update(f"{file} {entry.sha256}\n".encode())
    libraries = versions("onnxruntime", "onnxruntime-gpu", "openvino")
    return {
        "processor": machine()["processor"],
        "processor_fingerprint": processor_fingerprint(),
        "threads": str(threads or usable_cores()),
        "graphs": graphs.hexdigest(),
        "size": described_size(bundle, settings),
        "deformable_attention": kernel.instructions() if kernel.available() else "function body",
        **{name: value for name, value in libraries.items() if name not in ("python", "numpy")},
    }


def described_size(bundle: Bundle, settings: StreamSettings) -> str:
    """Return the size of a stream's frames, for people: ``128x224`` or ``short side 360``."""
    sized = bundle.network.with_size(settings, fixed_box(bundle.graphs))
    if sized.size is None:
        return f"short side {sized.short_side}"
    return f"{sized.size[0]}x{sized.size[1]}"


def trial_file(key: dict[str, str]) -> Path:
    """Return the file of a trial in the user's cache folder.

    Raises:
        InputError: the user has no home folder, and no variable names another.
    """
    content = msgspec.json.encode(key, order="deterministic")
    name = hashlib.sha256(content).hexdigest()[:32]
    try:
        return cache_folder() / "backend-trials" / f"{name}.json"
    except RuntimeError as error:
        raise InputError(
            f"there is no home folder for the record of a trial; set {VARIABLE} to a folder"
        ) from error


def read_trial(key: dict[str, str]) -> Trial | None:
    """Return the trial of a key; None if there is none, or its file cannot be read or is damaged.

    Only the time is lost then.
    """
    try:
        content = read_regular_file(trial_file(key), MAXIMUM_BYTES)
        trial = msgspec.json.decode(content, type=Trial)
    except (OSError, InputError, msgspec.DecodeError):
        return None
    return trial if trial.key == key else None


def write_trial(trial: Trial) -> Path:
    """Write a trial, complete or not at all; replace an earlier one. Return the file.

    Raises:
        InputError: the file cannot be written there.
    """
    file = trial_file(trial.key)
    content = msgspec.json.format(msgspec.json.encode(trial), indent=1)
    write_text(file, content.decode() + "\n")
    return file
