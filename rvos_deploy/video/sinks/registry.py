"""The kinds of sinks. A new kind is one module and one line here."""

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
"""By name."""

DEFAULT_SINKS: tuple[str, ...] = ("masks", "overlay", "json")
"""What a run writes when nobody chooses."""


def make_sinks(chosen: Sequence[str | Sink], request: SinkRequest) -> list[Sink]:
    """Make the sinks of a run.

    Args:
        chosen: names of the registry, and sinks that are made already.
        request: for those that are named.

    Returns:
        The sinks in the order given, but "json" last: a frame is reported when every other sink
        has it.

    Raises:
        InputError: an unknown name, or one given twice.
    """
    names = [name for name in chosen if isinstance(name, str)]
    for name in names:
        if name not in SINKS:
            raise InputError(f"there is no sink '{name}'; choose from {', '.join(SINKS)}")
        if names.count(name) > 1:
            raise InputError(f"sink '{name}' was given twice; name it once")
    last = sorted(chosen, key=lambda one: one == "json")
    return [SINKS[one](request) if isinstance(one, str) else one for one in last]
