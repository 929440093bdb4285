"""Compare the kernel, compiled for the host, with float64 and with the ONNX function body."""

from __future__ import annotations

import shutil
from dataclasses import replace

import numpy as np
import onnx
import onnxruntime
import pytest
from deformable_attention import (
    SCENARIOS,
    Case,
    exact,
    half_ulp,
    make_case,
    reference,
    slack,
    stored,
    surrounded,
)
from onnx import TensorProto, helper

from rvos_deploy.engines.plugins.ms_deform_attn.host import host_ms_deform_attn
from rvos_deploy.engines.plugins.ms_deform_attn.spec import (
    TACTICS,
    TYPES,
    DType,
    PluginError,
    Tactic,
    block_shape,
    tactics_for,
)
from rvos_deploy.export.ms_deform_attn import DOMAIN, NODE, attach_function

needs_compiler = pytest.mark.skipif(
    not (shutil.which("g++") or shutil.which("clang++")),
    reason="neither g++ nor clang++ is there to build the kernel for the host",
)
ROUNDS = 24  # of every scenario, for each of the 9 combinations of types


def excess(case: Case, kind: DType, tactic: Tactic = TACTICS[1]) -> tuple[float, float]:
    """(largest error in roundings of the output, largest error beyond one rounding in slacks)."""
    output = exact(host_ms_deform_attn(*case.arrays, tactic=tactic))
    assert np.isfinite(output).all()
    wanted = reference(case)
    error, allowed = np.abs(output - wanted), slack(case)
    rounding = half_ulp(np.abs(wanted) + allowed, kind)
    # Beside outputs near 0 every error is many roundings: those are judged by the slack alone.
    large = np.abs(wanted) > 0.1
    ratio = (error / rounding)[large]
    return float(ratio.max(initial=0.0)), float(((error - rounding) / allowed).max())


@needs_compiler
@pytest.mark.parametrize("types", TYPES, ids="-".join)
def test_the_error_is_one_rounding_of_the_output(types: tuple[DType, DType, DType]) -> None:
    """The error is half an ulp of the output and what fp32 adds (`slack`), over hundreds of random
    shapes.
    """
    random = np.random.default_rng(sum(map(ord, "".join(types))))
    worst: dict[str, tuple[float, float]] = {}
    for scenario in SCENARIOS:
        for round_ in range(ROUNDS):
            case = make_case(random, types, scenario)
            fitting = tactics_for(types[0], case.value.shape[-1])
            found = excess(case, types[0], TACTICS[fitting[round_ % len(fitting)]])
            assert found[1] <= 1.0, (scenario, round_, found)
            old = worst.get(scenario, (0.0, -1.0))
            worst[scenario] = (max(old[0], found[0]), max(old[1], found[1]))
    for scenario, (roundings, slacks) in worst.items():
        print(f"{'-'.join(types)} {scenario}: {roundings:.4f} roundings, {slacks:.3f} of the slack")


@needs_compiler
def test_fp16_up_to_512_columns() -> None:
    """The error is one rounding of the output, and 1 % of it for the sums in fp32."""
    random = np.random.default_rng(512)
    for types in (TYPES[1], TYPES[4]):
        worst = max(excess(make_case(random, types, "wide"), "fp16")[0] for _ in range(100))
        print(f"{'-'.join(types)}: {worst:.4f} roundings of the output, up to 512 columns")
        assert worst <= 1.01


def half_coordinates(case: Case) -> np.ndarray:
    """The published plugins' way, emulated: locations, shares and sums rounded to half each time.

    Softmax is left exact, as their caller may have computed it in fp32.
    """
    half = np.float16
    logits = exact(case.attention_logits)
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    weights = (weights / weights.sum(-1, keepdims=True)).astype(half)
    batch, queries, heads, levels, points, _ = case.sampling_offsets.shape
    output = np.zeros((batch, queries, heads, case.value.shape[-1]), half)
    weights = weights.reshape(batch, queries, heads, levels, points)
    start = 0
    for level, (height, width) in enumerate(case.level_shapes.tolist()):
        size = np.array([width, height])
        location = case.reference_points[None, :, None, None] + (
            case.sampling_offsets[:, :, :, level].astype(np.float32) / size
        )
        pixel = (location.astype(half) * size.astype(half)).astype(half) - half(0.5)
        low = np.floor(pixel).astype(int)
        far = (pixel - low.astype(half)).astype(half)
        for b, q, h, p, dy, dx in np.ndindex(batch, queries, heads, points, 2, 2):
            x, y = low[b, q, h, p, 0] + dx, low[b, q, h, p, 1] + dy
            if 0 <= x < width and 0 <= y < height:
                share_x, share_y = (
                    s if d else half(1) - s for s, d in zip(far[b, q, h, p], (dx, dy), strict=True)
                )
                share = half(half(share_x * share_y) * weights[b, q, h, level, p])
                pixels = case.value[b, start + y * width + x, h]
                output[b, q, h] = output[b, q, h] + (share * pixels).astype(half)
        start += height * width
    return output.reshape(batch, queries, -1)


