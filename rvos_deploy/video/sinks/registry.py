"""List the kinds of sinks. A new kind is one module and one line here.

The module of a kind is imported only for a run that asks for it, so what is not asked for costs
nothing, and the help of the command line can list the kinds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from typing import TYPE_CHECKING, NamedTuple, cast

from rvos_deploy.errors import InputError
from rvos_deploy.video.sinks.outputs import FileOutput, FolderOutput, Output

if TYPE_CHECKING:
    from rvos_deploy.video.sinks.base import Sink, SinkRequest

STANDARD_OUTPUT = "-"


@dataclass(frozen=True)
class SinkType:
    """Describe a kind of sink: one line of the registry.

    Args:
        make: makes the sink of a run.
        summary: what it writes, in a few words.
        outputs: what it writes into the run's folder. A run replaces what an earlier run wrote.
        target: what the user may write after ``NAME=``, for people; "": nothing.
        needs_target: whether there must be a target.
    """

    make: Callable[[SinkRequest], Sink]
    summary: str
    outputs: tuple[Output, ...] = ()
    target: str = ""
    needs_target: bool = False

    def usage(self, name: str) -> str:
        """Return what the user may write for this kind: ``alpha[=prores|vp9]``."""
        if not self.target:
            return name
        return f"{name}={self.target}" if self.needs_target else f"{name}[={self.target}]"


def _made_by(module: str) -> Callable[[SinkRequest], Sink]:
    """Return the function ``make`` of a module of this package, imported at its first call."""

    def make(request: SinkRequest) -> Sink:
        made = import_module(f"rvos_deploy.video.sinks.{module}").make(request)
        return cast("Sink", made)

    return make


def _json_file(name: str, schema: str) -> FileOutput:
    return FileOutput(name, f'{{"schema": "rvos-deploy/{schema}/'.encode())


SINKS: dict[str, SinkType] = {
    "masks": SinkType(
        _made_by("masks"), "PNGs, 0 and 255", (FolderOutput("masks", numbered=True),)
    ),
    "palette": SinkType(
        _made_by("palette"),
        "one PNG a frame",
        (FolderOutput("palette"),),
    ),
    "overlay": SinkType(
        _made_by("overlay"),
        "overlay.mp4",
        (FileOutput("overlay.mp4"),),
    ),
    "json": SinkType(
        _made_by("result_file"),
        "result.json",
        (_json_file("result.json", "run"),),
    ),
    "rle": SinkType(
        _made_by("frame_lines"),
        "frames.ndjson, or lines on standard output",
        (_json_file("frames.ndjson", "frame"),),
        target="-",
    ),
    "coco": SinkType(
        _made_by("coco"),
        "coco.json",
        (_json_file("coco.json", "coco"),),
    ),
    "ytvis": SinkType(
        _made_by("ytvis"),
        "ytvis.json",
        (_json_file("ytvis.json", "ytvis"),),
    ),
    "alpha": SinkType(
        _made_by("alpha"),
        "transparent videos",
        (FolderOutput("alpha", (".mov", ".webm"), numbered=True),),
        target="prores|vp9",
    ),
    "cutouts": SinkType(
        _made_by("cutouts"),
        "transparent PNGs",
        (FolderOutput("cutouts"),),
    ),
    "mpegts": SinkType(
        _made_by("mpegts"),
        "live overlay",
        target="udp://HOST:PORT|FIFO|-",
        needs_target=True,
    ),
}
"""Kinds of sinks by name."""

DEFAULT_SINKS: tuple[str, ...] = ("masks", "overlay", "json")
"""Sinks of a run by default."""


class SinkChoice(NamedTuple):
    """Hold one chosen kind of sink."""

    name: str
    kind: SinkType
    target: str | None


def parse_choices(texts: Iterable[str]) -> list[SinkChoice]:
    """Parse chosen sinks, each ``NAME`` or ``NAME=TARGET``.

    Raises:
        InputError: a name is unknown, or is given twice; a target is missing, or not possible; or
            two sinks write to standard output.
    """
    choices = [_parse(text) for text in texts]
    names = [choice.name for choice in choices]
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"sink '{name}' was given twice; name it once")
    if sum(choice.target == STANDARD_OUTPUT for choice in choices) > 1:
        raise InputError("standard output is the target of two sinks; give one of them another")
    return choices


def _parse(text: str) -> SinkChoice:
    name, equals, target = text.partition("=")
    kind = SINKS.get(name)
    if kind is None:
        raise InputError(f"there is no sink '{name}'; choose from {', '.join(SINKS)}")
    if equals and not kind.target:
        raise InputError(f"sink '{name}' has no target, found '{text}'; write '{name}'")
    if (equals and not target) or (kind.needs_target and not equals):
        raise InputError(f"sink '{name}' needs a target: {name}={kind.target}")
    return SinkChoice(name, kind, target or None)


def writes_to_standard_output(choices: Sequence[SinkChoice]) -> bool:
    """Tell whether a sink writes to standard output, which then carries nothing else."""
    return any(choice.target == STANDARD_OUTPUT for choice in choices)


def make_sinks(chosen: Sequence[str | Sink], request: SinkRequest) -> list[Sink]:
    """Make the sinks of a run.

    Args:
        chosen: texts that ``parse_choices`` accepts, and finished sinks.
        request: the run, for sinks given by name.

    Returns:
        The sinks in the given order, but "json" behind them, because the result reports a frame
        after every other sink has written it; and last the sinks whose frames cannot be withdrawn.

    Raises:
        InputError: as ``parse_choices``, or a kind refuses its target.
    """
    choices = iter(parse_choices(one for one in chosen if isinstance(one, str)))
    made: list[tuple[bool, Sink]] = []
    for one in chosen:
        if isinstance(one, str):
            choice = next(choices)
            sink = choice.kind.make(replace(request, target=choice.target))
            made.append((choice.name == "json", sink))
        else:
            made.append((False, one))
    return [sink for _, sink in sorted(made, key=lambda pair: (pair[1].irrevocable, pair[0]))]


def chosen_outputs(chosen: Sequence[str | Sink]) -> list[Output]:
    """Return what the chosen kinds write into a run's folder. Raises as ``parse_choices``."""
    choices = parse_choices(one for one in chosen if isinstance(one, str))
    return [
        output
        for choice in choices
        if choice.target != STANDARD_OUTPUT
        for output in choice.kind.outputs
    ]


def writes_into_folder(chosen: Sequence[str | Sink]) -> bool:
    """Tell whether a chosen sink may write into the run's folder. Raises as ``parse_choices``."""
    own = (one for one in chosen if not isinstance(one, str))
    return bool(chosen_outputs(chosen)) or any(not sink.irrevocable for sink in own)


def all_outputs() -> list[Output]:
    """Return what all kinds of sinks write into a run's folder."""
    return [output for kind in SINKS.values() for output in kind.outputs]
