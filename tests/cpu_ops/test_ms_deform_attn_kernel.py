"""Compare the CPU kernel with float64, for every instruction set, type and awkward shape."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from deformable_attention import (
    SCENARIOS,
    Case,
    exact,
    half_ulp,
    make_case,
    reference,
    slack,
    surrounded,
)
from numpy.typing import NDArray

from rvos_deploy.cpu_ops import ms_deform_attn as kernel
from rvos_deploy.engines.plugins.ms_deform_attn.spec import TYPES, DType
from rvos_deploy.errors import BackendError, InputError

pytestmark = pytest.mark.skipif(
    not kernel.available(), reason="the CPU kernel was not built: there was no C++ compiler"
)
ROUNDS = 12  # of every scenario, for each combination of types and instruction set


def usable_instructions() -> tuple[str, ...]:
    best = kernel.INSTRUCTIONS.index(kernel.instructions()) if kernel.available() else -1
    return kernel.INSTRUCTIONS[: best + 1]


every_instruction_set = pytest.mark.parametrize("use", usable_instructions())
# The kernel takes offsets and logits in one type.
PAIRS = [types for types in TYPES if types[1] == types[2]]


def run(case: Case, **options: Any) -> NDArray[Any]:
    return kernel.ms_deform_attn(kernel.Inputs(*case.arrays), **options)


@every_instruction_set
@pytest.mark.parametrize("types", PAIRS, ids="-".join)
def test_the_error_is_one_rounding_of_the_output(
    types: tuple[DType, DType, DType], use: str
) -> None:
    """The error is half an ulp of the output plus what float32 sums add (``slack``)."""
    random = np.random.default_rng(sum(map(ord, "".join(types))))
    for scenario in SCENARIOS:
        for _ in range(ROUNDS):
            case = make_case(random, types, scenario)
            output = exact(run(case, use=use))
            assert np.isfinite(output).all()
            wanted, allowed = reference(case), slack(case)
            rounding = half_ulp(np.abs(wanted) + allowed, types[0])
            assert (np.abs(output - wanted) <= rounding + allowed).all(), scenario


@every_instruction_set
@pytest.mark.parametrize("channels", [1, 3, 8, 9, 16, 20, 31, 32, 40, 64, 127])
def test_any_number_of_channels(channels: int, use: str) -> None:
    random = np.random.default_rng(channels)
    case = make_case(random, PAIRS[0])
    shape = (*case.value.shape[:-1], channels)
    case = replace(case, value=random.standard_normal(shape).astype(np.float32))
    assert np.abs(run(case, use=use) - reference(case)).max() <= slack(case)


@every_instruction_set
@pytest.mark.parametrize("points", [1, 4, 15, 16, 17, 40])
def test_any_number_of_samples(points: int, use: str) -> None:
    """Samples beyond a whole vector, of several levels, add nothing."""
    random = np.random.default_rng(points)
    case = make_case(random, PAIRS[0])
    shape = list(case.sampling_offsets.shape)
    shape[4] = points
    offsets = 2 * random.standard_normal(shape).astype(np.float32)
    logits = random.standard_normal((*shape[:3], shape[3] * points)).astype(np.float32)
    case = replace(case, sampling_offsets=offsets, attention_logits=logits)
    assert np.abs(run(case, use=use) - reference(case)).max() <= slack(case)


@every_instruction_set
def test_float64_is_computed_in_float64(use: str) -> None:
    for seed, scenario in enumerate(SCENARIOS):
        case = make_case(np.random.default_rng(seed), PAIRS[0], scenario)
        wide = [array.astype(np.float64) for array in case.arrays]
        wide[1] = case.level_shapes
        output = kernel.ms_deform_attn(kernel.Inputs(*wide), use=use)
        # Offsets reach 2e4 pixels in a float64 of 2^-53: 4e-12 of a pixel.
        assert np.abs(output - reference(case)).max() <= 1e-10


@every_instruction_set
def test_the_number_of_threads_changes_no_bit(use: str) -> None:
    random = np.random.default_rng(1)
    shapes = np.array([[24, 40], [12, 20], [6, 10]], np.int32)
    queries = int(shapes.prod(1).sum())
    case = Case(
        random.standard_normal((2, queries, 4, 32)).astype(np.float32),
        shapes,
        random.random((queries, 2)).astype(np.float32),
        random.standard_normal((2, queries, 4, 3, 4, 2)).astype(np.float32),
        random.standard_normal((2, queries, 4, 12)).astype(np.float32),
    )
    outputs = [run(case, use=use, threads=threads) for threads in (1, 2, 3, 7, 64)]
    assert all((output == outputs[0]).all() for output in outputs)
    assert np.abs(outputs[0] - reference(case)).max() <= slack(case)


@every_instruction_set
def test_nothing_outside_a_level_is_counted(use: str) -> None:
    random = np.random.default_rng(5)
    for scenario in SCENARIOS:
        alone = surrounded(make_case(random, PAIRS[0], scenario), np.nan)
        assert np.isfinite(run(alone, use=use)).all()


@every_instruction_set
@pytest.mark.parametrize("offset", [np.inf, -np.inf, np.nan, 3e38, -3e38], ids=str)
def test_an_offset_that_is_not_finite_reads_nothing(offset: float, use: str) -> None:
    case = make_case(np.random.default_rng(6), PAIRS[0])
    lost = replace(
        case,
        value=np.full_like(case.value, np.nan),
        sampling_offsets=np.full_like(case.sampling_offsets, offset),
    )
    assert (run(lost, use=use) == 0).all()


@every_instruction_set
@pytest.mark.parametrize("place", [np.inf, -np.inf, np.nan, 1e30], ids=str)
def test_a_reference_point_that_is_not_finite_reads_nothing(place: float, use: str) -> None:
    case = make_case(np.random.default_rng(7), PAIRS[0])
    lost = replace(case, reference_points=np.full_like(case.reference_points, place))
    assert (run(lost, use=use) == 0).all()


@every_instruction_set
def test_logits_that_are_not_finite(use: str) -> None:
    """As softmax: -infinity switches a sample off; NaN and +infinity spoil their row alone."""
    case = make_case(np.random.default_rng(8), PAIRS[0])
    logits = case.attention_logits.copy()
    logits[..., 1:] = -np.inf
    first = replace(case, attention_logits=logits)
    assert np.abs(run(first, use=use) - reference(first)).max() <= slack(first)
    sound = run(case, use=use)
    for spoiled in (np.nan, np.inf):
        logits = case.attention_logits.copy()
        logits[0, 0, 0, -1] = spoiled
        output = run(replace(case, attention_logits=logits), use=use)
        channels = case.value.shape[3]
        assert np.isnan(output[0, 0, :channels]).all()
        assert (output.ravel()[channels:] == sound.ravel()[channels:]).all()


def test_float16_and_bfloat16_round_as_numpy_and_pytorch_do() -> None:
    """With one pixel and one sample at its centre, the output is the value: all 65,536 of them."""
    torch = pytest.importorskip("torch")
    bits = np.arange(2**16, dtype=np.uint16)
    one = np.full((1, 1, 1, 1, 1, 2), 0.0, np.float32)
    inputs = (
        np.array([[1, 1]], np.int32),
        np.array([[0.5, 0.5]], np.float32),
        one,
        np.zeros((1, 1, 1, 1), np.float32),
    )
    half = bits.view(np.float16).reshape(1, 1, 1, -1)
    for use in usable_instructions():
        output = kernel.ms_deform_attn(kernel.Inputs(half, *inputs), use=use)
        assert np.array_equal(output.ravel(), half.ravel(), equal_nan=True)
        output = kernel.ms_deform_attn(kernel.Inputs(bits.reshape(1, 1, 1, -1), *inputs), use=use)
        found, wanted = (
            torch.from_numpy(numbers.ravel().copy()).view(torch.bfloat16).float().numpy()
            for numbers in (output, bits)
        )
        assert np.array_equal(found, wanted, equal_nan=True)
    # Halfway between neighbours of float16, and beside: weights of two samples make the midpoint.
    random = np.random.default_rng(9)
    value = random.standard_normal((1, 2, 1, 4096)).astype(np.float16)
    value[..., :2048] *= np.float16(1e-5)  # subnormals
    middle = np.zeros((1, 1, 1, 1, 1, 2), np.float32)
    middles = kernel.Inputs(
        value,
        np.array([[1, 2]], np.int32),
        np.array([[0.5, 0.5]], np.float32),
        middle,
        np.zeros((1, 1, 1, 1), np.float32),
    )
    output = kernel.ms_deform_attn(middles)
    assert np.array_equal(output.ravel(), value.astype(np.float32).mean(1).ravel().astype("f2"))


def test_an_output_array_is_filled() -> None:
    case = make_case(np.random.default_rng(10), PAIRS[0])
    wanted = run(case)
    out = np.full_like(wanted, np.nan)
    assert run(case, out=out) is out
    assert (out == wanted).all()
    with pytest.raises(InputError, match=r"out is float64 .*; it must be float32"):
        run(case, out=out.astype(np.float64))


@every_instruction_set
@pytest.mark.parametrize("scenario", [s for s in SCENARIOS if s != "far outside"])
def test_gradients_by_finite_differences(scenario: str, use: str) -> None:
    """Central differences in float64; kinks of bilinear sampling are avoided by the step."""
    random = np.random.default_rng(len(scenario))
    case = make_case(random, PAIRS[0], scenario, widest=6)
    arrays = [array.astype(np.float64) for array in case.arrays]
    arrays[1] = case.level_shapes
    arrays[3] += random.uniform(0.1, 0.2, arrays[3].shape)  # away from whole pixels
    if scenario == "huge logits":
        arrays[4] /= np.abs(arrays[4]).max() / 3
    grad = random.standard_normal(kernel.ms_deform_attn(kernel.Inputs(*arrays)).shape)
    found = kernel.ms_deform_attn_backward(kernel.Inputs(*arrays), grad, use=use)
    for index, gradient in zip((0, 3, 4), found, strict=True):
        for at in random.choice(arrays[index].size, min(30, arrays[index].size), replace=False):
            sides = []
            for step in (1e-5, -1e-5):
                moved = [array.copy() for array in arrays]
                moved[index].flat[at] += step
                sides.append((kernel.ms_deform_attn(kernel.Inputs(*moved)) * grad).sum())
            wanted = (sides[0] - sides[1]) / 2e-5
            assert abs(gradient.flat[at] - wanted) <= 1e-6 * max(1.0, abs(wanted)), (index, at)


@every_instruction_set
def test_float32_gradients_are_those_of_float64(use: str) -> None:
    random = np.random.default_rng(11)
    case = make_case(random, PAIRS[0])
    arrays = list(case.arrays)
    grad = random.standard_normal(run(case).shape).astype(np.float32)
    wide = [array.astype(np.float64) for array in arrays]
    wide[1] = arrays[1]
    found = kernel.ms_deform_attn_backward(kernel.Inputs(*arrays), grad, use=use)
    wanted = kernel.ms_deform_attn_backward(kernel.Inputs(*wide), grad.astype(np.float64), use=use)
    for one, other in zip(found, wanted, strict=True):
        assert np.abs(one - other).max() <= 2e-5 * max(1.0, np.abs(other).max())


WRONG = {
    "three axes": (lambda c: replace(c, value=c.value[0]), "value has 3 axes"),
    "fewer pixels": (lambda c: replace(c, value=c.value[:, 1:]), "pixels, value has"),
    "other queries": (
        lambda c: replace(c, reference_points=c.reference_points[1:]),
        "do not fit value",
    ),
    "other logits": (
        lambda c: replace(c, attention_logits=c.attention_logits[..., 1:]),
        "do not fit value",
    ),
    "integers": (lambda c: replace(c, value=c.value.astype(np.int64)), "have no kernel"),
    "wide shapes": (
        lambda c: replace(c, level_shapes=c.level_shapes.astype(np.int64)),
        "have no kernel",
    ),
    "half logits": (
        lambda c: replace(c, attention_logits=c.attention_logits.astype(np.float16)),
        "have no kernel",
    ),
    "negative sides": (lambda c: replace(c, level_shapes=-c.level_shapes), "sides of at least 1"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_arrays_are_refused(name: str) -> None:
    change, message = WRONG[name]
    case = make_case(np.random.default_rng(12), PAIRS[0])
    case = replace(case, level_shapes=np.array([[2, 3], [1, 4]], np.int32))
    random = np.random.default_rng(13)
    case = Case(
        random.standard_normal((1, 10, 2, 8)).astype(np.float32),
        case.level_shapes,
        random.random((3, 2)).astype(np.float32),
        random.standard_normal((1, 3, 2, 2, 1, 2)).astype(np.float32),
        random.standard_normal((1, 3, 2, 2)).astype(np.float32),
    )
    run(case)
    with pytest.raises(InputError, match=message):
        run(change(case))


def test_arrays_that_are_not_contiguous_are_read_right() -> None:
    case = make_case(np.random.default_rng(14), PAIRS[0])
    strided = [np.repeat(array, 2, axis=-1)[..., ::2] for array in case.arrays]
    assert (kernel.ms_deform_attn(kernel.Inputs(*strided)) == run(case)).all()


def test_without_the_library_the_error_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    case = make_case(np.random.default_rng(15), PAIRS[0])
    monkeypatch.setattr(kernel, "_library", lambda: None)
    assert not kernel.available()
    with pytest.raises(BackendError, match=r"not built.*install a C\+\+ compiler.*reinstall"):
        run(case)