@needs_compiler
def test_half_precision_coordinates_are_far_worse() -> None:
    """On maps of 400 to 512 columns the kernel needs its fp32 coordinates."""
    random = np.random.default_rng(3)
    ours, theirs = [], []
    for _ in range(10):
        case = make_case(random, TYPES[1], "wide")
        wanted = reference(case)
        ours.append(np.abs(exact(host_ms_deform_attn(*case.arrays)) - wanted).max())
        theirs.append(np.abs(half_coordinates(case).astype(float) - wanted).max())
    print(f"largest error: {max(ours):.2e} with ours, {max(theirs):.2e} with half coordinates")
    assert max(theirs) > 100 * max(ours)


@needs_compiler
def test_tactics_of_the_same_group_give_the_same_bits() -> None:
    """A group's exponentials are added in the order of a tree; only its width changes the sum."""
    random = np.random.default_rng(4)
    for types in TYPES:
        case = make_case(random, types)
        outputs: dict[int, np.ndarray] = {}
        for number in tactics_for(types[0], case.value.shape[-1]):
            tactic = TACTICS[number]
            output = host_ms_deform_attn(*case.arrays, tactic=tactic)
            assert (output == outputs.setdefault(tactic.vectors, output)).all()


@needs_compiler
@pytest.mark.parametrize("head_width", [8, 16, 24, 32, 48, 64, 256, 512, 768])
def test_every_width_of_a_group_gives_the_same_sums(head_width: int) -> None:
    """Groups of 1, 2, 4, 8, 16 and 32 threads, and rows of several groups and of several warps."""
    random = np.random.default_rng(head_width)
    case = make_case(random, TYPES[1], "borders")
    heads = case.value.shape[2]
    value = random.standard_normal((*case.value.shape[:3], head_width))
    wide = replace(case, value=stored(value, "fp16"))
    for number in tactics_for("fp16", head_width):
        roundings, slacks = excess(wide, "fp16", TACTICS[number])
        assert slacks <= 1.0, (heads, number, roundings)


@needs_compiler
def test_nothing_outside_the_map_is_read() -> None:
    """Infinities beside every map, and in maps where no location comes near, do not show."""
    random = np.random.default_rng(5)
    for scenario in SCENARIOS:
        case = make_case(random, TYPES[1], scenario)
        alone = surrounded(case, np.inf)
        assert np.isfinite(host_ms_deform_attn(*alone.arrays)).all()
    lost = replace(
        case,
        value=np.full_like(case.value, np.inf),
        sampling_offsets=np.full_like(case.sampling_offsets, 60000),
    )
    assert (host_ms_deform_attn(*lost.arrays) == 0).all()


@needs_compiler
@pytest.mark.parametrize("offset", [np.inf, -np.inf, np.nan], ids=str)
def test_an_offset_that_is_not_finite_reads_nothing(offset: float) -> None:
    case = make_case(np.random.default_rng(6), TYPES[0])
    case = replace(case, sampling_offsets=np.full_like(case.sampling_offsets, offset))
    assert (host_ms_deform_attn(*case.arrays) == 0).all()


@needs_compiler
def test_values_that_are_not_finite_show_where_they_are_sampled() -> None:
    """An infinite or NaN pixel reaches the outputs of its channel and no other."""
    random = np.random.default_rng(14)
    for types in (TYPES[0], TYPES[1]):
        case = make_case(random, types)
        clean = host_ms_deform_attn(*case.arrays)
        for number in (np.inf, np.nan):
            value = case.value.copy()
            value[..., 3] = number
            output = host_ms_deform_attn(*replace(case, value=value).arrays)
            spoiled = output.reshape(*output.shape[:2], *case.value.shape[2:])
            same = spoiled == clean.reshape(spoiled.shape)
            assert np.delete(same, 3, axis=-1).all()
            assert not np.isfinite(spoiled[..., 3]).all()


