"""Test the plugin under NVIDIA's own Python: real bindings, stand-ins for the libraries, no GPU.

``_BUILD`` does what TensorRT's C++ would do: it creates the plugin through the creator and calls
the methods of NVIDIA's ``_TemplateAOTPlugin`` in the builder's order. Its dimension expressions are
plain numbers.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from real_bindings import run_with_real_bindings

from rvos_deploy.engines.plugins.ms_deform_attn.plugin import register_plugin
from rvos_deploy.engines.plugins.ms_deform_attn.spec import KERNEL_NAME, TACTICS, PluginError

_BUILD = """
import json
from types import SimpleNamespace
from rvos_deploy.engines.plugins.ms_deform_attn.plugin import register_plugin, is_registered
from rvos_deploy.errors import RvosError

class Number(trt.IDimensionExpr):
    pass

def number(value):
    made = Number.__new__(Number)
    made.value = value
    return made

class Builder:
    constant = staticmethod(number)

    def operation(self, op, a, b):
        a, b = a.value, b.value
        ops = {trt.DimensionOperation.PROD: a * b, trt.DimensionOperation.CEIL_DIV: -(-a // b)}
        ops[trt.DimensionOperation.SUM] = a + b
        return number(ops[op])

class Setter(dict):
    pass

def described(dtype, shape, dynamic=()):
    desc = trt.DynamicPluginTensorDesc()
    desc.desc.type, desc.desc.format = dtype, trt.TensorFormat.LINEAR
    desc.desc.dims = tuple(-1 if i in dynamic else n for i, n in enumerate(shape))
    desc.min, desc.max = tuple(1 if i in dynamic else n for i, n in enumerate(shape)), tuple(shape)
    return desc

def build(
    value, offsets, logits, dynamic=(0, 1), dynamic_offsets=(0, 1), shapes_type=trt.int32,
    pixels=340,
):
    batch, queries, heads, width, levels, points = 2, pixels, 8, 32, 3, 4
    shapes = [
        (batch, pixels, heads, width),
        (levels, 2),
        (queries, 2),
        (batch, queries, heads, levels, points, 2),
        (batch, queries, heads, levels * points),
    ]
    types = [value, shapes_type, trt.float32, offsets, logits]
    creator = registry.get_creator("MSDeformAttn", "1", "rvos")
    plugin = creator.create_plugin(
        "MSDeformAttn", "rvos", trt.PluginFieldCollection([]), trt.TensorRTPhase.BUILD,
        trt.QuickPluginCreationRequest.STRICT_AOT,
    )
    outputs = plugin.get_output_data_types(types, [len(shape) for shape in shapes])
    expressions = [[number(n) for n in shape] for shape in shapes]
    plugin.get_output_shapes(expressions, [], Builder())
    out_shape = [e._expr.value for e in plugin.output_descs[0].shape_expr]
    in_out = [described(types[0], shapes[0], dynamic), *map(described, types[1:], shapes[1:])]
    in_out[3] = described(types[3], shapes[3], dynamic_offsets)
    in_out.append(described(outputs[0], out_shape))
    supported = plugin.get_supported_format_combinations(in_out, 5)
    plugin.configure_plugin(in_out[:5], in_out[5:])
    results = []
    returned = {}
    real = plugin.aot_impl_function

    def implement(*args):
        returned["result"] = real(*args)
        return returned["result"]

    plugin.aot_impl_function = implement
    for tactic in sorted(plugin.get_valid_tactics()):
        plugin.set_tactic(tactic)
        launch, setter = SimpleNamespace(), Setter()
        plugin.get_launch_params(expressions, in_out, 5, launch, setter, Builder())
        descs = [desc.desc for desc in in_out]
        name, ptx = plugin.get_kernel(descs[:5], descs[5:])
        params, extra = returned["result"][2:]
        results.append({
            "tactic": tactic,
            "name": name,
            "ptx": ptx.decode(),
            "grid": [getattr(params, f"grid_{axis}")._expr.value for axis in "xyz"],
            "block": [getattr(params, f"block_{axis}")._expr.value for axis in "xyz"],
            "shared": params.shared_mem._expr.value,
            "scalars": [e._expr.value for e in extra],
            "handed_over": [setter.nbSymExprs, len(setter), type(extra[0]).__name__],
        })
    return {
        "outputs": [str(t) for t in outputs],
        "out_shape": out_shape,
        "supported": [[str(s.type), str(s.format)] for s in supported],
        "tactics": results,
    }
"""


def run(folder: Path, code: str) -> Any:
    """The JSON that the code prints last."""
    done = run_with_real_bindings(folder, _BUILD + code)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.strip().splitlines()[-1])


def test_nvidias_code_accepts_the_three_signatures(real_tensorrt: Path) -> None:
    found = run(
        real_tensorrt,
        """
before = is_registered()
register_plugin(80)
register_plugin(90)  # idempotent: NVIDIA's own register would raise ValueError
import tensorrt.plugin as trtp
definition = trtp.op.rvos.MSDeformAttn
(creator,) = registry.creators.values()
print(json.dumps({
    "version": trt.__version__,
    "registered": [before, is_registered()],
    "creators": list(map(list, registry.creators)),
    "fields": [field.name for field in creator.field_names],
    "inputs": definition.input_tensor_names,
    "attributes": list(definition.input_attrs),
    "outputs": definition.num_outputs,
    "jit": definition.impl_func is not None,
}))
""",
    )
    assert found.pop("version").startswith(("10.9.", "11."))
    assert found == {
        "registered": [False, True],
        # What the ONNX parser looks up: the node's op_type, plugin_version and plugin_namespace.
        "creators": [["MSDeformAttn", "1", "rvos"]],
        "fields": [],
        "inputs": [
            "value",
            "level_shapes",
            "reference_points",
            "sampling_offsets",
            "attention_logits",
        ],
        "attributes": [],
        "outputs": 1,
        "jit": False,
    }


def test_a_wrong_signature_is_refused(real_tensorrt: Path) -> None:
    """This shows that the check of the signatures works."""
    done = run_with_real_bindings(
        real_tensorrt,
        """
import tensorrt.plugin as trtp

@trtp.register("rvos::Wrong")
def describe(value: trtp.TensorDesc) -> trtp.TensorDesc:
    return value.like()

@trtp.aot_impl("rvos::Wrong")
def implement(value: trtp.TensorDesc, outputs: tuple[trtp.TensorDesc]) -> tuple[str, str]:
    raise NotImplementedError
""",
    )
    assert done.returncode != 0
    assert "ValueError: Signature of the aot_impl function" in done.stderr


@pytest.mark.parametrize(
    ("value", "offsets", "logits", "name"),
    [
        ("float32", "float32", "float32", "FLOAT"),
        ("float16", "float16", "float16", "HALF"),
        ("float16", "float32", "float32", "HALF"),
        ("bfloat16", "bfloat16", "float32", "BF16"),
    ],
)
def test_the_builders_calls_from_types_to_ptx(
    real_tensorrt: Path, value: str, offsets: str, logits: str, name: str
) -> None:
    found = run(
        real_tensorrt,
        f"""
register_plugin(80)
print(json.dumps(build(trt.{value}, trt.{offsets}, trt.{logits})))
""",
    )
    assert found["outputs"] == [f"DataType.{name}"]
    assert found["out_shape"] == [2, 340, 256]
    assert len(found["supported"]) == 6  # one combination: strong typing leaves no choice
    assert {layout for _, layout in found["supported"]} == {"TensorFormat.LINEAR"}
    assert [result["tactic"] for result in found["tactics"]] == list(TACTICS)
    vectors = 8 if value == "float32" else 4  # of 16 bytes for 32 channels
    for result in found["tactics"]:
        tactic = TACTICS[result["tactic"]]
        row, threads = vectors // tactic.vectors, tactic.threads
        assert result["name"] == KERNEL_NAME
        assert f".entry {KERNEL_NAME}(" in result["ptx"]
        assert ".target sm_80" in result["ptx"]
        assert result["block"] == [row, threads // row, 1]
        assert result["grid"] == [-(-340 // (threads // row)), 8, 2]
        assert result["shared"] == 0
        assert result["scalars"] == [340, 340]  # S, Q
        assert result["handed_over"] == [2, 2, "SymInt32"]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ("build(trt.float32, trt.float16, trt.float32)", "values in fp32, sampling offsets"),
        ("build(trt.int8, trt.float32, trt.float32)", "values in DataType.INT8"),
        (
            "build(trt.float16, trt.float16, trt.float16, shapes_type=trt.int64)",
            "level shapes in DataType.INT64",
        ),
        (
            "build(trt.float16, trt.float16, trt.float16, dynamic=(3,))",
            "dynamic axis of head width",
        ),
        *(
            (
                f"build(trt.float16, trt.float16, trt.float16, dynamic_offsets=({axis},))",
                f"dynamic axis of {name}",
            )
            for axis, name in ((2, "heads"), (3, "levels"), (4, "points"))
        ),
    ],
)
def test_unsupported_inputs_are_refused(real_tensorrt: Path, call: str, message: str) -> None:
    found = run(
        real_tensorrt,
        f"""
register_plugin(80)
try:
    {call}
except RvosError as error:
    print(json.dumps(str(error)))
""",
    )
    assert message in found
    assert "export again" in found


@pytest.mark.parametrize("dynamic", [(), (0, 1)], ids=["fixed", "of a profile"])
def test_values_of_two_gibibytes_are_refused(real_tensorrt: Path, dynamic: tuple[int, ...]) -> None:
    """The kernel keeps distances between pixels in 32 bits."""
    found = run(
        real_tensorrt,
        f"""
register_plugin(80)
told = []
for pixels in (2**21 - 1, 2**21):
    try:
        build(trt.float32, trt.float32, trt.float32, {dynamic}, {dynamic}, pixels=pixels)
        told.append(None)
    except RvosError as error:
        told.append(str(error))
print(json.dumps(told))
""",
    )
    assert found[0] is None
    assert found[1].startswith("rvos::MSDeformAttn got 2097152 pixels, 2.0 GiB of values in fp32")


def test_what_the_kernel_needs_is_found_missing_before_the_build(
    real_tensorrt: Path, tmp_path: Path
) -> None:
    """TensorRT prints what a callback raises, and loses it."""
    broken = tmp_path / "kernel.cu"
    broken.write_text("no CUDA at all\n")
    found = run(
        real_tensorrt,
        f"""
from pathlib import Path
from rvos_deploy.engines.plugins.ms_deform_attn import compile
told = []
for source, arch in ((compile.SOURCE, None), (Path({str(broken)!r}), 80)):
    compile.SOURCE = source
    try:
        register_plugin(arch, "bf16")
    except RvosError as error:
        told.append(str(error))
print(json.dumps([told, len(registry.creators)]))
""",
    )
    told, creators = found
    if len(told) == 2:  # no GPU here
        assert "the GPU's architecture cannot be read" in told[0]
        assert creators == 0
    assert "kernel.cu(1): error" in told[-1]


def test_an_error_of_a_callback_is_kept(real_tensorrt: Path) -> None:
    """TensorRT's own error says only that the plugin failed, so ours is raised in its place."""
    found = run(
        real_tensorrt,
        """
from rvos_deploy.engines.plugins.ms_deform_attn.plugin import raise_plugin_failure
told = []
register_plugin(80)
raise_plugin_failure()
for dynamic in ((3,), ()):
    try:
        build(trt.float16, trt.float16, trt.float16, dynamic=dynamic)
    except RvosError:
        pass  # the bindings print it
try:
    raise_plugin_failure()
except RvosError as error:
    told.append(str(error))
register_plugin(80)
raise_plugin_failure()
print(json.dumps(told))
""",
    )
    assert len(found) == 1
    assert "dynamic axis of head width" in found[0]


def test_without_tensorrt_the_fix_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(PluginError, match=r"pip install 'rvos-deploy\[tensorrt\]'"):
        register_plugin()
