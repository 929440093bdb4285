"""Frames become the nearest multiples of 32 without padding; the first family letterboxes them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from rvos_deploy.errors import InputError
from rvos_deploy.graph_io.frame_geometry import resize_frame
from rvos_deploy.graph_io.graph_spec import AxisSpec, GraphSpec
from rvos_deploy.networks.network import Network
from rvos_deploy.networks.online_refer.config import preset
from rvos_deploy.networks.online_refer.network import OnlineRefer
from rvos_deploy.networks.pan2024.config import preset as pan2024_preset
from rvos_deploy.networks.pan2024.network import Pan2024
from rvos_deploy.runtime.limits import check_geometry, check_limits
from rvos_deploy.stream_settings import StreamSettings

NETWORK = OnlineRefer(preset("onlinerefer-r50"))
GRAPHS = {
    "g": GraphSpec("g", (), (), (AxisSpec("H", 32, 4096, 32), AxisSpec("W", 32, 4096, 32)), 1)
}
FIXED = {"g": GraphSpec("g", (), (), (AxisSpec("H", 64, 64, 32), AxisSpec("W", 96, 96, 32)), 1)}


@pytest.mark.parametrize(
    ("display", "settings", "expected"),
    [
        ((720, 1280), StreamSettings(), (352, 640)),  # 360 becomes 352, 640 stays
        ((480, 854), StreamSettings(), (352, 640)),
        ((1280, 720), StreamSettings(), (640, 352)),
        ((480, 640), StreamSettings(), (352, 480)),
        ((500, 500), StreamSettings(short_side=368), (384, 384)),  # in the middle: up
        ((500, 500), StreamSettings(short_side=367), (352, 352)),
        ((500, 500), StreamSettings(short_side=33), (32, 32)),
        ((1, 1), StreamSettings(), (352, 352)),
        ((10, 100), StreamSettings(short_side=32), (32, 320)),
        ((720, 1280), StreamSettings(size=(384, 640)), (352, 640)),  # 360x640 fits the box
        ((1280, 720), StreamSettings(size=(384, 640)), (640, 352)),
        ((20, 3000), StreamSettings(size=(384, 640)), (32, 640)),  # a side is 32 at least
        ((3000, 20), StreamSettings(size=(384, 640)), (640, 32)),
    ],
)
def test_frames_are_stretched_to_multiples_of_32(
    display: tuple[int, int], settings: StreamSettings, expected: tuple[int, int]
) -> None:
    geometry = NETWORK.geometry(display, settings, None)
    assert (geometry.display, geometry.content, geometry.padded) == (display, expected, expected)
    assert NETWORK.geometry(display, NETWORK.with_size(settings, None), None) == geometry


def test_no_pixel_is_padding() -> None:
    white = np.full((37, 61, 3), 255, np.uint8)
    geometry = NETWORK.geometry(white.shape[:2], StreamSettings(short_side=64), None)
    assert resize_frame(white, geometry).min() == 255


def test_the_first_family_letterboxes_a_short_side() -> None:
    network = Pan2024(pan2024_preset("tiny"))
    geometry = network.geometry((37, 61), StreamSettings(short_side=64), None)
    assert (geometry.content, geometry.padded) == ((64, 106), (64, 128))
    geometry = network.geometry((61, 37), StreamSettings(short_side=50), None)
    assert (geometry.content, geometry.padded) == ((82, 50), (96, 64))


@pytest.mark.parametrize(
    ("network", "default"),
    [
        (NETWORK, (None, 360)),
        (Pan2024(pan2024_preset("tiny")), (pan2024_preset("tiny").input_size, None)),
    ],
)
def test_settings_without_a_size_get_the_networks(
    network: Network, default: tuple[tuple[int, int] | None, int | None]
) -> None:
    def sized(settings: StreamSettings, fixed: tuple[int, int] | None = None) -> tuple:
        found = network.with_size(settings, fixed)
        assert replace(found, size=None, short_side=None) == StreamSettings()
        return found.size, found.short_side

    assert sized(StreamSettings()) == default
    assert sized(StreamSettings(), (64, 96)) == ((64, 96), None)
    for fixed in (None, (64, 96)):
        assert sized(StreamSettings(size=(32, 32)), fixed) == ((32, 32), None)
        assert sized(StreamSettings(short_side=99), fixed) == (None, 99)


@pytest.mark.parametrize("network", [NETWORK, Pan2024(pan2024_preset("tiny"))])
@pytest.mark.parametrize("display", [(20, 3000), (3000, 20)])
def test_a_frame_that_becomes_too_long_is_refused(
    network: Network, display: tuple[int, int]
) -> None:
    long = network.geometry(display, StreamSettings(short_side=64), None)
    with pytest.raises(
        InputError, match=r"becomes .*9600.*, and this bundle accepts sides up to 40"
    ):
        check_geometry(GRAPHS, long)
    check_geometry(GRAPHS, network.geometry(display, StreamSettings(size=(64, 96)), None))


@pytest.mark.parametrize(
    ("graphs", "side", "message"),
    [
        (GRAPHS, 4097, "short side 4097 is too large: this bundle accepts sides up to 4096"),
        (FIXED, 64, "this bundle is fixed to frames of 64x96; leave --short-side out"),
    ],
)
def test_a_short_side_that_graphs_do_not_take(
    graphs: dict[str, GraphSpec], side: int, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        check_limits(graphs, StreamSettings(short_side=side), 1)
    check_limits(GRAPHS, StreamSettings(short_side=4096), 1)


@pytest.mark.parametrize("side", [0, -5, 1.5, True])
def test_short_sides_that_are_none(side: object) -> None:
    with pytest.raises(InputError, match="short_side must be"):
        StreamSettings(short_side=side)  # type: ignore[arg-type]


def test_size_and_short_side_exclude_each_other() -> None:
    with pytest.raises(InputError, match="size 64x96 and short side 64 exclude each other"):
        StreamSettings(size=(64, 96), short_side=64)


@pytest.mark.parametrize(("side", "size"), [(360, (352, 640)), (384, (384, 672)), (32, (32, 64))])
def test_a_configuration_has_the_size_of_its_short_side(side: int, size: tuple[int, int]) -> None:
    config = preset("onlinerefer-r50").with_short_side(side)
    assert (config.short_side, config.input_size) == (side, size)
    with pytest.raises(InputError, match="must be at least 32, found 31"):
        config.with_short_side(31)
