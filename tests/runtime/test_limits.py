"""What the graphs cannot take is refused before the first frame."""

from __future__ import annotations

from typing import Any

import pytest

from rvos_deploy.errors import InputError
from rvos_deploy.graph_io.graph_spec import AxisSpec, GraphSpec
from rvos_deploy.runtime.limits import check_limits
from rvos_deploy.stream_settings import StreamSettings


def graphs(*axes: AxisSpec) -> dict[str, GraphSpec]:
    specs = [GraphSpec(str(n), (), (), (axis,), 1e-4) for n, axis in enumerate(axes)]
    return {spec.name: spec for spec in specs}


GRAPHS = graphs(
    AxisSpec("E", 1, 256), AxisSpec("E", 1, 16), AxisSpec("H", 32, 512, 32),
    AxisSpec("W", 32, 512, 32), AxisSpec("M", 1, 100),
)  # fmt: skip
ONLINE = {"mode": "online"}


@pytest.mark.parametrize(
    ("settings", "box", "expressions", "frames"),
    [
        ({}, (512, 512), 16, None),
        ({**ONLINE, "memory": 90, "anchors": 10}, (32, 32), 0, 10_000),
        ({"mode": "offline"}, (32, 32), 1, 100),
        ({"mode": "offline", "memory": 100}, (32, 32), 1, 101),
    ],
)
def test_what_fits(
    settings: dict[str, Any], box: tuple[int, int], expressions: int, frames: int | None
) -> None:
    check_limits(GRAPHS, StreamSettings(**settings, size=box), expressions, frames)


@pytest.mark.parametrize(
    ("settings", "box", "expressions", "frames", "message"),
    [
        ({}, (32, 32), 17, None, "found 17 expressions, at most 16 go into one run; split them"),
        ({}, (544, 32), 1, None, "size 544x32 is too large: .* up to 512; give a smaller --size"),
        ({}, (32, 544), 1, None, "size 32x544 is too large"),
        ({**ONLINE, "memory": 101}, (32, 32), 1, None, "memory 101 .* the 100 frames"),
        ({**ONLINE, "memory": 90, "anchors": 11}, (32, 32), 1, None, "smaller --memory or --anch"),
        ({"mode": "offline"}, (32, 32), 1, 101, "has 101 frames, .* --memory 100, --mode online"),
    ],
)
def test_what_does_not(
    settings: dict[str, Any],
    box: tuple[int, int],
    expressions: int,
    frames: int | None,
    message: str,
) -> None:
    with pytest.raises(InputError, match=message):
        check_limits(GRAPHS, StreamSettings(**settings, size=box), expressions, frames)