@needs_compiler
def test_a_nan_logit_spoils_its_row_alone() -> None:
    for sample in (0, 1, -1):
        case = make_case(np.random.default_rng(15), TYPES[0])
        clean = host_ms_deform_attn(*case.arrays)
        logits = case.attention_logits.copy()
        logits[0, 0, 0, sample] = np.nan
        output = host_ms_deform_attn(*replace(case, attention_logits=logits).arrays)
        width = case.value.shape[-1]
        assert np.isnan(output[0, 0, :width]).all()
        assert (output[0, 0, width:] == clean[0, 0, width:]).all()
        assert (output[:, 1:] == clean[:, 1:]).all()


@needs_compiler
def test_a_logit_of_minus_infinity_switches_its_sample_off() -> None:
    case = make_case(np.random.default_rng(7), ("fp32", "fp32", "fp32"))
    logits = case.attention_logits.copy()
    logits[..., 1:] = -np.inf
    first = replace(case, attention_logits=logits)
    assert np.abs(host_ms_deform_attn(*first.arrays) - reference(first)).max() <= slack(first)


def one_node(kind: int) -> onnx.ModelProto:
    def tensor(name: str, kind: int, *shape: str | int) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, kind, list(shape))

    names = ["value", "level_shapes", "reference_points", "sampling_offsets", "attention_logits"]
    node = helper.make_node(NODE, names, ["output"], domain=DOMAIN, plugin_namespace="rvos")
    inputs = [
        tensor("value", kind, "B", "S", "heads", "D"),
        tensor("level_shapes", TensorProto.INT32, "levels", 2),
        tensor("reference_points", TensorProto.FLOAT, "Q", 2),
        tensor("sampling_offsets", kind, "B", "Q", "heads", "levels", "points", 2),
        tensor("attention_logits", kind, "B", "Q", "heads", "K"),
    ]
    graph = helper.make_graph([node], "one", inputs, [tensor("output", kind, "B", "Q", "C")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    attach_function(model)
    return model


@needs_compiler
@pytest.mark.parametrize("types", [TYPES[0], TYPES[1]], ids="-".join)
def test_the_function_body_in_onnx_runtime_agrees(types: tuple[DType, DType, DType]) -> None:
    """One file serves plugin and fallback, so both must give the same.

    The body computes locations in one fp32. On maps of w columns it may be off by w * 2^-24 pixels
    (times 2, for its product and its sum) on each axis, times a slope of twice the largest value.
    """
    kind = {"fp32": TensorProto.FLOAT, "fp16": TensorProto.FLOAT16}[types[0]]
    session = onnxruntime.InferenceSession(
        one_node(kind).SerializeToString(), providers=["CPUExecutionProvider"]
    )
    random = np.random.default_rng(8)
    worst = 0.0
    for scenario in [s for s in SCENARIOS if s != "far outside"] * 4:
        case = make_case(random, types, scenario)
        (body,) = session.run(None, dict(vars(case)))
        kernel = host_ms_deform_attn(*case.arrays)
        assert body.dtype == kernel.dtype
        difference = np.abs(body.astype(np.float64) - kernel)
        largest = np.abs(exact(case.value)).max()
        columns = case.level_shapes.max() + np.abs(exact(case.sampling_offsets)).max()
        coordinates = 2 * 2 * (2 * columns * 2.0**-24) * largest
        rounding = 2 * half_ulp(np.abs(reference(case)) + slack(case), types[0])  # one each
        assert (difference <= rounding + 2 * slack(case) + coordinates).all(), scenario
        worst = max(worst, float(difference.max()))
    print(f"{types[0]}: body and kernel differ by {worst:.2e} at most")


def test_head_widths_without_a_kernel_are_refused() -> None:
    case = make_case(np.random.default_rng(9), TYPES[1])
    narrow = replace(case, value=case.value[..., :4])
    with pytest.raises(
        PluginError, match=r"heads of 4 channels in fp16; it needs a multiple of 8 "
    ):
        host_ms_deform_attn(*narrow.arrays)
    with pytest.raises(PluginError, match=r"a multiple of 4 up to 256, or of 8 up to 4096: change"):
        block_shape("fp32", 4104, TACTICS[5])
    with pytest.raises(PluginError, match=r"take one of the tactics \[3, 4, 5\]"):
        block_shape("fp16", 2048, TACTICS[1])


def test_types_without_a_kernel_are_refused() -> None:
    case = make_case(np.random.default_rng(10), TYPES[0])
    mixed = replace(case, attention_logits=stored(case.attention_logits, "fp16"))
    with pytest.raises(PluginError, match="values must be fp32, fp16 or bf16, the others the same"):
        host_ms_deform_attn(*mixed.arrays)
