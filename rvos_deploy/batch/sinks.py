"""Choose what a batch writes for every video."""

from __future__ import annotations

from collections.abc import Sequence

from rvos_deploy.errors import InputError
from rvos_deploy.video.sinks.registry import STANDARD_OUTPUT, parse_choices


def batch_sinks(names: Sequence[str]) -> tuple[str, ...]:
    """Return the sinks of every video: those that are asked for, and "json".

    A video counts as finished only if its result file is there.

    Raises:
        InputError: a sink is unknown, or writes into one place that all videos would share.
    """
    for choice in parse_choices(names):
        if choice.target == STANDARD_OUTPUT or not choice.kind.outputs:
            raise InputError(
                f"sink '{choice.name}={choice.target}' is one place for all videos; choose sinks "
                "that write into each video's folder, or use 'rvos-deploy run'"
            )
    return tuple(names) if "json" in names else (*names, "json")
