"""List the kinds of sinks. A new kind is one module and one line here."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from rvos_deploy.errors import InputError
from rvos_deploy.video.sinks.base import Sink, SinkRequest
from rvos_deploy.video.sinks.masks import MASKS, MaskSink
from rvos_deploy.video.sinks.overlay import OVERLAY, OverlaySink
from rvos_deploy.video.sinks.result_file import RESULT, ResultFileSink

SINKS: dict[str, Callable[[SinkRequest], Sink]] = {
    "masks": lambda request: MaskSink(request.out / MASKS),
    "overlay": lambda request: OverlaySink(request.out / OVERLAY),
    "json": lambda request: ResultFileSink(request.out / RESULT, request.summary),
}
"""Sinks by name."""

DEFAULT_SINKS: tuple[str, ...] = ("masks", "overlay", "json")
"""Sinks of a run by default."""


def make_sinks(chosen: Sequence[str | Sink], request: SinkRequest) -> list[Sink]:
    """Make the sinks of a run.

    Args:
        chosen: names of the registry, and finished sinks.
        request: the run, for sinks given by name.

    Returns:
        The sinks in the given order, but "json" last: the result reports a frame after every other
        sink has written it.

    Raises:
        InputError: a name is unknown, or is given twice.
    """
    names = [name for name in chosen if isinstance(name, str)]
    for name in names:
        if name not in SINKS:
            raise InputError(f"there is no sink '{name}'; choose from {', '.join(SINKS)}")
        if names.count(name) > 1:
            raise InputError(f"sink '{name}' was given twice; name it once")
    last = sorted(chosen, key=lambda one: one == "json")
    return [SINKS[one](request) if isinstance(one, str) else one for one in last]
