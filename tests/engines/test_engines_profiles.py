"""Test profiles: defaults, ``--profile``, its messages, shapes and corners. No TensorRT."""

from __future__ import annotations

from pathlib import Path

import pytest

from rvos_deploy.bundle.folder import Bundle, open_bundle
from rvos_deploy.engines import profiles
from rvos_deploy.errors import InputError
from rvos_deploy.graph_io.graph_spec import AxisSpec, GraphSpec, TensorSpec

AXES = {
    "H": AxisSpec("H", 32, 4096, 32),
    "W": AxisSpec("W", 32, 4096, 32),
    "E": AxisSpec("E", 1, 256),
    "M": AxisSpec("M", 1, 65536),
}


@pytest.fixture(scope="module")
def bundle(tiny_bundle: Path) -> Bundle:
    return open_bundle(tiny_bundle)


def test_the_default_reaches_to_the_bundles_own_size(bundle: Bundle) -> None:
    height, width = bundle.config.input_size
    default = profiles.default_profile(bundle)
    assert set(default) == {"H", "W", "E", "L", "M"}
    assert default["H"] == (32, height, height)
    assert default["W"] == (32, width, width)
    assert default["E"][0] == default["M"][0] == 1
    assert default["L"][2] == 77
    for name, axis in profiles.bundle_axes(bundle).items():
        for size in default[name]:
            axis.check(size)


def test_axes_named_by_profile_replace_the_default(bundle: Bundle) -> None:
    first, second = profiles.read_profiles(["H=64:128:256,E=2", "M=1:2:3"], bundle)
    default = profiles.default_profile(bundle)
    assert first == {**default, "H": (64, 128, 256), "E": (2, 2, 2)}
    assert second == {**default, "M": (1, 2, 3)}
    assert profiles.read_profiles([], bundle) == (default,)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("H=128", None),
        ("H=128:256:448,W=224:448:800,E=1:2:8,M=1:24:64", None),
        ("", "'' is not AXIS=MIN:OPT:MAX"),
        ("H=128:256", "'H=128:256' is not AXIS=MIN:OPT:MAX or AXIS=SIZE; for example H=128:"),
        ("H=-32:32:64", "is not AXIS=MIN:OPT:MAX"),
        ("K=1", "K is not an axis of this bundle; axes are H 32 to 4096 in multiples of 32, W"),
        ("H=64,H=96", "H is named twice"),
        ("H=256:128:448", "H=256:128:448 is not in order, min <= opt <= max"),
        (
            "H=100:256:450,W=32:64:5000,E=0:2:8",
            "H cannot be min 100, max 450; W cannot be max 5000; E cannot be min 0; the graphs "
            "allow H 32 to 4096 in multiples of 32, W 32 to 4096 in multiples of 32, E 1 to 256, "
            "M 1 to 65536; nearest: --profile H=96:256:448,W=32:64:4096,E=1:2:8",
        ),
    ],
)
def test_messages_list_the_corners(text: str, message: str | None) -> None:
    if message is None:
        profiles.read_profile(text, AXES)
        return
    with pytest.raises(InputError) as error:
        profiles.read_profile(text, AXES)
    assert message in str(error.value)
    assert str(error.value).startswith(f"--profile '{text}': ")
    assert "\n" not in str(error.value)


def test_the_nearest_profile_is_allowed() -> None:
    with pytest.raises(InputError) as error:
        profiles.read_profile("H=1:17:9999,M=0", AXES)
    nearest = str(error.value).rsplit("--profile ", 1)[1]
    assert profiles.read_profile(nearest, AXES)["H"] == (32, 32, 4096)


ONLINE = "an online stream with its default memory"
OFFLINE = "an offline stream of one frame"


@pytest.mark.parametrize(
    ("texts", "missing"),
    [
        ([], None),
        (["E=2:4:8"], ("E=1, M=64", ONLINE)),
        (["M=1:8:8"], ("E=1, M=64", ONLINE)),
        (["M=65:80:128"], ("E=1, M=64", ONLINE)),
        (["M=64"], ("E=1, M=1", OFFLINE)),
        (["M=2:64:64"], ("E=1, M=1", OFFLINE)),
        (["E=2:4:8", "E=1"], None),
        (["M=64", "M=1:2:8"], None),
        # One profile has one expression, the other one has the memory; no stream has both.
        (["E=1,M=1:8:8", "E=2:4:8"], ("E=1, M=64", ONLINE)),
    ],
)
def test_default_streams_must_be_supported(
    bundle: Bundle, texts: list[str], missing: tuple[str, str] | None
) -> None:
    axes, given = profiles.bundle_axes(bundle), profiles.read_profiles(texts, bundle)
    if missing is None:
        profiles.check_streamable(given, axes)
        return
    with pytest.raises(InputError) as error:
        profiles.check_streamable(given, axes)
    text, (sizes, what) = str(error.value), missing
    assert text.startswith(f"no profile supports {sizes}, which {what} needs; widen one: ")
    assert "\n" not in text
    suggested = text.rsplit("--profile ", 1)[1]
    profiles.check_streamable(profiles.read_profiles([suggested], bundle), axes)


def test_the_bounds_of_a_bundle_limit_what_default_streams_need() -> None:
    fixed = {"E": AxisSpec("E", 2, 2), "M": AxisSpec("M", 16, 16)}
    profiles.check_streamable([{"E": (2, 2, 2), "M": (16, 16, 16)}], fixed)
    short = {"E": AxisSpec("E", 1, 256), "M": AxisSpec("M", 1, 32)}
    profiles.check_streamable([{"E": (1, 2, 8), "M": (1, 16, 32)}], short)
    with pytest.raises(InputError, match="no profile supports E=1, M=32, which an online stream"):
        profiles.check_streamable([{"E": (1, 2, 8), "M": (1, 16, 16)}], short)
    profiles.check_streamable([{"H": (32, 32, 32)}], {"H": AxisSpec("H", 32, 64, 32)})


SPEC = GraphSpec(
    "g",
    (TensorSpec("x", "float32", ("E", 3, "H/4", "W/4")), TensorSpec("y", "bool", ("E", 5))),
    (TensorSpec("z", "float32", ("E",)),),
    (AXES["H"], AXES["W"], AXES["E"]),
    1e-4,
)


def test_shapes_follow_from_the_contract() -> None:
    profile = {"H": (32, 64, 128), "W": (32, 96, 96), "E": (1, 2, 8), "M": (1, 1, 1)}
    assert profiles.input_shapes(SPEC, profile) == {
        "x": ((1, 3, 8, 8), (2, 3, 16, 24), (8, 3, 32, 24)),
        "y": ((1, 5), (2, 5), (8, 5)),
    }
    assert profiles.graph_profile(SPEC, profile) == {k: profile[k] for k in "HWE"}


def test_corners_are_the_best_sizes_and_every_mix_of_extremes() -> None:
    profile = {"H": (32, 64, 128), "W": (96, 96, 96), "E": (1, 2, 8)}
    found = profiles.corners(SPEC, [profile])
    assert found[0] == {"H": 64, "W": 96, "E": 2}
    assert found[1:] == [{"H": h, "W": 96, "E": e} for h in (32, 128) for e in (1, 8)]
    fixed = {"H": (64, 64, 64), "W": (96, 96, 96), "E": (2, 2, 2)}
    assert profiles.corners(SPEC, [fixed]) == [found[0]]
    assert profiles.corners(SPEC, [profile, fixed, profile]) == found
