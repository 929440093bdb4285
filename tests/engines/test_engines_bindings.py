"""Check that TensorRT's real bindings have every name that engines/ and the runtime use.

The bindings are real, the libraries under them are stand-ins (tests/engines/real_bindings.py).
Names and signatures are checked, and nothing is run.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from bindings_uses import Found, check_source
from real_bindings import run_with_real_bindings

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
SOURCES = sorted(
    file
    for folder in ("engines", "rvos_deploy/runtime", "benchmarks")
    for file in (ROOT / folder).rglob("*.py")
)


def check(folder: Path, *files: Path) -> dict:
    """Uses and problems of these files, from a process that has the real bindings."""
    code = f"""
import json, sys
sys.path.insert(0, {str(HERE)!r})
from pathlib import Path
from bindings_uses import Found, check_source
roots = {{"trt": trt}}
try:
    import tensorrt_rtx
    roots["rtx"] = tensorrt_rtx
except ImportError:
    pass
found = Found()
for file in {[str(file) for file in files]!r}:
    check_source(Path(file), roots, found)
print(json.dumps({{"version": trt.__version__, "uses": sorted(found.uses),
                  "problems": found.problems}}))
"""
    done = run_with_real_bindings(folder, code)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


NEWER = {
    "11": (),
    "10.9": (
        *("has no load_model_proto", "has no load_initializer"),
        *("has no parse_model_proto", "has no refit_model_proto"),
    ),
    "10.3": ("has no PREFER_AOT_PYTHON_PLUGINS",),
}
"""Names that a version lacks, beside those of the version above it. Our source asks first."""
LACKING = {"11": NEWER["11"], "10.9": NEWER["10.9"], "10.3": NEWER["10.9"] + NEWER["10.3"]}


@pytest.mark.parametrize("real_tensorrt", list(LACKING), indirect=True)
def test_tensorrt_has_every_name_that_we_use(
    request: pytest.FixtureRequest, real_tensorrt: Path
) -> None:
    result = check(real_tensorrt, *SOURCES)
    version = request.node.callspec.params["real_tensorrt"]
    assert result["version"].startswith(version)
    problems = result["problems"]
    known = LACKING[version]
    assert [p for p in problems if not any(text in p for text in known)] == []
    # What is listed here is really missing.
    assert [text for text in known if not any(text in p for p in problems)] == []
    # The check follows values; were it to lose them, it would find nothing and pass.
    for use in (
        "trt.NetworkDefinitionCreationFlag.PREFER_AOT_PYTHON_PLUGINS",
        "trt.BuilderFlag.STRIP_PLAN",
        "config.set_timing_cache(ignore_mismatch=)",
        "builder.build_serialized_network",
        "network.get_layer(index).type",
        "layer.get_output(0).dtype",
        "error.node_operator",
        "context.execute_async_v3",
        "runtime.engine_host_code_allowed",
        "refitter.get_missing_weights",
        "inspector.get_engine_information",
        "trt.ExecutionContextAllocationStrategy.USER_MANAGED",
        "engine.device_memory_size_v2",
        "engine.get_tensor_location",
        "context.set_device_memory",
        "context.get_tensor_shape",
        "IProgressMonitor.step_complete",
    ):
        assert use in result["uses"], result["uses"]
    assert len(result["uses"]) > 60


def test_tensorrt_rtx_has_every_name_that_the_runtime_uses() -> None:
    """TensorRT-RTX's plans run in the back end of TensorRT."""
    rtx = pytest.importorskip("tensorrt_rtx", reason="pip install tensorrt-rtx-cu12")
    found = Found()
    for file in sorted((ROOT / "rvos_deploy/runtime").rglob("*.py")):
        check_source(file, {"trt": rtx, "rtx": rtx}, found)
    assert found.problems == []
    assert "engine.create_runtime_config" in found.uses
    assert len(found.uses) > 40


@pytest.mark.parametrize("real_tensorrt", ["11"], indirect=True)
def test_names_that_tensorrt_lacks_are_found(real_tensorrt: Path, tmp_path: Path) -> None:
    source = tmp_path / "wrong.py"
    source.write_text(
        """
def build(trt, logger, config: trt.IBuilderConfig):
    config.set_flag(trt.BuilderFlag.FP16)
    config.max_workspace_size = 1
    builder = trt.Builder(logger)
    network = builder.create_network(0)
    network.mark_everything()
    network.get_layer(0).precision_of_layer
    builder.build_engine(network, config)
    cache = config.create_timing_cache(b"")
    config.set_timing_cache(cache, forgive=True)
    config.set_flag(1, 2, 3)

class Monitor(trt.IProgressMonitor):
    def step_completed(self, name, step): ...
    def phase_start(self, name): ...
""",
        encoding="utf-8",
    )
    problems = check(real_tensorrt, source)["problems"]
    wrong = (
        "BuilderFlag has no FP16",
        "IBuilderConfig has no max_workspace_size",
        "INetworkDefinition has no mark_everything",
        "ILayer has no precision_of_layer",
        "Builder has no build_engine",
        "no keyword forgive",
        "3 arguments, takes 1",
        "calls no step_completed",
        "IProgressMonitor.phase_start takes",
    )
    for text in wrong:
        assert any(text in problem for problem in problems), (text, problems)
    assert len(problems) == len(wrong)
