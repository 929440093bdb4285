"""Check before long stages that the frozen parts keep motion, because no later stage can add it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from rvos_deploy.errors import InputError, RvosError
from rvos_deploy.json_file import write_json
from rvos_deploy.networks.pan2024.modules.network import RvosNetwork
from rvos_deploy.training import motion_words, slot_probe
from rvos_deploy.training.clips import training_tokenizer
from rvos_deploy.training.recipe import Recipe

REPORT = "preflight.json"
_Report = dict[str, dict[str, int | float | dict[str, int | float]]]


def check_text(network: RvosNetwork, run: Path) -> None:
    """Refuse a text tower that merges opposite motion words; record it in ``preflight.json``.

    Raises:
        RvosError: opposite motion words are too close.
    """
    words = motion_words.motion_word_distances(network.clip, training_tokenizer())
    _record(run, "motion_words", {"ratio": words.ratio, "by_pair": words.by_pair})
    if words.ratio < motion_words.MINIMUM_RATIO:
        raise RvosError(
            f"the frozen text tower merges opposite motion words: {words.ratio:.2f} of the "
            f"distance between nouns, {motion_words.MINIMUM_RATIO} needed; pass other "
            "--clip-weights, or continue with --no-preflight"
        )


def check_slots(network: RvosNetwork, recipe: Recipe, run: Path) -> None:
    """Refuse a frame part whose slots do not encode motion; record it in ``preflight.json``.

    Raises:
        RvosError: a probe cannot read motion from the slots.
    """
    probe = slot_probe.probe_slots(network, recipe)
    found = {"accuracy": probe.accuracy, "held_out": probe.held_out, "found": probe.found}
    _record(run, "slots", found)
    if probe.accuracy < slot_probe.MINIMUM_ACCURACY:
        raise RvosError(
            f"aligned slots tell the direction of {probe.accuracy:.2f} of the held-out objects "
            f"(found: {probe.found:.2f} of the moving ones), {slot_probe.MINIMUM_ACCURACY} needed; "
            "train the frame part longer, or continue with --no-preflight"
        )


def _record(run: Path, name: str, values: dict[str, Any]) -> None:
    file = run / REPORT
    before: dict[str, Any] = {}
    if file.is_file():
        try:
            before = msgspec.json.decode(file.read_bytes(), type=_Report)
        except (OSError, ValueError, RecursionError) as error:
            raise InputError(
                f"{file} is no record of preflight checks ({error}); remove it"
            ) from error
    write_json(file, {**before, name: values})
